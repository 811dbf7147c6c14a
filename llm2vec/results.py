"""The record: one measured number with everything needed to trust it.

``results/raw/{experiment}/{model}/{variant}/{pooling}/{task}.json``; an axis that does not apply
is ``none``; a run that departs from the paper's setting is ``{task}@{setting}.json``. Records are
written to a temporary file and renamed, so a reader sees a whole record or none. A record is
*done* when it is valid and its hyperparameter and adapter hashes are those of a run made now.
Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from llm2vec.errors import RecordError, SettingError

SCHEMA = 1
NONE = "none"
_AXIS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Key:
    """The axes of a record; each is a plain name, never a path."""

    experiment: str
    model: str
    variant: str
    pooling: str
    task: str
    setting: str | None = None

    def __post_init__(self) -> None:
        for axis, value in asdict(self).items():
            if value is None and axis == "setting":
                continue
            if not isinstance(value, str) or not _AXIS.fullmatch(value):
                raise SettingError(
                    f"{axis} {value!r} cannot name a record: letters, digits, '.', '_' and '-', "
                    "at most 100 of them, the first a letter or digit."
                )

    def path(self, root: Path) -> Path:
        """File of the record below the results folder ``root``."""
        name = self.task if self.setting is None else f"{self.task}@{self.setting}"
        folder = Path(root) / "raw" / self.experiment / self.model / self.variant / self.pooling
        return folder / f"{name}.json"


@dataclass(frozen=True)
class Record:
    """One measured number (``score``, unrounded, 0 to 1) with its evidence.

    ``interval``: 95 % bootstrap interval of the score. ``dataset``: id, revision, source
    (``mirror``, ``hub``, ``asset``) and manifest status. ``adapters``: sha256 of each adapter
    file, in the order of the stages. ``cost``: seconds, tokens (really through the model, without
    padding), padding_tokens, tokens_per_second.
    """

    experiment: str
    model: str
    variant: str
    pooling: str
    task: str
    metric: str
    score: float
    split: str
    n: int
    model_revision: str
    dataset: dict[str, str]
    hyperparameters: dict[str, Any]
    provenance: dict[str, Any]
    cost: dict[str, float]
    setting: str | None = None
    subset: str = "default"
    interval: tuple[float, float] | None = None
    scores: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    adapters: tuple[str, ...] = ()
    hyperparameters_hash: str = ""
    schema: int = SCHEMA

    @property
    def key(self) -> Key:
        return Key(self.experiment, self.model, self.variant, self.pooling, self.task, self.setting)


def hash_of(hyperparameters: dict[str, Any]) -> str:
    """16 hex digits of the sha256 of the canonical JSON."""
    text = json.dumps(hyperparameters, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file, read in blocks."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


# --------------------------------------------------------------------------- writing
def write_atomic(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old or the whole new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-", suffix=path.suffix)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_record(record: Record, root: Path) -> Path:
    """Validate and write; returns the file. Raises :class:`RecordError` on an invalid record.

    A secondary score that has no value (nan) becomes null, as JSON has no nan.
    """
    values = asdict(record)
    values["scores"] = _without_nan(values["scores"])
    values["hyperparameters_hash"] = hash_of(record.hyperparameters)
    path = record.key.path(root)
    values = json.loads(json.dumps(values))  # tuples become lists, as they will be read
    _validate(values, path)
    try:
        write_atomic(path, json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    except OSError as error:
        raise RecordError(
            f"cannot write {path}: {error.strerror}. Free space or choose another --results."
        ) from error
    return path


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --------------------------------------------------------------------------- reading
_REQUIRED = {f.name for f in fields(Record)}
_TYPES: dict[str, type | tuple[type, ...]] = {
    "score": (int, float), "n": int, "schema": int, "dataset": dict, "hyperparameters": dict,
    "provenance": dict, "cost": dict, "scores": dict, "seeds": list, "adapters": list,
    "metric": str, "split": str, "subset": str, "model_revision": str,
    "interval": (list, type(None)),
}  # fmt: skip
_INNER = {
    "dataset": ("id", "revision", "source", "status"),
    "provenance": ("commit", "dirty", "command", "versions", "device", "dtype"),
}


def _validate(values: Any, path: Path) -> None:
    def fail(name: str, why: str) -> None:
        raise RecordError(
            f"{path}: field '{name}' {why}. Delete the file and run its command again."
        )

    if not isinstance(values, dict):
        fail("(all)", "is not a JSON object")
    for name in sorted(_REQUIRED - values.keys()):
        fail(name, "is missing")
    for name in sorted(values.keys() - _REQUIRED):
        fail(name, "is not part of the schema")
    for name, kind in _TYPES.items():
        if not isinstance(values[name], kind) or isinstance(values[name], bool):
            fail(name, f"has the wrong type ({type(values[name]).__name__})")
    if values["schema"] != SCHEMA:
        fail("schema", f"is {values['schema']}, this version reads {SCHEMA}")
    if not -1 <= values["score"] <= 1:  # false for nan
        fail("score", f"is {values['score']}, outside -1 to 1")
    interval = values["interval"]
    if interval is not None and not _is_interval(interval):
        fail("interval", f"is {interval}, not (low, high)")
    for name, inner in ((n, i) for n, names in _INNER.items() for i in names):
        if inner not in values[name]:
            fail(f"{name}.{inner}", "is missing")
    if name := _not_finite(values):
        fail(name, "is not a finite number")
    if values["hyperparameters_hash"] != hash_of(values["hyperparameters"]):
        fail("hyperparameters_hash", "does not belong to the hyperparameters")
    axes = ("experiment", "model", "variant", "pooling", "task", "setting")
    try:
        expected = Key(**{axis: values[axis] for axis in axes}).path(Path())
    except SettingError as error:
        fail("(axes)", str(error))
    if path.parts[-len(expected.parts) :] != expected.parts:
        fail("(axes)", f"belong to {expected}, not to this place")


def _is_interval(value: list[Any]) -> bool:
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value)
    return numbers and len(value) == 2 and value[0] <= value[1]


def _not_finite(value: Any, name: str = "") -> str | None:
    """Dotted name of the first nan or infinity, which JSON proper does not have."""
    if isinstance(value, float):
        return None if math.isfinite(value) else name
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) else items
    found = (_not_finite(inner, f"{name}.{key}".lstrip(".")) for key, inner in items)
    return next(filter(None, found), None)


def read_record(path: Path) -> Record:
    """Read and validate one record; :class:`RecordError` names the file and the field."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RecordError(
            f"{path}: not a readable record ({error}). Delete the file and run its command again."
        ) from error
    _validate(values, path)
    for name in ("seeds", "adapters", "interval"):
        values[name] = None if values[name] is None else tuple(values[name])
    return Record(**values)


def iter_records(root: Path) -> Iterator[Record]:
    """All records below a results folder, in the order of their paths."""
    for path in sorted((Path(root) / "raw").rglob("*.json")):
        if not path.name.startswith(".tmp-"):
            yield read_record(path)


def is_done(
    key: Key, root: Path, hyperparameters: dict[str, Any], adapters: tuple[str, ...] | None = ()
) -> bool:
    """Whether a valid record of exactly this run is there; a damaged one raises.

    ``adapters=None``: of this run with whatever adapters, where they are not at hand.
    """
    path = key.path(root)
    if not path.exists():
        return False
    record = read_record(path)
    same = record.hyperparameters_hash == hash_of(hyperparameters)
    return same and (adapters is None or record.adapters == tuple(adapters))
