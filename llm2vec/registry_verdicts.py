"""How far a reproduced number may be from the printed one: bands that rest on observed noise.

Part of the registry, in a file of its own; read by ``analysis/paper.py``. The noise itself is
measured where it stands beside the bands, in ``analysis/tables_verdicts.py``. Without torch.
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
