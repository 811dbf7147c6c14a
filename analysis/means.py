"""Means over tasks, as the leaderboard and the paper form them.

A mean with a missing part is empty, never a mean of the rest, and carries its count. Scores of
datasets that the manifest marks (reconstructed, substitute, ...) take no part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from analysis.collect import Score
from llm2vec.registry import SUITES, TASKS

# Order of the paper's Table 1.
CATEGORIES = (
    "Retrieval", "Reranking", "Clustering", "PairClassification", "Classification", "STS",
    "Summarization",
)  # fmt: skip


@dataclass(frozen=True)
class Mean:
    """``value`` in points, or None when only ``done`` of ``total`` tasks are there."""

    value: float | None
    done: int
    total: int

    @property
    def count(self) -> str:
        return f"{self.done} of {self.total} tasks"


def exact(cell: Mapping[str, Score]) -> dict[str, float]:
    """Scores in points by task, without those of marked datasets."""
    return {task: score.value for task, score in cell.items() if not score.mark}


def mean_of(values: Mapping[str, float], tasks: Sequence[str]) -> Mean:
    """Mean over ``tasks``; empty when one is missing or when there are no tasks."""
    present = [values[task] for task in tasks if task in values]
    complete = bool(tasks) and len(present) == len(tasks)
    return Mean(sum(present) / len(tasks) if complete else None, len(present), len(tasks))


def tasks_by_category(tasks: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Tasks by their type, in the order of the paper's Table 1; empty types are left out."""
    tasks = tuple(tasks)
    grouped = {c: tuple(t for t in tasks if TASKS[t].type == c) for c in CATEGORIES}
    return {category: members for category, members in grouped.items() if members}


def columns_of_table1() -> dict[str, tuple[str, ...]]:
    """Tasks behind each column of Table 1: seven categories and the average over all 56."""
    return tasks_by_category(SUITES["full"]) | {"Average": SUITES["full"]}
