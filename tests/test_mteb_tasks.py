"""mteb's tasks through our encoder, offline: what is encoded with which instruction, and once."""

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mteb
import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score
from tiny_mirror import (
    DOCUMENTS,
    JUDGED,
    MONEY,
    PAIRS,
    QUERIES,
    SPORT,
    StubEncoder,
    add_task,
    bag_of_words,
)

from llm2vec import mteb_tasks, task_sizes
from llm2vec.errors import DataError
from llm2vec.mteb_tasks import MTEBEncoder, evaluate_task, load_task
from llm2vec.registry import POOLINGS, SUITES, Task, get_task
from llm2vec.vectors import Vectors

# A draw of so few rows may well be constant.
pytestmark = pytest.mark.filterwarnings("ignore:An input array is constant")

ONE_OF_EACH = (
    "STSBenchmark", "STS17", "EmotionClassification", "TwentyNewsgroupsClustering",
    "SprintDuplicateQuestions", "SciFact", "SciDocsRR",
)  # fmt: skip
CQA = get_task("CQADupstackRetrieval")


@pytest.fixture(autouse=True)
def root(empty_mirror: Path) -> Path:
    return empty_mirror


def instruction_of(name: str) -> str:
    return get_task(name).instruction + ":"


def cosine(first: str, second: str, pooling: str) -> float:
    a, b = bag_of_words(first, pooling), bag_of_words(second, pooling)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


# --------------------------------------------------------------------------- instructions
@pytest.mark.parametrize("name", ["SciFact", "SciDocsRR"])
def test_documents_never_get_an_instruction_and_queries_do(
    root: Path, evaluate: Callable[..., Any], name: str
) -> None:
    add_task(root, get_task(name))
    encoder = StubEncoder()
    evaluate(name, encoder)
    asked = {text for _, text in QUERIES[:2]}  # the third has no judgement
    by_instruction: dict[str, set[str]] = {}
    for instruction, text in encoder.pairs:
        by_instruction.setdefault(instruction, set()).add(text)
    assert set(by_instruction) == {"", instruction_of(name)}
    assert by_instruction[instruction_of(name)] == asked
    expected = {f"{title} {text}".strip() for _, title, text in DOCUMENTS}
    assert by_instruction[""] <= expected
    assert len(by_instruction[""]) >= 3


def test_a_title_is_put_before_its_text_once(root: Path, evaluate: Callable[..., Any]) -> None:
    add_task(root, get_task("SciFact"))
    encoder = StubEncoder()
    evaluate("SciFact", encoder)
    documents = sorted(text for instruction, text in encoder.pairs if not instruction)
    assert documents == sorted(
        [
            "Cats cats sleep most of the day",
            "dogs run in the park",
            "Banks banks lend money at a price",
            "Chess two players move pieces on a board",
        ]
    )


def test_a_corpus_without_titles(root: Path, evaluate: Callable[..., Any]) -> None:
    file = add_task(root, get_task("SciFact")) / "corpus" / "corpus.parquet"
    pd.read_parquet(file).drop(columns="title").to_parquet(file)
    encoder = StubEncoder()
    evaluate("SciFact", encoder)
    assert {t for i, t in encoder.pairs if not i} == {text for _, _, text in DOCUMENTS}


@pytest.mark.parametrize("name", ["STSBenchmark", "SprintDuplicateQuestions"])
def test_both_sides_of_a_symmetric_task_get_the_instruction(
    root: Path, evaluate: Callable[..., Any], name: str
) -> None:
    add_task(root, get_task(name))
    encoder = StubEncoder()
    evaluate(name, encoder)
    texts = {text for first, second, _ in PAIRS for text in (first, second)}
    assert set(encoder.pairs) == {(instruction_of(name), text) for text in texts}


@pytest.mark.parametrize("name", ["EmotionClassification", "TwentyNewsgroupsClustering"])
def test_every_text_of_other_tasks_gets_the_instruction(
    root: Path, evaluate: Callable[..., Any], name: str
) -> None:
    add_task(root, get_task(name))
    encoder = StubEncoder()
    evaluate(name, encoder)
    assert set(encoder.pairs) == {(instruction_of(name), text) for text in SPORT + MONEY}


# --------------------------------------------------------------------------- once for all
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_each_pair_is_encoded_once_for_all_poolings(
    root: Path, evaluate: Callable[..., Any], name: str
) -> None:
    add_task(root, get_task(name))
    encoder = StubEncoder()
    done = evaluate(name, encoder)
    assert len(encoder.pairs) == len(set(encoder.pairs)) > 0
    assert {poolings for _, poolings in encoder.calls} == {POOLINGS}
    assert [e.pooling for e in done] == list(POOLINGS)


def test_cost_counts_each_token_once(root: Path, evaluate: Callable[..., Any]) -> None:
    add_task(root, get_task("STSBenchmark"))
    encoder = StubEncoder()
    costs = [e.cost for e in evaluate("STSBenchmark", encoder)]
    texts = {text for first, second, _ in PAIRS for text in (first, second)}
    tokens = sum(len(text.split()) for text in texts)
    assert [c["tokens"] for c in costs] == [tokens] * 3
    assert [c["padding_tokens"] for c in costs] == [len(texts)] * 3
    assert [c["poolings_sharing"] for c in costs] == [3] * 3
    assert all(c["seconds"] >= c["encoding_seconds"] for c in costs)


# --------------------------------------------------------------------------- scores
def test_each_pooling_keeps_its_own_score(root: Path, evaluate: Callable[..., Any]) -> None:
    add_task(root, get_task("STSBenchmark"))
    done = evaluate("STSBenchmark", StubEncoder())
    gold = [score for _, _, score in PAIRS]
    expected = [
        spearmanr([cosine(first, second, pooling) for first, second, _ in PAIRS], gold).statistic
        for pooling in POOLINGS
    ]
    assert [e.score for e in done] == pytest.approx(expected, abs=1e-6)
    assert len(set(expected)) > 1
    assert all(e.n == len(PAIRS) for e in done)


def test_pair_classification_scores_the_pairs(root: Path, evaluate: Callable[..., Any]) -> None:
    add_task(root, get_task("SprintDuplicateQuestions"))
    (done,) = evaluate("SprintDuplicateQuestions", StubEncoder(), ("mean",))
    labels = [score > 2.5 for _, _, score in PAIRS]
    similarities = [cosine(first, second, "mean") for first, second, _ in PAIRS]
    expected = average_precision_score(labels, similarities)
    assert done.scores["cosine_ap"] == pytest.approx(expected)
    assert done.score >= done.scores["cosine_ap"]  # the best of several similarities
    assert done.n == len(PAIRS)


def test_retrieval_is_scored_over_the_judged_queries(
    root: Path, evaluate: Callable[..., Any]
) -> None:
    add_task(root, get_task("SciFact"))
    (done,) = evaluate("SciFact", StubEncoder(), ("mean",))
    gains = []
    for query, gold, _ in JUDGED:
        asked = dict(QUERIES)[query]
        ranked = sorted(DOCUMENTS, key=lambda d: -cosine(asked, f"{d[1]} {d[2]}".strip(), "mean"))
        rank = [document for document, _, _ in ranked].index(gold)
        gains.append(1 / np.log2(rank + 2))
    assert done.score == pytest.approx(np.mean(gains), abs=1e-5)
    assert done.n == len(JUDGED)


def test_a_corpus_is_encoded_and_compared_in_chunks(
    root: Path, evaluate: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the vectors of all passages would be in memory at once; the scores are the same."""
    add_task(root, get_task("SciFact"))
    (whole,) = evaluate("SciFact", StubEncoder(), ("mean",))
    asked: list[int] = []
    get = Vectors.get

    def counting(self: Vectors, pairs: Any, pooling: str) -> np.ndarray:
        asked.append(sum(not instruction for instruction, _ in pairs))
        return get(self, pairs, pooling)

    monkeypatch.setattr(Vectors, "get", counting)
    monkeypatch.setattr(task_sizes, "CORPUS_CHUNK", 3)
    (chunked,) = evaluate("SciFact", StubEncoder(), ("mean",))
    assert [n for n in asked if n] == [3, 1]
    assert chunked.scores == whole.scores
    monkeypatch.setattr(task_sizes, "LARGE_CORPUS", 3)
    monkeypatch.setattr(task_sizes, "LARGE_CORPUS_CHUNK", 2)
    asked.clear()
    (large,) = evaluate("SciFact", StubEncoder(), ("mean",))
    assert [n for n in asked if n] == [2, 2]
    assert large.scores == whole.scores


@pytest.mark.parametrize(
    ("passages", "chunk"), [(5_183, 10_000), (1_000_000, 10_000), (1_000_001, 50_000)]
)
def test_a_large_corpus_is_taken_in_large_chunks(passages: int, chunk: int) -> None:
    """Records of the smaller ones were made with the smaller chunk."""
    data = {"default": {"test": {"corpus": range(passages)}}}
    loaded = SimpleNamespace(dataset=data)
    assert mteb_tasks._chunk(loaded, get_task("SciFact")) == chunk


def test_reranking_ranks_the_candidates_alone(root: Path, evaluate: Callable[..., Any]) -> None:
    folder = add_task(root, get_task("SciDocsRR"))
    (good,) = evaluate("SciDocsRR", StubEncoder(), ("mean",))
    assert good.score == 1.0
    # With the judged document no candidate, nothing can be found.
    file = folder / "top_ranked" / "test.parquet"
    pd.DataFrame({"query-id": ["q1", "q2"], "corpus-ids": [["d2"], ["d4", "d2"]]}).to_parquet(file)
    (bad,) = evaluate("SciDocsRR", StubEncoder(), ("mean",))
    assert bad.score == 0.0


def test_separable_classes_are_told_apart(root: Path, evaluate: Callable[..., Any]) -> None:
    for name in ("EmotionClassification", "TwentyNewsgroupsClustering"):
        add_task(root, get_task(name))
        (done,) = evaluate(name, StubEncoder(), ("mean",))
        assert done.score == pytest.approx(1.0)


@pytest.mark.parametrize("name", SUITES["subset"])
def test_every_task_of_the_subset_runs_from_a_mirror(
    root: Path, evaluate: Callable[..., Any], name: str
) -> None:
    """With scores that are fit for a record."""
    add_task(root, get_task(name))
    (done,) = evaluate(name, StubEncoder(), ("mean",))
    assert done.scores[get_task(name).metric] == done.score
    assert isinstance(done.score, float) and done.n > 0
    assert json.loads(json.dumps(done.scores)).keys() == done.scores.keys()
    assert done.seed == 42


def test_a_baseline_has_one_pooling_of_its_own(root: Path, evaluate: Callable[..., Any]) -> None:
    add_task(root, get_task("STSBenchmark"))
    encoder = StubEncoder("minilm-l6", "encoder")
    (done,) = evaluate("STSBenchmark", encoder, ("none",))
    assert done.pooling == "none"
    assert {poolings for _, poolings in encoder.calls} == {("none",)}


def test_the_model_is_named_by_model_variant_and_adapters(tmp_path: Path) -> None:
    """Two encoders under one name would share whatever mteb keeps by name."""

    def named(*encoder: Any, pooling: str = "mean") -> tuple[Any, ...]:
        vectors = Vectors(StubEncoder(*encoder), POOLINGS, tmp_path)
        meta = MTEBEncoder(vectors, pooling, get_task("SciFact")).mteb_model_meta
        return meta.name, meta.revision, tuple(meta.experiment_kwargs.items())

    names = {
        named("smollm2-135m", "uni"),
        named("smollm2-135m", "bi"),
        named("smollm2-135m", "bi-mntp", ("a" * 64,)),
        named("smollm2-135m", "bi-mntp", ("b" * 64,)),
        named("smollm2-135m", "uni", pooling="eos"),
    }
    assert len(names) == 5


# --------------------------------------------------------------------------- mteb's habits
def test_a_superseded_task_is_used_without_a_word(
    root: Path,
    evaluate: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> None:
    task = get_task("STSBenchmark")
    assert task.superseded_by == "STSBenchmark.v2"
    add_task(root, task)
    with caplog.at_level(logging.WARNING):
        evaluate("STSBenchmark", StubEncoder())
    assert load_task(task)[0].metadata.name == "STSBenchmark"
    assert [r for r in caplog.records if "superseded" in r.getMessage()] == []
    assert [w for w in recwarn if "superseded" in str(w.message)] == []
    # The filter is gone afterwards: whoever uses mteb directly is advised.
    with pytest.warns(UserWarning, match="superseded"):
        mteb.get_task("STSBenchmark").check_if_dataset_is_superseded()


@pytest.mark.filterwarnings("ignore:.*superseded")
def test_nothing_is_kept_in_or_read_from_mtebs_cache(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    default = sys.modules["mteb.evaluate"]._DEFAULT_CACHE
    folder = tmp_path / "mteb"
    monkeypatch.setattr(default, "cache_path", folder)
    task = get_task("STSBenchmark")
    add_task(root, task)
    for run in range(2):
        vectors = Vectors(StubEncoder(), ("mean",), tmp_path / "vectors" / str(run))
        evaluate_task(vectors, task)
        assert len(vectors.encoder.pairs) == 12  # the second run encoded all texts again
    assert not folder.exists()
    mteb.evaluate(MTEBEncoder(vectors, "mean", task), load_task(task)[0], co2_tracker=False)
    assert list(folder.rglob("STSBenchmark.json"))  # this is what a cache would have looked like


# --------------------------------------------------------------------------- CQADupstack
@pytest.fixture
def parts(root: Path) -> list[Task]:
    """The twelve datasets of the aggregate, the last of them of a weaker status."""
    made = []
    for part in mteb.get_task("CQADupstackRetrieval").tasks:
        data = part.metadata.dataset
        made.append(Task(part.metadata.name, "Retrieval", "ndcg_at_10", "", dataset=data["path"]))
        part.data_loaded = False
    for task in made[:-1]:
        add_task(root, task)
    add_task(root, made[-1], "reconstructed")
    return made


def test_cqadupstack_is_the_mean_of_its_parts_with_the_papers_instruction(
    root: Path, tmp_path: Path, parts: list[Task], evaluate: Callable[..., Any]
) -> None:
    qrels = root / parts[0].dataset / "qrels" / "test.parquet"
    frame = pd.read_parquet(qrels)
    frame["corpus-id"] = "d2"  # one part where the bag of words fails
    frame.to_parquet(qrels)
    encoder = StubEncoder()
    vectors = Vectors(encoder, ("mean",), tmp_path / "vectors")
    (done,), source = evaluate_task(vectors, CQA)
    instructions = {text: instruction for instruction, text in encoder.pairs}
    assert instructions["who lends money"] == (
        "Given a question, retrieve detailed question descriptions from Stackexchange that are "
        "duplicates to the given question:"
    )
    assert instructions["dogs run in the park"] == ""
    add_task(root, get_task("SciFact"))
    (other,) = evaluate("SciFact", StubEncoder(), ("mean",))
    assert 0 < done.score < other.score
    assert done.score > other.score * 11 / 12
    assert done.n == 12 * len(JUDGED)
    assert done.interval is None
    assert (source.id, source.source) == ("CQADupstackRetrieval", "mirror")
    assert source.status == "reconstructed"
    assert len(source.revision) == 16


def test_a_missing_part_of_cqadupstack_is_named(root: Path, parts: list[Task]) -> None:
    gone = root / parts[3].dataset / "corpus" / "corpus.parquet"
    gone.unlink()
    with pytest.raises(DataError, match=f"the mirror lacks {gone}"):
        load_task(CQA)
