"""Where the time of encoding goes: matrix products, attention, the rest of a layer, tokenizing.

    python -m benchmarks.breakdown
    python -m benchmarks.breakdown --dtype bfloat16 --tokens 500 --rounds 1 --output build/bench

The texts, the model and the limit of ``benchmarks/encode.py``, this repository's side alone, under
torch's profiler. Each operator's own time counts for one part; what no operator spends (Python, the
profiler itself) is the rest. ``bfloat16-mixed`` is measured as well (:mod:`llm2vec.mixed`).
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks import texts
from benchmarks.peers import MODEL
from benchmarks.report import RESULTS, Report, share_of_limit
from llm2vec.console import run
from llm2vec.registry import DTYPES

if TYPE_CHECKING:
    from llm2vec.encoder import LLM2Vec

Dtype = StrEnum("Dtype", [name for name in DTYPES if name != "float16"])
SEED = 0
PRODUCTS = ("aten::mm", "aten::addmm", "mkldnn::_linear_pointwise")
PARTS = ("products", "attention", "layers", "tokenizing", "rest")


def part_of(operator: str) -> str | None:
    """Which part an operator's own time belongs to; None for what is no operator.

    ``layers``: norms, rotary embeddings, activations, residual connections, and pooling.
    """
    if operator in PRODUCTS or operator.startswith("mkldnn::_linear_pointwise"):
        return "products"
    if operator.startswith("aten::_scaled_dot_product"):
        return "attention"
    return "layers" if operator.startswith(("aten::", "mkldnn::")) else None


def parts_of(
    operators: Sequence[tuple[str, float]], whole: float, tokenizing: float
) -> dict[str, float]:
    """Seconds of each part: of (operator, own seconds), of tokenizing, and what is left."""
    found: Counter[str] = Counter(tokenizing=tokenizing)
    for name, seconds in operators:
        if part := part_of(name):
            found[part] += seconds
    return {part: found[part] for part in PARTS[:-1]} | {"rest": whole - found.total()}


@contextmanager
def tokenizing_timed(encoder: LLM2Vec) -> Iterator[list[float]]:
    """Seconds of each call of ``encoder.tokenize`` within the block."""
    seconds: list[float] = []
    tokenize = encoder.tokenize

    def timed(*args: Any) -> Any:
        begin = time.perf_counter()
        try:
            return tokenize(*args)
        finally:
            seconds.append(time.perf_counter() - begin)

    encoder.tokenize = timed  # type: ignore[method-assign]
    try:
        yield seconds
    finally:
        del encoder.tokenize


def profiled(encoder: LLM2Vec, chosen: Sequence[str]) -> tuple[float, dict[str, float]]:
    """Seconds of one ``encode``, and those of its parts."""
    from torch.profiler import ProfilerActivity, profile

    with tokenizing_timed(encoder) as tokenizing, profile(activities=[ProfilerActivity.CPU]) as log:
        begin = time.perf_counter()
        encoder.encode(list(chosen), convert_to_numpy=True)
        whole = time.perf_counter() - begin
    operators = [(e.key, e.self_cpu_time_total / 1e6) for e in log.key_averages()]
    return whole, parts_of(operators, whole, sum(tokenizing))


def measure(dtype: str, mixes: dict[str, list[str]], rounds: int) -> list[dict[str, Any]]:
    """A row for each length mix; seconds are the sum over the rounds."""
    from benchmarks.encode_worker import Ours

    side = Ours(MODEL)
    flops = side.load(dtype)["flops_per_token"]
    rows = []
    for mix, chosen in mixes.items():
        side.encode(texts=chosen[: max(2, len(chosen) // 8)])  # warm-up
        seconds, parts, limits = 0.0, Counter(), []
        for _ in range(rounds):
            whole, found = profiled(side.encoder, chosen)
            seconds += whole
            parts.update(found)
            limits.append(side.limit()["square"])
        counted = side.counter.take()
        tokens, padding = (counted[name] for name in ("tokens", "padding"))
        rows.append({
            "dtype": dtype, "mix": mix, "tokens": tokens, "padding": padding, "seconds": seconds,
            "tokens_per_second": tokens / seconds, "parts": dict(parts),
            "share_of_limit": share_of_limit(tokens * flops, seconds, sum(limits) / rounds),
        })  # fmt: skip
    return rows


def main(
    dtype: Annotated[list[Dtype] | None, typer.Option(help="May be repeated; all.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Of each length, about; mixed: twice.")] = 2500,
    rounds: Annotated[int, typer.Option(min=1, help="Profiled runs over the texts.")] = 2,
    output: Annotated[Path, typer.Option(help="Folder of the JSON file.")] = RESULTS,
) -> None:
    """Profile encoding and print the share of each part."""
    dtypes = [d.value for d in dtype or list(Dtype)]
    settings = {"model": MODEL, "dtypes": dtypes, "tokens": tokens, "rounds": rounds}
    report = Report("breakdown", settings, [SEED])
    mixes = texts.load(texts.counter(), tokens, SEED)
    rows = []
    for name in dtypes:
        print(f"profiling {name}", file=sys.stderr)
        rows += measure(name, mixes, rounds)
    report.write(output, rows=rows)


if __name__ == "__main__":
    run(main)
