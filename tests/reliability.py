"""Kill a grid at random moments (kill -9), start the same command again, and see what is left.

    python tests/reliability.py --kills 50        # what docs/reliability.md shows

The engine is the real one; the jobs are small: a training with checkpoints, two jobs that write
records from its adapter, and one beside them. Records go through the package's own writing and its
own question whether one is done. Every choice but the operating system's follows from the seed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from llm2vec import engine
from llm2vec.costs import Cost, Resources
from llm2vec.errors import LLM2VecError, RecordError
from llm2vec.jobs import Job
from llm2vec.results import Key, Record, is_done, read_record, sha256_file, write_atomic
from llm2vec.results import write_record as write

STEPS = 4
RECORDS = {"first": 5, "second": 5, "beside": 6}
ADAPTER = "adapter.bin"
VICTIMS = {
    "runner": "the command itself",
    "engine": "the engine",
    "worker": "the engine's process around a job",
    "job": "a job",
    "all": "all of them at once",
}
LONGEST = 120.0  # seconds until something to kill is there
SETTINGS = {"max_length": 512}
PROVENANCE = {
    "commit": "0" * 40, "dirty": False, "command": "test", "versions": {}, "device": "cpu",
    "dtype": "float32",
}  # fmt: skip


# --------------------------------------------------------------------------- the small grid
def key_of(job: str, index: int) -> Key:
    return Key("reliability", "tiny", job, "none", f"Task{index}")


def adapters_of(folder: Path, job: str) -> tuple[str, ...]:
    return () if job == "beside" else (sha256_file(folder / ADAPTER),)


def work(folder: Path, job: str, pace: float) -> None:
    """One job: what is missing of it, each product whole or not at all."""
    train(folder, pace) if job == "train" else measure(folder, job, pace)


def train(folder: Path, pace: float) -> None:
    """A chain of hashes stands for training: the end depends on every step, in order."""
    if (folder / ADAPTER).exists():
        return
    checkpoint = folder / "checkpoint"
    text = checkpoint.read_text() if checkpoint.exists() else "0 start"
    step, state = int(text.split()[0]), text.split()[1]
    while step < STEPS:
        time.sleep(pace)
        step, state = step + 1, hashlib.sha256(f"{step} {state}".encode()).hexdigest()
        write_atomic(checkpoint, f"{step} {state}")
    write_atomic(folder / ADAPTER, state)
    note(folder, ADAPTER)


def measure(folder: Path, job: str, pace: float) -> None:
    adapters = adapters_of(folder, job)
    for index in range(RECORDS[job]):
        key = key_of(job, index)
        if is_done(key, folder / "results", SETTINGS, adapters):
            continue
        time.sleep(pace)
        rng = random.Random(f"{job} {index} {adapters}")
        scores = {f"value{i}": rng.random() for i in range(5000)}  # a write that takes its time
        values = {
            "metric": "accuracy", "score": rng.random(), "split": "test", "n": 100,
            "model_revision": "none", "hyperparameters": SETTINGS, "provenance": PROVENANCE,
            "dataset": dict.fromkeys(("id", "revision", "source", "status"), "none"),
            "cost": {"seconds": 1.0}, "scores": scores, "adapters": adapters,
        }  # fmt: skip
        axes = (key.experiment, key.model, key.variant, key.pooling, key.task)
        write(Record(*axes, **values), folder / "results")
        note(folder, f"{job}-{index}")


def note(folder: Path, product: str) -> None:
    """Say after the fact what was made; one short line is appended whole."""
    with open(folder / "written", "a") as log:
        log.write(product + "\n")


def jobs_of(folder: Path) -> list[Job]:
    """What is missing, as `llm2vec.grid` would ask for it."""
    jobs, small = [], Resources(0, 100, 2)
    trained = (folder / ADAPTER).exists()

    def add(name: str, products: list[Path], total: int, needs: tuple[str, ...]) -> None:
        command = ("tests/reliability.py", "--work", name, "--folder", str(folder))
        jobs.append(Job(name, command, tuple(products), total, Cost(100, 2.0), small, needs))

    if not trained:
        add("train", [folder / ADAPTER], 1, ())
    for name, number in RECORDS.items():
        keys = [key_of(name, index) for index in range(number)]
        waits = name != "beside" and not trained
        adapters = () if waits else adapters_of(folder, name)
        missing = [k for k in keys if not is_done(k, folder / "results", SETTINGS, adapters)]
        if missing:
            files = [key.path(folder / "results") for key in missing]
            add(name, files, number, ("train",) if waits else ())
    return jobs


def grid(folder: Path) -> None:
    """The command that is started again and again."""
    jobs = jobs_of(folder)
    if jobs and not engine.run(jobs, "local", 2, folder / "build" / "grid"):
        sys.exit(1)


# --------------------------------------------------------------------------- who is there
def ours(pid: int, folder: Path) -> bool:
    """Whether a process of this grid has this id; ids in an old lock may be anybody's by now."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
        return str(folder) in command or str(folder) in os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return False


def processes(folder: Path, runner: int) -> dict[str, list[int]]:
    """Ids by kind, of those that are alive."""
    found: dict[str, list[int]] = {"runner": [runner], "engine": [], "worker": [], "job": []}
    scratch = folder / "build" / "grid"
    for file in (scratch / "lock", *(scratch / "locks").glob("*")):
        try:
            owner, *children = map(int, file.read_text().split()[1:])
        except (OSError, ValueError):
            continue  # not there yet, or being written
        if file.name == "lock":
            found["engine"] += children
        elif children:
            found["worker"].append(owner)
            found["job"] += children
    engines = set(found["engine"])
    found["worker"] = [pid for pid in found["worker"] if pid not in engines]
    return {kind: [p for p in pids if ours(p, folder)] for kind, pids in found.items()}


# --------------------------------------------------------------------------- the campaign
@dataclass
class Findings:
    """What happened, and what must not have."""

    kills: Counter[str] = field(default_factory=Counter)
    whole: Counter[str] = field(default_factory=Counter)  # records that were there at the kills
    partial: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    again: Counter[str] = field(default_factory=Counter)  # written a second time
    rounds: int = 0
    commands: int = 0
    different: int = 0
    said: list[str] = field(default_factory=list)  # messages that no user should see

    @property
    def faults(self) -> int:
        counted = (self.partial, self.lost, self.again)
        return sum(c.total() for c in counted) + self.different + len(self.said)


State = dict[Path, tuple[int, int]]


def state_of(folder: Path) -> tuple[State, int]:
    """(inode and time of every whole record, number of others)."""
    found, partial = {}, 0
    for file in sorted((folder / "results").rglob("*.json")):
        if file.name.startswith(".tmp-"):
            continue
        try:
            read_record(file)
        except RecordError:
            partial += 1
        status = file.stat()
        found[file] = status.st_ino, status.st_mtime_ns
    return found, partial


def content(folder: Path) -> dict[str, str]:
    """sha256 of all products."""
    files = [*(folder / "results").rglob("*.json"), folder / ADAPTER]
    whole = [file for file in files if file.exists() and not file.name.startswith(".tmp-")]
    return {str(file.relative_to(folder)): sha256_file(file) for file in whole}


def undisturbed(folder: Path) -> dict[str, str]:
    """Content after the same jobs without engine and kills."""
    for job in ("train", *RECORDS):
        work(folder, job, 0)
    return content(folder)


def start(folder: Path, log: Path, pace: float) -> subprocess.Popen[bytes]:
    with open(log, "ab") as out:
        return subprocess.Popen(
            [sys.executable, __file__, "--grid", "--folder", str(folder)],
            stdout=out, stderr=out, env=os.environ | {"PACE": str(pace)},
        )  # fmt: skip


def strike(process: subprocess.Popen[bytes], folder: Path, victim: str, rng: random.Random) -> bool:
    """Kill a victim at a random moment; False where the run was over before."""
    time.sleep(rng.uniform(0, 2.5))
    deadline = time.monotonic() + LONGEST
    while process.poll() is None and time.monotonic() < deadline:
        found = processes(folder, process.pid)
        chosen = found.get(victim, [])
        if victim == "all" and found["job"]:
            chosen = [pid for pids in found.values() for pid in pids]
        elif victim == "runner" and not found["job"] and rng.random() < 0.9:
            chosen = []  # most often with jobs at work, sometimes before
        if chosen:
            time.sleep(rng.uniform(0, 2.5))
            number = len(chosen) if victim == "all" else 1
            hit = [pid for pid in rng.sample(chosen, number) if ours(pid, folder)]
            for pid in hit:
                os.kill(pid, signal.SIGKILL)
            if hit:
                return True
        time.sleep(0.1)
    return False


def compare(findings: Findings, victim: str, before: State, now: State) -> None:
    for file, status in before.items():
        if file not in now:
            findings.lost[victim] += 1
        elif now[file] != status:
            findings.again[victim] += 1


def one_round(
    folder: Path,
    findings: Findings,
    kills: int,
    rng: random.Random,
    pace: float,
    victims: list[str],
) -> None:
    """A grid from nothing to its end, with up to ``kills`` kills on the way."""
    findings.rounds += 1
    log = folder / "said"
    before: State = {}
    last, process = "", None
    for number in range(4 * kills + 20):  # a grid that never ends is found by its content
        if process is None or process.poll() is not None:
            if process is not None and process.returncode == 0:
                break
            process = start(folder, log, pace)
            findings.commands += 1
        if number >= kills:
            process.wait()
            continue
        victim = victims[findings.kills.total() % len(victims)]
        if not strike(process, folder, victim, rng):
            continue
        now, partial = state_of(folder)
        compare(findings, last, before, now)
        before, last = now, victim
        findings.kills[victim] += 1
        findings.whole[victim] += len(now)
        findings.partial[victim] += partial
        if victim in ("runner", "engine", "all"):
            process.wait()
    now, partial = state_of(folder)
    compare(findings, last, before, now)
    findings.partial[last] += partial
    made = Counter((folder / "written").read_text().split())
    findings.again[last] += sum(number - 1 for number in made.values())
    for product in (name for name, number in made.items() if number > 1):
        print(f"made twice: {product}; the last kill: {last}", file=sys.stderr)
    lines = log.read_text().splitlines()
    findings.said += [line for line in lines if line.startswith(("Traceback", "error:"))]


def campaign(root: Path, kills: int, seed: int, pace: float, per_round: int = 8) -> Findings:
    """Rounds until ``kills`` processes were killed; every victim in turn, in a random order."""
    rng = random.Random(seed)
    findings = Findings()
    expected = undisturbed(root / "undisturbed")
    victims = [v for _ in range(20) for v in rng.sample(list(VICTIMS), len(VICTIMS))]
    while findings.kills.total() < kills and findings.rounds < kills:
        folder = root / f"round-{findings.rounds}"
        folder.mkdir()
        left = kills - findings.kills.total()
        one_round(folder, findings, min(per_round, left), rng, pace, victims)
        got = content(folder)
        findings.different += sum(got.get(name) != value for name, value in expected.items())
        findings.different += len(got.keys() - expected.keys())
        print(f"{findings.kills.total()} kills, {findings.faults} faults", file=sys.stderr)
    return findings


def markdown(findings: Findings, seed: int) -> str:
    """The outcome as a table and a sentence."""
    counted = (findings.kills, findings.whole, findings.partial, findings.lost, findings.again)
    rows = [[text, *(c[name] for c in counted)] for name, text in VICTIMS.items()]
    rows.append(["together", *(c.total() for c in counted)])
    head = "| killed | kills | records there | partial | lost afterwards | made twice |"
    lines = [head, "|---|---:|---:|---:|---:|---:|"]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines) + (
        f"\n\n{findings.rounds} grids of {sum(RECORDS.values())} records and a training each, "
        f"{findings.commands} starts of the same command, seed {seed}. "
        f"Files that differ from those of jobs that nobody disturbed: {findings.different}. "
        f"Tracebacks and refusals that a user would have seen: {len(findings.said)}.\n"
    )


def main() -> None:
    """Run one part; without --grid and --work the campaign."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pace", type=float, default=float(os.environ.get("PACE", 0.4)))
    parser.add_argument("--grid", action="store_true", help="run what is missing in --folder")
    parser.add_argument("--work", help="run one job in --folder")
    parser.add_argument("--folder", type=Path)
    chosen = parser.parse_args()
    try:
        if chosen.work:
            work(chosen.folder, chosen.work, chosen.pace)
        elif chosen.grid:
            grid(chosen.folder)
    except LLM2VecError as error:  # in one line, as every command of the repository
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    if not (chosen.work or chosen.grid):
        with tempfile.TemporaryDirectory() as root:
            findings = campaign(Path(root), chosen.kills, chosen.seed, chosen.pace)
        print(markdown(findings, chosen.seed))
        sys.exit(bool(findings.faults))


if __name__ == "__main__":
    main()
