"""Pooled vectors of one encoder and task, on disk until every pooling is scored.

One forward pass serves several poolings, but mteb asks for one pooling at a time and for the same
texts again and again; and a task may be killed. So texts are encoded once, in parts, each part a
folder that appears in one step::

    {folder}/part-{hash}/  keys.npy (n, 16) uint8   {pooling}.npy (n, hidden) float32   cost.json

Keys are hashes of (instruction, text); the folder itself is named by model, adapters, variant and
settings, so vectors never answer for another encoder. Jobs may share a folder: parts are never
changed, and a part made twice does no harm. A damaged part is dropped and made again. Cost lies
with the part: a resumed task still states every token that went through the model for it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from llm2vec.encoder import LLM2Vec, Pair
from llm2vec.errors import LLM2VecError

PART_CHARACTERS = 100_000  # about 25,000 tokens: what a killed run loses at most


class VectorStoreError(LLM2VecError):
    """The folder of the vectors cannot be written."""


def key_of(pair: Pair) -> bytes:
    """16 bytes that stand for an (instruction, text) pair."""
    instruction, text = (part.encode("utf-8", "surrogatepass") for part in pair)
    return hashlib.blake2b(instruction + b"\0" + text, digest_size=16).digest()


class Vectors:
    """Vectors of (instruction, text) pairs for several poolings at once.

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
        self._arrays: list[dict[str, np.ndarray]] = []
        self._where: dict[bytes, tuple[int, int]] = {}
        for part in sorted(self.folder.glob("part-*")):
            self._open(part)

    def get(self, pairs: Sequence[Pair], pooling: str) -> np.ndarray:
        """Vectors (n, hidden) float32 of the pairs, in their order."""
        self._make([p for p in dict.fromkeys(pairs) if key_of(p) not in self._where])
        out = np.empty((len(pairs), self.encoder.embedding_size), np.float32)
        places = np.array([self._where[key_of(pair)] for pair in pairs]).reshape(-1, 2)
        for part in np.unique(places[:, 0]):
            rows = np.flatnonzero(places[:, 0] == part)
            out[rows] = self._arrays[part][pooling][places[rows, 1]]
        return out

    def discard(self) -> None:
        """Delete the parts: every pooling is scored."""
        self._arrays, self._where = [], {}
        shutil.rmtree(self.folder, ignore_errors=True)

    # ------------------------------------------------------------------ making parts
    def _make(self, pairs: list[Pair]) -> None:
        parts = _parts(pairs)
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
        name = f"part-{hashlib.blake2b(keys.tobytes(), digest_size=8).hexdigest()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(dir=self.folder, prefix=".tmp-"))
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

    def _open(self, part: Path) -> None:
        try:
            keys = np.load(part / "keys.npy", allow_pickle=False)
            arrays = {
                p: np.load(part / f"{p}.npy", mmap_mode="r", allow_pickle=False)
                for p in self.poolings
            }
            cost = json.loads((part / "cost.json").read_text(encoding="utf-8"))
            if any(values.shape != (len(keys), self.encoder.embedding_size)
                   for values in arrays.values()):  # fmt: skip
                raise ValueError("wrong shape")
        except (OSError, ValueError, EOFError) as error:
            print(f"dropping the damaged part {part.name} ({error})", file=sys.stderr)
            shutil.rmtree(part, ignore_errors=True)
            return
        self.tokens += cost["tokens"]
        self.padding += cost["padding"]
        self.seconds += cost["seconds"]
        self._arrays.append(arrays)
        self._where |= {key.tobytes(): (len(self._arrays) - 1, row) for row, key in enumerate(keys)}


def _parts(pairs: list[Pair]) -> list[list[Pair]]:
    """Pairs in parts of similar length, longest first, of about ``PART_CHARACTERS`` each."""
    parts: list[list[Pair]] = []
    size = 0
    for pair in sorted(pairs, key=lambda p: -len(p[0]) - len(p[1])):
        if not parts or size > PART_CHARACTERS:
            parts.append([])
            size = 0
        parts[-1].append(pair)
        size += len(pair[0]) + len(pair[1])
    return parts
