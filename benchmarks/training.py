"""One training step of each stage: this repository against the published model and loss.

    python -m benchmarks.training
    python -m benchmarks.training --stage mntp --dtype float32 --steps 1 --output build/bench

SmolLM2-135M on a CPU, real text, the same token ids and the same dtype on both sides; each side
trains in its own process and they take their steps in turns, the first of which is left out. The
published package on PyPI has no training scripts, so its model and loss classes run in a minimal
Trainer loop (``published_training.py``), with logits at every position, both views in passes of
their own and padding on the left. Tokens are real ones, padding not counted; a step is everything
from its data to the optimizer.

Both sides stay in memory, where activations of a step take several MB a token: the sizes here fit
16 GB, the recipe's (128 sentences, blocks of 512 tokens) do not.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from benchmarks.peers import MODEL, peer_model, peer_python
from benchmarks.report import RESULTS, Report, summary
from benchmarks.workers import HERE, WorkerError, own, started, turns
from llm2vec.console import run
from llm2vec.registry import get_model

Stage = StrEnum("Stage", ["mntp", "simcse"])
Dtype = StrEnum("Dtype", ["bfloat16", "float32"])
OURS, PUBLISHED = "ours", "published"


def measure(job: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Rows of one stage and dtype, a row for each side."""
    file = folder / "job.json"
    commands = {OURS: own("training_worker")}
    python = peer_python()
    if python:
        commands[PUBLISHED] = [python, HERE / "published_training.py"]
    with started({"prepare": own("training_worker")}) as preparing:
        tokens = preparing["prepare"].ask("prepare", job=job, file=str(file))["tokens"]
    with started(commands) as sides:
        sides[OURS].ask("load", file=str(file), folder=str(folder))
        if python:
            sides[PUBLISHED].ask("load", file=str(file), model=str(peer_model()))
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        for number, order in enumerate(turns(list(sides), job["steps"] + 1)):
            for name in order:
                runs[name].append(sides[name].ask("step") | {"tokens": tokens[number]})
        losses = {name: side.ask("end")["losses"] for name, side in sides.items()}
    return [
        {"stage": job["stage"], "dtype": job["dtype"], "side": name,
         "first_loss": losses[name][0], **steps_summary(found)}
        for name, found in runs.items()
    ]  # fmt: skip


def steps_summary(steps: list[dict[str, float]]) -> dict[str, float]:
    """Speed of the steps after the first, as if each had their mean number of tokens.

    The peak of memory is that of all steps; what they added is over what there was before them.
    """
    measured = steps[1:]
    mean = sum(step["tokens"] for step in measured) / len(measured)
    even = [
        step | {"tokens": round(mean), "seconds": step["seconds"] * mean / step["tokens"],
                "cpu_seconds": step["cpu_seconds"] * mean / step["tokens"]}
        for step in measured
    ]  # fmt: skip
    peak = max(step["peak_mb"] for step in steps)
    added = max(0.0, peak - steps[0]["before_mb"])
    return summary(even) | {"peak_mb": peak, "added_mb": added}


def check_first_losses(rows: list[dict[str, Any]], tolerance: float) -> None:
    """MNTP's first step has no draws that show (LoRA begins at zero), so both losses must agree."""
    for dtype in {row["dtype"] for row in rows}:
        losses = {r["side"]: r["first_loss"] for r in rows
                  if r["stage"] == "mntp" and r["dtype"] == dtype}  # fmt: skip
        if len(losses) > 1 and max(losses.values()) - min(losses.values()) > tolerance:
            raise WorkerError(f"the sides do not train the same: first losses of MNTP {losses}")


def main(
    stage: Annotated[list[Stage] | None, typer.Option(help="May be repeated; both.")] = None,
    dtype: Annotated[list[Dtype] | None, typer.Option(help="May be repeated.")] = None,
    blocks: Annotated[int, typer.Option(min=1, help="Of an MNTP step.")] = 8,
    length: Annotated[int, typer.Option(min=2, help="Tokens of a block.")] = 256,
    sentences: Annotated[int, typer.Option(min=2, help="Of a SimCSE step.")] = 8,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of one forward pass of ours.")] = 2048,
    caching: Annotated[bool, typer.Option(help="Gradient caching of ours.")] = False,
    steps: Annotated[int, typer.Option(min=1, help="Measured, after one that is not.")] = 3,
    output: Annotated[Path, typer.Option(help="Folder of the JSON file.")] = RESULTS,
) -> None:
    """Measure training steps and print tokens per second, memory and ratios."""
    dtypes = [d.value for d in dtype or [Dtype.bfloat16]]
    settings = {
        "model": MODEL, "dtypes": dtypes, "blocks": blocks, "length": length,
        "sentences": sentences, "max_tokens": max_tokens, "caching": caching, "steps": steps,
    }  # fmt: skip
    report = Report("training", settings, [get_model(MODEL).mntp.seed])
    rows = []
    with TemporaryDirectory() as folder:
        for kind in dtypes:
            for name in [s.value for s in stage or list(Stage)]:
                print(f"measuring {name}, {kind}", file=sys.stderr)
                job = settings | {"stage": name, "dtype": kind}
                place = Path(folder) / f"{name}-{kind}"
                place.mkdir()
                rows += measure(job, place)
    check_first_losses(rows, tolerance=0.05)
    report.write(output, rows=rows)


if __name__ == "__main__":
    run(main)
