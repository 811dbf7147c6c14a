"""What makes encoding fast, and what does not: each choice against the way things are, in turns.

    python -m benchmarks.choices
    python -m benchmarks.choices --dtype bfloat16 --tokens 500 --rounds 1 --output build/bench
    python -m benchmarks.choices --compiled      # also layers through torch.compile, a C++ compiler

The texts and the model of ``benchmarks/encode.py``, one process, every choice once a round. A ratio
above 1 means that the choice is faster than what is the default here:

- *torch's kernels*: nothing of :mod:`llm2vec.kernels`; then each of its two kinds alone
- *N tokens a batch*: another budget than the default
- *unsorted*: batches of texts as they come, padded to the longest of each
- *packed*: no padding at all; texts end to end, each attending to itself alone by a mask
- *compiled*: every layer through ``torch.compile`` with dynamic shapes; its warm-up is told apart
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import StrEnum
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any
from unittest.mock import patch

import typer

from benchmarks import texts
from benchmarks.peers import MODEL
from benchmarks.report import RESULTS, Report
from benchmarks.workers import turns
from llm2vec.console import run

if TYPE_CHECKING:
    from llm2vec.batching import Batch
    from llm2vec.encoder import LLM2Vec

Dtype = StrEnum("Dtype", ["float32", "bfloat16"])
Choice = Callable[["LLM2Vec"], AbstractContextManager[Any]]
DEFAULT, COMPILED = "as it is", "compiled"
SEED = 0
BUDGETS = (256, 512, 1024, 2048, 4096)
PACK = 512  # tokens end to end: attention computes the scores of all pairs of a pack


# --------------------------------------------------------------------------- the choices
def kernels(*kinds: str) -> AbstractContextManager[Any]:
    """Only these kinds of faster kernels."""
    from llm2vec.kernels import faster_forwards

    return patch("llm2vec.batching.faster_forwards", partial(faster_forwards, kinds=kinds))


def unsorted_batches(
    lengths: Sequence[int], max_tokens: int, max_rows: int | None = None
) -> list[list[int]]:
    """Texts as they come, in batches of at most ``max_tokens`` padded tokens, the longest first."""
    batches: list[list[int]] = []
    width = 0
    for index, length in enumerate(lengths):
        width = max(width, length)
        if not batches or (len(batches[-1]) + 1) * width > max_tokens:
            batches.append([])
            width = length
        batches[-1].append(index)
    return [sorted(batch, key=lambda i: -lengths[i]) for batch in batches]


def packed(
    backbone: Any, sequences: Sequence[Sequence[int]], pad_id: int, *_: Any, **__: Any
) -> Iterator[Batch]:
    """Like ``iterate``, with the sequences of a batch end to end instead of one below another."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    from llm2vec.batching import Batch, replaced
    from llm2vec.kernels import faster_forwards

    forwards = faster_forwards(backbone)
    for indices in packs([len(s) for s in sequences]):
        rows = [torch.tensor(sequences[index]) for index in indices]
        lengths = torch.tensor([len(row) for row in rows])
        owner = torch.arange(len(rows)).repeat_interleave(lengths)
        with torch.inference_mode(), replaced(forwards):
            out = backbone(
                input_ids=torch.cat(rows)[None], use_cache=False,
                attention_mask=(owner[:, None] == owner)[None, None],
                position_ids=torch.cat([torch.arange(n) for n in lengths])[None],
            )  # fmt: skip
            hidden = pad_sequence(out.last_hidden_state[0].split(lengths.tolist()), True)
            yield Batch(indices, hidden, torch.arange(hidden.shape[1]) < lengths[:, None])


def packs(lengths: Sequence[int]) -> list[list[int]]:
    """Indices, longest first, in packs of at most :data:`PACK` tokens (a longer one alone)."""
    found: list[list[int]] = []
    size = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not found or size + lengths[index] > PACK:
            found.append([])
            size = 0
        found[-1].append(index)
        size += lengths[index]
    return found


class Compiled:
    """Layers through torch.compile, without the faster kernels, which it would not see."""

    def __init__(self) -> None:
        self._calls: list[Any] = []

    @contextmanager
    def __call__(self, encoder: LLM2Vec) -> Iterator[None]:
        layers = encoder.backbone.layers
        if not self._calls:
            for layer in layers:
                layer.compile(dynamic=True)
            self._calls = [layer._compiled_call_impl for layer in layers]
        for layer, call in zip(layers, self._calls, strict=True):
            layer._compiled_call_impl = call
        try:
            with kernels():
                yield
        finally:
            for layer in layers:
                layer._compiled_call_impl = None


def choices_of(dtype: str, budget: int, with_compiled: bool) -> dict[str, Choice]:
    """Every choice that makes a difference in this type; ``budget``: the default one."""
    found: dict[str, Choice] = {
        DEFAULT: lambda _: nullcontext(),
        "torch's kernels": lambda _: kernels(),
        "linear layers by oneDNN alone": lambda _: kernels("linear"),
        "fused MLP alone": lambda _: kernels("gated"),
        "unsorted": lambda _: patch("llm2vec.batching.token_batches", unsorted_batches),
        "packed": lambda _: patch("llm2vec.encoder.iterate", packed),
    }
    if dtype != "float32":  # torch takes oneDNN by itself: the one is nothing, the other is all
        del found["linear layers by oneDNN alone"], found["fused MLP alone"]
    for size in BUDGETS:
        if size != budget:
            found[f"{size} tokens a batch"] = partial(patch.object, attribute="max_tokens",
                                                      new=size)  # fmt: skip
    return found | ({COMPILED: Compiled()} if with_compiled else {})


# --------------------------------------------------------------------------- measuring
def measure(
    dtype: str, mixes: dict[str, list[str]], rounds: int, with_compiled: bool
) -> list[dict[str, Any]]:
    """A row for every mix and choice; ``ratio`` is the default's seconds over the choice's.

    ``warm_up_seconds``: of the first, shorter, call with a choice.
    """
    from benchmarks.encode_worker import Ours

    side = Ours(MODEL)
    side.load(dtype)
    choices = choices_of(dtype, side.encoder.max_tokens, with_compiled)
    rows = []
    for mix, chosen in mixes.items():
        few = chosen[: max(2, len(chosen) // 8)]
        warm_up = {name: seconds_of(side, choices[name], few) for name in choices}
        taken: dict[str, list[float]] = {name: [] for name in choices}
        for order in turns(list(choices), rounds):
            for name in order:
                taken[name].append(seconds_of(side, choices[name], chosen))
        default = median(taken[DEFAULT])
        rows += [
            {"dtype": dtype, "mix": mix, "choice": name, "seconds": median(seconds),
             "all": seconds, "ratio": default / median(seconds), "warm_up_seconds": warm_up[name]}
            for name, seconds in taken.items()
        ]  # fmt: skip
    return rows


def seconds_of(side: Any, choice: Choice, chosen: Sequence[str]) -> float:
    with choice(side.encoder):
        begin = time.perf_counter()
        side.encoder.encode(list(chosen), convert_to_numpy=True)
        return time.perf_counter() - begin


def main(
    dtype: Annotated[list[Dtype] | None, typer.Option(help="May be repeated; both.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Of each length, about; mixed: twice.")] = 2500,
    rounds: Annotated[int, typer.Option(min=1, help="Runs with each choice.")] = 3,
    compiled: Annotated[bool, typer.Option(help="Also compiled layers: minutes.")] = False,
    output: Annotated[Path, typer.Option(help="Folder of the JSON file.")] = RESULTS,
) -> None:
    """Measure each choice and print how much faster or slower it is than the default."""
    dtypes = [d.value for d in dtype or list(Dtype)]
    settings = {"model": MODEL, "dtypes": dtypes, "tokens": tokens, "rounds": rounds,
                "compiled": compiled}  # fmt: skip
    report = Report("choices", settings, [SEED])
    mixes = texts.load(texts.counter(), tokens, SEED)
    rows = []
    for name in dtypes:
        print(f"measuring {name}", file=sys.stderr)
        rows += measure(name, mixes, rounds, compiled)
    report.write(output, rows=rows)


if __name__ == "__main__":
    run(main)
