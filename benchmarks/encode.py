"""Encoding: this repository, the published package and sentence-transformers, in turns.

    python -m benchmarks.encode
    python -m benchmarks.encode --dtype float32 --tokens 1000 --rounds 1 --output build/bench

SmolLM2-135M, bidirectional, mean pooling, on a CPU. The same texts go through each side with its
own defaults (the peers: 32 texts a batch), from strings to vectors in float32; each side runs in
its own process, in turns, and the rate of a large matrix product in the same dtype, torch's or
oneDNN's, whichever is faster, is measured between them. A share of that limit counts the products
with weights, and beside it those of attention as well; padding and what is no product count as
nothing. The vectors of the sides are compared. What is not installed is left out
(``make bench-peers``).
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks import texts
from benchmarks.peers import MODEL, peer_model, peer_python
from benchmarks.report import RESULTS, Report, attention_flops, share_of_limit, summary
from benchmarks.workers import HERE, Worker, own, started, turns
from llm2vec.console import run

Dtype = StrEnum("Dtype", ["float32", "bfloat16"])
Mixes = dict[str, list[str]]
OURS, PUBLISHED, TRANSFORMERS = "ours", "published", "sentence-transformers"
SEED = 0


def commands(export: Path) -> dict[str, list[str | Path]]:
    """How each side that is installed is started."""
    found: dict[str, list[str | Path]] = {OURS: own("encode_worker", OURS, MODEL)}
    if python := peer_python():
        found[PUBLISHED] = [python, HERE / "published_encode.py", peer_model()]
    found[TRANSFORMERS] = own("encode_worker", TRANSFORMERS, str(export))
    return found


def measure(
    dtype: str, mixes: Mixes, lengths: dict[str, list[int]], rounds: int, folder: Path
) -> dict[str, Any]:
    """Rows of one dtype, the limit, and the versions of each side."""
    export = folder / f"export-{dtype}"
    # In a process that ends: writing the folder needs memory that encoding does not.
    with started({"export": own("encode_worker", OURS, MODEL)}) as exporting:
        exporting["export"].ask("load", dtype=dtype)
        exporting["export"].ask("export", folder=str(export))
    with started(commands(export)) as sides:
        about = {name: side.ask("load", dtype=dtype) for name, side in sides.items()}
        rows, limits = [], []
        for mix, chosen in mixes.items():
            runs = rounds_of(sides, chosen, rounds, folder, limits)
            cosines = lowest_cosines(folder, list(sides))
            rows += [
                {"dtype": dtype, "mix": mix, "side": name, "texts": len(chosen), **summary(found),
                 "lowest_cosine": cosines.get(name)}
                for name, found in runs.items()
            ]  # fmt: skip
    flops = about[OURS]["flops_per_token"]
    products = float(np.median([limit["square"] for limit in limits]))
    for row in rows:
        add_shares(
            row, flops, attention_flops(about[OURS]["config"], lengths[row["mix"]]), products
        )
    limit = {
        "flops_per_second": products,
        "flops_per_second_layers": float(np.median([found["layers"] for found in limits])),
        "tokens_per_second": products / flops,
        "by": {
            name: float(np.median([found["by"][name] for found in limits]))
            for name in limits[0]["by"]
        },
        "all": limits,
    }
    return {"rows": rows, "limit": limit, "sides": about}


def add_shares(row: dict[str, Any], per_token: float, attention: float, limit: float) -> None:
    """Shares of the limit: of the products with weights, and with those of attention."""
    products = row["tokens"] * per_token
    row["share_of_limit"] = share_of_limit(products, row["seconds"], limit)
    row["share_with_attention"] = share_of_limit(products + attention, row["seconds"], limit)


def rounds_of(
    sides: dict[str, Worker],
    chosen: Sequence[str],
    rounds: int,
    folder: Path,
    limits: list[dict[str, Any]],
) -> dict[str, list[dict[str, float]]]:
    """Measurements of each side over the same texts, after a warm-up on a few of them."""
    for side in sides.values():
        side.ask("encode", texts=list(chosen[: max(2, len(chosen) // 8)]))
    runs: dict[str, list[dict[str, float]]] = defaultdict(list)
    for order in turns(list(sides), rounds):
        for name in order:
            saved = str(folder / f"{name}.npy")
            runs[name].append(sides[name].ask("encode", texts=list(chosen), save=saved))
        limits.append(sides[OURS].ask("limit"))
    return {name: runs[name] for name in sides}


def lowest_cosines(folder: Path, names: Sequence[str]) -> dict[str, float]:
    """The lowest cosine between a peer's vectors and ours, by peer."""

    def unit(name: str) -> np.ndarray:
        vectors = np.load(folder / f"{name}.npy").astype(np.float64)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    ours = unit(OURS)
    return {name: float((ours * unit(name)).sum(1).min()) for name in names if name != OURS}


def main(
    dtype: Annotated[list[Dtype] | None, typer.Option(help="May be repeated; both.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Of each length, about; mixed: twice.")] = 2500,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each side.")] = 3,
    output: Annotated[Path, typer.Option(help="Folder of the JSON file.")] = RESULTS,
) -> None:
    """Measure encoding and print tokens per second, share of the limit, memory and ratios."""
    dtypes = [d.value for d in dtype or list(Dtype)]
    settings = {"model": MODEL, "dtypes": dtypes, "tokens": tokens, "rounds": rounds}
    report = Report("encode", settings, [SEED])
    count = texts.counter()
    mixes = texts.load(count, tokens, SEED)
    lengths = {mix: [count(text) for text in chosen] for mix, chosen in mixes.items()}
    parts: dict[str, Any] = {"rows": [], "limits": {}, "sides": {}}
    with TemporaryDirectory() as folder:
        for name in dtypes:
            print(f"measuring {name}", file=sys.stderr)
            found = measure(name, mixes, lengths, rounds, Path(folder))
            parts["rows"] += found["rows"]
            parts["limits"][name] = found["limit"]
            parts["sides"] |= found["sides"]
    report.write(output, **parts)


if __name__ == "__main__":
    run(main)
