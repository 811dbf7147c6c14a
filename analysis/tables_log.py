"""The log of the reproduction: which command, at which commit, on which machine, gave what.

Read from the records' provenance, so it cannot drift from them; what left no record (a run that
failed) is written by hand in ``docs/reproduction-log.md``.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis.collect import Results, cost_of_run, pass_of
from analysis.render import NOT_RUN, Origin, Table

COLUMNS = ["date", "commit", "experiment", "model", "variant", "machine", "command", "records",
           "seconds"]  # fmt: skip


def machine_of(provenance: dict[str, Any]) -> str:
    """Device, its number of processors where it is one, and the platform."""
    device = provenance.get("accelerator") or provenance["device"]
    if device == "cpu" and provenance.get("cpus"):
        device = f"{provenance['cpus']} CPU cores"
    return ", ".join(filter(None, [device, provenance.get("platform")]))


def runs_of(results: Results) -> pd.DataFrame:
    """One row per command and commit; what several records share is counted once."""
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
    columns = [*COLUMNS[:7], "task", "own", "shared"]
    frame = pd.DataFrame(rows, columns=columns)
    axes = COLUMNS[:7]
    tasks = frame.groupby([*axes, "task"], as_index=False, sort=False).agg(
        records=("task", "size"), own=("own", "max"), shared=("shared", "max")
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
        [r.date, r.commit, r.command, r.machine, f"{r.seconds / 60:.0f} min", str(r.records)]
        for r in frame.itertuples()
    ]
    header = ["Date", "Commit", "Command", "Machine", "Duration", "Records"]
    return Table(
        "log", "What was run", header, shown or [["not run", *[NOT_RUN] * 5]], "llllrr", frame,
        Origin.of(results.scores), f"{len(results.records)} records",
        notes=("Duration: seconds of the records themselves, loading apart.",),
    )  # fmt: skip
