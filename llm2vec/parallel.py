"""Several devices as one encoder: one process a device, each with a model of its own.

    load = functools.partial(load_encoder, "mistral-7b", "bi-mntp", adapters="published")
    with ParallelEncoder(load, ["cuda:0", "cuda:1"]) as encoder:
        vectors = encoder.encode_poolings(texts, ("mean",))

The experiments take it as ``--device cuda:0,cuda:1`` (or ``cuda:all``). Texts are dealt out in
portions of similar length, longest first, to whoever is free; rows come back in the order of the
texts. A process that fails, dies or cannot load ends the call with an error naming its device.
Vectors equal those of one process up to the rounding of differently padded batches.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from multiprocessing import connection, get_context
from types import SimpleNamespace
from typing import Any

import numpy as np

from llm2vec.errors import LLM2VecError, SettingError
from llm2vec.inputs import as_pairs, pooling_of
from llm2vec.portions import portions

PORTIONS = 4  # for each process and call: few enough to fill batches, enough to even out the end
_FACTS = (
    "model", "variant", "adapters", "embedding_size", "pooling", "poolings",
    "attention_implementation",
)  # fmt: skip


class WorkerError(LLM2VecError):
    """A process that could not load its model, or that died."""

    exit_code = 1


def split_devices(device: str | None) -> list[str]:
    """Devices of ``cuda:0,cuda:1``; ``cuda:all`` is every GPU there is. Empty for None."""
    devices = [name.strip() for name in (device or "").split(",") if name.strip()]
    if devices == ["cuda:all"]:
        import torch

        devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        if not devices:
            raise SettingError(f"device {device!r}: torch sees no GPU here; use cpu")
    return devices


class ParallelEncoder:
    """Answers like :class:`~llm2vec.encoder.LLM2Vec` to :meth:`encode_poolings`.

    ``load(device=...)`` makes the encoder in each process and must be picklable. ``counter`` adds
    up what went through all models. Raises :class:`WorkerError` when a process dies or cannot
    load, and RuntimeError with its trace for anything that is a bug.
    """

    def __init__(self, load: Callable[..., Any], devices: Sequence[str]) -> None:
        if not devices:
            raise SettingError("no device: name at least one, as in cpu or cuda:0,cuda:1")
        self.devices = tuple(devices)
        self.device = ",".join(devices)
        self.counter = SimpleNamespace(tokens=0, padding=0, passes=0)
        self._processes: list[Any] = []
        self._pipes: list[connection.Connection] = []
        context = get_context("spawn")  # CUDA does not survive a fork
        try:
            for device in devices:
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_work, args=(load, device, len(devices), theirs), daemon=True
                )
                process.start()
                theirs.close()
                self._processes.append(process)
                self._pipes.append(ours)
            facts = [self._answer(index) for index in range(len(devices))]
        except BaseException:
            self.close()
            raise
        for name in (*_FACTS, "dtype"):
            setattr(self, name, facts[0][name])

    def __enter__(self) -> ParallelEncoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; the encoder cannot be used any more."""
        for pipe in self._pipes:
            pipe.close()  # a process that waits for work sees the end of it
        for process in self._processes:
            process.join(0.2)
            process.terminate()
            process.join(10)
            if process.is_alive():
                process.kill()
        self._pipes, self._processes = [], []

    # ----------------------------------------------------------------- encoding
    def encode_poolings(
        self, sentences: Iterable[str | Sequence[str]], poolings: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Vectors (n, hidden) float32 for each pooling, in the order of the texts or pairs.

        Raises TypeError for anything that is no list of them, and
        :class:`~llm2vec.errors.UnknownNameError` or :class:`SettingError` for a pooling that the
        encoder cannot give; it stays open then.
        """
        if not self._pipes:
            raise WorkerError("the encoder is closed: make a new one")
        pairs = as_pairs(sentences)
        # Asked here, where a mistake does not end the encoders behind.
        wanted = tuple(dict.fromkeys(pooling_of(self, p) for p in poolings or self.poolings))
        unique = list(dict.fromkeys(pairs))
        out = {p: np.zeros((len(unique), self.embedding_size), np.float32) for p in wanted}
        lengths = [len(instruction) + len(text) for instruction, text in unique]
        waiting = portions(lengths, sum(lengths) / (PORTIONS * len(self.devices)))
        busy: dict[int, list[int]] = {}
        try:
            for index in range(len(self._pipes)):
                self._hand_out(index, waiting, busy, unique, wanted)
            while busy:
                for index in self._answered(busy):
                    rows = busy.pop(index)
                    vectors, counted = self._answer(index)
                    for pooling in wanted:
                        out[pooling][rows] = vectors[pooling]
                    for name, value in counted.items():
                        setattr(self.counter, name, getattr(self.counter, name) + value)
                    self._hand_out(index, waiting, busy, unique, wanted)
        except BaseException:  # answers still under way would be taken for those of the next call
            self.close()
            raise
        row_of = {pair: row for row, pair in enumerate(unique)}
        rows = [row_of[pair] for pair in pairs]
        return {pooling: values[rows] for pooling, values in out.items()}

    def _hand_out(
        self,
        index: int,
        waiting: list[list[int]],
        busy: dict[int, list[int]],
        items: Sequence[Any],
        poolings: tuple[str, ...],
    ) -> None:
        if waiting:
            busy[index] = waiting.pop(0)
            try:
                self._pipes[index].send(([items[row] for row in busy[index]], poolings))
            except OSError as error:
                raise self._death(index) from error

    def _answered(self, busy: Iterable[int]) -> list[int]:
        """Processes that have something to say, or will never say anything again."""
        by_handle = {self._pipes[index]: index for index in busy}
        by_handle |= {self._processes[index].sentinel: index for index in busy}
        return sorted({by_handle[handle] for handle in connection.wait(list(by_handle))})

    def _answer(self, index: int) -> Any:
        try:
            kind, content = self._pipes[index].recv()
        except (EOFError, OSError) as error:
            raise self._death(index) from error
        if kind == "mistake":
            raise WorkerError(f"the process of {self.devices[index]}: {content}")
        if kind == "bug":
            raise RuntimeError(f"in the process of {self.devices[index]}:\n{content}")
        return content

    def _death(self, index: int) -> WorkerError:
        process = self._processes[index]
        process.join(5)
        code = process.exitcode
        how = f"was killed by signal {-code}" if code is not None and code < 0 else "ended"
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        return WorkerError(
            f"the process of {self.devices[index]} {how}, exit code {code}{hint}. What was "
            "finished is kept; the same command goes on from there."
        )


# --------------------------------------------------------------------------- the other side
def _work(
    load: Callable[..., Any], device: str, processes: int, pipe: connection.Connection
) -> None:
    """Load, say so, then encode until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asked
    try:
        encoder = load(device=device)
        if "torch" in sys.modules and device.startswith("cpu"):
            sys.modules["torch"].set_num_threads(max(1, (os.cpu_count() or 1) // processes))
        facts = {name: getattr(encoder, name) for name in _FACTS}
        pipe.send(("answer", facts | {"dtype": str(encoder.dtype)}))
        counter, names = encoder.counter, ("tokens", "padding", "passes")
        while True:
            items, poolings = pipe.recv()
            before = {name: getattr(counter, name, 0) for name in names}
            vectors = encoder.encode_poolings(items, poolings)
            counted = {name: getattr(counter, name, 0) - before[name] for name in names}
            pipe.send(("answer", (vectors, counted)))
    except (EOFError, BrokenPipeError, ConnectionResetError):  # nobody asks any more
        return
    except LLM2VecError as error:
        pipe.send(("mistake", str(error)))
    except BaseException:
        pipe.send(("bug", traceback.format_exc()))
