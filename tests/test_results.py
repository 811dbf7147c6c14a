"""The record: what is written is read back, what is damaged is named, nothing is half written."""

import dataclasses
import errno
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from record_help import HYPERPARAMETERS, RECORD, changed

from llm2vec.errors import LLM2VecError, RecordError, SettingError
from llm2vec.results import (
    Key,
    hash_of,
    is_done,
    iter_records,
    read_record,
    sha256_file,
    write_atomic,
    write_record,
)

# --------------------------------------------------------------------------- round trip
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
axes = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fullmatch=True)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    score=st.floats(-1, 1),
    names=st.tuples(axes, axes, axes, axes, axes),
    setting=st.none() | axes,
    hyperparameters=st.dictionaries(st.text(max_size=8), json_values, max_size=4),
    scores=st.dictionaries(st.text(max_size=8), json_values, max_size=4),
    adapters=st.lists(st.from_regex(r"[0-9a-f]{64}", fullmatch=True), max_size=2),
    seeds=st.lists(st.integers(0, 2**32), max_size=3),
)
def test_what_is_written_is_read_back(
    tmp_path: Path,
    score: float,
    names: tuple[str, ...],
    setting: str | None,
    hyperparameters: dict[str, Any],
    scores: dict[str, Any],
    adapters: list[str],
    seeds: list[int],
) -> None:
    experiment, model, variant, pooling, task = names
    record = changed(
        experiment=experiment,
        model=model,
        variant=variant,
        pooling=pooling,
        task=task,
        setting=setting,
        score=score,
        hyperparameters=hyperparameters,
        scores=scores,
        adapters=tuple(adapters),
        seeds=tuple(seeds),
    )
    path = write_record(record, tmp_path)
    expected = dataclasses.replace(record, hyperparameters_hash=hash_of(hyperparameters))
    assert read_record(path) == expected
    assert is_done(record.key, tmp_path, hyperparameters, tuple(adapters))


def test_path_and_order(tmp_path: Path) -> None:
    other = changed(task="SICK-R", setting="bfloat16")
    paths = [write_record(RECORD, tmp_path), write_record(other, tmp_path)]
    folder = tmp_path / "raw" / "mteb_subset" / "smollm2-135m" / "bi-mntp" / "mean"
    assert paths == [folder / "STSBenchmark.json", folder / "SICK-R@bfloat16.json"]
    assert [r.task for r in iter_records(tmp_path)] == ["SICK-R", "STSBenchmark"]


def test_a_record_reads_the_same_in_any_json_reader(tmp_path: Path) -> None:
    """nan is no JSON: a secondary score without a value becomes null."""

    def no_constant(name: str) -> None:
        raise AssertionError(name)

    record = changed(scores={"nauc": math.nan, "all": [1.0, math.inf, {"x": math.nan}]})
    path = write_record(record, tmp_path)
    values = json.loads(path.read_text(), parse_constant=no_constant)
    assert values["scores"] == {"nauc": None, "all": [1.0, None, {"x": None}]}
    assert path.read_text().endswith("}\n")


def test_an_old_record_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write_record(changed(scores={"x": list(range(5000))}), tmp_path)
    path = write_record(changed(score=0.1, scores={}), tmp_path)
    assert read_record(path).score == 0.1
    assert list(path.parent.iterdir()) == [path]


# --------------------------------------------------------------------------- names
HOSTILE = [
    "../x", "..", ".", "", "/etc/passwd", "a/b", "a\\b", "'; rm -rf .", "a b", "$(id)", "a\n",
    "\na", "a\x00", "-rf", ".hidden", "ü", "a@b", "x" * 101, "x" * 100_000, 3, b"a", ["a"],
]  # fmt: skip


@pytest.mark.parametrize("axis", ["experiment", "model", "variant", "pooling", "task", "setting"])
@pytest.mark.parametrize("name", HOSTILE, ids=lambda n: repr(n)[:12])
def test_hostile_names_are_refused(axis: str, name: Any) -> None:
    good = dict.fromkeys(("experiment", "model", "variant", "pooling", "task"), "x")
    with pytest.raises(SettingError, match=f"^{axis} "):
        Key(**good | {axis: name})


def test_only_the_setting_may_be_absent() -> None:
    assert Key("e", "m", "v", "p", "t", None).path(Path("r")) == Path("r/raw/e/m/v/p/t.json")
    with pytest.raises(SettingError, match=r"^pooling None"):
        Key("e", "m", "v", None, "t")


# --------------------------------------------------------------------------- done
def test_done_follows_the_hashes(tmp_path: Path) -> None:
    key = RECORD.key
    assert not is_done(key, tmp_path, HYPERPARAMETERS, RECORD.adapters)
    path = write_record(RECORD, tmp_path)
    assert is_done(key, tmp_path, HYPERPARAMETERS, RECORD.adapters)
    assert is_done(key, tmp_path, dict(reversed(HYPERPARAMETERS.items())), RECORD.adapters)
    assert not is_done(key, tmp_path, HYPERPARAMETERS | {"max_length": 256}, RECORD.adapters)
    assert not is_done(key, tmp_path, HYPERPARAMETERS | {"new": None}, RECORD.adapters)
    assert not is_done(key, tmp_path, HYPERPARAMETERS, ("b" * 64,))
    assert not is_done(key, tmp_path, HYPERPARAMETERS)
    assert not is_done(key, tmp_path, HYPERPARAMETERS, RECORD.adapters * 2)
    other = dataclasses.replace(key, setting="bfloat16")
    assert not is_done(other, tmp_path, HYPERPARAMETERS, RECORD.adapters)
    path.unlink()
    assert not is_done(key, tmp_path, HYPERPARAMETERS, RECORD.adapters)


@pytest.mark.parametrize("moment", [0, 4_000_000_000])
def test_done_does_not_follow_modification_times(tmp_path: Path, moment: int) -> None:
    path = write_record(RECORD, tmp_path)
    os.utime(path, (moment, moment))
    assert is_done(RECORD.key, tmp_path, HYPERPARAMETERS, RECORD.adapters)


def test_a_damaged_record_is_neither_done_nor_absent(tmp_path: Path) -> None:
    path = write_record(RECORD, tmp_path)
    path.write_text("")
    with pytest.raises(RecordError, match=re.escape(str(path))):
        is_done(RECORD.key, tmp_path, HYPERPARAMETERS, RECORD.adapters)


def test_hash_is_that_of_the_canonical_json() -> None:
    assert hash_of({"b": [1, 2.5], "a": "ü"}) == "ad9698576f4620e9"
    assert hash_of({"a": "ü", "b": (1, 2.5)}) == "ad9698576f4620e9"
    assert hash_of({"a": 1}) != hash_of({"a": "1"}) != hash_of({"a": True})


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert sha256_file(tmp_path / "empty") == (
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )


# --------------------------------------------------------------------------- atomic
WRITER = """
import sys
from pathlib import Path
from llm2vec.results import write_atomic
path, number = Path(sys.argv[1]), 0
print("started", flush=True)
while True:
    number += 1
    write_atomic(path, f"{number} " * 20_000 + "end")
"""


def test_a_killed_writer_leaves_a_whole_file_or_none(tmp_path: Path, repo_root: Path) -> None:
    path = tmp_path / "raw" / "record.json"
    seen = set()
    for attempt in range(12):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)],
            stdout=subprocess.PIPE,
            cwd=repo_root,
        )
        assert writer.stdout.readline() == b"started\n"
        time.sleep(0.002 * attempt)  # another moment of the loop each time
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        if path.exists():
            *numbers, last = path.read_text().split(" ")
            assert last == "end"
            assert len(numbers) == 20_000
            assert len(set(numbers)) == 1
            seen.add(numbers[0])
    assert seen, "no attempt came as far as one whole file"


def test_left_overs_of_a_killed_writer_are_no_records(tmp_path: Path) -> None:
    path = write_record(RECORD, tmp_path)
    (path.parent / ".tmp-abc.json").write_text('{"half')
    assert len(list(iter_records(tmp_path))) == 1


def disk_full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["os.fsync", "os.replace", "tempfile.mkstemp"])
def test_a_full_disk_leaves_the_old_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = write_record(RECORD, tmp_path)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(f"llm2vec.results.{call}", disk_full)
        with pytest.raises(RecordError, match=r"No space left on device.*choose another --results"):
            write_record(changed(score=0.1), tmp_path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    write_record(changed(score=0.1), tmp_path)
    assert read_record(path).score == 0.1


LIMITED = """
import resource, sys
from pathlib import Path
from llm2vec.results import write_atomic
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
write_atomic(Path(sys.argv[1]), "x" * 100_000)
"""


def test_a_write_that_the_system_cuts_short_leaves_nothing(tmp_path: Path, repo_root: Path) -> None:
    path = tmp_path / "record.json"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)],
        capture_output=True,
        text=True,
        cwd=repo_root,
        check=False,
    )
    assert "File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "raw").write_text("a file where the folder should be")
    with pytest.raises(RecordError, match="cannot write") as error:
        write_record(RECORD, tmp_path)
    assert str(RECORD.key.path(tmp_path)) in str(error.value)


def test_an_interrupt_while_writing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("llm2vec.results.os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "x.txt", "text")
    assert list(tmp_path.iterdir()) == []


def test_record_errors_are_for_users() -> None:
    assert issubclass(RecordError, LLM2VecError)
    assert issubclass(SettingError, LLM2VecError)
