"""Small training runs that vary one thing: the registry's page of ablations.

A group is a grid: ``base`` is its small budget, the same for all of its runs, ``varied`` what it
is about; both depart from the model's own settings. What is chosen (learning rate, steps) is
measured on validation splits; the paper chose masking on SICK-R (D.1.1), which is a test set: that
grid is repeated here and selects nothing. Sizes are for two CPU cores: one run and its
measurement take two to ten minutes. Run by ``experiments/08_ablations.py``.

This module imports neither torch nor transformers.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from llm2vec.errors import UnknownNameError

WIKITEXT = "wikitext"  # measured as accuracy on masked tokens, as the adapters' provenance has it


@dataclass(frozen=True)
class Measured:
    """What a run is judged by: pairs drawn from an STS task, or the first blocks of Wikitext."""

    task: str
    split: str
    items: int


STSB = Measured("STSBenchmark", "validation", 750)  # of 1,500 pairs
SICK = Measured("SICK-R", "test", 1500)  # of 9,927 pairs
MASKED = Measured(WIKITEXT, "validation", 128)  # of 128 tokens each


@dataclass(frozen=True)
class Ablation:
    """One run. ``varied`` is empty for the untrained model, which each choice is compared with."""

    group: str
    variant: str
    base: Mapping[str, Any]
    varied: Mapping[str, Any]
    measured: tuple[Measured, ...]

    @property
    def name(self) -> str:
        """As in ``mntp-lr-0.0005-25``: the setting of its records."""
        values = (str(value).lower() for value in self.varied.values())
        return "-".join((self.group, *(values if self.varied else ("untrained",))))


def _grid(
    group: str,
    variant: str,
    measured: tuple[Measured, ...],
    base: Mapping[str, Any],
    varied: Mapping[str, Sequence[Any]],
    untrained: bool = True,
) -> tuple[Ablation, ...]:
    """All combinations, the last name of ``varied`` changing fastest; the untrained model first."""
    points = [dict(zip(varied, p, strict=True)) for p in itertools.product(*varied.values())]
    runs = [Ablation(group, variant, base, point, measured) for point in points]
    return (*([Ablation(group, "bi", {}, {}, measured)] if untrained else []), *runs)


_MNTP = {"batch_size": 4, "block_size": 128}  # 512 tokens a step
_SIMCSE = {"batch_size": 32}
_SEEDS = (42, 43)

_GROUPS = (
    _grid(
        "mntp-lr", "bi-mntp", (MASKED,), _MNTP,
        # 5e-5 is the published rate (for 1,000 steps of 16,384 tokens and models of 1.3B to 8B)
        {"learning_rate": (5e-5, 5e-4, 1e-3, 2e-3), "steps": (25, 50, 100)},
    ),
    _grid(
        "simcse-lr", "bi-simcse", (STSB,), _SIMCSE,
        # 3e-5 is the published rate (for 1,000 steps of 128 sentences)
        {"learning_rate": (3e-5, 1e-4, 3e-4, 1e-3), "steps": (20,)},
    ),
    # the same after MNTP: does its SimCSE want another rate than that of bi-simcse?
    _grid(
        "simcse-after-mntp-lr", "bi-mntp-simcse", (STSB,), _SIMCSE,
        {"learning_rate": (1e-4, 3e-4, 1e-3), "steps": (20, 40)}, False,
    ),
    _grid(
        "mntp-masking", "bi-mntp", (SICK,), _MNTP | {"steps": 50, "learning_rate": 5e-4},
        {"mask_probability": (0.2, 0.4, 0.6, 0.8, 0.9), "masking": ("bert", "all")},
    ),
    # BERT's own dropout against the paper's 0.3 (D.1.2); runs this short differ by their seeds
    _grid(
        "simcse-dropout", "bi-simcse", (STSB, SICK), _SIMCSE | {"steps": 20, "learning_rate": 1e-3},
        {"attention_dropout": (0.1, 0.3), "seed": _SEEDS}, False,
    ),
    # the mean over the text (paper, Figure 1) against that of the published trainer
    _grid(
        "simcse-padding", "bi-simcse", (STSB, SICK), _SIMCSE | {"steps": 20, "learning_rate": 1e-3},
        {"pool_over_padding": (False, True), "seed": _SEEDS}, False,
    ),
)  # fmt: skip
ABLATIONS: Mapping[str, tuple[Ablation, ...]] = MappingProxyType({g[0].group: g for g in _GROUPS})


def get_ablations(group: str, setting: str | None = None) -> tuple[Ablation, ...]:
    """Runs of a group, or the one of that name; :class:`UnknownNameError` lists the valid ones."""
    if group not in ABLATIONS:
        raise UnknownNameError("group of ablations", group, ABLATIONS)
    runs = {run.name: run for run in ABLATIONS[group]}
    if setting is None:
        return tuple(runs.values())
    if setting not in runs:
        raise UnknownNameError(f"setting of {group}", setting, runs)
    return (runs[setting],)
