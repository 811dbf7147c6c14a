"""How far numbers may differ and still be the same: bands that rest on observed noise.

A reproduced number from the printed one (``analysis/paper.py``; that noise is measured where it
stands beside the bands, in ``analysis/tables_verdicts.py``); a record from itself, made again
elsewhere (:mod:`llm2vec.verify`). Part of the registry, in a file of its own. Without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Band:
    """Largest absolute differences, in points, that still count as reproduced or close."""

    reproduced: float
    close: float
    reason: str


VERDICT_BANDS: Mapping[str, Band] = MappingProxyType({
    "word": Band(
        0.5, 1.5,
        "the paper prints one run of the probe; a retrained adapter adds a seed of its own",
    ),
    "task": Band(
        0.5, 2.0,
        "one draw of training texts or clusters; libraries and data move single scores further",
    ),
    "mean": Band(
        0.3, 1.0,
        "a mean moves less than its parts; a retrained adapter adds a seed of its own",
    ),
})  # fmt: skip

# Points; a faster dtype becomes the default for scoring only if no task moves by more.
DTYPE_BAND = 0.2

# A record made again with the same processor, threads, versions and dtype is equal to the last bit.
# Elsewhere sums are rounded otherwise. Differences of scores of 0 to 1, by the record's dtype: a
# coarser one moves vectors, and with them ranks, further.
RERUN_TOLERANCE: Mapping[str, float] = MappingProxyType(
    {"float32": 0.002, "bfloat16": 0.02, "bfloat16-mixed": 0.02, "float16": 0.01}
)
K_MEANS = 0.03  # v_measure: it may end in another optimum, whatever the dtype
# Times that, what a record says beside its score may move: of ten parts, one may move alone.
DETAILS = 10


def rerun_tolerance(dtype: str, metric: str, n: int) -> float:
    """How far a score may move elsewhere: by its dtype, or by what one item of ``n`` counts.

    Correlations and cosines move with their vectors; labels and ranks flip, one by one.
    """
    if metric.startswith(("cosine", "euclidean", "manhattan")):
        return RERUN_TOLERANCE[dtype]
    return max(RERUN_TOLERANCE[dtype], K_MEANS if metric == "v_measure" else 1 / n)
