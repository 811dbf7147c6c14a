"""Bootstrap intervals: mteb's own score in the middle, the right unit, honest failures."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from mteb.abstasks.classification import AbsTaskClassification
from mteb.abstasks.clustering_legacy import AbsTaskClusteringLegacy
from mteb.abstasks.pair_classification import AbsTaskPairClassification
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ScoringFunction

from llm2vec.errors import DataError, SettingError
from llm2vec.intervals import (
    Interval,
    _of_pairs,
    bootstrap_difference,
    bootstrap_interval,
    read_predictions,
)

WORDS = [f"w{i}" for i in range(60)]


def _task(base: type, kind: str, metric: str, dataset: Any, **attributes: Any):
    metadata = TaskMetadata(
        name=f"Tiny{kind}", description="tiny", type=kind, main_score=metric,
        dataset={"path": "none", "revision": "0"}, eval_langs=["eng-Latn"], eval_splits=["test"],
        modalities=["text"], category="t2t",
    )  # fmt: skip
    return type("Tiny", (base,), {"metadata": metadata, **attributes})(), dataset


def _ready(made: tuple[Any, Any]) -> Any:
    task, task.dataset = made[0], made[1]
    task.data_loaded = True
    return task


def _split(**columns: list) -> DatasetDict:
    return DatasetDict({"test": Dataset.from_dict(columns)})


def sts(pairs: list[tuple[str, str]], scores: list[float] | None = None):
    scores = scores or [float(i % 7) for i in range(len(pairs))]
    first, second = zip(*pairs, strict=True)
    data = _split(sentence1=list(first), sentence2=list(second), score=scores)
    return _ready(_task(AbsTaskSTS, "STS", "cosine_spearman", data))


def pair_classification():
    data = _split(sentence1=WORDS[:30], sentence2=WORDS[30:], labels=[1, 0, 0] * 10)
    return _ready(_task(AbsTaskPairClassification, "PairClassification", "max_ap", data))


def classification():
    train = Dataset.from_dict({"text": WORDS[:20], "label": [0, 1] * 10})
    test = Dataset.from_dict({"text": WORDS[20:], "label": [0, 1] * 20})
    data = DatasetDict({"train": train, "test": test})
    return _ready(_task(AbsTaskClassification, "Classification", "accuracy", data))


def clustering():
    sets = [WORDS[i : i + 12] for i in range(0, 60, 12)]
    data = _split(sentences=sets, labels=[["a", "b", "c"] * 4] * 5)
    return _ready(_task(AbsTaskClusteringLegacy, "Clustering", "v_measure", data))


def ranking(kind: str = "Retrieval", metric: str = "ndcg_at_10", **attributes: Any):
    queries = [f"q{i}" for i in range(20)]
    documents = [f"d{i}" for i in range(30)]
    split = {
        "corpus": Dataset.from_dict({"id": documents, "title": [""] * 30, "text": WORDS[:30]}),
        "queries": Dataset.from_dict({"id": queries, "text": WORDS[30:50]}),
        "relevant_docs": {q: {f"d{i}": 1, f"d{i + 7}": 1} for i, q in enumerate(queries)},
        "top_ranked": dict.fromkeys(queries, documents) if kind == "Reranking" else None,
    }
    data = {"default": {"test": split}}
    return _ready(_task(AbsTaskRetrieval, kind, metric, data, **attributes))


class RandomEncoder(AbsEncoder):
    """The same random vector for the same text."""

    mteb_model_meta = ModelMeta.create_empty(
        {"name": "test/random", "revision": "0", "similarity_fn_name": ScoringFunction.COSINE}
    )

    def encode(self, inputs, **kwargs: Any) -> np.ndarray:
        texts = [text for batch in inputs for text in batch["text"]]
        return np.stack([np.random.default_rng(list(t.encode())).normal(size=8) for t in texts])


ALL = {
    "STS": lambda: sts(list(zip(WORDS[:30], WORDS[30:], strict=True))),
    "PairClassification": pair_classification,
    "Classification": classification,
    "Clustering": clustering,
    "Retrieval": ranking,
    "Reranking": lambda: ranking("Reranking", "map_at_1000"),
}
UNITS = {
    "STS": ("pairs", 30),
    "PairClassification": ("pairs", 30),
    "Classification": ("test texts", 40),
    "Clustering": ("cluster sets", 5),
    "Retrieval": ("queries", 20),
    "Reranking": ("queries", 20),
}


# --------------------------------------------------------------------------- against mteb
@pytest.mark.parametrize("kind", ALL)
def test_the_score_is_mtebs_and_lies_within(kind: str, tmp_path: Path):
    task = ALL[kind]()
    result = mteb.evaluate(
        RandomEncoder(), task, cache=None, co2_tracker=False, show_progress_bar=False,
        prediction_folder=tmp_path,
    )  # fmt: skip
    score = float(result.task_results[0].get_score())
    interval = bootstrap_interval(task, read_predictions(task, tmp_path), resamples=300)
    assert interval.score == pytest.approx(score, abs=5.1e-6)  # mteb rounds rankings to 5 digits
    assert interval.low < score < interval.high
    assert (interval.unit, interval.n) == UNITS[kind]


# --------------------------------------------------------------------------- known answers
def _classified(right: int, n: int = 100) -> Interval:
    """The interval of one training draw that gets ``right`` of ``n`` texts right."""
    task = classification()
    task.dataset["test"] = Dataset.from_dict({"text": ["x"] * n, "label": [1] * n})
    return bootstrap_interval(task, [[1] * right + [0] * (n - right)])


def test_the_interval_of_a_share_is_the_textbooks():
    """The standard error of 0.8 in 100 is 0.04: the interval is 0.72 to 0.88."""
    interval = _classified(80)
    assert interval.score == 0.8
    assert interval.low == pytest.approx(0.72, abs=0.015)
    assert interval.high == pytest.approx(0.88, abs=0.015)


def test_more_texts_give_a_narrower_interval():
    few, many = _classified(80), _classified(1600, 2000)
    width = (many.high - many.low) / (few.high - few.low)
    assert width == pytest.approx(np.sqrt(100 / 2000), rel=0.15)


def test_no_variation_gives_no_width():
    assert (_classified(100).low, _classified(100).high) == (1.0, 1.0)


@settings(max_examples=15)
@given(right=st.integers(0, 40))
def test_the_score_lies_within_for_any_predictions(right: int):
    interval = _classified(right, 40)
    assert 0 <= interval.low <= right / 40 <= interval.high <= 1


def test_a_seed_repeats_and_another_differs():
    task, predictions = classification(), [[0, 1, 1, 0] * 10]
    first = bootstrap_interval(task, predictions, resamples=100)
    assert first == bootstrap_interval(task, predictions, resamples=100)
    assert first != bootstrap_interval(task, predictions, resamples=100, seed=1)


def test_confidence_widens():
    task, predictions = classification(), [[0, 1, 1, 0] * 10]
    narrow = bootstrap_interval(task, predictions, confidence=0.5)
    wide = bootstrap_interval(task, predictions, confidence=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


# --------------------------------------------------------------------------- units of pairs
def _sts_interval(pairs: list[tuple[str, str]]) -> Interval:
    task = sts(pairs)
    rng = np.random.default_rng(0)
    similarity = np.array(task.dataset["test"]["score"]) + rng.normal(size=len(pairs))
    return bootstrap_interval(task, {"cosine_scores": similarity.tolist()}, resamples=200)


def test_pairs_that_share_texts_are_drawn_together():
    triangles = [
        pair
        for i in range(0, 60, 3)
        for pair in [
            (WORDS[i], WORDS[i + 1]),
            (WORDS[i + 1], WORDS[i + 2]),
            (WORDS[i], WORDS[i + 2]),
        ]
    ]
    interval = _sts_interval(triangles)
    assert (interval.unit, interval.n) == ("groups of pairs", 20)


def test_a_sparse_chain_draws_pairs_and_a_full_square_draws_texts():
    chain = _sts_interval(list(pairwise(WORDS)))
    assert (chain.unit, chain.n) == ("pairs", 59)
    square = _sts_interval([(a, b) for i, a in enumerate(WORDS[:20]) for b in WORDS[:i]])
    assert (square.unit, square.n) == ("texts", 20)


def test_a_drawn_group_brings_all_its_pairs_and_a_pair_the_product_of_its_texts():
    def weights(pairs: list[tuple[str, str]], counts: list[int]) -> list[int]:
        first, second = zip(*pairs, strict=True)
        data = {"a": list(first), "b": list(second)}
        return list(_of_pairs(data, ("a", "b"), lambda found: found).of(np.array(counts)))

    linked = [pair for i in range(0, 60, 3) for pair in pairwise(WORDS[i : i + 3])]
    assert weights(linked, list(range(20))) == [i for i in range(20) for _ in range(2)]
    full = [(a, b) for i, a in enumerate(WORDS[:20]) for b in WORDS[:i]]
    number = {text: i for i, text in enumerate(dict.fromkeys([a for a, _ in full] + WORDS[:1]))}
    assert weights(full, list(range(20))) == [number[a] * number[b] for a, b in full]


def test_a_draw_without_a_positive_is_left_out():
    task = pair_classification()
    task.dataset = _split(sentence1=WORDS[:30], sentence2=WORDS[30:], labels=[1] + [0] * 29)
    interval = bootstrap_interval(task, {"cosine_scores": list(range(30, 0, -1))}, resamples=100)
    assert (interval.low, interval.score, interval.high) == (1.0, 1.0, 1.0)


def test_max_ap_takes_the_best_similarity_and_turns_distances_round():
    task = pair_classification()
    good = [float(label) for label in task.dataset["test"]["labels"]]
    bad = [1 - value for value in good]
    found = bootstrap_interval(task, {"cosine_scores": bad, "dot_scores": good}, resamples=20)
    assert found.score == 1.0
    found = bootstrap_interval(task, {"euclidean_distances": bad}, resamples=20)
    assert found.score == 1.0


# --------------------------------------------------------------------------- rankings
def test_identical_ids_are_ignored_where_the_task_says_so():
    """As ArguAna does: a query that is itself a document must not count as found."""
    run = {f"q{i}": {f"q{i}": 2.0, f"d{i}": 1.0, f"d{i + 7}": 0.5} for i in range(20)}
    strict = bootstrap_interval(ranking(ignore_identical_ids=True), run, resamples=20)
    assert strict.score == pytest.approx(1.0)
    assert bootstrap_interval(ranking(), run, resamples=20).score < 0.8


# --------------------------------------------------------------------------- bad input
def test_predictions_of_other_data_are_refused():
    with pytest.raises(DataError, match="cover 39 items, its data has 40"):
        bootstrap_interval(classification(), [[0] * 39])
    with pytest.raises(DataError, match="TinyRetrieval cover 1 items, its data has 20"):
        bootstrap_interval(ranking(), {"q0": {"d0": 1.0}})


def test_an_unsupported_metric_is_named():
    task = _ready(_task(AbsTaskRetrieval, "Retrieval", "mrr_at_10", ranking().dataset))
    with pytest.raises(SettingError, match="mrr_at_10 of TinyRetrieval"):
        bootstrap_interval(task, {})


@pytest.mark.parametrize(("confidence", "resamples"), [(0.0, 10), (1.0, 10), (0.9, 0)])
def test_senseless_settings_are_refused(confidence: float, resamples: int):
    with pytest.raises(SettingError, match="confidence must lie between 0 and 1"):
        bootstrap_interval(classification(), [[0] * 40], confidence=confidence, resamples=resamples)


def test_missing_or_damaged_predictions_are_named(tmp_path: Path):
    task = classification()
    with pytest.raises(DataError, match=r"TinyClassification_predictions\.json"):
        read_predictions(task, tmp_path)
    (tmp_path / "TinyClassification_predictions.json").write_text('{"default": {}}')
    with pytest.raises(DataError, match="split test"):
        read_predictions(task, tmp_path)


def test_several_subsets_need_a_name():
    task = classification()
    task.hf_subsets = ["en", "de"]
    with pytest.raises(SettingError, match="en, de"):
        bootstrap_interval(task, [[0] * 40])


def test_a_record_can_hold_it():
    held = Interval(0.5, 0.4, 0.6, "queries", 20).as_dict()
    assert held["low"] == 0.4 and held["unit"] == "queries" and held["resamples"] == 1000


# --------------------------------------------------------------------------- differences
def test_a_difference_is_paired() -> None:
    """The same draws on both sides: what the items share cancels out, in either direction."""
    pairs = [(f"a{i}", f"b{i}") for i in range(60)]
    task, rng = sts(pairs), np.random.default_rng(3)
    gold = np.array([float(i % 7) for i in range(60)])
    noisy = {"cosine_scores": (gold + rng.normal(0, 3, 60)).tolist()}
    nearly = {"cosine_scores": (np.array(noisy["cosine_scores"]) + 0.05 * gold).tolist()}
    one, other = (bootstrap_interval(task, p) for p in (nearly, noisy))
    found = bootstrap_difference(task, nearly, noisy)
    assert found.score == pytest.approx(one.score - other.score)
    assert 0 < found.high - found.low < 0.3 * (one.high - one.low)
    back = bootstrap_difference(task, noisy, nearly)
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))
    same = bootstrap_difference(task, noisy, noisy)
    assert (same.low, same.score, same.high) == (0, 0, 0)
