"""How large each task of MTEB(eng, v1) is, taken from the statistics that mteb itself publishes.

    python -m llm2vec.task_sizes        # writes resources/task_sizes.csv and mteb_parts.csv anew

Both files are committed, so that planning (:mod:`llm2vec.doctor`, :mod:`llm2vec.mirror`) needs
neither mteb nor torch. ``texts`` are those that are encoded, each once; ``characters`` their sum;
``instructed`` of them carry the instruction. mteb's classification draws 8 training texts a label
ten times: the expected number of different ones is counted.
"""

from __future__ import annotations

import csv
import io
from typing import Any

from llm2vec.paths import RESOURCES
from llm2vec.registry import SUITES, TASKS
from llm2vec.results import write_atomic

SIZES, PARTS = RESOURCES / "task_sizes.csv", RESOURCES / "mteb_parts.csv"
PER_LABEL, DRAWS = 8, 10  # mteb's AbsTaskClassification


def _unique(statistics: dict[str, Any]) -> tuple[int, int]:
    """Number of different texts of one column, and their characters."""
    texts = statistics["unique_texts"]
    return texts, round(texts * statistics["average_text_length"])


def _train(statistics: dict[str, Any]) -> tuple[int, int]:
    """Expected number of different training texts that classification encodes."""
    texts, drawn = (
        statistics["num_samples"],
        PER_LABEL * statistics["label_statistics"]["unique_labels"],
    )
    different = round(texts * (1 - (1 - min(1, drawn / texts)) ** DRAWS))
    return different, round(different * statistics["text_statistics"]["average_text_length"])


def size_of(task: Any) -> tuple[int, int, int]:
    """(texts, characters, instructed) of an mteb task, from its descriptive statistics."""
    if hasattr(task, "tasks"):
        parts = [size_of(part) for part in task.tasks]
        return tuple(map(sum, zip(*parts, strict=True)))  # type: ignore[return-value]
    by_split = task.metadata.descriptive_stats
    (split,), (subset,) = task.eval_splits, task.hf_subsets

    def of(name: str) -> dict[str, Any]:
        statistics = by_split[name]
        return statistics.get("hf_subset_descriptive_stats", {}).get(subset, statistics)

    columns = {
        name: _unique(value)
        for name, value in of(split).items()
        if name.endswith("_statistics") and value and "unique_texts" in value
    }
    documents = columns.pop("documents_text_statistics", (0, 0))
    if task.metadata.type == "Classification":
        columns["train"] = _train(of("train"))
    instructed = sum(texts for texts, _ in columns.values())
    characters = documents[1] + sum(characters for _, characters in columns.values())
    return documents[0] + instructed, characters, instructed


def tables() -> tuple[str, str]:
    """Text of ``task_sizes.csv`` and of ``mteb_parts.csv``."""
    import mteb

    sizes: list[tuple[object, ...]] = [("task", "texts", "characters", "instructed")]
    parts: list[tuple[object, ...]] = [("task", "part", "dataset", "revision")]
    for name in SUITES["full"]:
        task = mteb.get_task(name, eval_splits=[TASKS[name].split])
        if TASKS[name].subset != "default":
            task.hf_subsets = [TASKS[name].subset]
        sizes.append((name, *size_of(task)))
        for part in getattr(task, "tasks", ()):
            data = part.metadata.dataset
            parts.append((name, part.metadata.name, data["path"], data["revision"]))
    return _csv(sizes), _csv(parts)


def _csv(rows: list[tuple[object, ...]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def main() -> None:
    """Write both files."""
    for path, text in zip((SIZES, PARTS), tables(), strict=True):
        write_atomic(path, text)


if __name__ == "__main__":
    from llm2vec.console import run

    run(main)
