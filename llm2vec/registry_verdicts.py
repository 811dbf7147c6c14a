"""How far a reproduced number may be from the printed one: bands that rest on observed noise.

Part of the registry, in a file of its own; read by ``analysis/paper.py``. Without torch.
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
        "accuracy of one word-level task: the paper prints one run of the probe; another seed of "
        "the probe moves it by a few tenths, another seed of the adapter by more",
    ),
    "task": Band(
        0.5, 2.0,
        "one sentence-level task: in mteb's own re-runs of the paper's checkpoints 14 scores "
        "moved, by 2.2 points in the median (reruns.csv)",
    ),
    "mean": Band(
        0.3, 1.0,
        "a mean over tasks: the paper's Tables 5 and 11 differ by up to 0.09 for the same "
        "checkpoint, so 0.1 is the noise of a re-run; a retrained adapter adds its seed",
    ),
})  # fmt: skip
