"""Every benchmark, one after another, and the tables made of them: ``make bench``.

    python -m benchmarks
    python -m benchmarks --only scale --only encode

A benchmark that cannot run here (no data mirror, say) is named at the end and leaves the file of
an earlier run as it was; that of a GPU is left out where there is none, unless it is named. Let
nothing else run meanwhile; each says how long it took.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from typing import Annotated

import typer

from benchmarks.peers import peer_python
from llm2vec.console import run
from llm2vec.errors import LLM2VecError, UnknownNameError
from llm2vec.paths import ROOT

NAMES = (
    "encode", "breakdown", "choices", "training", "word_features", "scale", "grid_cost",
    "retrieval_memory", "gpu",
)  # fmt: skip


class BenchmarkError(LLM2VecError):
    """Some benchmark did not run to its end."""


def has_gpu() -> bool:
    """Whether NVIDIA's driver is installed; asking torch would take seconds."""
    return shutil.which("nvidia-smi") is not None


def main(
    only: Annotated[
        list[str] | None, typer.Option(help=f"May be repeated: {', '.join(NAMES)}.")
    ] = None,
) -> None:
    """Run the benchmarks and regenerate docs/performance.md."""
    chosen = only or [name for name in NAMES if name != "gpu" or has_gpu()]
    for name in chosen:
        if name not in NAMES:
            raise UnknownNameError("benchmark", name, NAMES)
    if not only and "gpu" not in chosen:
        print("The benchmark gpu is left out: no nvidia-smi here.", file=sys.stderr)
    if peer_python() is None:
        print("The published package is left out; 'make bench-peers' installs it.", file=sys.stderr)
    failed = []
    for name in chosen:
        begin = time.perf_counter()
        print(f"== {name}", file=sys.stderr, flush=True)
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False, cwd=ROOT)
        print(f"== {name}: {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
        if done.returncode:
            failed.append(name)
    subprocess.run([sys.executable, "-m", "analysis.build"], check=True, cwd=ROOT)
    if failed:
        raise BenchmarkError(f"not measured: {', '.join(failed)}; the reasons stand above")


if __name__ == "__main__":
    run(main)
