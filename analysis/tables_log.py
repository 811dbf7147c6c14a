"""The log of the reproduction: which command, at which commit, on which machine, gave what.

Read from the records' provenance, so it cannot drift from them; what left no record (a run that
failed) is written by hand in ``docs/reproduction-log.md``.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis.collect import Results, cost_of_run, pass_of
from analysis.render import NOT_RUN, Origin, Table
from analysis.trainings import trainings

COLUMNS = ["date", "commit", "experiment", "model", "variant", "machine", "command", "records",
           "seconds"]  # fmt: skip


def machine_of(provenance: dict[str, Any]) -> str:
    """Device, its number of processors where it is one, and the platform."""
    device = provenance.get("accelerator") or provenance["device"]
    if device == "cpu" and provenance.get("cpus"):
        device = f"{provenance['cpus']} CPU cores"
    return ", ".join(filter(None, [device, provenance.get("platform")]))


def runs_of(results: Results) -> pd.DataFrame:
    """One row per command and commit, trainings included; what records share counts once."""
    rows = []
    for record in results.records:
        origin = record.provenance
        rows.append(
            (
                origin["started"][:10], origin["commit"][:9], record.experiment, record.model,
                record.variant, machine_of(origin), origin["command"],
                pass_of(record), *cost_of_run(record),
            )
        )  # fmt: skip
    rows = [(*row[:-2], 1, *row[-2:]) for row in rows]
    rows += [
        (
            t.origin["started"][:10], t.origin["commit"][:9],
            "training" if t.adapter else "ablations", t.model, t.variant, machine_of(t.origin),
            t.origin["command"], f"training of {t.name}", 0, t.seconds, 0.0,
        )
        for t in trainings(results)
    ]  # fmt: skip
    columns = [*COLUMNS[:7], "task", "records", "own", "shared"]
    frame = pd.DataFrame(rows, columns=columns)
    axes = COLUMNS[:7]
    tasks = frame.groupby([*axes, "task"], as_index=False, sort=False).agg(
        records=("records", "sum"), own=("own", "max"), shared=("shared", "max")
    )
    runs = tasks.groupby(axes, as_index=False, sort=False).agg(
        records=("records", "sum"), own=("own", "sum"), shared=("shared", "max")
    )
    runs["seconds"] = runs["own"] + runs["shared"]
    return runs[COLUMNS].sort_values(COLUMNS[:7], ignore_index=True)


def log(results: Results) -> Table:
    """Every command that left records, in the order of time."""
    frame = runs_of(results)
    shown = [
        [
            r.date,
            r.commit,
            r.command,
            r.machine,
            f"{r.seconds / 60:.0f} min",
            str(r.records) if r.records else "an adapter",
        ]
        for r in frame.itertuples()
    ]
    header = ["Date", "Commit", "Command", "Machine", "Duration", "Records"]
    return Table(
        "log", "What was run", header, shown or [["not run", *[NOT_RUN] * 5]], "llllrr", frame,
        Origin.of(results.scores), f"{len(results.records)} records",
        notes=("Duration: of the measurements and of what was trained for them, loading apart.",),
    )  # fmt: skip
