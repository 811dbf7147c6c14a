"""What the claims are tested on: the paper's numbers and ours in one tidy table.

Columns: source (``paper`` or ``results``), kind (``words``: Table 4; ``subset``: the 15 tasks,
Table 5; ``full``: the 56 tasks, Table 1; ``offline``; ``leakage``; ``layers``), model, variant,
pooling, task, score (points; cosines for the two analyses), ``tasks``, the number of tasks or
items behind the score (the paper prints means, we have each task), and ``adapters``, whose our
score was made with: ``own``, ``published``, empty where there are none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd

from analysis.collect import MTEB, PUBLISHED, Results, number_in
from analysis.means import exact
from analysis.paper import our_names, printed
from llm2vec.registry import MODELS, SUITES, WORD_TASKS, Model
from llm2vec.results import NONE

COLUMNS = ("source", "kind", "model", "variant", "pooling", "task", "score", "tasks",
           "adapters")  # fmt: skip
TOTALS = {
    "words": len(WORD_TASKS),
    "subset": len(SUITES["subset"]),
    "full": len(SUITES["full"]),
    "offline": len(SUITES["offline"]),
}
EXPERIMENTS = {
    "words": ("word_probing",), "subset": MTEB, "full": MTEB, "offline": ("offline_suite",),
    "leakage": ("pooling_leakage",), "layers": ("layer_similarity",),
}  # fmt: skip
AUTHORS = ", with the authors' adapters"
Cell = tuple[str, str]  # variant, pooling


def _paper_rows(folder: Path) -> Iterator[tuple]:
    for row in printed(4, folder).itertuples():
        names = our_names(row.model, row.variant, NONE)
        yield "paper", "words", *names, row.task, row.score, 1
    for row in printed(5, folder).itertuples():
        names = our_names(row.model, row.variant, row.pooling)
        yield "paper", "subset", *names, "mean", row.score, TOTALS["subset"]
    averages = printed(1, folder)
    for row in averages[averages["category"] == "Average"].itertuples():
        names = our_names(row.model, row.variant, row.pooling)
        yield "paper", "full", *names, "mean", row.score, TOTALS["full"]


def _own_rows(results: Results) -> Iterator[tuple]:
    kinds = {
        "words": (results.words, WORD_TASKS),
        "subset": (results.mteb, SUITES["subset"]),
        "full": (results.mteb, SUITES["full"]),
        "offline": (results.offline, SUITES["offline"]),
    }
    for kind, (cells, tasks) in kinds.items():
        for names, cell in cells.items():
            for task, score in exact(cell).items():
                if task in tasks:
                    yield "results", kind, *names, task, score, 1
    for record in results.records_of("pooling_leakage"):
        low, _ = record.scores.get("gap_interval") or (None, None)
        gap = number_in(record, "gap", results.root)
        for task, score in (("gap", gap), ("gap_low", gap if low is None else low)):
            yield ("results", "leakage", record.model, record.variant, record.pooling, task, score,
                   record.n)  # fmt: skip
    for record in results.records_of("layer_similarity"):
        yield ("results", "layers", record.model, record.variant, record.pooling, "cosine",
               record.score, record.n)  # fmt: skip


def collect_evidence(results: Results) -> pd.DataFrame:
    """The paper's and our numbers that claims are tested on."""
    rows = [(*row, "") for row in _paper_rows(results.paper)]
    whose = cache(results.adapters_of)
    rows += [(*row, whose(row[2], row[3], *EXPERIMENTS[row[1]])) for row in _own_rows(results)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


@dataclass(frozen=True)
class Means:
    """Means of several cells over the tasks that all of them have; ``per_task`` the parts."""

    values: tuple[float, ...]
    per_task: Mapping[str, tuple[float, ...]]
    tasks: int


@dataclass(frozen=True)
class View:
    """Evidence of one kind, source and model: scores by (variant, pooling) and task.

    ``authors``: variants whose scores here were made with the authors' adapters.
    """

    source: str
    kind: str
    model: Model
    cells: Mapping[Cell, Mapping[str, float]]
    weights: Mapping[str, int]
    authors: frozenset[str] = frozenset()

    def compare(self, *cells: Cell) -> Means | None:
        """Means over the common tasks; None when a cell or a common task is missing."""
        found = [self.cells.get(cell, {}) for cell in cells]
        common = [task for task in found[0] if all(task in other for other in found)]
        if not common:
            return None
        per_task = {task: tuple(cell[task] for cell in found) for task in sorted(common)}
        values = tuple(sum(cell[task] for task in common) / len(common) for cell in found)
        return Means(values, per_task, sum(self.weights[task] for task in common))

    def count(self, tasks: int, *variants: str) -> str:
        """``6 of 15 tasks``, or the items of an analysis; says if a variant is the authors'."""
        of = "triples" if self.kind == "leakage" else "paragraphs"
        of = f"of {TOTALS[self.kind]} tasks" if self.kind in TOTALS else of
        return f"{tasks} {of}" + (AUTHORS if self.authors & set(variants) else "")


def views(evidence: pd.DataFrame) -> list[View]:
    """One view per source, kind and model, in the registry's order of models."""
    order = list(MODELS)
    made = []
    for (source, kind, model), rows in evidence.groupby(["source", "kind", "model"], sort=False):
        cells: dict[Cell, dict[str, float]] = {}
        for row in rows.itertuples():
            cells.setdefault((row.variant, row.pooling), {})[row.task] = row.score
        weights = dict(zip(rows["task"], rows["tasks"], strict=True))
        authors = frozenset(rows.loc[rows["adapters"] == PUBLISHED, "variant"])
        made.append(View(source, kind, MODELS[model], cells, weights, authors))
    return sorted(made, key=lambda view: order.index(view.model.name))
