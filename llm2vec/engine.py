"""One run of the grid: start the engine (Snakemake) on a plan, follow it, say how it ended.

What a user sees comes from the files that jobs write (records, states), not from the engine's
output, so it is the same on a laptop and on a cluster: a line per record on standard error, and at
the end a summary on standard output. One run at a time works in a folder: the lock is held by this
process and by the engine, and the system drops it when both are gone, however they ended.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm2vec.errors import SettingError, UnknownNameError
from llm2vec.jobs import Job, Plan
from llm2vec.locks import Busy, Lock, hold
from llm2vec.paths import ROOT, build_dir
from llm2vec.progress import Progress

SNAKEFILE = ROOT / "experiments" / "Snakefile"
PROFILES = ROOT / "experiments" / "profiles"
KEPT_RUNS = 5
LOST = 600.0  # seconds after which an engine that has not noticed the end of a job never will
_POLL = 1.0


# --------------------------------------------------------------------------- before
def find_profile(name: str) -> Path:
    """Folder of a profile: one of the repository's, or a folder of the user's own."""
    own = sorted(folder.name for folder in PROFILES.iterdir())
    if name in own:
        return PROFILES / name
    with suppress(OSError, ValueError):  # a name that no file can have
        folder = Path(name).expanduser()
        if "/" in name and (folder / "config.yaml").is_file():
            return folder.resolve()
    raise UnknownNameError("profile", name, [*own, "path/to/a/folder/with/config.yaml"])


@contextmanager
def only_one(scratch: Path) -> Iterator[Lock]:
    """Hold the lock of a scratch folder; :class:`SettingError` where another run does."""
    with ExitStack() as stack:
        try:
            lock = stack.enter_context(hold(scratch / "lock"))
        except Busy as error:
            raise SettingError(
                f"another run: {error} ({scratch}). Wait for it or end it, then start again; "
                "nothing was changed."
            ) from error
        yield lock


def new_folder(scratch: Path) -> Path:
    """A fresh folder for a run; the oldest ones go."""
    runs = sorted(path for path in scratch.glob("run-*") if path.is_dir())
    for old in runs[: max(0, len(runs) - KEPT_RUNS + 1)]:
        shutil.rmtree(old, ignore_errors=True)
    folder = scratch / f"run-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    for name in ("done", "state"):
        (folder / name).mkdir(parents=True)
    return folder


# --------------------------------------------------------------------------- the engine
@dataclass
class Engine:
    """Snakemake as a process of its own."""

    folder: Path
    profile: Path
    jobs: int
    lock: Lock
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.folder / "engine.log"

    def start(self) -> subprocess.Popen[bytes]:
        command = [
            sys.executable, "-m", "snakemake",
            "--snakefile", str(SNAKEFILE), "--profile", str(self.profile),
            "--jobs", str(self.jobs), "--nolock", "--nocolor", "--rerun-triggers", "mtime",
        ]  # fmt: skip
        if self._local:
            command += ["--resources", f"mem_mb={_memory_mb()}"]
        with open(self.log, "ab") as out:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self._environment(), pass_fds=(self.lock.descriptor,),
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self.lock.note(process.pid)
        return process

    @property
    def _local(self) -> bool:
        text = (self.profile / "config.yaml").read_text(encoding="utf-8")
        return "executor: local" in text

    def _environment(self) -> dict[str, str]:
        """Jobs that run side by side on one machine share its cores."""
        environment = dict(os.environ)
        if self._local and self.jobs > 1:
            threads = max(1, (os.cpu_count() or 1) // self.jobs)
            environment.setdefault("OMP_NUM_THREADS", str(threads))
        return environment


def _memory_mb() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20


def _stop(process: subprocess.Popen[bytes], folder: Path) -> None:
    """End a run: the jobs see the file, the engine first starts nothing new, then cancels."""
    with suppress(OSError):
        (folder / "stop").touch()
    for number, seconds in ((signal.SIGTERM, 15), (signal.SIGINT, 30), (signal.SIGKILL, None)):
        if process.poll() is None:
            process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return


def unnoticed(folder: Path, states: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether jobs have long ended without the engine's marker, while none is at work.

    Slurm without accounting forgets a job minutes after its end; an engine that asks too late
    waits for ever.
    """
    if any(state["status"] == "running" for state in states.values()):
        return False
    return any(
        state["status"] == "done"
        and time.time() - state["ended"] > LOST
        and not (folder / "done" / name).exists()
        for name, state in states.items()
    )


def _start_again(
    process: subprocess.Popen[bytes], engine: Engine, states: Mapping[str, Mapping[str, Any]]
) -> subprocess.Popen[bytes]:
    """A new engine for the same run, told what has been done."""
    _stop(process, engine.folder)
    (engine.folder / "stop").unlink(missing_ok=True)
    shutil.rmtree(engine.folder / ".snakemake" / "incomplete", ignore_errors=True)
    for name, state in states.items():
        if state["status"] == "done":
            (engine.folder / "done" / name).touch()
    return engine.start()


# --------------------------------------------------------------------------- a run
def run(jobs: Sequence[Job], profile: str, parallel: int, scratch: Path | None = None) -> bool:
    """Run jobs to their end; returns whether all came to theirs.

    Progress goes to standard error, the summary to standard output. Raises KeyboardInterrupt after
    the jobs were stopped, where the user asked for that.
    """
    if parallel < 1:
        raise SettingError(f"{parallel} jobs at a time? It must be 1 or more.")
    scratch = scratch or build_dir() / "grid"
    settings = find_profile(profile)
    signal.signal(signal.SIGTERM, _interrupt)
    with only_one(scratch) as lock:
        plan = Plan.of(jobs)
        try:
            folder = new_folder(scratch)
            plan.write(folder)
        except OSError as error:
            raise SettingError(f"cannot write to {scratch}: {error.strerror}.") from error
        engine = Engine(folder, settings, parallel, lock)
        progress = Progress(folder, plan, parallel)
        process = engine.start()
        interrupted = False
        try:
            while process.poll() is None:
                progress.update()
                if unnoticed(folder, progress.states):
                    progress.say("the engine has lost track of its jobs: starting it again")
                    process = _start_again(process, engine, progress.states)
                time.sleep(_POLL)
        except KeyboardInterrupt:
            interrupted = True
            progress.say("stopping: what is finished is kept")
            _stop(process, folder)
        progress.update()
        fine = progress.summary(engine.log, process.returncode, interrupted)
        if interrupted:
            raise KeyboardInterrupt
        return fine


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
