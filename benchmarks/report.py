"""What a benchmark leaves behind: arithmetic of its figures and the JSON with its provenance.

The tables of ``docs/performance.md`` are made of these files by ``analysis/tables_performance.py``,
and so is what a benchmark prints. Imports no torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from analysis import render, tables_performance
from llm2vec.paths import ROOT
from llm2vec.provenance import capture_provenance, processor
from llm2vec.results import write_atomic

RESULTS = ROOT / "benchmarks" / "results"
SCHEMA = 1


# --------------------------------------------------------------------------- operations
def linear_flops(config: Mapping[str, Any]) -> float:
    """Operations of the matrix products with weights, per token of a forward pass.

    ``config``: that of a Llama-like decoder (gated MLP, grouped keys and values). Two operations
    per weight; embeddings, norms and the products of attention itself are not counted.
    """
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    queries, keys = heads * head, (config.get("num_key_value_heads") or heads) * head
    attention = 2 * hidden * queries + 2 * hidden * keys
    return (
        2.0 * config["num_hidden_layers"] * (attention + 3 * hidden * config["intermediate_size"])
    )


def attention_flops(config: Mapping[str, Any], lengths: Sequence[int]) -> float:
    """Operations of the two products of attention over whole texts of these lengths."""
    heads = config["num_attention_heads"]
    width = heads * (config.get("head_dim") or config["hidden_size"] // heads)
    return 4.0 * config["num_hidden_layers"] * width * sum(n * n for n in lengths)


def share_of_limit(flops: float, seconds: float, limit: float) -> float:
    """Share of ``limit`` (operations a second) that ``flops`` operations in ``seconds`` are."""
    return flops / seconds / limit


def summary(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Medians of seconds, the largest memory, tokens of one run (the same in each)."""
    counted = {(run["tokens"], run.get("padding", 0)) for run in runs}
    if len(counted) != 1:
        raise ValueError(f"runs of the same work counted different tokens: {sorted(counted)}")
    ((tokens, padding),) = counted
    seconds, cpu = (median(run[key] for run in runs) for key in ("seconds", "cpu_seconds"))
    return {
        "tokens": tokens, "padding": padding, "seconds": seconds, "cpu_seconds": cpu,
        "tokens_per_second": tokens / seconds, "tokens_per_cpu_second": tokens / cpu,
        "peak_mb": max(run["peak_mb"] for run in runs),
        "added_mb": max(run["added_mb"] for run in runs),
    }  # fmt: skip


# --------------------------------------------------------------------------- the file
def machine() -> dict[str, Any]:
    """Processor, cores, memory and how busy they were when the benchmark began."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": processor(), "cores": os.cpu_count(),
        "memory_gb": round(memory, 1), "load": round(os.getloadavg()[0], 2),
    }  # fmt: skip


class Report:
    """Origin of a benchmark, taken when it begins; written when it has ended."""

    def __init__(self, name: str, settings: Mapping[str, Any], seeds: Sequence[int]) -> None:
        self.name = name
        dtypes = settings.get("dtypes", ["none"])
        self.values = {
            "schema": SCHEMA, "benchmark": name, "settings": dict(settings), "seeds": list(seeds),
            "machine": machine(),
            "provenance": capture_provenance("cpu", "+".join(dtypes), "sdpa").as_dict(),
        }  # fmt: skip

    def write(self, output: Path, **parts: Any) -> Path:
        """Write ``{output}/{name}.json`` with the measured ``parts`` and print the tables."""
        values = self.values | parts
        file = output / f"{self.name}.json"
        write_atomic(file, json.dumps(values, indent=1, sort_keys=True) + "\n")
        for table in tables_performance.tables_of(values):
            print(render.to_terminal(table))
        return file
