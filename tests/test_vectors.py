"""Vectors kept on disk: right for every order and job, gone when they are not wanted any more."""

import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_mirror import StubEncoder, bag_of_words

from llm2vec import vectors as module
from llm2vec.registry import POOLINGS
from llm2vec.vectors import Index, Vectors, VectorStoreError, drop_stale, key_of

PAIRS = [("say:" if i % 2 else "", f"text number {i % 70}" + " long" * (i % 9)) for i in range(90)]
ROUNDS = 6  # of each of the jobs at once


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART_CHARACTERS", 300)


def expected(pairs: list[tuple[str, str]], pooling: str) -> np.ndarray:
    return np.stack([bag_of_words(text, pooling) for _, text in pairs])


def make(folder: Path, poolings: tuple[str, ...] = POOLINGS) -> Vectors:
    return Vectors(StubEncoder(), poolings, folder)


def files(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file()]


# --------------------------------------------------------------------------- rows
@pytest.mark.parametrize("pooling", POOLINGS)
def test_rows_are_those_of_the_texts_in_any_order(tmp_path: Path, pooling: str) -> None:
    store = make(tmp_path)
    for pairs in (PAIRS[:40], PAIRS[::-1], PAIRS[20:60] * 2, [], PAIRS[:1]):
        values = store.get(pairs, pooling)
        assert values.dtype == np.float32
        assert values.shape == (len(pairs), store.encoder.embedding_size)
        if pairs:
            np.testing.assert_array_equal(values, expected(pairs, pooling))
    assert len(store.encoder.pairs) == len(set(PAIRS))
    assert len(list(tmp_path.glob("part-*"))) > 5


def test_a_gpu_gets_parts_as_long_in_time(tmp_path: Path) -> None:
    stores = {device: make(tmp_path / device) for device in ("cpu", "cuda")}
    for device, store in stores.items():
        store.encoder.device = device
        store.get(PAIRS, "mean")
    parts = {device: len(list((tmp_path / device).glob("part-*"))) for device in stores}
    assert parts["cpu"] > 5 * parts["cuda"] > 0


def test_the_instruction_belongs_to_the_key() -> None:
    assert len({key_of(p) for p in [("", "a b"), ("a", "b"), ("a ", "b"), ("a b", "")]}) == 4


def test_the_next_run_encodes_nothing_and_states_the_whole_cost(tmp_path: Path) -> None:
    first = make(tmp_path)
    first.get(PAIRS, "mean")
    second = make(tmp_path)
    np.testing.assert_array_equal(second.get(PAIRS, "eos"), expected(PAIRS, "eos"))
    assert second.encoder.pairs == []
    assert (second.tokens, second.padding) == (first.tokens, first.padding)
    assert first.tokens == first.encoder.counter.tokens > 0


def test_fewer_poolings_use_the_parts_of_more_but_not_the_reverse(tmp_path: Path) -> None:
    one = make(tmp_path, ("eos",))
    one.get(PAIRS, "eos")
    every = make(tmp_path)
    np.testing.assert_array_equal(every.get(PAIRS, "mean"), expected(PAIRS, "mean"))
    assert len(every.encoder.pairs) == len(set(PAIRS))
    np.testing.assert_array_equal(one.get(PAIRS, "eos"), expected(PAIRS, "eos"))
    again = make(tmp_path, ("mean",))
    again.get(PAIRS, "mean")
    assert again.encoder.pairs == []


def test_discarding_leaves_nothing_of_ones_own(tmp_path: Path) -> None:
    store = make(tmp_path / "vectors")
    store.get(PAIRS, "mean")
    store.discard()
    assert not (tmp_path / "vectors").exists()
    store.get(PAIRS[:3], "mean")  # as new
    assert len(list((tmp_path / "vectors").glob("part-*"))) == 1


def test_what_a_killed_job_left_goes_after_an_hour(tmp_path: Path) -> None:
    store = make(tmp_path)
    store.get(PAIRS[:3], "mean")
    for name, age in ((".tmp-old", 7200), (".tmp-now", 0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "keys.npy").write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    store.discard()
    assert [p.name for p in tmp_path.iterdir()] == [".tmp-now"]


# --------------------------------------------------------------------------- damage
@pytest.mark.parametrize("file", ["keys.npy", "mean.npy", "cost.json"])
@pytest.mark.parametrize("damage", ["empty", "truncated", "nonsense"])
def test_a_damaged_part_is_made_again(tmp_path: Path, file: str, damage: str) -> None:
    first = make(tmp_path)
    first.get(PAIRS, "mean")
    path = sorted(tmp_path.glob("part-*"))[2] / file
    content = {"empty": b"", "truncated": path.read_bytes()[:-5], "nonsense": b"{]"}[damage]
    path.write_bytes(content)
    second = make(tmp_path)
    np.testing.assert_array_equal(second.get(PAIRS, "mean"), expected(PAIRS, "mean"))
    assert 0 < len(second.encoder.pairs) < len(set(PAIRS)) / 3


def test_a_part_that_is_lost_meanwhile_is_made_again(tmp_path: Path) -> None:
    store = make(tmp_path)
    store.get(PAIRS, "mean")
    shutil.rmtree(sorted(tmp_path.glob("part-*"))[1])
    np.testing.assert_array_equal(store.get(PAIRS, "mean"), expected(PAIRS, "mean"))
    assert len(set(PAIRS)) < len(store.encoder.pairs) < 1.5 * len(set(PAIRS))


def test_parts_that_vanish_again_and_again_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(tmp_path)
    monkeypatch.setattr(store, "_read", lambda *_: False)
    with pytest.raises(VectorStoreError, match="vanish again and again"):
        store.get(PAIRS[:3], "mean")


def test_a_full_disk_is_named_and_leaves_nothing_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(file: Path, _values: np.ndarray) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    store = make(tmp_path)
    monkeypatch.setattr(np, "save", fill)
    with pytest.raises(VectorStoreError, match=r"No space left on device\. Free space") as found:
        store.get(PAIRS, "mean")
    assert files(tmp_path) == [] and found.value.exit_code == 1


# --------------------------------------------------------------------------- jobs at once
def encode_everything(folder: Path, seed: int) -> bool:
    """One of several processes; each asks in orders of its own and discards after each round."""
    module.PART_CHARACTERS = 300
    rng = np.random.default_rng(seed)
    right = True
    for _ in range(ROUNDS):
        store = make(folder)
        pairs = [PAIRS[i] for i in rng.permutation(len(PAIRS))]
        for pooling in POOLINGS:
            for start in range(0, len(pairs), 30):
                chunk = pairs[start : start + 30]
                right &= np.array_equal(store.get(chunk, pooling), expected(chunk, pooling))
        store.discard()
    return right


def test_several_processes_write_and_discard_at_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        arguments = [(tmp_path / "v", seed) for seed in range(4)]
        assert pool.starmap(encode_everything, arguments, chunksize=1) == [True] * 4
    assert not (tmp_path / "v").exists() or files(tmp_path / "v") == []


def test_a_folder_that_goes_while_it_is_read_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another job discards between the check that a folder is there and the reading of it."""
    monkeypatch.setattr(Path, "is_dir", lambda _: True)
    monkeypatch.setattr(Path, "exists", lambda _: True)
    store = make(tmp_path / "gone")
    store.discard()
    assert store.tokens == 0


def test_what_another_job_removes_meanwhile_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A temporary folder goes between the listing and its date, a part while it is deleted."""
    make(tmp_path).get(PAIRS, "mean")
    (sorted(tmp_path.glob("part-*"))[0] / "keys.npy").unlink()
    listing = module._inside
    monkeypatch.setattr(
        module, "_inside", lambda f, prefix: [*listing(f, prefix), f / f"{prefix}gone"]
    )
    make(tmp_path).discard()
    assert files(tmp_path) == []
    assert capfd.readouterr().err == ""


def test_another_jobs_part_is_taken_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It appears between the encoding and the renaming."""
    store, other = make(tmp_path), make(tmp_path)
    rename = Path.rename

    def late(self: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        other.get(PAIRS, "mean")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    np.testing.assert_array_equal(store.get(PAIRS, "mean"), expected(PAIRS, "mean"))
    assert not list(tmp_path.glob(".tmp-*"))


# --------------------------------------------------------------------------- of other code
def encode_and_wait(folder: Path, ready: Any, go: Any) -> None:
    """A process that is at work in a folder; another job empties it and takes it away meanwhile."""
    store = make(folder)
    store.get(PAIRS[:3], "mean")
    shutil.rmtree(folder)
    store.get(PAIRS[:6], "mean")
    ready.set()
    go.wait(60)
    os._exit(0 if np.array_equal(store.get(PAIRS, "mean"), expected(PAIRS, "mean")) else 1)


def test_a_folder_that_a_living_process_holds_is_not_stale(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    ready, go = fork.Event(), fork.Event()
    held, left, mine, other = (tmp_path / name for name in ("run-2", "run-3", "run-1", "ran-1"))
    process = fork.Process(target=encode_and_wait, args=(held, ready, go))
    process.start()
    assert ready.wait(60)
    for folder in (left, mine, other):
        make(folder).get(PAIRS[:3], "mean")
    (left / ".tmp-half").mkdir()
    drop_stale(mine, "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ran-1", "run-1", "run-2"]
    assert list(held.glob("part-*"))
    go.set()
    process.join(60)
    assert process.exitcode == 0
    drop_stale(mine, "run")  # its process has ended without a word
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ran-1", "run-1"]
    drop_stale(tmp_path / "nowhere" / "run-1", "run")


def test_what_is_done_is_held_no_more(tmp_path: Path) -> None:
    store = make(tmp_path / "run-1")
    store.get(PAIRS[:3], "mean")
    drop_stale(tmp_path / "run-2", "run")
    assert (tmp_path / "run-1").is_dir()
    (tmp_path / "run-1" / ".tmp-now").mkdir()  # of a job that was killed; the folder stays
    store.discard()
    drop_stale(tmp_path / "run-2", "run")
    assert not (tmp_path / "run-1").exists()


def test_a_folder_without_locks_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems have none: who is at work there cannot be told."""

    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(module.fcntl, "flock", refuse)
    store = make(tmp_path / "run-1")
    np.testing.assert_array_equal(store.get(PAIRS, "mean"), expected(PAIRS, "mean"))
    drop_stale(tmp_path / "run-2", "run")
    assert (tmp_path / "run-1").is_dir()


# --------------------------------------------------------------------------- index
keys = st.lists(st.binary(min_size=16, max_size=16), max_size=30, unique=True)


@given(st.lists(keys, max_size=6), keys, st.integers(0, 5))
def test_the_index_finds_what_a_dictionary_finds(
    parts: list[list[bytes]], others: list[bytes], dropped: int
) -> None:
    index, right = Index(), {}
    for number, part in enumerate(parts):
        index.add(np.frombuffer(b"".join(part), np.uint8).reshape(-1, 16), number)
        right |= {key: (number << 32) + row for row, key in enumerate(part)}
        if number % 2:
            index._merge()
    asked = [*others, *right]
    assert index.find(asked).tolist() == [right.get(key, -1) for key in asked]
    index.drop(dropped)
    right = {key: place for key, place in right.items() if place >> 32 != dropped}
    assert index.find(asked).tolist() == [right.get(key, -1) for key in asked]


def test_the_index_is_small(tmp_path: Path) -> None:
    """A dictionary of as many keys would take five times as much."""
    index, rng = Index(), np.random.default_rng(0)
    for number in range(20):
        index.add(rng.integers(0, 256, (10_000, 16), np.uint8), number)
    index._merge()
    assert index._keys.nbytes + index._places.nbytes == 24 * 200_000


def test_several_devices_get_larger_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    for devices in (("cpu",), ("cuda:0", "cuda:1", "cuda:2")):
        encoder: Any = StubEncoder()
        monkeypatch.setattr(encoder, "device", ",".join(devices))
        folder = tmp_path / str(len(devices))
        Vectors(encoder, ("mean",), folder).get(PAIRS, "mean")
        counts.append(len(list(folder.glob("part-*"))))
    assert counts[0] > 2 * counts[1] > 0


def test_the_cost_of_each_part_lies_beside_it(tmp_path: Path) -> None:
    store = make(tmp_path)
    store.get(PAIRS, "mean")
    costs = [json.loads(p.read_text()) for p in tmp_path.glob("part-*/cost.json")]
    assert sum(cost["tokens"] for cost in costs) == store.tokens
    assert all(set(cost) == {"tokens", "padding", "seconds"} for cost in costs)
