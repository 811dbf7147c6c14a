"""95 % bootstrap intervals of mteb scores (percentile method, fixed seed).

mteb gives a mean; what may vary is resampled here, by task type:

| type | resampled | statistic recomputed |
|---|---|---|
| STS | sentence pairs | Spearman correlation of cosines |
| Retrieval | queries | mean nDCG@10 |
| Reranking | queries | mean average precision over the candidates |
| PairClassification | pairs | best average precision over mteb's similarities |
| Classification | mteb's few-shot draws (the test set stays) | mean accuracy |
| Clustering | mteb's cluster sets | mean V-measure |

The first four are recomputed from the vectors, and the point estimate equals mteb's (a test says
so). The last two say how much the draw matters, not how much the test items do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from mteb.abstasks import AbsTask
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score

from llm2vec.mteb_tasks import MTEBEncoder
from llm2vec.prompts import format_instruction
from llm2vec.registry import Task

SAMPLES = 1000
SEED = 0
Interval = tuple[float, float]


def bootstrap_interval(
    loaded: AbsTask, wrapped: MTEBEncoder, task: Task, scores: dict[str, Any]
) -> Interval | None:
    """(low, high) of a task's main score, or None where there is nothing to resample."""
    if task.type == "Classification":
        return mean_interval([s["accuracy"] for s in scores["scores_per_experiment"]])
    if task.type == "Clustering":
        return mean_interval(scores.get("v_measures") or [])
    if task.type in ("Retrieval", "Reranking"):
        return mean_interval(per_query_scores(_split(loaded, task), wrapped, task))
    if task.type in ("STS", "PairClassification"):
        statistic, n = pair_statistic(_split(loaded, task), wrapped, task)
        return _percentiles([statistic(rows) for rows in _resamples(n)])
    return None


def mean_interval(values: Any) -> Interval | None:
    """Interval of the mean of at least two values."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return None
    return _percentiles([values[rows].mean() for rows in _resamples(len(values))])


def _resamples(n: int) -> Any:
    generator = np.random.default_rng(SEED)
    return (generator.integers(0, n, n) for _ in range(SAMPLES))


def _percentiles(statistics: list[float]) -> Interval | None:
    values = np.asarray(statistics, float)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _split(loaded: AbsTask, task: Task) -> Any:
    data = loaded.dataset
    if task.subset in data and task.split not in data:
        data = data[task.subset]
    return data[task.split]


def _vectors(wrapped: MTEBEncoder, texts: list[str], instruction: str) -> np.ndarray:
    return wrapped.vectors.get([(instruction, text) for text in texts], wrapped.pooling)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


# --------------------------------------------------------------------------- pairs
def pair_statistic(
    split: Any, wrapped: MTEBEncoder, task: Task
) -> tuple[Callable[[np.ndarray], float], int]:
    """Main score as a function of row numbers, and the number of rows."""
    instruction = format_instruction(task.instruction)
    a = _vectors(wrapped, list(split["sentence1"]), instruction)
    b = _vectors(wrapped, list(split["sentence2"]), instruction)
    cosine = (_unit(a) * _unit(b)).sum(1)
    if task.type == "STS":
        gold = np.asarray(split["score"], float)
        return lambda rows: _spearman(cosine[rows], gold[rows]), len(gold)
    labels = np.asarray(split["labels"])
    similarities = (
        cosine, (a * b).sum(1), -np.linalg.norm(a - b, axis=1), -np.abs(a - b).sum(1),
    )  # fmt: skip

    def best_precision(rows: np.ndarray) -> float:
        if labels[rows].min() == labels[rows].max():
            return float("nan")
        return max(average_precision_score(labels[rows], s[rows]) for s in similarities)

    return best_precision, len(labels)


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    x, y = rankdata(x), rankdata(y)
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum()))


# --------------------------------------------------------------------------- ranking
def per_query_scores(split: Any, wrapped: MTEBEncoder, task: Task) -> np.ndarray:
    """nDCG@10 (retrieval) or average precision (reranking) of each judged query."""
    corpus, queries = split["corpus"], split["queries"]
    titles = corpus["title"] if "title" in corpus.column_names else [""] * len(corpus)
    texts = [f"{title} {text}".strip() for title, text in zip(titles, corpus["text"], strict=True)]
    documents = _unit(_vectors(wrapped, texts, ""))
    instruction = format_instruction(task.instruction)
    asked = _unit(_vectors(wrapped, list(queries["text"]), instruction))
    ids = np.array(corpus["id"])
    row_of = {name: row for row, name in enumerate(corpus["id"])}
    values = []
    for query, vector in zip(queries["id"], asked, strict=True):
        gains = {d: g for d, g in split["relevant_docs"].get(query, {}).items() if g > 0}
        if not gains:
            continue
        candidates = ids
        rows = slice(None)
        if split["top_ranked"] is not None:
            candidates = np.array(split["top_ranked"][query])
            rows = [row_of[name] for name in candidates]
        order = np.argsort(-(documents[rows] @ vector), kind="stable")
        ranked = [gains.get(name, 0) for name in candidates[order] if name != query]
        values.append(_precision(ranked) if task.type == "Reranking" else _ndcg(ranked, gains))
    return np.array(values)


def _ndcg(ranked: list[int], gains: dict[str, int], depth: int = 10) -> float:
    discount = 1 / np.log2(np.arange(2, depth + 2))
    ideal = np.array(sorted(gains.values(), reverse=True)[:depth], float)
    got = np.array(ranked[:depth], float)
    return float((got * discount[: len(got)]).sum() / (ideal * discount[: len(ideal)]).sum())


def _precision(ranked: list[int]) -> float:
    hits = np.flatnonzero(np.array(ranked) > 0)
    if not len(hits):
        return 0.0
    return float(((np.arange(len(hits)) + 1) / (hits + 1)).mean())
