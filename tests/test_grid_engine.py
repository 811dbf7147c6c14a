"""The real engine over small grids whose jobs are scripts of a few lines.

`python test_grid_engine.py FOLDER` runs such a grid: what is missing of it, as a user's command
would. Each product is appended to FOLDER/written when it is made, so what is done twice is seen.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm2vec import engine
from llm2vec.console import run
from llm2vec.costs import Cost, Resources
from llm2vec.errors import UnknownNameError
from llm2vec.jobs import Job

pytestmark = pytest.mark.slow

# Writes what is missing, each product whole or not at all, and notes it.
WORK = """
import os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
for product in map(pathlib.Path, sys.argv[2:]):
    if not product.exists():
        time.sleep(float(os.environ.get("PACE", 0)))
        temporary = product.with_suffix(".tmp")
        temporary.write_text("{}")
        with open(folder / "written", "a") as log:
            log.write(product.name + "\\n")
        temporary.replace(product)
"""
FLAKY = """
import pathlib, sys
mark = pathlib.Path(sys.argv[1], "flaky")
if not mark.exists():
    mark.touch()
    sys.exit("a flake")
""" + WORK  # fmt: skip
BROKEN = "print('before'); raise SystemExit('this one is broken')"
PRODUCTS = {"a": 3, "b": 2, "c": 3, "flaky": 1}
ALL = [f"{name}-{index}.json" for name, number in PRODUCTS.items() for index in range(number)]


def grid(folder: Path) -> list[Job]:
    """a -> b, and c beside them; `flaky` fails once, `broken` always, `after` waits for it."""
    wanted = {
        name: (FLAKY if name == "flaky" else WORK, number, ("a",) if name == "b" else ())
        for name, number in PRODUCTS.items()
    }
    if (folder / "with-broken").exists():
        wanted |= {"broken": (BROKEN, 1, ()), "after": (WORK, 1, ("broken",))}
    jobs = []
    for name, (code, number, needs) in wanted.items():
        products = [folder / f"{name}-{index}.json" for index in range(number)]
        missing = tuple(product for product in products if not product.exists())
        if missing:
            command = ("-c", code, str(folder), *map(str, missing))
            small = Resources(0, 100, 2)
            jobs.append(Job(name, command, missing, number, Cost(100, 2.0), small, needs))
    names = {job.name for job in jobs}
    return [Job(**vars(j) | {"needs": tuple(n for n in j.needs if n in names)}) for j in jobs]


def main(folder: Path, profile: str = "local") -> None:
    """Run what is missing."""
    engine.LOST = float(os.environ.get("LOST", engine.LOST))
    if (folder / "Snakefile").exists():
        engine.SNAKEFILE = folder / "Snakefile"
    jobs = grid(folder)
    if jobs and not engine.run(jobs, profile, 2, folder / "build" / "grid"):
        sys.exit(1)


# --------------------------------------------------------------------------- helpers
def start(folder: Path, pace: float = 0, **values: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, __file__, str(folder)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PACE": str(pace)} | values,
    )  # fmt: skip


def finish(folder: Path, **values: str) -> tuple[int, str, str]:
    process = start(folder, **values)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def written(folder: Path) -> list[str]:
    log = folder / "written"
    return sorted(log.read_text().split()) if log.exists() else []


def wait_for_product(folder: Path, number: int) -> None:
    deadline = time.monotonic() + 120
    while len(written(folder)) < number:
        assert time.monotonic() < deadline, "no product in two minutes"
        time.sleep(0.1)


# --------------------------------------------------------------------------- runs
def test_jobs_run_in_order_flakes_are_retried_and_failures_stop_no_other(tmp_path: Path) -> None:
    (tmp_path / "with-broken").touch()
    code, out, err = finish(tmp_path)
    assert code == 1
    assert written(tmp_path) == ALL
    order = (tmp_path / "written").read_text().split()
    assert order.index("a-2.json") < order.index("b-0.json")
    assert "9 records in" in out and "4 jobs done, 1 failed, 1 not started" in out
    assert "Failed: broken (exit code 1)" in out and "this one is broken" in out
    assert "Not started: after" in out
    assert err.count("failed: broken") == 2, "tried again once"
    (again,) = [line for line in out.splitlines() if line.startswith("  again: ")]
    assert "SystemExit" in again
    (tmp_path / "with-broken").unlink()
    assert finish(tmp_path) == (0, "", "")


@pytest.mark.parametrize("victim", ["runner", "engine"])
def test_a_killed_run_goes_on_with_nothing_lost_or_done_twice(tmp_path: Path, victim: str) -> None:
    process = start(tmp_path, pace=1.0)
    wait_for_product(tmp_path, 2)
    lock = (tmp_path / "build" / "grid" / "lock").read_text().split()
    os.kill(process.pid if victim == "runner" else int(lock[2]), signal.SIGKILL)
    out, _ = process.communicate(timeout=120)
    if victim == "engine":
        assert process.returncode == 1 and "The engine was killed by signal 9" in out
    code, out, err = finish(tmp_path)
    assert code == 0, out + err
    assert written(tmp_path) == ALL
    assert list(tmp_path.glob("*.tmp")) == []


def test_a_second_run_in_the_same_folder_is_refused_and_a_stopped_one_goes_on(
    tmp_path: Path,
) -> None:
    process = start(tmp_path, pace=1.0)
    wait_for_product(tmp_path, 1)
    code, out, err = finish(tmp_path)
    assert (code, out) == (2, "")
    assert f"another run: process {process.pid} on" in err and err.count("\n") == 1
    process.terminate()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "stopping" in err and "stopped" in out and "The same command goes on" in out
    assert finish(tmp_path)[0] == 0
    assert written(tmp_path) == ALL


def test_an_engine_that_lost_track_of_its_jobs_is_started_again(tmp_path: Path) -> None:
    """As on a cluster that forgot a finished job: the first engine waits for job c far too long."""
    text = engine.SNAKEFILE.read_text().rstrip()
    assert text.endswith("run_job(Path.cwd(), wildcards.job)")
    (tmp_path / "Snakefile").write_text(
        f"{text}\n"
        f"        hung = Path({str(tmp_path / 'hung')!r})\n"
        "        if wildcards.job == 'c' and not hung.exists():\n"
        "            hung.touch()\n"
        "            import time\n"
        "            time.sleep(90)\n"
    )
    code, out, err = finish(tmp_path, LOST="5")
    assert code == 0 and "starting it again" in err, out + err
    assert "9 records in" in out and "4 jobs done, 0 failed, 0 not started" in out
    assert sorted(written(tmp_path)) == ALL


def test_a_folder_of_a_hostile_name_is_a_folder_and_no_more(tmp_path: Path) -> None:
    """The engine starts its jobs by strings of its own; ours is only the folder they run in."""
    folder = tmp_path / "x; touch pwned $(touch pwned) 'q' {job}\nsecond line"
    folder.mkdir()
    code, out, err = finish(folder)
    assert code == 0, out + err
    assert sorted(written(folder)) == ALL
    assert not list(tmp_path.rglob("pwned")) and not Path("pwned").exists()


def test_profiles_are_found_by_name_or_by_folder(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    assert engine.find_profile(str(tmp_path)) == tmp_path
    assert engine.find_profile("slurm").name == "slurm"
    for name in ("../x", "x; rm", "a\nb", "x" * 5000, "", "/", "config.yaml"):
        with pytest.raises(UnknownNameError, match="gpu, local, slurm"):
            engine.find_profile(name)


if __name__ == "__main__":
    run(main)
