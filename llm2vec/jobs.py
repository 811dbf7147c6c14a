"""A job of the grid, the plan of a run, and how one job is run where the engine puts it.

A run lives in a folder of its own below ``build/grid``, so the engine's file times mean nothing:

    plan.json            the jobs, and which process asked for them
    state/{job}.json     running, done or failed; written by the job itself, on any machine
    done/{job}           the engine's marker
    engine.log           what the engine says
    stop                 whoever sees it ends

Logs of the jobs are in ``build/logs/{job}.log``. A job writes records and nothing else that counts,
each whole or not at all; killed at any moment it is asked for again and goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from llm2vec.costs import Cost, Resources
from llm2vec.errors import LLM2VecError, SettingError
from llm2vec.locks import Busy, Lock, alive, hold
from llm2vec.paths import ROOT
from llm2vec.results import write_atomic

MISTAKE = 2  # exit code of a mistake that the same command would only repeat
SECONDS_TO_DIE = 20.0
ATTEMPT = "--- started "  # what a log says where an attempt begins
# Seconds that a job waits for the same job of an earlier run, with a GPU in hand: long enough for
# one that is about to end. Slurm's jobs outlive the command that asked for them by days.
WAIT = 300.0
_POLL = 1.0


class JobError(LLM2VecError):
    """A job that did not come to its end."""

    exit_code = 1


@dataclass(frozen=True)
class Job:
    """One command. ``products``: files that it will write, of ``total`` that belong to it."""

    name: str
    command: tuple[str, ...]
    products: tuple[Path, ...]
    total: int
    cost: Cost
    resources: Resources
    needs: tuple[str, ...] = ()

    def shown(self) -> str:
        """The command line for a shell, in the root of the repository."""
        interpreter = Path(sys.executable)
        if interpreter.is_relative_to(ROOT):
            interpreter = interpreter.relative_to(ROOT)
        return shlex.join([str(interpreter), *self.command])


@dataclass(frozen=True)
class Plan:
    """Jobs by name, and for each product that is there already the digest of its old content."""

    jobs: Mapping[str, Job]
    before: Mapping[str, str] = field(default_factory=dict)
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)

    @classmethod
    def of(cls, jobs: Iterable[Job]) -> Plan:
        """A plan of this process."""
        named = {job.name: job for job in jobs}
        files = [path for job in named.values() for path in job.products]
        return cls(named, {str(path): digest(path) for path in files if path.exists()})

    def finished(self, product: Path) -> bool:
        """Whether a product has been written since the plan was made."""
        return product.exists() and self.before.get(str(product)) != digest(product)

    def write(self, folder: Path) -> None:
        values = asdict(self) | {"jobs": [asdict(job) for job in self.jobs.values()]}
        write_atomic(folder / "plan.json", json.dumps(values, default=str, indent=1))


def read_plan(folder: Path) -> Plan:
    """The plan of a run; :class:`SettingError` where the folder has none."""
    file = folder / "plan.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingError(f"{file}: no plan of a run. Start by 'make reproduce'.") from error
    jobs = [
        Job(
            name=job["name"],
            command=tuple(job["command"]),
            products=tuple(map(Path, job["products"])),
            total=job["total"],
            cost=Cost(**job["cost"]),
            resources=Resources(**job["resources"]),
            needs=tuple(job["needs"]),
        )
        for job in values.pop("jobs")
    ]
    return Plan({job.name: job for job in jobs}, **values)


def digest(path: Path) -> str:
    """sha256 of a file's content, empty where there is none."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


# --------------------------------------------------------------------------- state
def write_state(folder: Path, name: str, **values: Any) -> None:
    write_atomic(folder / "state" / f"{name}.json", json.dumps(values))


def read_state(folder: Path, name: str) -> dict[str, Any]:
    """``status`` and what belongs to it; ``status`` is ``waiting`` before a job began."""
    try:
        return json.loads((folder / "state" / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"status": "waiting"}


def log_of(folder: Path, name: str) -> Path:
    """Log of a job, the same for all runs: ``build/logs/{job}.log``."""
    return folder.parent.parent / "logs" / f"{name}.log"


# --------------------------------------------------------------------------- running one
def run_job(folder: Path, name: str) -> None:
    """Run one job of a plan to its end; the engine calls this, on whatever machine.

    Raises :class:`JobError` for a command that fails, passes its limit, or is stopped with the run,
    and where the same job of an earlier run does not end.
    """
    plan = read_plan(folder)
    job = plan.jobs[name]
    last = read_state(folder, name)
    attempt = last.get("attempt", 0) + 1
    if last.get("code") == MISTAKE:
        raise JobError(f"{name}: not tried again, the same mistake would come back")
    state = {"attempt": attempt, "began": time.time(), "host": socket.gethostname()}
    try:
        told = partial(_wait_for, folder, name, state)
        with hold(folder.parent / "locks" / name, wait=WAIT, told=told) as lock:
            state |= {"began": time.time()}
            write_state(folder, name, status="running", **state)
            code, why = _run(folder, plan, job, attempt, lock)
            state |= {"ended": time.time(), "code": code, "why": why}
            write_state(folder, name, status="failed" if code else "done", **state)
    except Busy as error:
        code, why = 1, f"{error}, started by an earlier run: wait for it or end it"
        write_state(folder, name, status="failed", **state, ended=time.time(), code=code, why=why)
    if code:
        raise JobError(f"{name}: {why}; see {log_of(folder, name)}")


def _wait_for(folder: Path, name: str, state: Mapping[str, Any], holder: str) -> None:
    """Say whom a job waits for: in its state, its log, and to whoever runs it."""
    why = f"waiting for {holder}, an earlier run's, to end"
    write_state(folder, name, status="waiting", **state, why=why)
    log = log_of(folder, name)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as out:
        out.write(f"{why}\n")
    print(f"{name}: {why}", file=sys.stderr, flush=True)


def _run(folder: Path, plan: Plan, job: Job, attempt: int, lock: Lock) -> tuple[int, str]:
    """(exit code, reason) of a job's command, its output appended to the log."""
    log = log_of(folder, job.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as out:
        where = f"{time.strftime('%F %T')}, {socket.gethostname()}, attempt {attempt}"
        out.write(f"{job.shown()}\n{ATTEMPT}{where} ---\n".encode())
        out.flush()
        process = subprocess.Popen(
            [sys.executable, *job.command],
            cwd=ROOT, pass_fds=(lock.descriptor,),
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
        lock.note(process.pid)
        minutes = job.resources.limit(attempt)
        limit = time.monotonic() + 60 * minutes
        why = ""
        try:
            while process.poll() is None:
                why = _reason_to_stop(folder, plan) or (
                    f"longer than its limit of {minutes} minutes"
                    if time.monotonic() > limit
                    else ""
                )
                if why:
                    break
                time.sleep(_POLL)
        finally:
            _end(process)
        code = process.returncode
        if why:
            code = code or 1
        elif code:
            why = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        if code:
            out.write(f"{why}\n".encode())
    return code, why


def _reason_to_stop(folder: Path, plan: Plan) -> str:
    if (folder / "stop").exists():
        return "stopped with the run"
    if plan.host == socket.gethostname() and not alive(plan.pid):
        return "stopped: the process that started the run is gone"
    return ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, then make it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(SECONDS_TO_DIE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
