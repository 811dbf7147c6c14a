"""One job of a plan where it is run, what a user sees of it, and the locks that keep it alone.

No job here loads a model: commands are tiny scripts. The engine itself is tried in
test_grid_engine.py.
"""

import errno
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_records import make_record

from llm2vec import jobs, locks
from llm2vec.costs import Cost, Resources
from llm2vec.errors import SettingError
from llm2vec.jobs import Job, JobError, Plan, log_of, read_plan, read_state, run_job
from llm2vec.progress import Progress, amount, duration, plan_table, tail
from llm2vec.results import write_record

# --------------------------------------------------------------------------- one job
WRITE = (
    "import pathlib, sys\n"
    "for path in sys.argv[1:]:\n"
    "    pathlib.Path(path).write_text('{}')\n"
    "print('wrote', len(sys.argv) - 1)\n"
)


def job(folder: Path, name: str, code: str, *files: str, **values: object) -> Job:
    products = tuple(folder / file for file in files)
    command = ("-c", code, *map(str, products))
    small = {"cost": Cost(10, 2.0), "resources": Resources(0, 100, 1)}
    return Job(name, command, products, len(files), **small | values)


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Path]:
    """`start(*jobs)`: the folder of a run with these jobs."""

    def make(*some: Job, **values: object) -> Path:
        folder = tmp_path / "build" / "grid" / "run-1"
        (folder / "state").mkdir(parents=True)
        replace(Plan.of(some), **values).write(folder)
        return folder

    return make


def test_a_job_leaves_its_product_state_and_log(start: Callable[..., Path], tmp_path: Path) -> None:
    folder = start(job(tmp_path, "a", WRITE, "x.json"))
    run_job(folder, "a")
    assert (tmp_path / "x.json").exists()
    state = read_state(folder, "a")
    assert (state["status"], state["code"], state["attempt"]) == ("done", 0, 1)
    assert log_of(folder, "a") == tmp_path / "build" / "logs" / "a.log"
    assert tail(log_of(folder, "a"), 5)[-1] == "wrote 1"


def test_a_failure_can_be_tried_again_but_a_mistake_is_not(
    start: Callable[..., Path], tmp_path: Path
) -> None:
    once = (
        "import pathlib\np = pathlib.Path('{}')\nif not p.exists():\n    p.touch()\n    exit('no')"
    )
    folder = start(
        job(tmp_path, "once", once.format(tmp_path / "tried")),
        job(tmp_path, "wrong", f"open({str(tmp_path / 'runs')!r}, 'a').write('x'); exit(2)"),
    )
    with pytest.raises(JobError, match=r"exit code 1.*once\.log"):
        run_job(folder, "once")
    run_job(folder, "once")
    assert read_state(folder, "once")["attempt"] == 2
    for _ in range(2):
        with pytest.raises(JobError):
            run_job(folder, "wrong")
    assert (tmp_path / "runs").read_text() == "x"


def test_a_job_that_hangs_is_stopped_at_its_limit(
    start: Callable[..., Path], tmp_path: Path
) -> None:
    hang = job(tmp_path, "h", "import time; time.sleep(60)", resources=Resources(0, 100, 0))
    with pytest.raises(JobError, match="longer than its limit of 0 minutes"):
        run_job(start(hang), "h")


def test_a_job_ends_with_its_run(start: Callable[..., Path], tmp_path: Path) -> None:
    sleep = job(tmp_path, "s", "import time; time.sleep(60)")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    folder = start(sleep, pid=ended.pid)
    with pytest.raises(JobError, match="the process that started the run is gone"):
        run_job(folder, "s")
    Plan.of([sleep]).write(folder)
    (folder / "stop").touch()
    with pytest.raises(JobError, match="stopped with the run"):
        run_job(folder, "s")


def test_a_job_that_an_earlier_run_is_at_waits_says_so_and_gives_up(
    start: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Jobs of a cluster outlive the command that asked for them; a GPU does not wait for ever."""
    monkeypatch.setattr(jobs, "WAIT", 1.2)
    folder = start(job(tmp_path, "a", WRITE, "x.json"))
    states, real = [], jobs.write_state
    monkeypatch.setattr(
        jobs, "write_state", lambda *a, **values: (states.append(values), real(*a, **values))
    )
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    with locks.hold(folder.parent / "locks" / "a"), pytest.raises(JobError, match=holder):
        run_job(folder, "a")
    assert [state["status"] for state in states] == ["waiting", "failed"]
    assert states[0]["why"] == f"waiting for {holder}, an earlier run's, to end"
    assert states[1]["code"] not in (0, jobs.MISTAKE), "the engine tries it again"
    assert states[0]["why"] in log_of(folder, "a").read_text()
    assert capsys.readouterr().err.count(states[0]["why"]) == 1
    run_job(folder, "a")
    assert (tmp_path / "x.json").exists() and read_state(folder, "a")["attempt"] == 2


def test_plans_are_read_as_they_were_written(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("{}")
    first = job(tmp_path, "a", WRITE, "old.json", "new.json")
    plan = Plan.of([first, job(tmp_path, "b", WRITE, "b.json", needs=("a",))])
    assert len(plan.before) == 1
    plan.write(tmp_path)
    assert read_plan(tmp_path) == plan
    with pytest.raises(SettingError, match="no plan"):
        read_plan(tmp_path / "elsewhere")


# --------------------------------------------------------------------------- progress
@pytest.fixture
def shown(start: Callable[..., Path], tmp_path: Path) -> Iterator[tuple[Progress, Path]]:
    write_record(make_record("offline_suite", "m", "v", "mean", "old", 0.1), tmp_path)
    files = ["raw/offline_suite/m/v/mean/old.json", "raw/offline_suite/m/v/mean/new.json"]
    folder = start(
        job(tmp_path, "a", WRITE, *files), job(tmp_path, "b", WRITE, "b.json", needs=("a",))
    )
    with open(tmp_path / "shown.txt", "w", encoding="utf-8") as out:
        yield Progress(folder, read_plan(folder), parallel=1, out=out), tmp_path


def test_a_record_is_reported_once_with_score_and_time(shown: tuple[Progress, Path]) -> None:
    progress, root = shown
    progress.update()
    jobs.write_state(progress.folder, "a", status="running")
    progress.update()
    assert (root / "shown.txt").read_text() == ""  # the old record was there before
    write_record(make_record("offline_suite", "m", "v", "mean", "new", 0.4321), root)
    progress.update()
    progress.update()
    (line,) = (root / "shown.txt").read_text().splitlines()
    assert " new " in line and " 43.21 " in line and " 2.0 s " in line
    assert "1/3 records, 0/2 jobs, 1 running, 0 failed" in line
    write_record(make_record("offline_suite", "m", "v", "mean", "old", 0.2), root)
    jobs.write_state(progress.folder, "a", status="done")
    progress.update()
    assert "2/3 records, 1/2 jobs, 0 running" in progress.count()
    assert progress.seconds_left() > 0


def test_the_summary_names_what_failed_and_how_to_repeat_it(
    shown: tuple[Progress, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    progress, root = shown
    jobs.write_state(progress.folder, "a", status="failed", why="exit code 1")
    log = log_of(progress.folder, "a")
    log.parent.mkdir(parents=True)
    log.write_text(f"first\n{jobs.ATTEMPT} 2 ---\n" + "\n".join(f"line {n}" for n in range(9)))
    progress.update()
    assert progress.summary(root / "engine.log", code=1) is False
    out = capsys.readouterr().out
    assert "0 jobs done, 1 failed, 1 not started" in out and "Not started: b" in out
    assert "line 8" in out and "line 3" in out and "line 2" not in out and "first" not in out
    assert f"again: {progress.plan.jobs['a'].shown()}" in out
    assert "The same command goes on" in out


def test_records_without_data_are_said_to_be_left_out(
    shown: tuple[Progress, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    progress, root = shown
    (root / "b.json").write_text("{}")
    for name in ("a", "b"):
        jobs.write_state(progress.folder, name, status="done")
    progress.update()
    assert progress.summary(root / "engine.log", code=0) is True
    out = capsys.readouterr().out
    assert "2 records left out, their data were not to be had: old, new" in out
    assert f"logs say why: {log_of(progress.folder, 'a').parent}\n" in out
    assert "The same command goes on with what is missing." in out


def test_the_plan_shows_costs_and_their_sum(tmp_path: Path) -> None:
    some = [
        job(tmp_path, "first", WRITE, "x", cost=Cost(1_500_000, 3600)),
        job(tmp_path, "second", WRITE, "y", "z", cost=Cost(500_000, 7200), needs=("first",)),
    ]
    lines = plan_table(some).splitlines()
    assert lines[2].split()[:4] == ["second", "2", "of", "2"] and lines[2].endswith("first")
    assert lines[3].split() == ["2", "jobs", "3", "2.0", "M", "3.0", "h"]
    assert plan_table([]) == "Nothing to do: every record is there."


def test_numbers_are_shown_short() -> None:
    assert [duration(s) for s in (40, 600, 7200, 999_999)] == ["40 s", "10 min", "2.0 h", "12 days"]
    assert [amount(t) for t in (830, 1200, 12_000, 3.4e6, 2e9)] == [
        "830", "1.2 k", "12 k", "3.4 M", "2.0 G",
    ]  # fmt: skip


# --------------------------------------------------------------------------- locks
def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    busy = pytest.raises(locks.Busy, match=f"process {os.getpid()} on ")
    with locks.hold(tmp_path / "lock"), busy, locks.hold(tmp_path / "lock"):
        pass
    with locks.hold(tmp_path / "lock"):
        pass


def test_children_of_a_killed_owner_are_told_to_end(tmp_path: Path) -> None:
    """An owner passes its lock on and is killed: the child must not work on beside us."""
    code = (
        "import pathlib, subprocess, sys, time\nfrom llm2vec.locks import hold\n"
        f"with hold(pathlib.Path({str(tmp_path / 'lock')!r})) as lock:\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],\n"
        "                             pass_fds=(lock.descriptor,))\n"
        "    lock.note(child.pid)\n"
        "    print(child.pid, flush=True)\n"
        "    time.sleep(600)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = int(owner.stdout.readline())
    owner.kill()
    owner.wait()
    assert locks.alive(child)
    with locks.hold(tmp_path / "lock"):
        deadline = time.monotonic() + 30
        while locks.alive(child) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not locks.alive(child)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingError, match="cannot write to"):
        locks.hold(tmp_path / "file" / "lock").__enter__()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with pytest.raises(SettingError, match=r"has no locks .*--scratch=") as caught:
        locks.hold(tmp_path / "lock").__enter__()
    assert str(tmp_path) in str(caught.value) and not isinstance(caught.value, locks.Busy)


def test_a_stale_digest_is_not_a_finished_product(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text("old")
    plan = Plan.of([job(tmp_path, "a", WRITE, "x.json")])
    assert not plan.finished(file)
    file.write_text("new")
    assert plan.finished(file)
