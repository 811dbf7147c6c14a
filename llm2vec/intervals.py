"""Bootstrap intervals of sentence-level scores, for any mteb task of the six types we run.

mteb reports one number per task. Asked for a ``prediction_folder``, it also writes what that
number was computed from (rankings, predicted labels, clusters, similarities); this module
resamples those. So nothing is encoded twice, and the point estimate is mteb's own score:

    with tempfile.TemporaryDirectory() as folder:
        task.load_data()
        result = mteb.evaluate(model, task, cache=None, prediction_folder=folder)
        interval = bootstrap_interval(task, read_predictions(task, folder))

What is drawn with replacement is what a new dataset of the kind would draw anew:

| type | unit | statistic of a draw |
|---|---|---|
| Retrieval, Reranking | queries | mean of the main metric per query |
| Classification | test texts | accuracy, averaged over mteb's training draws, which stay fixed |
| Clustering (legacy) | cluster sets | mean V-measure |
| STS | pairs, see below | Spearman correlation with the cosine similarity |
| PairClassification | pairs, see below | average precision of the similarity that scored best |

Pairs that share a text are not independent, so what is drawn is groups of pairs linked by shared
texts; where no pair shares a text, that is pairs. Where sharing links nearly all of them, there
are no groups: up to four pairs per text, pairs are drawn and the sharing is ignored (WordSim-353);
beyond (all 1,225 pairs of Lee's 50 documents) texts are drawn, and a pair counts as often as the
product of its two texts.

The interval is the percentile interval. It holds the model fixed: it speaks of the sample of
texts, not of training seeds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mteb.abstasks.abstask import AbsTask
from mteb.abstasks.clustering_legacy import AbsTaskClusteringLegacy
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, v_measure_score

from llm2vec.errors import DataError, SettingError

RESAMPLES = 1000
CONFIDENCE = 0.95
LARGEST_GROUP = 0.1  # share of the pairs in one group, beyond which groups are of no use
MANY_PAIRS = 4.0  # pairs per text, beyond which texts are drawn instead of pairs

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """A score (unrounded, 0-1) with its bootstrap interval; ``n`` units were drawn each time."""

    score: float
    low: float
    high: float
    unit: str
    n: int
    confidence: float = CONFIDENCE
    resamples: int = RESAMPLES
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types, for a record."""
        return asdict(self)


@dataclass(frozen=True)
class _Statistic:
    """A score as a function of how often each of ``n`` units is drawn."""

    unit: str
    n: int
    of: Callable[[Counts], float]


def bootstrap_interval(
    task: AbsTask,
    predictions: Any,
    *,
    split: str = "test",
    subset: str | None = None,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval:
    """The main score of a task and its percentile interval, from mteb's predictions.

    Args:
        task: the evaluated task; its data is loaded if it is not.
        predictions: what mteb wrote for this split and subset (:func:`read_predictions`).
        subset: mteb's name of the language subset; by default the task's only one.
        resamples: bootstrap draws; the same seed gives the same interval.

    Raises:
        SettingError: a task type or main metric that is not in the table above.
        DataError: the predictions are not of this data.
    """
    if not 0 < confidence < 1 or resamples < 1:
        raise SettingError(
            f"confidence must lie between 0 and 1 and resamples be positive, got {confidence} "
            f"and {resamples}"
        )
    if not task.data_loaded:
        task.load_data()
    statistic = _statistic(task, predictions, split, _subset(task, subset))
    return _percentiles(statistic, resamples, confidence, seed)


def bootstrap_difference(
    task: AbsTask,
    predictions: Any,
    baseline: Any,
    *,
    split: str = "test",
    resamples: int = RESAMPLES,
) -> Interval:
    """How much higher one set of predictions scores than another of the same items.

    Both scores are taken of the same draws, so what the items have in common cancels out.
    """
    ours, theirs = (
        _statistic(task, p, split, _subset(task, None)) for p in (predictions, baseline)
    )
    paired = _Statistic(ours.unit, ours.n, lambda counts: ours.of(counts) - theirs.of(counts))
    return _percentiles(paired, resamples, CONFIDENCE, 0)


def _percentiles(statistic: _Statistic, resamples: int, confidence: float, seed: int) -> Interval:
    rng = np.random.default_rng(seed)
    even = np.full(statistic.n, 1 / statistic.n)
    draws = [statistic.of(rng.multinomial(statistic.n, even)) for _ in range(resamples)]
    tail = 100 * (1 - confidence) / 2
    # A draw without a positive, or of equal similarities only, has no score.
    defined = [value for value in draws if not np.isnan(value)] or [np.nan]
    low, high = np.percentile(defined, [tail, 100 - tail])
    return Interval(
        score=float(statistic.of(np.ones(statistic.n, dtype=np.int64))),
        low=float(low),
        high=float(high),
        unit=statistic.unit,
        n=statistic.n,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )


def read_predictions(
    task: AbsTask, folder: Path | str, *, split: str = "test", subset: str | None = None
) -> Any:
    """What mteb wrote for a task into its ``prediction_folder``."""
    path, subset = Path(folder) / task.prediction_file_name, _subset(task, subset)
    try:
        return json.loads(path.read_text(encoding="utf-8"))[subset][split]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path} has no predictions of {task.metadata.name} for split {split} ({error}). "
            "Evaluate with prediction_folder set to this folder."
        ) from error


def _subset(task: AbsTask, subset: str | None) -> str:
    if subset is not None:
        return subset
    if len(task.hf_subsets) != 1:
        raise SettingError(
            f"{task.metadata.name} has the subsets {', '.join(task.hf_subsets)}: name one"
        )
    return task.hf_subsets[0]


# --------------------------------------------------------------------------- one per task type
def _statistic(task: AbsTask, predictions: Any, split: str, subset: str) -> _Statistic:
    kind, metric = task.metadata.type, task.metadata.main_score
    data = task.dataset.get(subset, task.dataset)[split]
    if kind in ("Retrieval", "Reranking") and _trec_metric(metric) and not task.skip_first_result:
        return _mean("queries", _query_values(task, predictions, data))
    if kind == "Classification" and metric == "accuracy":
        return _mean("test texts", _correct(task, predictions, data))
    if isinstance(task, AbsTaskClusteringLegacy) and metric == "v_measure":
        return _mean("cluster sets", _v_measures(task, predictions, data))
    if kind == "STS" and metric == "cosine_spearman":
        return _of_pairs(data, task.column_names, _spearman(task, predictions, data))
    if kind == "PairClassification" and metric == "max_ap":
        if len(data) == 1:  # an old layout of the hub: the whole dataset in one row
            data = data[0]
        columns = (task.input1_column_name, task.input2_column_name)
        return _of_pairs(data, columns, _average_precision(task, predictions, data))
    raise SettingError(f"no bootstrap interval for {metric} of {task.metadata.name} ({kind})")


def _mean(unit: str, values: NDArray[np.float64]) -> _Statistic:
    return _Statistic(unit, len(values), lambda counts: float(values @ counts / counts.sum()))


def _check(task: AbsTask, found: int, expected: int) -> None:
    if found != expected:
        raise DataError(
            f"predictions of {task.metadata.name} cover {found} items, its data has {expected}: "
            "they come from another run or another version of the data"
        )


def _trec_metric(metric: str) -> str | None:
    """``ndcg_at_10`` as pytrec_eval calls it, ``ndcg_cut_10``."""
    match = re.fullmatch(r"(ndcg|map)_at_(\d+)", metric)
    return f"{match[1]}_cut_{match[2]}" if match else None


def _query_values(task: AbsTask, predictions: Any, data: Any) -> NDArray[np.float64]:
    import pytrec_eval

    name = _trec_metric(task.metadata.main_score)
    run = {
        query: {d: s for d, s in found.items() if not (task.ignore_identical_ids and d == query)}
        for query, found in predictions.items()
    }
    _check(task, len(run), len(data["queries"]))
    evaluator = pytrec_eval.RelevanceEvaluator(
        data["relevant_docs"], {".".join(name.rsplit("_", 1))}
    )
    return np.array([values[name] for values in evaluator.evaluate(run).values()])


def _correct(task: AbsTask, predictions: Any, data: Any) -> NDArray[np.float64]:
    """Share of mteb's training draws that got each test text right, shape (texts,)."""
    labels = np.asarray(data[task.label_column_name])
    predicted = np.asarray(predictions)
    _check(task, predicted.shape[-1], len(labels))
    return (predicted == labels).mean(axis=0)


def _v_measures(task: AbsTask, predictions: Any, data: Any) -> NDArray[np.float64]:
    sets = [row for row in data[task.label_column_name] if len(set(row)) > 1]
    _check(task, sum(map(len, predictions)), sum(map(len, sets)))
    scores = [v_measure_score(*pair) for pair in zip(sets, predictions, strict=True)]
    # mteb scores a set of one label 1.0 without clustering it.
    return np.array(scores + [1.0] * (len(data[task.label_column_name]) - len(sets)))


def _spearman(task: AbsTask, predictions: Any, data: Any) -> Callable[[Counts], float]:
    gold, similarity = np.asarray(data["score"]), np.asarray(predictions["cosine_scores"])
    _check(task, len(similarity), len(gold))

    def of(counts: Counts) -> float:
        drawn = np.repeat(np.arange(len(gold)), counts)
        return float(spearmanr(gold[drawn], similarity[drawn])[0])

    return of


def _average_precision(task: AbsTask, predictions: Any, data: Any) -> Callable[[Counts], float]:
    """Of the similarity or distance with the highest average precision, as mteb's max_ap."""
    labels = np.asarray(data[task.label_column_name])
    near = [
        np.asarray(values) * (-1 if name.endswith("distances") else 1)
        for name, values in predictions.items()
    ]
    _check(task, len(near[0]), len(labels))
    best = max(near, key=lambda values: average_precision_score(labels, values))

    def of(counts: Counts) -> float:
        if not labels[counts > 0].any():
            return float("nan")
        return float(average_precision_score(labels, best, sample_weight=counts))

    return of


def _of_pairs(data: Any, columns: tuple[str, str], of: Callable[[Counts], float]) -> _Statistic:
    """Draws groups of pairs linked by shared texts; the module says what, where all are linked."""
    first, second = list(data[columns[0]]), list(data[columns[1]])
    number = {text: i for i, text in enumerate(dict.fromkeys(first + second))}
    a, b = (np.array([number[text] for text in side]) for side in (first, second))
    links = coo_array((np.ones(len(a)), (a, b)), shape=(len(number), len(number)))
    groups, group_of_text = connected_components(links, directed=False)
    group = group_of_text[a]
    if np.bincount(group).max() <= max(1, LARGEST_GROUP * len(a)):
        unit = "pairs" if groups == len(a) else "groups of pairs"
        return _Statistic(unit, groups, lambda counts: of(counts[group]))
    if 2 * len(a) / len(number) <= MANY_PAIRS:
        return _Statistic("pairs", len(a), of)
    return _Statistic("texts", len(number), lambda counts: of(counts[a] * counts[b]))
