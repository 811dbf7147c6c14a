"""The scripts that evaluate: their command lines, absent data, what they refuse."""

import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from evaluation_help import MODEL, Loader, add_adapter, one_task, three_tasks

from llm2vec.errors import (
    AdapterError,
    DataError,
    LLM2VecError,
    SettingError,
    UnknownNameError,
)
from llm2vec.evaluation import Run, execute, plan
from llm2vec.registry import POOLINGS, TASKS, get_task
from llm2vec.results import iter_records

pytestmark = [
    # A draw of so few rows may well be constant.
    pytest.mark.filterwarnings("ignore:An input array is constant"),
    pytest.mark.usefixtures("loader"),
]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture
def three(results: Path) -> Run:
    """Three short tasks, all poolings."""
    return three_tasks(plan(MODEL, "uni", "short6", results))


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
