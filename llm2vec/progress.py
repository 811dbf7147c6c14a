"""What a user sees of a run: a line per record, a count with the time left, a summary.

Read from files that jobs write, whatever machine they run on. Progress goes to standard error; the
summary, which is what was asked for, to standard output.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from llm2vec.costs import Cost, limits
from llm2vec.jobs import ATTEMPT, Job, Plan, log_of, read_state

TAIL = 6  # lines of a failed job's log


def duration(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3.5 h``, ``4 days``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"


def amount(tokens: float) -> str:
    """``830``, ``12 k``, ``3.4 M``, ``1.2 G`` tokens."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if tokens >= size:
            value = tokens / size
            return f"{value:.0f}{unit}" if value >= 10 else f"{value:.1f}{unit}"
    return f"{tokens:.0f}"


def plan_table(jobs: list[Job]) -> str:
    """What would run, with its estimated cost: one line a job, the sum at the end."""
    if not jobs:
        return "Nothing to do: every record is there."
    rows = [("job", "missing", "tokens", "time", "memory", "GPU", "after")]
    rows += [
        (
            job.name,
            f"{len(job.products)} of {job.total}",
            amount(job.cost.tokens),
            duration(job.cost.seconds),
            f"{job.resources.mem_mb / 1000:.0f} GB",
            str(job.resources.gpus),
            ", ".join(job.needs) or "-",
        )
        for job in jobs
    ]
    total = Cost(sum(j.cost.tokens for j in jobs), sum(j.cost.seconds for j in jobs))
    files = sum(len(job.products) for job in jobs)
    rows.append(
        (f"{len(jobs)} jobs", str(files), amount(total.tokens), duration(total.seconds), "", "", "")
    )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        left = [cell.rjust(width) for cell, width in zip(row[1:6], widths[1:6], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *left, row[6]]).rstrip())
    lines += ["Times are estimates, one job after the other."]
    return "\n".join([*lines, *limits([job.resources for job in jobs])])


@dataclass
class Progress:
    """Follows one run. ``update`` as often as you like; ``summary`` once.

    ``states``: what each job last said of itself.
    """

    folder: Path
    plan: Plan
    parallel: int
    out: TextIO = field(default_factory=lambda: sys.stderr)
    began: float = field(default_factory=time.monotonic)
    _seen: set[Path] = field(default_factory=set)
    states: dict[str, dict] = field(default_factory=dict)
    _live: bool = False

    # ----------------------------------------------------------------- while it runs
    def update(self) -> None:
        """Report records and failures that are new; refresh the count on a terminal."""
        for name, job in self.plan.jobs.items():
            before = self.states.get(name, {"status": "waiting"})
            if before["status"] == "done":
                continue
            # The state first: what was written before a job said that it ended is seen below.
            state = read_state(self.folder, name)
            self.states[name] = state
            if state["status"] != "waiting":
                for product in job.products:
                    if product not in self._seen and self.plan.finished(product):
                        self._seen.add(product)
                        self.say(f"{_line(product)}   [{self.count()}]")
            if state["status"] == "failed" and state != before:
                self.say(f"failed: {name}, {state.get('why')}   [{self.count()}]")
        if self.out.isatty():
            self.out.write(f"\r\033[K{self.count()}")
            self.out.flush()
            self._live = True

    def say(self, line: str) -> None:
        """A line of its own, in front of the live count."""
        self.out.write(("\r\033[K" if self._live else "") + line + "\n")
        self.out.flush()
        self._live = False

    def count(self) -> str:
        """Jobs done, running and failed, and the time left."""
        jobs = Counter(state["status"] for state in self.states.values())
        records = sum(len(job.products) for job in self.plan.jobs.values())
        text = (
            f"{len(self._seen)}/{records} records, {jobs['done']}/{len(self.plan.jobs)} jobs, "
            f"{jobs['running']} running, {jobs['failed']} failed"
        )
        left = self.seconds_left()
        return f"{text}, {duration(left)} left" if left else text

    def seconds_left(self) -> float:
        """What is not finished by the estimates, scaled by how good these were so far."""
        done = left = 0.0
        for job in self.plan.jobs.values():
            share = job.cost.seconds / max(1, len(job.products))
            finished = sum(product in self._seen for product in job.products)
            done += share * finished
            if self.states.get(job.name, {}).get("status") != "done":
                left += share * (len(job.products) - finished)
        if not done:
            return left / self.parallel
        return left * (time.monotonic() - self.began) / done

    # ----------------------------------------------------------------- at the end
    def summary(self, engine_log: Path, code: int, interrupted: bool = False) -> bool:
        """Print how it ended; whether every job came to its end."""
        if self._live:
            self.say("")
        names = list(self.plan.jobs)
        failed = [n for n in names if self._status(n) in ("failed", "running")]
        done = [n for n in names if self._status(n) == "done"]
        never = [n for n in names if n not in (*failed, *done)]
        files = [p for name in done for p in self.plan.jobs[name].products]
        left_out = [p for p in files if p not in self._seen]
        print(
            f"{len(self._seen)} records in {duration(time.monotonic() - self.began)}: "
            f"{len(done)} jobs done, {len(failed)} {'stopped' if interrupted else 'failed'}, "
            f"{len(never)} not started."
        )
        for name in () if interrupted else failed:
            self._explain(self.plan.jobs[name])
        if never and not interrupted:
            print("Not started: " + ", ".join(never))
        if code < 0 and not interrupted:
            print(f"The engine was killed by signal {-code}.")
        elif never and not failed and not interrupted:
            print(f"The engine ended with exit code {code}; its log: {engine_log}")
            print("\n".join(f"    {line}" for line in tail(engine_log, TAIL)))
        if left_out:
            print(f"{len(left_out)} records left out, their data were not to be had: ", end="")
            print(", ".join(dict.fromkeys(p.stem for p in left_out)))
            print(f"Their jobs' logs say why: {log_of(self.folder, names[0]).parent}")
        if failed or never or left_out:
            print("The same command goes on with what is missing.")
        return not failed and not never

    def _status(self, name: str) -> str:
        return self.states.get(name, {"status": "waiting"})["status"]

    def _explain(self, job: Job) -> None:
        log = log_of(self.folder, job.name)
        why = self.states[job.name].get("why") or "killed"
        print(f"\nFailed: {job.name} ({why})")
        print("\n".join(f"    {line}" for line in tail(log, TAIL)))
        print(f"  log:   {log}\n  again: {job.shown()}\n")


def _line(product: Path) -> str:
    """A finished record with its score and time; a trained adapter by its place."""
    if product.suffix != ".json":
        return f"{'/'.join(product.parts[-3:-1])} trained"
    try:
        values = json.loads(product.read_text(encoding="utf-8"))
        name = product.stem
        cell = f"{values['model']} {values['variant']} {values['pooling']}"
        score, seconds = 100 * values["score"], values["cost"]["seconds"]
        return f"{values['experiment']:<16} {cell:<36} {name:<32} {score:6.2f} {seconds:8.1f} s"
    except (OSError, ValueError, KeyError, TypeError):
        return product.stem


def tail(file: Path, number: int) -> list[str]:
    """The last lines of a log that say something, of a job's last attempt."""
    try:
        with open(file, "rb") as handle:
            handle.seek(max(0, file.stat().st_size - 20_000))
            text = handle.read().decode("utf-8", "replace")
    except OSError:
        return []
    attempt = text.rpartition(ATTEMPT)[2]
    lines = [line.rpartition("\r")[2].rstrip() for line in attempt.split("\n")]
    return [line for line in lines if line][-number:]
