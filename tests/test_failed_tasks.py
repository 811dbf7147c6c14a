"""A task that fails costs no other task; what the next one would meet as well ends the run."""

import runpy
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evaluation_help import MODEL, three_tasks

from llm2vec import console, mteb_tasks
from llm2vec.errors import DataError, RecordError, SettingError
from llm2vec.evaluation import Run, TasksError, execute, plan
from llm2vec.results import iter_records
from llm2vec.vectors import VectorStoreError

pytestmark = [
    pytest.mark.filterwarnings("ignore:An input array is constant"),
    pytest.mark.usefixtures("loader"),
]
BAD = "STS17"  # the second of three
Break = Callable[[BaseException], list[str]]


@pytest.fixture
def three(tmp_path: Path) -> Run:
    return three_tasks(plan(MODEL, "uni", "short6", tmp_path / "results", pooling="mean"))


@pytest.fixture
def breaks(monkeypatch: pytest.MonkeyPatch) -> Break:
    """``breaks(error)``: one of the tasks raises it; returns the list of tasks that were begun."""
    evaluate, begun = mteb_tasks.evaluate_task, []

    def begin(error: BaseException) -> list[str]:
        def evaluate_or_fail(vectors: Any, task: Any) -> Any:
            begun.append(task.name)
            if task.name == BAD:
                raise error
            return evaluate(vectors, task)

        monkeypatch.setattr(mteb_tasks, "evaluate_task", evaluate_or_fail)
        return begun

    return begin


def measured(run: Run) -> set[str]:
    return {record.task for record in iter_records(run.results)}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("NaN values\ndetected"), "ValueError: NaN values detected"),
        (MemoryError("32 GB"), "MemoryError: 32 GB"),
        (VectorStoreError("cannot write vectors"), "cannot write vectors"),
    ],
    ids=["value", "memory", "disk"],
)
def test_the_others_are_measured_and_the_failed_one_is_named(
    three: Run,
    breaks: Break,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    said: str,
) -> None:
    breaks(error)
    with pytest.raises(TasksError) as caught:
        execute(three)
    assert measured(three) == {"STSBenchmark", "SICK-R"}
    assert caught.value.tasks == (BAD,)
    assert f"failed: {BAD} ({said})" in str(caught.value) and caught.value.exit_code == 1
    assert f"  {BAD}: failed, {said}\n" in capsys.readouterr().err


def test_the_same_command_measures_the_failed_one_alone(
    three: Run, breaks: Break, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = mteb_tasks.evaluate_task
    begun = breaks(RuntimeError("out of memory"))
    with pytest.raises(TasksError):
        execute(three)
    monkeypatch.setattr(mteb_tasks, "evaluate_task", evaluate)
    assert execute(three) == 1
    assert begun == ["STSBenchmark", BAD, "SICK-R"]
    assert measured(three) == set(begun)


@pytest.mark.parametrize(
    "error",
    [
        DataError("no data"), SettingError("no such dtype"), RecordError("cannot write"),
        KeyboardInterrupt(), SystemExit(3),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_what_the_next_task_would_meet_as_well_ends_the_run(
    three: Run, breaks: Break, error: BaseException
) -> None:
    begun = breaks(error)
    with pytest.raises(type(error)):
        execute(three)
    assert begun == ["STSBenchmark", BAD]
    assert measured(three) == {"STSBenchmark"}


def test_a_failed_task_keeps_no_memory(three: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error holds the frames that it passed, and those their arrays."""

    class Array:
        pass

    held: list[weakref.ref[Array]] = []

    def fail(*_: Any) -> Any:
        assert [array() for array in held] == [None] * len(held)
        array = Array()
        held.append(weakref.ref(array))
        raise RuntimeError("out of memory")

    monkeypatch.setattr(mteb_tasks, "evaluate_task", fail)
    with pytest.raises(TasksError):
        execute(three)
    assert len(held) == 3


@pytest.mark.parametrize("debug", [False, True])
def test_the_command_says_so_in_a_line_or_with_a_trace(
    three: Run, breaks: Break, repo_root: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], debug: bool,
) -> None:  # fmt: skip
    breaks(ValueError("NaN values"))
    program = runpy.run_path(str(repo_root / "experiments" / "04_mteb_subset.py"))["main"]
    options = f"--model {MODEL} --variant uni --suite short6 --task {BAD} --pooling mean"
    monkeypatch.setattr(
        sys, "argv", ["04", *options.split(), f"--results={three.results}", *["--debug"][:debug]]
    )
    if debug:
        with pytest.raises(TasksError) as caught:
            console.run(program)
        (cause,) = caught.value.__cause__.exceptions
        assert isinstance(cause, ValueError) and cause.__traceback__ is not None
        return
    with pytest.raises(SystemExit) as stopped:
        console.run(program)
    assert stopped.value.code == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: failed: {BAD} (ValueError: NaN values). What is measured")
