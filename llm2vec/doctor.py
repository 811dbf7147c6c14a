"""Before a run: what is present, what is missing, what will be downloaded, what it will cost.

    make doctor MODEL=mistral-7b SUITE=subset
    python -m llm2vec.doctor --model mistral-7b --suite full --variant bi-mntp --adapters published
    python -m llm2vec.doctor --model smollm2-135m --suite subset --json

What is needed comes from :mod:`llm2vec.needs`, what it costs from :mod:`llm2vec.estimates`. Exit
code 0 when all is there or to be had, 1 when something is missing. Loads neither torch nor a model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from llm2vec import estimates, paths
from llm2vec.adapters import has_adapters, is_published
from llm2vec.evaluation import Run, plan
from llm2vec.needs import (
    Item,
    check_adapters,
    check_corpora,
    check_data,
    check_disk,
    check_model,
    check_training_text,
    size_text,
)
from llm2vec.registry import SUITES, VARIANTS, Model, Task, get_model, variants_of
from llm2vec.registry_grid import full_pooling
from llm2vec.results import Record, iter_records


@dataclass(frozen=True)
class Cost:
    """Estimate for one variant and task; ``records``: of its poolings' records, how many exist."""

    variant: str
    task: str
    tokens: int | None
    basis: str
    records: str


@dataclass(frozen=True)
class Report:
    """Everything that doctor says; sizes in bytes, times in seconds."""

    model: str
    suite: str
    variants: tuple[str, ...]
    items: tuple[Item, ...]
    costs: tuple[Cost, ...]
    seconds: dict[str, dict[str, Any]]
    memory: dict[str, float]
    notes: tuple[str, ...] = field(default=())

    @property
    def ready(self) -> bool:
        return all(item.state != "missing" for item in self.items)


# --------------------------------------------------------------------------- the report
def diagnose(
    model: str,
    suite: str,
    results: Path,
    variant: str | None = None,
    adapters: str = "own",
) -> Report:
    """Examine one model and suite; without ``variant``, every variant that can run now.

    Raises :class:`~llm2vec.errors.LLM2VecError` for unknown names and unusable folders.
    """
    spec = get_model(model)
    names = asked = [variant] if variant else list(variants_of(spec))
    notes = []
    if not variant:
        ready = is_published if adapters == "published" else has_adapters
        waiting = [n for n in names if not ready(spec, VARIANTS[n])]
        names = [n for n in names if n not in waiting]
        if waiting:
            why = "not published" if adapters == "published" else "not trained yet (make train)"
            notes.append(f"left out, {why}: {', '.join(waiting)}")
    runs = [_plan(spec, name, suite, results, adapters) for name in names]
    records = list(iter_records(paths.results_dir()))
    costs = tuple(_cost(run, task, records) for run in runs for task in run.tasks)
    items = [*_items(runs, adapters), *check_disk(_disk(runs[0], costs))]
    if adapters == "own" and (len(names) < len(asked) or _untrained(items)):
        notes += [f"to train with: {_in_words(item)}" for item in check_training_text()]
    if paths.mirror_dir() is None and suite != "offline":
        notes.append("LLM2VEC_DATA is not set: there is no mirror")
    if any("the hub does not answer" in item.note for item in items):
        notes.append("run where the hub answers, or fetch there what is missing (make mirror)")
    todo = sum(cost.tokens or 0 for cost in costs if not _done(cost))
    seconds = {
        device: {
            "seconds": todo / speed.tokens_per_second,
            "tokens_per_second": speed.tokens_per_second,
            "basis": speed.basis,
        }
        for device, speed in sorted(estimates.speeds(spec, records).items())
    }
    return Report(
        model, suite, tuple(names), tuple(items), costs, seconds, _memory(runs),
        tuple(notes),
    )  # fmt: skip


def _plan(model: Model, variant: str, suite: str, results: Path, adapters: str) -> Run:
    """The run that the suite's experiment would make: the full suite has one pooling a variant."""
    one = suite == "full" and model.kind == "decoder"
    pooling = full_pooling(variant) if one else None
    return plan(model.name, variant, suite, results, pooling=pooling, adapters=adapters)


def _items(runs: list[Run], adapters: str) -> list[Item]:
    """Everything that the runs need, once."""
    items = [check_model(runs[0].model)]
    items += [item for run in runs for item in check_adapters(run.model, run.variant, adapters)]
    for task in runs[0].tasks:
        items += check_corpora() if task.name in SUITES["offline"] else check_data(task)
    return list(dict.fromkeys(items))


def _cost(run: Run, task: Task, records: list[Record]) -> Cost:
    tokens = estimates.tokens_of(task, run.model, run.variant, run.poolings, records)
    there = sum(run.key(task, pooling).path(run.results).is_file() for pooling in run.poolings)
    return Cost(
        run.variant.name, task.name, tokens.count, tokens.basis, f"{there} of {len(run.poolings)}"
    )


def _done(cost: Cost) -> bool:
    there, _, wanted = cost.records.partition(" of ")
    return there == wanted


def _untrained(items: Sequence[Item]) -> bool:
    return any(item.kind == "adapter" and item.state == "missing" for item in items)


def _in_words(item: Item) -> str:
    """A thing in a note: it is needed for a training, not for this run."""
    state = "obtainable" if item.state == "download" else item.state
    return f"{item.name}, {state} ({item.note})"


def _disk(run: Run, costs: Sequence[Cost]) -> float:
    """Bytes that the vectors of the largest task that is not done take."""
    todo = {cost.task for cost in costs if not _done(cost)}
    return estimates.vectors_bytes(
        run.model, run.poolings, [task for task in run.tasks if task.name in todo]
    )


def _memory(runs: list[Run]) -> dict[str, float]:
    run = runs[0]
    spec, tasks = run.model, run.tasks
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "gpu": estimates.gpu_bytes(spec, run.dtype),
        "host": estimates.host_bytes(spec, run.dtype, tasks),
        "host_here": float(there),
        "disk_for_vectors": estimates.vectors_bytes(spec, run.poolings, tasks),
    }


# --------------------------------------------------------------------------- words
def _time(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def to_text(report: Report) -> str:
    """The report for a terminal: what is missing first, one line a thing."""
    shown = sorted(report.items, key=lambda i: ("missing", "download", "present").index(i.state))
    width = max(len(item.name) for item in shown)
    lines = [f"{report.model}, suite {report.suite}, variants {', '.join(report.variants)}", ""]
    lines += [f"  {i.state:<9} {i.kind:<8} {i.name:<{width}}  {i.note}" for i in shown]
    lines += [f"  note      {note}" for note in report.notes]
    lines += ["", f"  {'variant':<15} {'tasks':>5} {'records there':>14} {'tokens to go':>13}"]
    for variant in report.variants:
        costs = [c for c in report.costs if c.variant == variant]
        there, wanted = (sum(int(c.records.split(" of ")[part]) for c in costs) for part in (0, 1))
        todo = [c for c in costs if not _done(c)]
        unknown = sum(c.tokens is None for c in todo)
        extra = f"  and {unknown} tasks of unknown size" if unknown else ""
        total = sum(c.tokens or 0 for c in todo)
        lines.append(
            f"  {variant:<15} {len(costs):>5} {f'{there} of {wanted}':>14} {total:>13,}{extra}"
        )
    bases = dict.fromkeys(c.basis for c in report.costs if not _done(c))
    lines += [f"  tokens from: {', '.join(bases)}"] if bases else ["  nothing to measure"]
    for device, found in report.seconds.items():
        lines.append(
            f"  time on {device}: about {_time(found['seconds'])} at "
            f"{found['tokens_per_second']:,.0f} tokens/s ({found['basis']})"
        )
    memory = {name: size_text(size) for name, size in report.memory.items()}
    lines.append(
        f"  memory: GPU about {memory['gpu']}; host about {memory['host']} "
        f"(here: {memory['host_here']})"
    )
    if report.memory["disk_for_vectors"]:
        lines.append(
            f"  disk: about {memory['disk_for_vectors']} for the vectors of the largest task"
        )
    lines += ["", "ready" if report.ready else "not ready: see 'missing' above"]
    return "\n".join(lines)


def main(
    model: Annotated[str, typer.Option(help="Name in the registry.")],
    suite: Annotated[str, typer.Option(help="offline, subset, full, exact8 or short6.")],
    variant: Annotated[str | None, typer.Option(help="One variant; default all at hand.")] = None,
    adapters: Annotated[str, typer.Option(help="own or published.")] = "own",
    results: Annotated[Path | None, typer.Option(help="Folder of the run's records.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say what a run needs and costs; exit code 1 when something is missing."""
    report = diagnose(model, suite, results or paths.results_dir(), variant or None, adapters)
    if as_json:
        print(json.dumps(asdict(report) | {"ready": report.ready}, indent=1))
    else:
        print(to_text(report))
    if not report.ready:
        raise typer.Exit(1)


if __name__ == "__main__":
    from llm2vec.console import run

    run(main)
