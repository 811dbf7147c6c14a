"""Records from another machine: all that came or nothing, and never over one that is here."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_records import PROVENANCE, make_record

from llm2vec.errors import RecordError, SettingError
from llm2vec.results import Record, iter_records, write_record
from llm2vec.transfer import bring, look, main

ELSEWHERE = PROVENANCE | {"started": "2026-05-06T07:08:09+00:00", "processor": "another"}


def a_record(task: str = "STSBenchmark", score: float = 0.5, **changes: Any) -> Record:
    return make_record("mteb_subset", "smollm2-135m", "uni", "mean", task, score, **changes)


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """Three records on the other machine, one of them with an array beside it."""
    root = tmp_path / "there"
    for task in ("STSBenchmark", "SICK-R"):
        write_record(a_record(task), root)
    made = make_record("layer_similarity", "smollm2-135m", "bi", "none", "wikipedia", 0.5)
    np.savez(write_record(made, root).with_suffix(".npz"), layers=np.arange(3.0))
    return root


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return tmp_path / "here"


def files(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


# --------------------------------------------------------------------------- bringing
def test_what_comes_is_what_was_there(there: Path, here: Path) -> None:
    main(str(there), here)
    assert files(here) == files(there)
    assert len(list(iter_records(here))) == 3


def test_a_second_import_changes_nothing(
    there: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(str(there), here)
    before = {p: p.stat().st_mtime_ns for p in here.rglob("*.json")}
    main(str(there), here)
    assert {p: p.stat().st_mtime_ns for p in here.rglob("*.json")} == before
    assert "0 records imported, 3 were here already" in capsys.readouterr().out


def test_equal_records_stay_and_new_ones_come(there: Path, here: Path) -> None:
    write_record(a_record("SICK-R"), here)
    own = write_record(a_record("SciFact"), here)
    plan = look(there, here)
    assert [a.record.task for a in plan.equal] == ["SICK-R"]
    assert {a.record.task for a in plan.new} == {"STSBenchmark", "wikipedia"}
    bring(plan, here)
    assert own.is_file()
    assert len(list(iter_records(here))) == 4


@pytest.mark.parametrize("score", [0.5, 0.5015])
def test_a_measurement_made_on_both_machines_stays_as_it_is_here(
    there: Path, here: Path, capsys: pytest.CaptureFixture[str], score: float
) -> None:
    """The baseline of a grid is measured everywhere: other seconds, another machine."""
    cost = {"seconds": 9.0, "tokens": 1000}
    own = write_record(a_record("SICK-R", score, provenance=ELSEWHERE, cost=cost), here)
    before = own.read_bytes()
    main(str(there), here)
    assert own.read_bytes() == before
    assert len(list(iter_records(here))) == 3
    out = capsys.readouterr().out
    assert "2 records imported, 0 were here already" in out
    (line,) = (line for line in out.splitlines() if "SICK-R" in line)
    assert line.startswith("1 measured here as well, with scores that agree, stay; the first: raw/")


def test_a_dry_run_writes_nothing(
    there: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(str(there), here, dry_run=True)
    assert not here.exists()
    assert "3 records would be imported" in capsys.readouterr().out


def test_uncommitted_changes_are_counted(
    there: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(a_record("STS17", provenance=PROVENANCE | {"dirty": True}), there)
    main(str(there), here)
    assert "1 of them were measured with changes that no commit holds" in capsys.readouterr().out


# --------------------------------------------------------------------------- refusing
@pytest.mark.parametrize(
    "changes",
    [
        {"score": 0.6, "provenance": ELSEWHERE},
        {"adapters": ("a" * 64,), "provenance": ELSEWHERE},
        {"hyperparameters": {"max_length": 300}, "provenance": ELSEWHERE},
        {"n": 99, "provenance": ELSEWHERE},
        {"provenance": ELSEWHERE | {"dtype": "bfloat16"}},
        {"cost": {"seconds": 1.0, "tokens": 2}},
    ],
    ids=["score", "adapter", "hyperparameters", "n", "dtype", "an edited field"],
)
def test_a_different_record_stops_all(there: Path, here: Path, changes: dict[str, Any]) -> None:
    write_record(a_record("SICK-R", **changes), here)
    before = files(here)
    with pytest.raises(RecordError, match=r"1 of 3 records are here already, but different.*SICK"):
        main(str(there), here)
    assert files(here) == before


def test_a_different_array_stops_all(there: Path, here: Path) -> None:
    main(str(there), here)
    (array,) = here.rglob("*.npz")
    np.savez(array, layers=np.arange(4.0))
    with pytest.raises(RecordError, match="but different"):
        main(str(there), here)


@pytest.mark.parametrize("damage", ["truncated", "moved", "unknown model", "link", "array"])
def test_one_bad_file_stops_all(there: Path, here: Path, damage: str) -> None:
    (file,) = there.rglob("SICK-R.json")
    if damage == "truncated":
        file.write_text(file.read_text()[:-30])
    elif damage == "moved":
        file.rename(file.with_name("STS17.json"))
    elif damage == "unknown model":
        values = json.loads(file.read_text()) | {"model": "gpt-5"}
        other = there / "raw/mteb_subset/gpt-5/uni/mean/SICK-R.json"
        other.parent.mkdir(parents=True)
        other.write_text(json.dumps(values))
    elif damage == "link":
        file.rename(there / "elsewhere.json")
        file.symlink_to(there / "elsewhere.json")
    else:
        next(there.rglob("*.npz")).write_bytes(b"PK and no more")
    with pytest.raises(RecordError, match=r"SICK-R|STS17|wikipedia"):
        main(str(there), here)
    assert not here.exists()


def test_pickled_arrays_are_refused(there: Path, here: Path) -> None:
    np.savez(next(there.rglob("*.npz")), layers=np.array([{"a": 1}], dtype=object))
    with pytest.raises(RecordError, match="not a readable array file"):
        main(str(there), here)


@pytest.mark.parametrize("source", ["", " ", "nowhere", "empty"])
def test_a_source_without_records(tmp_path: Path, here: Path, source: str) -> None:
    (tmp_path / "empty" / "raw").mkdir(parents=True)
    with pytest.raises(SettingError, match=r"FROM|holds no record"):
        main(source and source.strip() and str(tmp_path / source), here)


def test_the_results_are_not_their_own_source(there: Path) -> None:
    with pytest.raises(SettingError, match="itself"):
        main(str(there), there)


# --------------------------------------------------------------------------- nothing half
@pytest.mark.parametrize("call", ["copyfile", "link"])
@pytest.mark.parametrize("number", [1, 3])
def test_a_disk_that_fills_leaves_nothing_half(
    there: Path, here: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    write_record(a_record("SciFact"), here)
    before, calls = files(here), []
    module = "shutil.copyfile" if call == "copyfile" else "os.link"
    real = {"copyfile": __import__("shutil").copyfile, "link": os.link}[call]

    def fill(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == number:
            raise OSError(errno.ENOSPC, "No space left on device", str(arguments[1]))
        return real(*arguments)

    monkeypatch.setattr(module, fill)
    with pytest.raises(RecordError, match=r"No space left on device\. Nothing was imported"):
        main(str(there), here)
    assert files(here) == before
    monkeypatch.undo()
    main(str(there), here)
    assert len(list(iter_records(here))) == 4


def test_a_file_system_without_hard_links(
    there: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    main(str(there), here)
    assert files(here) == files(there)


def test_a_record_that_appears_meanwhile_is_not_overwritten(there: Path, here: Path) -> None:
    plan = look(there, here)
    own = write_record(a_record("SICK-R", 0.9), here)
    before = own.read_bytes()
    with pytest.raises(RecordError, match="Nothing was imported"):
        bring(plan, here)
    assert own.read_bytes() == before
    assert set(files(here)) == {own.relative_to(here).as_posix()}
