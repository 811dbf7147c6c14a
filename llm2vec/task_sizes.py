"""How large each task of MTEB(eng, v1) is, taken from the statistics that mteb itself publishes.

    python -m llm2vec.task_sizes        # writes resources/task_sizes.csv and mteb_parts.csv anew

Both files are committed, so that planning (:mod:`llm2vec.doctor`, :mod:`llm2vec.mirror`) needs
neither mteb nor torch. ``texts`` are those that are encoded, each once; ``characters`` their sum;
``instructed`` of them carry the instruction. mteb's classification draws 8 training texts a label
ten times: the expected number of different ones is counted. ``rows`` are the vectors that scoring
holds in memory together, ``candidates`` the (query, document) pairs that reranking ranks.
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
MANY_ROWS = 1 << 20  # from which on repeated texts are held once (llm2vec.vectors)
# Passages encoded and compared at once. mteb's own number takes five times the memory, but each
# chunk puts a thousand hits per query into a heap: over millions of passages that takes hours.
CORPUS_CHUNK, LARGE_CORPUS_CHUNK = 10_000, 50_000
LARGE_CORPUS = 1_000_000
COLUMNS = ("task", "texts", "characters", "instructed", "rows", "candidates")


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


def held_by(task: Any) -> tuple[int, int]:
    """(rows, candidates) of an mteb task; see above. The parts of an aggregate come one by one.

    Retrieval compares its queries with a chunk of the passages, reranking has all its documents,
    and each of the few texts of very many queries once. Pairs come in two rows. The sets of a
    clustering are held one by one, but nothing tells how large they are: its texts are an upper
    bound, as are those of the rest.
    """
    if hasattr(task, "tasks"):
        rows, candidates = zip(*map(held_by, task.tasks), strict=True)
        return max(rows), max(candidates)
    kind, (split,), (subset,) = task.metadata.type, task.eval_splits, task.hf_subsets
    found = task.metadata.descriptive_stats[split]
    found = found.get("hf_subset_descriptive_stats", {}).get(subset, found)
    if kind in ("STS", "PairClassification"):
        return 2 * found["num_samples"], 0
    if kind not in ("Retrieval", "Reranking"):
        return size_of(task)[0], 0
    queries, documents = (
        _rows(found[f"{name}_text_statistics"]) for name in ("queries", "documents")
    )
    if queries >= MANY_ROWS:
        queries = found["queries_text_statistics"]["unique_texts"]
    if kind == "Retrieval":
        return queries + min(documents, chunk_of(documents)), 0
    return queries + documents, found["top_ranked_statistics"]["num_top_ranked"]


def chunk_of(passages: int) -> int:
    """Passages of a corpus that are handled at once."""
    return LARGE_CORPUS_CHUNK if passages > LARGE_CORPUS else CORPUS_CHUNK


def _rows(statistics: dict[str, Any]) -> int:
    """Number of texts of a column, repeated ones too."""
    return round(statistics["total_text_length"] / statistics["average_text_length"])


def tables() -> tuple[str, str]:
    """Text of ``task_sizes.csv`` and of ``mteb_parts.csv``."""
    import mteb

    sizes: list[tuple[object, ...]] = [COLUMNS]
    parts: list[tuple[object, ...]] = [("task", "part", "dataset", "revision")]
    for name in SUITES["full"]:
        task = mteb.get_task(name, eval_splits=[TASKS[name].split])
        if TASKS[name].subset != "default":
            task.hf_subsets = [TASKS[name].subset]
        sizes.append((name, *size_of(task), *held_by(task)))
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
