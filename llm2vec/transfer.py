"""Records from another machine into the results of this one.

    make import-results FROM=/media/cluster/results
    python -m llm2vec.transfer --source /media/cluster/results --dry-run

Every record below ``FROM/raw`` is validated, with the arrays that lie beside it, before anything
is written. One that was measured here as well, in the same way and with a score that a rerun may
have, is kept as it is here, and that is said: every grid measures its baseline. Another one that is
different means that nothing is imported: which of the two counts is for a person to decide. New
files are copied to a folder beside the records and then linked into place one by one; if that fails
half-way, it is undone.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from llm2vec.errors import RecordError, SettingError, UnknownNameError
from llm2vec.paths import results_dir
from llm2vec.registry import EXPERIMENTS, MODELS, POOLINGS, VARIANTS
from llm2vec.registry_verdicts import RERUN_TOLERANCE, rerun_tolerance
from llm2vec.results import NONE, Record, read_record

ARRAYS = (".npz", ".parquet")  # what may lie beside a record, under its name


@dataclass(frozen=True)
class Arrival:
    """A record that came, its file and arrays there, and its place here."""

    record: Record
    files: tuple[Path, ...]
    target: Path

    def place_of(self, file: Path) -> Path:
        return self.target.with_name(file.name)


@dataclass(frozen=True)
class Plan:
    """What an import would do."""

    new: tuple[Arrival, ...]
    equal: tuple[Arrival, ...]
    again: tuple[Arrival, ...] = ()  # the same measurement made there: the one here stays


# --------------------------------------------------------------------------- looking
def look(source: Path, results: Path) -> Plan:
    """Validate all that came and compare it with what is here; writes nothing.

    Raises :class:`SettingError` for a folder without records, :class:`RecordError` naming a record
    that is damaged, unknown to the registry, or different from the one here.
    """
    if not (source / "raw").is_dir():
        raise SettingError(
            f"{source} has no folder 'raw': FROM is a results folder, with raw/experiment/model/..."
        )
    if source.resolve() == results.resolve():
        raise SettingError(f"{source} is the results folder itself")
    arrivals = list(_arrivals(source, results))
    if not arrivals:
        raise SettingError(f"{source / 'raw'} holds no record")
    here = [arrival for arrival in arrivals if arrival.target.exists()]
    equal = [a for a in here if _equal(a)]
    again = [a for a in here if a not in equal and _agrees(a)]
    others = [a for a in here if a not in equal and a not in again]
    if others:
        first = others[0]
        raise RecordError(
            f"{len(others)} of {len(arrivals)} records are here already, but different, so nothing "
            f"is imported; the first: {first.target} ({read_record(first.target).score:.4f} here, "
            f"{first.record.score:.4f} there). Keep one of each: delete the other and try again."
        )
    return Plan(tuple(a for a in arrivals if a not in here), tuple(equal), tuple(again))


def _arrivals(source: Path, results: Path) -> Iterator[Arrival]:
    for path in sorted((source / "raw").rglob("*.json")):
        if path.name.startswith(".tmp-"):
            continue
        record = read_record(path)
        _check_names(record, path)
        arrays = [path.with_name(path.name.removesuffix(".json") + kind) for kind in ARRAYS]
        there = [array for array in arrays if array.exists()]
        for file in (path, *there):
            if not file.is_file() or file.is_symlink():
                raise RecordError(f"{file}: not a plain file. Copy the results, not links to them.")
        for array in there:
            _check_array(array)
        yield Arrival(record, (path, *there), record.key.path(results))


def _check_names(record: Record, path: Path) -> None:
    known = {
        "experiment": EXPERIMENTS, "model": MODELS, "variant": (*VARIANTS, NONE),
        "pooling": (*POOLINGS, NONE),
    }  # fmt: skip
    for axis, names in known.items():
        value = getattr(record, axis)
        if value not in names:
            raise RecordError(
                f"{path}: field '{axis}': {UnknownNameError(axis, value, names)} "
                "Is the other machine's copy of the repository newer?"
            )


def _check_array(file: Path) -> None:
    import numpy as np
    from pyarrow.parquet import read_table

    try:
        if file.suffix == ".parquet":
            read_table(file)
        else:
            with np.load(file, allow_pickle=False) as arrays:
                for name in arrays.files:
                    arrays[name]
    except Exception as error:
        raise RecordError(f"{file}: not a readable array file ({error})") from error


def _equal(arrival: Arrival) -> bool:
    """Whether record and arrays are here just so."""
    if read_record(arrival.target) != arrival.record:
        return False
    places = [arrival.place_of(file) for file in arrival.files[1:]]
    return all(
        place.is_file() and place.read_bytes() == file.read_bytes()
        for file, place in zip(arrival.files[1:], places, strict=True)
    )


def _agrees(arrival: Arrival) -> bool:
    """Whether the record here is the same measurement, made on another occasion.

    Arrays are not compared: they are rounded as the scores are, and each belongs to its record.
    """
    here, there = read_record(arrival.target), arrival.record
    how = ("hyperparameters", "adapters", "metric", "split", "n")
    if any(getattr(here, name) != getattr(there, name) for name in how):
        return False
    if here.provenance == there.provenance:  # one measurement cannot have two outcomes
        return False
    dtype = str(there.provenance["dtype"])
    if dtype != here.provenance["dtype"] or dtype not in RERUN_TOLERANCE:
        return False
    return abs(here.score - there.score) <= rerun_tolerance(dtype, there.metric, there.n)


# --------------------------------------------------------------------------- bringing
def bring(plan: Plan, results: Path) -> None:
    """Copy what is new into place: all of it or nothing.

    Arrays come before their record, so a record is never without them. Raises
    :class:`RecordError` when a file cannot be written or has appeared in the meantime.
    """
    placed: list[Path] = []
    try:
        (results / "raw").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=results, prefix=".tmp-import-") as folder:
            copies = []
            for number, arrival in enumerate(plan.new):
                for file in reversed(arrival.files):
                    copy = Path(folder) / f"{number}-{file.name}"
                    shutil.copyfile(file, copy)
                    copies.append((copy, arrival.place_of(file)))
            for copy, place in copies:
                place.parent.mkdir(parents=True, exist_ok=True)
                _put(copy, place)
                placed.append(place)
    except OSError as error:
        for place in placed:
            place.unlink(missing_ok=True)
        raise RecordError(
            f"cannot write to {error.filename2 or error.filename or results}: {error.strerror}. "
            "Nothing was imported."
        ) from error
    except BaseException:
        for place in placed:
            place.unlink(missing_ok=True)
        raise


def _put(copy: Path, place: Path) -> None:
    """Move into place, never over a file that is there."""
    try:
        os.link(copy, place)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP) or place.exists():
            raise
        copy.rename(place)  # a file system without hard links


# --------------------------------------------------------------------------- command line
def main(
    source: Annotated[str, typer.Option(help="Results folder of the other machine.")],
    results: Annotated[Path | None, typer.Option(help="Results folder here.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Only say what would come.")] = False,
) -> None:
    """Import validated records; those that are here stay, different ones are refused."""
    if not source.strip():
        raise SettingError("FROM is empty: name the other results folder, FROM=/media/results")
    target = results or results_dir()
    plan = look(Path(source).expanduser(), target)
    for arrival in plan.new:
        print(f"  {arrival.target.relative_to(target)}", file=sys.stderr)
    if not dry_run:
        bring(plan, target)
    done = "would be imported" if dry_run else "imported"
    dirty = sum(bool(a.record.provenance["dirty"]) for a in plan.new)
    print(f"{len(plan.new)} records {done}, {len(plan.equal)} were here already, into {target}")
    if dirty:
        print(f"{dirty} of them were measured with changes that no commit holds")
    if plan.again:
        first = plan.again[0].target.relative_to(target)
        said = "measured here as well, with scores that agree, stay; the first"
        print(f"{len(plan.again)} {said}: {first}")
    if plan.new and not dry_run:
        print("next: make tables")


if __name__ == "__main__":
    from llm2vec.console import run

    run(main)
