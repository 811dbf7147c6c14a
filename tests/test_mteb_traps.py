"""Where mteb itself would go wrong: each test shows the trap, then that ours steps over it."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
from datasets import Dataset, disable_progress_bars
from mteb._create_dataloaders import create_dataloader
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.cache_wrappers import CachedEmbeddingWrapper
from mteb.types import PromptType
from tiny_mirror import (
    DOCUMENTS,
    StubEncoder,
    add_task,
    bag_of_words,
)

from llm2vec.evaluation import Run, execute, plan
from llm2vec.mteb_tasks import MTEBEncoder, evaluate_task, load_task
from llm2vec.registry import POOLINGS, get_task
from llm2vec.results import iter_records
from llm2vec.vectors import Vectors

pytestmark = [
    pytest.mark.filterwarnings("ignore:An input array is constant"),
    pytest.mark.filterwarnings("ignore:.*superseded"),
]
STS, SCIFACT, RERANKING = map(get_task, ("STSBenchmark", "SciFact", "SciDocsRR"))
DOCUMENT = PromptType.document


@pytest.fixture(autouse=True)
def root(tmp_path: Path, empty_mirror: Path) -> Path:
    """A mirror with the three tasks; nothing is read or written elsewhere."""
    disable_progress_bars()
    for task in (STS, SCIFACT, RERANKING):
        add_task(empty_mirror, task)
    return tmp_path


class Noting(AbsEncoder):
    """A plain encoder of mteb's kind that notes each text with the instruction mteb gives it."""

    def __init__(self, name: str = "local/one", **experiment: str) -> None:
        self.mteb_model_meta = mteb.models.ModelMeta.create_empty(
            {"name": name, "revision": "1", "experiment_kwargs": experiment or None}
        )
        self.pooling = experiment.get("pooling", "mean")
        self.seen: list[tuple[str, str]] = []

    def encode(self, inputs: Any, *, task_metadata: Any, prompt_type: Any = None, **_: Any) -> Any:
        instruction = self.get_instruction(task_metadata, prompt_type)
        texts = [text for batch in inputs for text in batch["text"]]
        self.seen += [(instruction, text) for text in texts]
        return np.stack([bag_of_words(text, self.pooling) for text in texts])


def by_mteb(model: Any, task: Any, cache: Any = None) -> Any:
    """The score that ``mteb.evaluate`` gives on the same data."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = mteb.evaluate(
            model, load_task(task)[0], cache=cache, co2_tracker=False, show_progress_bar=False
        )
    return done.task_results[0].get_score()


def ours(root: Path, task: Any, poolings: tuple[str, ...] = ("mean",), **encoder: Any) -> Any:
    """(scores by pooling, the encoder with all that it was given)."""
    vectors = Vectors(
        StubEncoder(**encoder), poolings, root / f"vectors-{len(list(root.glob('v*')))}"
    )
    done, _ = evaluate_task(vectors, task)
    vectors.discard()
    return {e.pooling: e.score for e in done}, vectors.encoder


# --------------------------------------------------------------------------- embedding cache
def test_mtebs_embedding_cache_doubles_titles_and_ours_does_not(root: Path) -> None:
    task = mteb.get_task("SciFact")
    corpus: Dataset = load_task(SCIFACT)[0].dataset["default"]["test"]["corpus"]

    def encode(model: Any) -> None:
        loader = create_dataloader(
            corpus, task_metadata=task.metadata, prompt_type=DOCUMENT, batch_size=8
        )
        model.encode(
            loader, task_metadata=task.metadata, hf_split="test", hf_subset="default",
            prompt_type=DOCUMENT,
        )  # fmt: skip

    inner = Noting()
    encode(CachedEmbeddingWrapper(inner, root / "embeddings"))
    assert "Cats Cats cats sleep most of the day" in [text for _, text in inner.seen]  # the trap
    _, encoder = ours(root, SCIFACT)
    documents = sorted(text for instruction, text in encoder.pairs if not instruction)
    assert documents == sorted(f"{title} {text}".strip() for _, title, text in DOCUMENTS)


def test_mtebs_embedding_cache_answers_for_another_model_and_ours_does_not(root: Path) -> None:
    first, second = Noting("local/one"), Noting("local/two")
    for model in (first, second):
        by_mteb(CachedEmbeddingWrapper(model, root / "embeddings"), STS)
    assert first.seen and not second.seen  # the trap: the second model was never asked
    runs = {v: plan("smollm2-135m", v, "subset", root / "results") for v in ("uni", "bi")}
    from llm2vec.evaluation import _vectors_name

    folders = {
        _vectors_name(run, STS, adapters)
        for run in runs.values()
        for adapters in ((), ("a" * 64,), ("b" * 64,))
    }
    other = plan("smollm2-135m", "uni", "subset", root / "results", dtype="bfloat16")
    assert len(folders | {_vectors_name(other, STS, ())}) == 7
    # Within a folder another instruction is another key.
    vectors = Vectors(StubEncoder(), ("mean",), root / "vectors")
    vectors.get([("one:", "a text")], "mean")
    vectors.get([("two:", "a text")], "mean")
    assert vectors.encoder.pairs == [("one:", "a text"), ("two:", "a text")]


# --------------------------------------------------------------------------- instructions
def test_mteb_gives_reranked_documents_the_instruction_and_ours_does_not(root: Path) -> None:
    documents = {f"{title} {text}".strip() for _, title, text in DOCUMENTS}
    theirs = Noting()
    by_mteb(theirs, RERANKING)
    given = {instruction for instruction, text in theirs.seen if text in documents}
    assert given == {RERANKING.instruction}  # the trap
    _, encoder = ours(root, RERANKING)
    assert {i for i, text in encoder.pairs if text in documents} == {""}
    assert {i for i, text in encoder.pairs if text not in documents} == {
        RERANKING.instruction + ":"
    }


def test_mteb_has_no_instruction_for_cqadupstack_and_ours_has_the_papers(root: Path) -> None:
    task = get_task("CQADupstackRetrieval")
    for part in mteb.get_task(task.name).tasks:
        said = {Noting().get_instruction(part.metadata, kind) for kind in PromptType}
        assert said == {"Retrieve text based on user query."}  # the trap, for documents as well
    encoder = MTEBEncoder(Vectors(StubEncoder(), ("mean",), root / "v"), "mean", task)
    assert "duplicates to the given question:" in encoder.instruction
    seen: list[Any] = []
    encoder.vectors.get = lambda pairs, _pooling: seen.extend(pairs)  # type: ignore[method-assign]
    for kind in (PromptType.query, DOCUMENT):
        encoder.encode([{"text": ["a text"]}], prompt_type=kind)
    assert seen == [(encoder.instruction, "a text"), ("", "a text")]


# --------------------------------------------------------------------------- superseded
def test_mteb_advises_successors_and_ours_keeps_to_the_papers_tasks(
    root: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    def advice() -> list[str]:
        said = [r.getMessage() for r in caplog.records] + [str(w.message) for w in recwarn]
        return [text for text in said if "superseded" in text]

    with caplog.at_level(logging.WARNING):
        ours(root, STS)
        assert advice() == []
        mteb.evaluate(Noting(), load_task(STS)[0], cache=None, co2_tracker=False,
                      show_progress_bar=False)  # fmt: skip
        assert advice()  # the trap
    run = plan("smollm2-135m", "uni", "full", root / "results")
    assert sum(bool(task.superseded_by) for task in run.tasks) == 20
    assert not {task.name for task in run.tasks} & {task.superseded_by for task in run.tasks}


# --------------------------------------------------------------------------- one cache entry
def test_mteb_files_all_local_models_as_one_and_ours_does_not(
    root: Path, results_of: Callable[..., list[Any]]
) -> None:
    class Nameless(Noting):
        """As a folder that sentence-transformers loads: without a name that mteb knows."""

        def __init__(self) -> None:
            super().__init__("no_model_name/available")

    cache = mteb.ResultCache(root / "mteb")
    models = [Nameless(), Nameless()]
    for model in models:
        by_mteb(model, STS, cache)
    assert models[0].seen and not models[1].seen  # the trap: answered from the first one's entry
    records = [r for variant in ("uni", "bi") for r in results_of(variant, ("mean",))]
    assert len(records) == 2
    assert len({r.key.path(root) for r in records}) == 2


# --------------------------------------------------------------------------- poolings averaged
@pytest.fixture
def results_of(root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Records of one variant on one task, by the way of the experiments."""

    def measure(variant: str, poolings: tuple[str, ...]) -> list[Any]:
        monkeypatch.setattr(
            "llm2vec.encoder.load_encoder", lambda model, name, **_: StubEncoder(model, name)
        )
        run = plan("smollm2-135m", variant, "subset", root / "results", task=STS.name)
        execute(Run(**{**vars(run), "poolings": poolings}), device="cpu")
        return [r for r in iter_records(root / "results") if r.variant == variant]

    return measure


def test_mteb_averages_over_poolings_and_ours_keeps_each(
    root: Path, results_of: Callable[..., list[Any]]
) -> None:
    cache = mteb.ResultCache(root / "mteb")
    theirs = {p: by_mteb(Noting(pooling=p), STS, cache) for p in POOLINGS}
    assert len(set(theirs.values())) > 1
    loaded = cache.load_results(models=["local/one"], load_experiments="match_name")
    (shown,) = loaded.to_dataframe()["local/one"]
    assert shown == pytest.approx(np.mean(list(theirs.values())), abs=1e-6)  # the trap
    records = {r.pooling: r.score for r in results_of("uni", POOLINGS)}
    assert records == pytest.approx(theirs, abs=1e-6)
