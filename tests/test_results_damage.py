"""Records that are damaged, truncated or of another schema are named."""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from record_help import RECORD, changed

from llm2vec.errors import RecordError
from llm2vec.results import (
    Record,
    iter_records,
    read_record,
    write_record,
)


# --------------------------------------------------------------------------- damage
def values_of(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def damage(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(values_of(path) | values))


def assert_named(path: Path, field: str) -> None:
    """Reading fails, and the message names the file, the field, and what to do."""
    with pytest.raises(RecordError) as error:
        read_record(path)
    message = str(error.value)
    assert str(path) in message
    assert f"'{field}'" in message
    assert "Delete the file" in message


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Record)])
def test_a_missing_field_is_named(tmp_path: Path, name: str) -> None:
    path = write_record(RECORD, tmp_path)
    values = values_of(path)
    del values[name]
    path.write_text(json.dumps(values))
    assert_named(path, name)


@pytest.mark.parametrize("outer", ["dataset", "provenance"])
def test_a_missing_inner_field_is_named(tmp_path: Path, outer: str) -> None:
    path = write_record(RECORD, tmp_path)
    for name in {"id", "revision", "source", "status", "commit", "dirty"} & set(
        values_of(path)[outer]
    ):
        write_record(RECORD, tmp_path)
        inner = values_of(path)[outer]
        del inner[name]
        damage(path, **{outer: inner})
        assert_named(path, f"{outer}.{name}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("score", "0.62"),
        ("score", None),
        ("score", True),
        ("score", math.nan),
        ("score", math.inf),
        ("score", 62.03),
        ("score", -1.5),
        ("n", 10.5),
        ("n", False),
        ("schema", 2),
        ("schema", "1"),
        ("dataset", "some/data"),
        ("hyperparameters", []),
        ("provenance", None),
        ("cost", 3.5),
        ("scores", []),
        ("seeds", 42),
        ("adapters", "a"),
        ("metric", 1),
        ("split", None),
        ("subset", None),
        ("model_revision", 1),
        ("interval", 0.5),
        ("interval", [0.5]),
        ("interval", [0.7, 0.6]),
        ("interval", ["0.1", "0.2"]),
        ("interval", [None, 0.2]),
        ("interval", [math.nan, 0.2]),
        ("hyperparameters_hash", "0" * 16),
        ("hyperparameters_hash", None),
        ("hyperparameters", {"pooling": "eos"}),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, name: str, value: Any) -> None:
    path = write_record(RECORD, tmp_path)
    damage(path, **{name: value})
    assert_named(path, "hyperparameters_hash" if value == {"pooling": "eos"} else name)


def test_nan_is_named_wherever_it_stands(tmp_path: Path) -> None:
    path = write_record(RECORD, tmp_path)
    damage(path, scores={"fine": 1.0, "list": [0.5, {"deep": math.nan}]})
    assert_named(path, "scores.list.1.deep")
    damage(path, scores={}, cost={"seconds": math.inf})
    assert_named(path, "cost.seconds")


def test_an_unknown_field_is_named(tmp_path: Path) -> None:
    path = write_record(RECORD, tmp_path)
    damage(path, scroe=0.5)
    assert_named(path, "scroe")


@pytest.mark.parametrize("text", ["[]", "3", "null", '"text"'])
def test_json_that_is_no_object_is_named(tmp_path: Path, text: str) -> None:
    path = write_record(RECORD, tmp_path)
    path.write_text(text)
    assert_named(path, "(all)")


def test_every_truncation_is_named(tmp_path: Path) -> None:
    path = write_record(RECORD, tmp_path)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 2, 7):  # the last byte is a line end
        path.write_bytes(whole[:length])
        with pytest.raises(RecordError, match=re.escape(str(path))):
            read_record(path)


@pytest.mark.parametrize("data", [b"\x00\x01", b"\xff\xfe{}", b"{'score': 1}"])
def test_bytes_that_are_no_json_are_named(tmp_path: Path, data: bytes) -> None:
    path = write_record(RECORD, tmp_path)
    path.write_bytes(data)
    with pytest.raises(RecordError, match=re.escape(str(path))):
        read_record(path)


def test_a_moved_record_is_named(tmp_path: Path) -> None:
    path = write_record(RECORD, tmp_path)
    for place in (path.with_name("SICK-R.json"), path.parent.parent / "eos" / path.name):
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(path.read_bytes())
        assert_named(place, "(axes)")
        place.unlink()


def test_the_results_folder_itself_may_move(tmp_path: Path) -> None:
    write_record(RECORD, tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert [r.score for r in iter_records(tmp_path / "b")] == [RECORD.score]


def test_one_damaged_record_spoils_reading_all(tmp_path: Path) -> None:
    """A table made from the rest would silently lack a number."""
    write_record(RECORD, tmp_path)
    broken = write_record(changed(task="SICK-R"), tmp_path)
    broken.write_text("{")
    with pytest.raises(RecordError, match=r"SICK-R\.json"):
        list(iter_records(tmp_path))


@pytest.mark.parametrize(
    ("field", "record"),
    [
        ("score", changed(score=math.nan)),
        ("score", changed(score=55.0)),
        ("interval", changed(interval=(0.9, 0.1))),
        ("cost.seconds", changed(cost={"seconds": math.nan})),
        ("hyperparameters.rate", changed(hyperparameters={"rate": math.inf})),
        ("dataset.status", changed(dataset={"id": "x", "revision": "1", "source": "hub"})),
        ("provenance.commit", changed(provenance={})),
    ],
)
def test_an_invalid_record_is_not_written(tmp_path: Path, field: str, record: Record) -> None:
    with pytest.raises(RecordError, match=re.escape(f"'{field}'")):
        write_record(record, tmp_path)
    assert list(tmp_path.rglob("*")) == []


def test_hostile_names_inside_a_file_are_named(tmp_path: Path) -> None:
    path = write_record(RECORD, tmp_path)
    damage(path, task="../../x")
    assert_named(path, "(axes)")
