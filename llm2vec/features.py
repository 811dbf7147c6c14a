"""Features of words: the backbone runs once, its last-layer states are kept on disk.

The published code (paper 3.1, D.1.3) runs the LLM at every step of every probe although it is
frozen. Here one pass over all sentences writes every token's last-layer state to a memory-mapped
file below ``paths.cache_dir()/features``; all tasks, seeds and both alignments gather their words
from it. A word is the mean of its positions' states (``llm2vec.words``).

States are stored as float16: for float32 backbones a rounding of at most 5e-4 of the value,
whose effect on the scores ``benchmarks/word_features.py`` measures. An entry is keyed by all that
decides its content, the token ids and a local folder's weights included, is written under a lock
and moved into place whole, and its size and sha256 are checked whenever it is opened; a damaged one
is computed again.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock

from llm2vec import paths
from llm2vec.batching import TokenCounter, iterate, padding_id
from llm2vec.errors import DataError
from llm2vec.registry import MODELS, STORED, Model
from llm2vec.results import hash_of, sha256_file
from llm2vec.words import ALIGNMENTS, Alignment, Tokens, bounds, token_digest

if TYPE_CHECKING:
    from llm2vec.encoder import LLM2Vec

_FORMAT = 1
_STATES, _META = "states.bin", "meta.json"
Progress = Callable[[int], object] | None


class WordFeatures:
    """Words of many sentences, gathered from the states of all their tokens.

    ``states``: (tokens, hidden), possibly memory-mapped. ``word_starts`` (sentences + 1,): where
    each sentence's words begin. ``cost``: seconds, tokens and padding_tokens of the pass.
    """

    def __init__(
        self, states: np.ndarray, tokens: Sequence[Tokens], cost: dict[str, float] | None = None
    ) -> None:
        self.states = states
        self.cost = cost or {}
        first_row = bounds(len(t.ids) for t in tokens)
        if len(states) != first_row[-1]:
            raise ValueError(f"{len(states)} states for {first_row[-1]} tokens")
        self.word_starts = bounds(len(t.spans["same"]) for t in tokens)
        offsets = np.repeat(first_row[:-1], np.diff(self.word_starts))[:, None]
        self._spans: dict[Alignment, np.ndarray] = {}
        for alignment in ALIGNMENTS:
            spans = np.array([s for t in tokens for s in t.spans[alignment]], dtype=np.int64)
            self._spans[alignment] = spans.reshape(-1, 2) + offsets

    @property
    def size(self) -> int:
        """Width of a feature."""
        return int(self.states.shape[1])

    def word_indices(self, sentences: Sequence[int] | np.ndarray) -> np.ndarray:
        """Indices, among all words, of the words of these sentences in order."""
        sentences = np.asarray(sentences, dtype=np.int64)
        return _ranges(self.word_starts[sentences], self.word_starts[sentences + 1])

    def gather(self, sentences: Sequence[int] | np.ndarray, alignment: Alignment) -> torch.Tensor:
        """Features (words, hidden), float32, of all words of these sentences in order."""
        spans = self._spans[alignment][self.word_indices(sentences)]
        counts = spans[:, 1] - spans[:, 0]
        rows = self.states[_ranges(spans[:, 0], spans[:, 1])].astype(np.float32)
        sums = np.add.reduceat(rows, bounds(counts)[:-1], axis=0)
        return torch.from_numpy(sums / counts[:, None].astype(np.float32))


def _ranges(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The integers of [start, end) for each pair, one after another."""
    counts = ends - starts
    shift = np.repeat(starts - bounds(counts)[:-1], counts)
    return np.arange(counts.sum(), dtype=np.int64) + shift


# --------------------------------------------------------------------------- the cache
@dataclass(frozen=True)
class _Entry:
    """A folder of the cache: the states as raw rows and what they are."""

    folder: Path

    def read(self, key: dict[str, Any]) -> tuple[np.ndarray, dict[str, float]] | None:
        """States and cost, or None when the entry is missing or damaged."""
        try:
            meta = json.loads((self.folder / _META).read_text(encoding="utf-8"))
            shape, dtype = tuple(meta["shape"]), np.dtype(meta["dtype"])
            file = self.folder / _STATES
            whole = file.stat().st_size == shape[0] * shape[1] * dtype.itemsize
            if whole and meta["key"] == key and sha256_file(file) == meta["sha256"]:
                return np.memmap(file, dtype=dtype, mode="r", shape=shape), meta["cost"]
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            pass
        return None

    def write(self, key: dict[str, Any], fill: Callable[[Path], dict[str, Any]]) -> None:
        """Let ``fill`` write the states beside the entry, then move all into place."""
        part = self.folder.with_name(f".tmp-{self.folder.name}")  # ours alone: we hold the lock
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            meta = {"key": key, **fill(part / _STATES)}
            meta["sha256"] = sha256_file(part / _STATES)
            (part / _META).write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
            shutil.rmtree(self.folder, ignore_errors=True)
            part.replace(self.folder)
        except OSError as error:
            raise DataError(
                f"cannot write the features to {self.folder.parent}: {error.strerror or error}. "
                "Free space, or set LLM2VEC_CACHE to another folder."
            ) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)


def compute_states(
    encoder: LLM2Vec,
    sequences: Sequence[Sequence[int]],
    file: Path,
    *,
    stored: str = STORED,
    max_tokens: int | None = None,
    progress: Progress = None,
) -> dict[str, Any]:
    """Write the last-layer state of every token to ``file``, sequence after sequence.

    Raw rows of ``stored`` type. Returns ``shape``, ``dtype`` and ``cost`` (seconds, tokens,
    padding_tokens). Raises :class:`DataError` when a state does not fit into the type.
    """
    first_row = bounds(len(ids) for ids in sequences)
    dtype = np.dtype(stored)
    counter = TokenCounter(encoder.backbone)
    started, size = time.perf_counter(), 0
    batches = iterate(
        encoder.backbone,
        sequences,
        padding_id(encoder.tokenizer),
        max_tokens or encoder.max_tokens,
        progress=progress,
    )
    with open(file, "wb") as handle:  # plain writes: a full disk is an error, not a signal
        for batch in batches:
            hidden = batch.hidden.float().cpu().numpy()
            size = hidden.shape[2]
            for row, index in enumerate(batch.indices):
                with np.errstate(over="ignore"):  # refused below, with a message
                    states = hidden[row, : len(sequences[index])].astype(dtype)
                if not np.isfinite(states).all():
                    raise DataError(
                        f"{encoder.model.name}: a state of sequence {index} is not finite as "
                        f"{stored}; store float32 instead."
                    )
                handle.seek(int(first_row[index]) * size * dtype.itemsize)
                handle.write(states.tobytes())
    counter.close()
    cost = {
        "seconds": time.perf_counter() - started,
        "tokens": counter.tokens,
        "padding_tokens": counter.padding,
    }
    return {"shape": [int(first_row[-1]), size], "dtype": stored, "cost": cost}


def features_key(encoder: LLM2Vec, tokens: Sequence[Tokens], stored: str) -> dict[str, Any]:
    """All that decides the states; a change of any of it is another entry."""
    return {
        "format": _FORMAT,
        "model": encoder.model.name,
        "revision": encoder.model.revision,
        "variant": encoder.variant.name,
        "adapters": list(encoder.adapters),
        "dtype": f"torch.{encoder.precision}",
        "attention": str(encoder.backbone.config._attn_implementation),
        "tokens": token_digest(t.ids for t in tokens),
        "stored": stored,
        "versions": {name: metadata.version(name) for name in ("torch", "transformers")},
        **_origin(encoder.model),
    }


def _origin(model: Model) -> dict[str, str]:
    """What tells apart models outside the registry, whose names are but the end of a place."""
    if model.hub_id in {known.hub_id for known in MODELS.values()}:
        return {}
    folder = Path(model.hub_id).resolve()
    files = sorted(folder.glob("*.safetensors")) if model.hub_id else []
    if not files:
        return {"source": model.hub_id}
    return {"weights": hash_of({file.name: sha256_file(file) for file in files})}


def word_features(
    encoder: LLM2Vec,
    tokens: Sequence[Tokens],
    *,
    stored: str = STORED,
    progress: Progress = None,
) -> WordFeatures:
    """Features of all words of these sentences, from the cache or computed into it.

    Of several processes that want the same entry one computes it, the others wait.
    """
    key = features_key(encoder, tokens, stored)
    folder = paths.cache_dir() / "features" / hash_of(key)
    entry = _Entry(folder)
    found = entry.read(key)
    if found is None:
        with _lock(folder):
            found = entry.read(key)
            if found is None:
                sequences = [t.ids for t in tokens]
                entry.write(
                    key,
                    lambda file: compute_states(
                        encoder, sequences, file, stored=stored, progress=progress
                    ),
                )
                found = entry.read(key)
    if found is None:
        raise DataError(f"{folder}: the features were damaged while being written; run again.")
    states, cost = found
    return WordFeatures(states, tokens, cost)


def _lock(folder: Path) -> FileLock:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f"{folder.name}.lock"))
        lock.acquire()
    except OSError as error:
        raise DataError(
            f"cannot write to {folder.parent}: {error.strerror or error}. "
            "Set LLM2VEC_CACHE to a writable folder."
        ) from error
    return lock
