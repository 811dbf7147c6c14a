"""The driver's side of a benchmark: a process for each side, asked one at a time.

The published package and this repository share the name ``llm2vec``; so each side has its own
Python, and nothing of this environment reaches the other one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from llm2vec.errors import LLM2VecError
from llm2vec.paths import ROOT

HERE = Path(__file__).parent


class WorkerError(LLM2VecError):
    """A side of a benchmark failed; what it said last is in the message."""


class Worker:
    """A process that answers requests (see :mod:`benchmarks.protocol`)."""

    def __init__(self, name: str, command: Sequence[str | Path]) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        apart = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        self._process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._errors, text=True, encoding="utf-8", cwd=ROOT,
            env=apart | {"HF_HUB_OFFLINE": "1"},
        )  # fmt: skip

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """The answer to a request; raises :class:`WorkerError` when there is none."""
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._fail("ended")
        return self.next()

    def next(self) -> dict[str, Any]:
        """The next answer."""
        line = self._process.stdout.readline()
        if not line:
            self._fail(f"ended with code {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            self._fail(answer["error"])
        return answer

    def _fail(self, what: str) -> None:
        self._errors.seek(0)
        said = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        last = said[-1][:500] if said else "nothing"
        raise WorkerError(f"the side {self.name!r} failed: {what}; it said last: {last}")

    def close(self) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()


def own(module: str, *arguments: str) -> list[str]:
    """Command of a worker of this repository."""
    return [sys.executable, "-m", f"benchmarks.{module}", *arguments]


@contextmanager
def started(commands: Mapping[str, Sequence[str | Path]]) -> Iterator[dict[str, Worker]]:
    """Workers by name, ended with the block."""
    with ExitStack() as stack:
        workers = {}
        for name, command in commands.items():
            workers[name] = Worker(name, command)
            stack.callback(workers[name].close)
        yield workers


def turns(names: Sequence[str], rounds: int) -> Iterator[list[str]]:
    """The order of each round: forwards and backwards, so that no side is always the first."""
    for number in range(rounds):
        yield list(names) if number % 2 == 0 else list(names)[::-1]
