"""Training and encoding at the paper's sizes on one GPU: speed, memory, share of the GPU's limit.

    python -m benchmarks.gpu --shape mistral-7b
    python -m benchmarks.gpu --shape tiny --device cpu --output build/bench

The paper (2.2) trains 7B models on one 80 GB A100: 1,000 MNTP steps take 100 minutes, 1,000 SimCSE
steps three hours. Measured here is this repository's own step of both stages, optimizer included,
at the registry's batch sizes, and encoding. Needs no network, no model and no data: shapes stand in
``gpu_work.py``; weights, ids and lengths are random, which time does not notice. Gradient
checkpointing, compiled layers and micro-batches are varied, one configuration after another; the
file is written after each, so that what was measured survives whatever comes next.

Useful operations of a training step with LoRA on frozen weights (``gpu_work.training_flops``): the
products with the N weights outside of the embeddings 2N a token forward and 2N backward (gradients
of activations alone, none beyond the first layer's queries, keys and values); attention 4 L T d a
token forward and twice that backward (bidirectional: no causal half); the head's logits on labelled
positions alone, forward and backward. LoRA's own products, what is computed again and padding count
as nothing. Encoding: 2N and attention. The limit is the rate of a large square bfloat16 product.

Deviations: random tokens; sentences of log-normal length with a mean of about 32 tokens instead of
Wikipedia's; a fifth of the positions labelled in MNTP, as for the LLaMA models (Mistral: 80 %).
"""

from __future__ import annotations

import gc
import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch._dynamo.utils import counters
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from analysis import render, tables_performance
from benchmarks.gpu_work import SEED, SHAPES, TINY, WORKS, Plan, Sizes, random_model
from benchmarks.report import RESULTS, Report, share_of_limit
from llm2vec.console import run
from llm2vec.errors import LLM2VecError, SettingError
from llm2vec.provenance import capture_provenance
from llm2vec.results import write_atomic

Shape = StrEnum("Shape", list(SHAPES))
ATTENTION_OPERATOR = re.compile(r"^aten::_(scaled_dot_product|cudnn_attention|flash|efficient)")
ATTENTION_KERNEL = re.compile("flash|fmha|sdpa|attention", re.IGNORECASE)
# The most telling and the cheapest first: what does not fit into the time is left out.
PLANS = (
    Plan("mntp", 4, compiled=True),
    Plan("simcse", 8, checkpointing=True),
    Plan("encode", 32),
    Plan("mntp", 4),
    Plan("simcse", 8, compiled=True, checkpointing=True),
    Plan("simcse", 8, caching=True),
    Plan("simcse", 32, checkpointing=True),
    Plan("mntp", 32, compiled=True, checkpointing=True),
    Plan("mntp", 8, compiled=True),
    Plan("simcse", 16, caching=True),
)


class NoGPUError(LLM2VecError):
    """There is no GPU to measure."""


# --------------------------------------------------------------------------- measuring
def seconds_of(device: str, work: Callable[[], Any]) -> tuple[float, Any]:
    """How long it takes until the device has done it, and what it gives."""
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    result = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin, result


def product_rate(device: str, rows: int, inner: int, columns: int, times: int = 10) -> float:
    """Operations a second of a bfloat16 product of random matrices, the median of ``times``."""
    torch.manual_seed(SEED)
    one = torch.randn(rows, inner, device=device, dtype=torch.bfloat16)
    other = torch.randn(inner, columns, device=device, dtype=torch.bfloat16)
    for _ in range(3):
        one @ other
    if device == "cuda":
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(times + 1)]
        marks[0].record()
        for mark in marks[1:]:
            one @ other
            mark.record()
        torch.cuda.synchronize()
        taken = [a.elapsed_time(b) / 1e3 for a, b in pairwise(marks)]
    else:
        taken = [seconds_of(device, lambda: one @ other)[0] for _ in range(times)]
    return 2.0 * rows * inner * columns / median(taken)


def limits_of(device: str, shape: str, sizes: Sizes) -> dict[str, Any]:
    """Rates of the square product and of products of the model's own widths."""
    hidden, inner = SHAPES[shape]["hidden_size"], SHAPES[shape]["intermediate_size"]
    return {
        "side": sizes.side,
        "flops_per_second": product_rate(device, *[sizes.side] * 3),
        "layers": [
            {"tokens": tokens, "flops_per_second": product_rate(device, tokens, hidden, inner)}
            for tokens in (4 * sizes.block, sizes.batch * sizes.block)
        ],
    }


def attention_of(device: str, part: Callable[[], Any]) -> dict[str, list[str]]:
    """Which attention ran: torch's operators, and on a GPU the kernels by their time."""
    activities = [ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as found:
        seconds_of(device, part)
    events = found.key_averages()
    kernels = sorted(
        (e for e in events
         if e.device_type == DeviceType.CUDA and ATTENTION_KERNEL.search(e.key)
         and not e.key.startswith("aten::")),
        key=lambda event: -event.self_device_time_total,
    )  # fmt: skip
    operators = {e.key for e in events if ATTENTION_OPERATOR.search(e.key)}
    return {"operators": sorted(operators), "kernels": [e.key[:120] for e in kernels[:6]]}


def measure(
    plan: Plan, shape: str, sizes: Sizes, device: str, steps: int, limit: float | None
) -> dict[str, Any]:
    """One configuration: a warm-up, then ``steps`` of them (encoding: one)."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    counters.clear()
    work = WORKS[plan.kind](random_model(shape, device), plan, sizes)
    first, *rest = (
        seconds_of(device, lambda number=number: work.step(number))
        for number in range(1 + (1 if plan.kind == "encode" else steps))
    )
    values = [first[1], *(value for _, value in rest)]
    if not np.isfinite(values).all():
        raise FloatingPointError(f"losses or norms that are no numbers: {values}")
    seconds = median(taken for taken, _ in rest)
    row = {
        "tokens": work.tokens, "padding": work.padding, "flops": work.flops,
        "seconds": seconds, "all": [taken for taken, _ in rest], "warm_up_seconds": first[0],
        "tokens_per_second": work.tokens / seconds, "values": values,
        "share_of_limit": share_of_limit(work.flops, seconds, limit) if limit else None,
        "peak_gb": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None,
    }  # fmt: skip
    if plan.compiled:  # torch falls back to plain layers without a word: 0 programs
        row["programs"] = counters["aot_autograd"]["ok"]
        row["graph_breaks"] = sum(counters["graph_break"].values())
    if plan.kind != "encode":  # these begin at 0
        changed = [w for name, w in work.stage.named_parameters() if "lora_B" in name]
        row["largest_weight"] = max(float(weight.detach().abs().max()) for weight in changed)
    try:
        row["attention"] = attention_of(device, work.part)
    except Exception as error:  # the timings stand without it
        row["attention"] = {"error": told(error)}
    return row


def told(error: Exception) -> str:
    """An error in one short line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:240]


def measured_rows(
    shape: str, device: str, steps: int, seconds: float, keep: Callable[..., None]
) -> None:
    """Everything, one after another; ``keep(limits=..., rows=...)`` after each of them."""
    begin, sizes, rows = time.perf_counter(), TINY if shape == "tiny" else Sizes(), []
    try:
        limits = limits_of(device, shape, sizes)
    except Exception as error:
        limits = {"error": told(error)}
    keep(limits=limits, rows=rows)
    for plan in PLANS:
        row = asdict(plan) | {"name": plan.name}
        spent = time.perf_counter() - begin
        if spent > seconds:
            row["skipped"] = f"not finished within {seconds:.0f} s"
        else:
            print(f"{spent:4.0f} s: {plan.kind}, {plan.name}", file=sys.stderr, flush=True)
            try:
                rate = limits.get("flops_per_second")
                row |= measure(plan, shape, sizes, device, steps, rate)
            except Exception as error:  # out of memory, say: the next may fit
                row["error"] = told(error)
                print(f"        {row['error']}", file=sys.stderr, flush=True)
            free(device)
        rows.append(row)
        keep(limits=limits, rows=rows)


def free(device: str) -> None:
    """Nothing of a configuration may be left for the next: memory, compiled programs."""
    torch.compiler.reset()
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def device_of(wanted: str | None) -> str:
    """cuda, or what was asked for; :class:`NoGPUError` where there is none."""
    if wanted not in (None, "cpu", "cuda"):
        raise SettingError(f"unknown device {wanted!r}. Valid: cpu, cuda.")
    if wanted != "cpu" and not torch.cuda.is_available():
        raise NoGPUError(
            "this benchmark needs a CUDA GPU and torch sees none; the file of an earlier run stays "
            "as it was. '--shape tiny --device cpu' tries the program itself."
        )
    return wanted or "cuda"


def main(
    shape: Annotated[Shape, typer.Option(help="Of the random model.")] = Shape["mistral-7b"],
    device: Annotated[str | None, typer.Option(help="cuda or cpu; default: cuda.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps after the first.")] = 3,
    seconds: Annotated[float, typer.Option(help="Begin nothing more after that time.")] = 70,
    output: Annotated[Path, typer.Option(help="Folder of the JSON file.")] = RESULTS,
) -> None:
    """Measure training steps and encoding of a random model on one GPU."""
    chosen = device_of(device)
    report = Report("gpu", {"shape": str(shape), "steps": steps, "seconds": seconds}, [SEED])
    made = capture_provenance(chosen, "bfloat16", "sdpa")
    name, memory = "cpu", None
    if chosen == "cuda":
        name = torch.cuda.get_device_name()
        memory = round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)
    values = report.values | {
        "provenance": made.as_dict(), "torch": torch.__version__,
        "device": {"name": name, "memory_gb": memory},
    }  # fmt: skip

    def keep(**parts: Any) -> None:
        values.update(parts)
        text = json.dumps(values, indent=1, sort_keys=True) + "\n"
        write_atomic(output / "gpu.json", text)

    measured_rows(str(shape), chosen, steps, seconds, keep)
    for table in tables_performance.tables_of(values):
        print(render.to_terminal(table))


if __name__ == "__main__":
    run(main)
