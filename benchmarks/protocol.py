"""The worker's side of a benchmark: requests in, measurements out, one JSON object a line.

Each side of a comparison runs in a process of its own, and the driver (:mod:`benchmarks.workers`)
lets them work in turns. The environment of the published package imports this file as well, so it
needs the standard library alone (and transformers for :func:`step_clock`).
"""

from __future__ import annotations

import functools
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

Handler = Callable[..., dict[str, Any]]


class Line:
    """Standard input and output as a line of JSON objects; what libraries print goes to stderr."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def receive(self) -> dict[str, Any] | None:
        """The next request, or None at the end."""
        line = sys.stdin.readline()
        return json.loads(line) if line.strip() else None

    def answer(self, values: dict[str, Any]) -> None:
        print(json.dumps(values), file=self._out, flush=True)


def serve(handlers: dict[str, Handler], line: Line | None = None) -> None:
    """Answer requests ``{"do": name, **arguments}`` until there are no more."""
    line = line or Line()
    while (request := line.receive()) is not None:
        try:
            values = handlers[request.pop("do")](**request)
        except Exception as error:
            traceback.print_exc()
            values = {"error": f"{type(error).__name__}: {error}"}
        line.answer(values)


# --------------------------------------------------------------------------- measuring
def reset_peak() -> None:
    """Let the kernel forget this process's peak of memory, where it can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def memory_mb() -> tuple[float, float]:
    """Resident memory of this process in MB: (now, peak since :func:`reset_peak`).

    Where the kernel does not tell, both are the peak since the start.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        found = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Vm")}
        return int(found["VmRSS"]) / 1024, int(found["VmHWM"]) / 1024
    except (OSError, KeyError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak /= 2**20 if sys.platform == "darwin" else 2**10
        return peak, peak


class Stopwatch:
    """Wall and processor seconds and memory from its making to :meth:`read`."""

    def __init__(self) -> None:
        reset_peak()
        self.before, _ = memory_mb()
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        peak = memory_mb()[1]
        return {
            "seconds": wall, "cpu_seconds": cpu, "before_mb": self.before, "peak_mb": peak,
            "added_mb": max(0.0, peak - self.before),
        }  # fmt: skip


class Counter:
    """Real tokens and padding that go through a transformers model.

    ``forward`` itself is wrapped: sentence-transformers calls it past any hook.
    """

    def __init__(self, model: Any) -> None:
        self.tokens = self.padding = 0
        forward = model.forward

        @functools.wraps(forward)
        def counted(*args: Any, **kwargs: Any) -> Any:
            ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
            mask = kwargs.get("attention_mask")
            real = ids.numel() if mask is None else int(mask.sum())
            self.tokens += real
            self.padding += ids.numel() - real
            return forward(*args, **kwargs)

        model.forward = counted

    def take(self) -> dict[str, int]:
        """What was counted since the last call."""
        counted = {"tokens": self.tokens, "padding": self.padding}
        self.tokens = self.padding = 0
        return counted


def step_clock(line: Line) -> Any:
    """Callback of a Trainer that answers after each step and waits for its next turn.

    A step's time runs from the request to the end of the optimizer's step, data included.
    """
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.watch = Stopwatch()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            line.answer(self.watch.read())
            if line.receive() is None:
                control.should_training_stop = True
            self.watch = Stopwatch()

    return Clock()
