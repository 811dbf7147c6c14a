"""A grid that is killed at random, fills its disk or may not write: the same command goes on.

The kills here are few; docs/reliability.md shows a longer campaign of `tests/reliability.py`.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import reliability
from reliability import RECORDS, Findings, compare, content, state_of, undisturbed

from llm2vec.locks import hold

FULL, READ_ONLY = "size=700k", "ro"  # a record takes about 180 kB


def finish(folder: Path) -> tuple[int, str]:
    """(exit code, what is said) of the command for what is missing."""
    done = subprocess.run(
        [sys.executable, reliability.__file__, "--grid", "--folder", str(folder)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
        env=os.environ | {"PACE": "0"},
    )  # fmt: skip
    return done.returncode, done.stdout


# --------------------------------------------------------------------------- kills
@pytest.mark.slow
def test_six_random_kills_lose_nothing_and_nothing_is_made_twice(tmp_path: Path) -> None:
    findings = reliability.campaign(tmp_path, kills=6, seed=1, pace=0.3)
    shown = reliability.markdown(findings, 1)
    assert findings.kills.total() == 6, shown
    assert findings.faults == 0, shown + "\n".join(findings.said)


# --------------------------------------------------------------------------- the harness sees
def test_what_must_not_be_is_seen(tmp_path: Path) -> None:
    """Each fault that the campaign looks for, made by hand."""
    expected = undisturbed(tmp_path)
    before, partial = state_of(tmp_path)
    assert len(before) == sum(RECORDS.values()) and partial == 0
    cut, gone, again, *_ = before
    cut.write_text(cut.read_text()[:-20])
    gone.unlink()
    whole = again.read_bytes()
    (again.parent / ".tmp-new.json").write_bytes(whole)
    (again.parent / ".tmp-new.json").replace(again)
    now, partial = state_of(tmp_path)
    assert partial == 1
    findings = Findings()
    compare(findings, "job", before, now)
    assert (findings.lost["job"], findings.again["job"]) == (1, 2)  # cut and again are new
    different = {name for name, value in expected.items() if content(tmp_path).get(name) != value}
    assert different == {str(path.relative_to(tmp_path)) for path in (cut, gone)}


def test_the_content_depends_on_a_training_that_went_on(tmp_path: Path) -> None:
    """The grid would show a step that is left out, or done twice, in what comes after."""
    whole = undisturbed(tmp_path / "whole")
    folder = tmp_path / "resumed"
    folder.mkdir()
    shutil.copy(tmp_path / "whole" / "checkpoint", folder / "checkpoint")
    assert undisturbed(folder) == whole
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "checkpoint").write_text("1 start")
    other = undisturbed(folder)
    same = {name for name in whole if other[name] == whole[name]}
    assert len(same) == RECORDS["beside"] and all("beside" in name for name in same)


def test_only_processes_of_the_grid_are_killed(tmp_path: Path) -> None:
    """Ids in a lock may be those of other processes by now."""
    with hold(tmp_path / "build" / "grid" / "locks" / "job") as lock:
        lock.note(os.getppid())
        found = reliability.processes(tmp_path, os.getpid())
    assert found == {"runner": [], "engine": [], "worker": [], "job": []}


# --------------------------------------------------------------------------- disks
@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system in memory where the records go; only root can have one."""
    place = tmp_path / "results"
    place.mkdir()
    if os.geteuid() or shutil.which("mount") is None or mount(place, "-t", "tmpfs", "tmpfs"):
        pytest.skip("needs the right to mount a tmpfs")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def mount(place: Path, *options: str) -> int:
    return subprocess.run(["mount", *options, str(place)], stderr=subprocess.DEVNULL).returncode


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "message"), [(FULL, "No space left on device"), (READ_ONLY, "Read-only file system")]
)
def test_a_disk_that_takes_no_more_is_named_and_the_command_goes_on(
    tmp_path: Path, disk: Path, fault: str, message: str
) -> None:
    assert mount(disk, "-o", f"remount,{fault}") == 0
    code, said = finish(tmp_path)
    assert code == 1, said
    assert message in said and "The same command goes on with what is missing." in said
    before, partial = state_of(tmp_path)
    assert partial == 0 and len(before) < sum(RECORDS.values())
    assert bool(before) == (fault == FULL)
    assert not list(disk.rglob(".tmp-*")), "nothing half is left"
    assert mount(disk, "-o", "remount,rw,size=20m") == 0
    code, said = finish(tmp_path)
    assert code == 0, said
    findings = Findings()
    compare(findings, "disk", before, state_of(tmp_path)[0])
    assert findings.faults == 0
    assert content(tmp_path) == undisturbed(tmp_path / "undisturbed")
