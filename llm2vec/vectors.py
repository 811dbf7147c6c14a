"""Pooled vectors of one encoder and task, on disk until every pooling is scored.

One forward pass serves several poolings, but mteb asks for one pooling at a time and for the same
texts again and again; and a task may be killed. So texts are encoded once, in parts, each part a
folder that appears in one step::

    {folder}/part-{hash}/  keys.npy (n, 16) uint8   {pooling}.npy (n, hidden) float32   cost.json

Keys are hashes of (instruction, text); the folder itself is named by model, adapters, variant,
settings and the code, so vectors never answer for another encoder. Jobs may share a folder: parts
are never changed, a part made twice does no harm, and one that another job has deleted is made
again, as is a damaged one. Who works in a folder holds a lock of the system's on it, which ends
with the process: that tells what a killed run left from what a living one is making. Cost lies
with the part: a resumed task still states every token that went through the model for it. In
memory there are 24 bytes a text and the rows asked for: a corpus of millions of passages is no
larger to hold than one of thousands. Millions of rows of few texts are held once a text
(:class:`RepeatedRows`).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from llm2vec.encoder import LLM2Vec, Pair
from llm2vec.errors import LLM2VecError
from llm2vec.portions import portions
from llm2vec.task_sizes import MANY_ROWS

PART_CHARACTERS = 100_000  # about 25,000 tokens for a CPU: what a killed run loses at most
GPU_FACTOR = 10  # as long in time, on a GPU
ATTEMPTS = 20  # at reading rows whose parts another job, done with them, deletes meanwhile
RECENT = 1 << 14  # keys that wait in a dictionary to be sorted in
HOUR = 3600.0
# How often each text must be among MANY_ROWS rows for every text to be held once:
# MindSmallReranking's queries (64 times 37,162 texts, 39 GB at 4,096 floats) and nothing else of
# MTEB, which reads them one by one. Other tasks have fewer rows and may want a true array.
OFTEN = 8


class VectorStoreError(LLM2VecError):
    """The folder of the vectors cannot be written."""

    exit_code = 1  # space may be made: an engine tries again


def key_of(pair: Pair) -> bytes:
    """16 bytes that stand for an (instruction, text) pair."""
    instruction, text = (part.encode("utf-8", "surrogatepass") for part in pair)
    return hashlib.blake2b(instruction + b"\0" + text, digest_size=16).digest()


class Hold:
    """A shared lock on a folder, of any number of processes; see :func:`drop_stale`.

    Where the file system has no locks nothing is held, and nothing is dropped.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._descriptor = folder, -1

    def renew(self) -> None:
        """Lock the folder that is there now: another job may have removed the last one."""
        with suppress(OSError):
            now = self._folder.stat()
            if self._descriptor >= 0 and os.path.samestat(os.fstat(self._descriptor), now):
                return
            self.release()
            self._descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    __del__ = release


def drop_stale(folder: Path, run: str) -> None:
    """Delete the folders beside ``folder`` whose name begins with ``run`` and that nobody holds.

    They are of killed processes with other code or on another device: nothing goes on from them.
    """
    for other in _inside(folder.parent, run):
        if other.name == folder.name:
            continue
        with suppress(OSError):  # held, or gone meanwhile
            descriptor = os.open(other, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(other, ignore_errors=True)
            finally:
                os.close(descriptor)


class Index:
    """Where the vector of each key lies: 24 bytes a key, however many there are.

    A place is ``part << 32 | row``, -1 for a key that is not there.
    """

    def __init__(self) -> None:
        self._keys = np.empty(0, "S16")  # sorted
        self._places = np.empty(0, np.int64)
        self._recent: dict[bytes, int] = {}

    def add(self, keys: np.ndarray, part: int) -> None:
        """Rows of a part: keys (n, 16) uint8."""
        places = range(part << 32, (part << 32) + len(keys))
        self._recent.update(zip((key.tobytes() for key in keys), places, strict=True))
        if len(self._recent) > RECENT:
            self._merge()

    def find(self, keys: Sequence[bytes]) -> np.ndarray:
        """Places (n,) int64 of the keys."""
        found = np.array([self._recent.get(key, -1) for key in keys], np.int64)
        if len(self._keys) and len(keys):
            wanted = np.array(keys, "S16")
            at = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
            here = (found < 0) & (self._keys[at] == wanted)
            found[here] = self._places[at[here]]
        return found

    def drop(self, part: int) -> None:
        """Forget every key of a part."""
        self._merge()
        kept = self._places >> 32 != part
        self._keys, self._places = self._keys[kept], self._places[kept]

    def _merge(self) -> None:
        """Recent keys into the sorted ones; of a key that is in both, the recent place counts."""
        recent = np.array(list(self._recent), "S16")
        places = np.array(list(self._recent.values()), np.int64)
        order = np.argsort(recent)
        recent, places = recent[order], places[order]
        at = np.searchsorted(self._keys, recent)
        known = np.zeros(len(recent), bool)
        if len(self._keys):
            known = self._keys[np.minimum(at, len(self._keys) - 1)] == recent
            self._places[at[known]] = places[known]
        self._keys = np.insert(self._keys, at[~known], recent[~known])
        self._places = np.insert(self._places, at[~known], places[~known])
        self._recent = {}


class RepeatedRows:
    """Rows (n, hidden) float32 of few texts: each text's once, and for each row which it is.

    As much of an array as mteb's search needs of its queries: shape, length, one row or some of
    them. ``np.asarray`` makes all of it.
    """

    ndim = 2

    def __init__(self, distinct: np.ndarray, index: np.ndarray) -> None:
        self._distinct, self._index = distinct, index
        self.shape, self.dtype = (len(index), distinct.shape[1]), distinct.dtype

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """One row (hidden,), or those (k, hidden) of a slice, a list or a mask."""
        return self._distinct[self._index[rows]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


class Vectors:
    """Vectors of (instruction, text) pairs for several poolings at once.

    ``encoder``: one of :class:`~llm2vec.encoder.LLM2Vec`'s kind, on one device or on several.
    ``tokens``, ``padding`` and ``seconds`` are the cost of all parts, whoever made them.
    """

    def __init__(
        self, encoder: LLM2Vec, poolings: Sequence[str], folder: Path, progress: bool = False
    ) -> None:
        self.encoder = encoder
        self.poolings = tuple(poolings)
        self.folder = Path(folder)
        self.progress = progress
        self.tokens = self.padding = 0
        self.seconds = 0.0
        self._parts: list[Path] = []
        self._index = Index()
        self._hold = Hold(self.folder)
        self._hold.renew()
        for part in _inside(self.folder, "part-"):
            self._open(part)

    def get(self, pairs: Sequence[Pair], pooling: str) -> np.ndarray | RepeatedRows:
        """Vectors (n, hidden) float32 of the pairs, in their order."""
        if len(pairs) >= MANY_ROWS:
            numbers: dict[Pair, int] = {}
            index = np.fromiter(
                (numbers.setdefault(pair, len(numbers)) for pair in pairs), np.int64, len(pairs)
            )
            if OFTEN * len(numbers) <= len(pairs):
                return RepeatedRows(self._rows(list(numbers), pooling), index)
        return self._rows(pairs, pooling)

    def _rows(self, pairs: Sequence[Pair], pooling: str) -> np.ndarray:
        keys = [key_of(pair) for pair in pairs]
        out = np.empty((len(pairs), self.encoder.embedding_size), np.float32)
        for _ in range(ATTEMPTS):
            places = self._index.find(keys)
            absent = np.flatnonzero(places < 0)
            if len(absent):
                self._make(list(dict.fromkeys(pairs[row] for row in absent)))
                places = self._index.find(keys)
            if self._read(places, pooling, out):
                return out
        raise VectorStoreError(
            f"vectors in {self.folder} vanish again and again: does another program clean up there?"
        )

    def _read(self, places: np.ndarray, pooling: str, out: np.ndarray) -> bool:
        """Fill ``out`` from the parts; False when some are gone, which are then forgotten."""
        whole = bool((places >= 0).all())
        for number in np.unique(places[places >= 0] >> 32):
            rows = np.flatnonzero(places >> 32 == number)
            try:
                part = np.load(
                    self._parts[number] / f"{pooling}.npy", mmap_mode="r", allow_pickle=False
                )
                out[rows] = part[places[rows] & 0xFFFFFFFF]
            except (OSError, ValueError, EOFError, IndexError):
                self._index.drop(number)
                whole = False
        return whole

    def discard(self) -> None:
        """Delete the parts: every pooling is scored. What another job writes just now stays."""
        for part in self._parts:
            shutil.rmtree(part, ignore_errors=True)
        self._parts, self._index = [], Index()
        for left in _inside(self.folder, ".tmp-"):  # of jobs that were killed
            with suppress(FileNotFoundError):  # of a job that is at work and ready
                if time.time() - left.stat().st_mtime > HOUR:
                    shutil.rmtree(left, ignore_errors=True)
        self._hold.release()
        with suppress(OSError):  # another job is at it
            self.folder.rmdir()

    # ------------------------------------------------------------------ making parts
    def _make(self, pairs: list[Pair]) -> None:
        devices = str(self.encoder.device).split(",")  # of an encoder on several: all their names
        share = sum(GPU_FACTOR if device.startswith("cuda") else 1 for device in devices)
        parts = _parts(pairs, PART_CHARACTERS * share)
        with tqdm(
            total=len(pairs), unit=" texts", leave=False, disable=not self.progress or not pairs
        ) as bar:
            for part in parts:
                self._write(part)
                bar.update(len(part))
                bar.set_postfix_str(f"{self.tokens / max(self.seconds, 1e-9):,.0f} tokens/s")

    def _write(self, pairs: list[Pair]) -> None:
        counter = self.encoder.counter
        before = counter.tokens, counter.padding
        started = time.perf_counter()
        made = self.encoder.encode_poolings(pairs, self.poolings)
        cost = {
            "tokens": counter.tokens - before[0],
            "padding": counter.padding - before[1],
            "seconds": time.perf_counter() - started,
        }
        keys = np.frombuffer(b"".join(key_of(p) for p in pairs), np.uint8).reshape(-1, 16)
        what = keys.tobytes() + " ".join(self.poolings).encode()
        name = f"part-{hashlib.blake2b(what, digest_size=8).hexdigest()}"
        try:
            temporary = self._temporary()
            try:
                np.save(temporary / "keys.npy", keys)
                for pooling, values in made.items():
                    np.save(temporary / f"{pooling}.npy", values)
                (temporary / "cost.json").write_text(json.dumps(cost), encoding="utf-8")
                try:
                    temporary.rename(self.folder / name)
                except OSError:
                    if not (self.folder / name).is_dir():  # another job made the same part
                        raise
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        except OSError as error:
            raise VectorStoreError(
                f"cannot write vectors to {self.folder}: {error.strerror or error}. Free space or "
                "set LLM2VEC_CACHE to another folder; the same command goes on from there."
            ) from error
        self._open(self.folder / name)

    def _temporary(self) -> Path:
        """A folder to write into; the one around it may be removed by a job that is done."""
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._hold.renew()
            with suppress(FileNotFoundError):
                return Path(tempfile.mkdtemp(dir=self.folder, prefix=".tmp-"))

    def _open(self, part: Path) -> None:
        """Take a part into the index; one for other poolings is left alone, a damaged one goes."""
        files = [part / f"{pooling}.npy" for pooling in self.poolings]
        if (part / "keys.npy").exists() and not all(file.exists() for file in files):
            return
        size = self.encoder.embedding_size
        try:
            keys = np.load(part / "keys.npy", allow_pickle=False)
            cost = json.loads((part / "cost.json").read_text(encoding="utf-8"))
            for file in files:
                values = np.load(file, mmap_mode="r", allow_pickle=False)
                if values.shape != (len(keys), size):
                    raise ValueError("wrong shape")
        except (OSError, ValueError, EOFError) as error:
            if not isinstance(error, FileNotFoundError):  # else a job, done with it, deletes it
                print(f"dropping the damaged part {part.name} ({error})", file=sys.stderr)
            shutil.rmtree(part, ignore_errors=True)
            return
        self.tokens += cost["tokens"]
        self.padding += cost["padding"]
        self.seconds += cost["seconds"]
        self._parts.append(part)
        self._index.add(keys, len(self._parts) - 1)


def _inside(folder: Path, prefix: str) -> list[Path]:
    """What a folder holds under names with this prefix; nothing when another job removed it.

    Not ``glob``: on Python 3.11 it fails when the folder goes between its check and its reading.
    """
    try:
        return sorted(path for path in folder.iterdir() if path.name.startswith(prefix))
    except FileNotFoundError:
        return []


def _parts(pairs: list[Pair], characters: int) -> list[list[Pair]]:
    """Pairs in parts of similar length, longest first, of about ``characters`` each."""
    lengths = [len(instruction) + len(text) for instruction, text in pairs]
    return [[pairs[row] for row in rows] for rows in portions(lengths, characters)]
