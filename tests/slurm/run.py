"""A small grid through a real Slurm: `make test-slurm`; its output is docs/slurm-test.md.

The jobs of the analyses run to their end. A suite of fifteen records loses its job half-way, by
`scancel`; the same command makes the rest, and nothing twice. The controller's own log says which
jobs were Slurm's. Needs root and Debian's `slurm-wlm` and `munge`; no part of CI.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

from cluster import cluster

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "slurm"
RESULTS, SCRATCH = BUILD / "results", BUILD / "build" / "grid"
PROFILE = "tests/slurm/profile"
BEFORE_KILL = 4  # records that are there when the job is cancelled

lines: list[str] = []


def say(text: str = "") -> None:
    """Print, and keep for the page, without this machine's places and name."""
    for old, new in ((f"{ROOT}/", ""), (str(ROOT), "."), (socket.gethostname(), "node")):
        text = text.replace(old, new)
    print(text, flush=True)
    lines.append(text)


def check(true: bool, claim: str) -> None:
    say(f"- {'yes' if true else 'NO'}: {claim}")
    if not true:
        raise SystemExit(f"not so: {claim}")


def command(*arguments: str) -> list[str]:
    return [
        "experiments/grid.py", *arguments, "--no-train", f"--profile={PROFILE}", "--jobs=2",
        f"--results={RESULTS.relative_to(ROOT)}", f"--scratch={SCRATCH.relative_to(ROOT)}",
    ]  # fmt: skip


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command(*arguments)],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def finish(process: subprocess.Popen[str], *arguments: str) -> int:
    """Wait for a command and show what it said."""
    out, _ = process.communicate()
    say("\n```text\n$ python " + " ".join(command(*arguments)))
    say(out.partition("\nAll tables")[0].rstrip() + f"\n(exit code {process.returncode})\n```\n")
    return process.returncode


def records(experiment: str) -> dict[str, bytes]:
    folder = RESULTS / "raw" / experiment
    files = sorted(folder.rglob("*.json"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def job_of(name: str) -> str:
    """Slurm's id of the job that runs a job of the grid, by the comment it was given."""
    shown = subprocess.run(["squeue", "-h", "-o", "%i %k"], capture_output=True, text=True).stdout
    return next((line.split()[0] for line in shown.splitlines() if name in line), "")


def completed(log: str) -> list[dict[str, str]]:
    """Lines of the completion log as fields."""
    return [dict(word.partition("=")[::2] for word in line.split()) for line in log.splitlines()]


def main() -> None:
    shutil.rmtree(BUILD, ignore_errors=True)
    with cluster(BUILD / "slurm") as log:
        shown = subprocess.run(["sbatch", "--version"], capture_output=True, text=True).stdout
        say("# A grid through a real Slurm")
        say("\nWritten by `make test-slurm` (tests/slurm/run.py), never by hand: one node on")
        say(f"loopback, {shown.strip()}, Snakemake's Slurm executor, the profile `{PROFILE}`.")
        say(f"Run on {date.today()}, with the adapters of that day.")
        analyses(log)
        killed(log)
        say("\n## Slurm's completion log (jobcomp/filetxt)\n\n```text")
        for fields in completed(log()):
            keys = ("JobId", "JobState", "Partition", "StartTime", "EndTime", "ProcCnt")
            say(" ".join(f"{key}={fields.get(key, '')}" for key in keys))
        say("```")
    (ROOT / "docs" / "slurm-test.md").write_text("\n".join(lines) + "\n")


def analyses(log) -> None:
    say("\n## Pooling leakage and layer similarity, a job each")
    arguments = ("analyses", "--model=minilm-l6,smollm2-135m")
    code = finish(start(*arguments), *arguments)
    states = [fields["JobState"] for fields in completed(log())]
    check(code == 0, "the command ended without an error")
    made = records("pooling_leakage") | records("layer_similarity")
    check(
        len(made) >= 4 and states == ["COMPLETED"] * len(made),
        f"{len(made)} records are there, and as many jobs in Slurm's log, all COMPLETED",
    )


def killed(log) -> None:
    say("\n## A job that is killed half-way")
    arguments = ("offline", "--model=minilm-l6")
    process = start(*arguments)
    while len(records("offline_suite")) < BEFORE_KILL:
        if process.poll() is not None:
            raise SystemExit(process.communicate()[0])
        time.sleep(0.2)
    number = job_of("offline.minilm-l6.encoder")
    subprocess.run(["scancel", "--signal=KILL", "--full", number], check=True)
    code = finish(process, *arguments)
    before = records("offline_suite")
    state = next(f["JobState"] for f in completed(log()) if f["JobId"] == number)
    check(code == 1, f"Slurm's job {number} was killed ({state}), and the command says so")
    check(BEFORE_KILL <= len(before) < 15, f"{len(before)} of 15 records were there by then")
    say("\nThe same command again:")
    code = finish(start(*arguments), *arguments)
    after = records("offline_suite")
    check(code == 0 and len(after) == 15, "now all 15 records are there")
    check(before.items() <= after.items(), f"the first {len(before)} are untouched, to the byte")
    job_log = (BUILD / "build" / "logs" / "offline.minilm-l6.encoder.log").read_text()
    count = {name: job_log.count(f"  {Path(name).stem} ") for name in after}
    check(set(count.values()) == {1}, "each was measured once, says the log of the job")
    committed = ROOT / "results" / "raw" / "offline_suite"
    same = sum(
        json.loads(text)["score"] == json.loads((committed / name).read_text())["score"]
        for name, text in after.items()
    )
    say(f"- {same} of 15 scores are those of the committed records, to the last digit")
    code = finish(start(*arguments, "--dry-run"), *arguments, "--dry-run")
    check(code == 0, "a third time there is nothing to do")


if __name__ == "__main__":
    main()
