"""The log of the reproduction: which command, at which commit, on which machine, gave what.

Read from the records' provenance, so it cannot drift from them; what left no record (a run that
failed) is written by hand in ``docs/reproduction-log.md``.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis.collect import Results
from analysis.render import NOT_RUN, Origin, Table
from analysis.tables_cost import works
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
    done = [(w.experiment, w.model, w.variant, w.origin, w.records, w.seconds)
            for w in works(results)]  # fmt: skip
    done += [("training" if t.adapter else "ablations", t.model, t.variant, t.origin, 0, t.seconds)
             for t in trainings(results)]  # fmt: skip
    rows = [
        (
            origin["started"][:10], origin["commit"][:9], *place, machine_of(origin),
            origin["command"], records, seconds,
        )
        for *place, origin, records, seconds in done
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=COLUMNS)
    return frame.groupby(COLUMNS[:7], as_index=False).sum()


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
        notes=("Duration: of the measurements and of what was trained for them, loading apart; "
               "of a training that goes on from a shorter one, what it added.",),
    )  # fmt: skip
