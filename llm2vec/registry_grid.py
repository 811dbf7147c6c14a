"""Which variants each part of the paper's grid has: the registry's page of experiments.

Parts: suites of sentence-level tasks by their names, and the word-level tasks, pooling leakage and
layer similarity. Read by :mod:`llm2vec.grid`, which runs what is missing, and by the table of what
was not run. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from llm2vec.registry import POOLINGS, VARIANTS, Model

WORDS, LEAKAGE, LAYERS = "words", "leakage", "layers"
# Walltime that a scheduler is asked for at most (--hours): few partitions give a job more than a
# day. A job that is ended there goes on; a suite that would not fit is run task by task.
HOURS = 24.0
# Table 5, with the baselines of Table 1 beside it.
_TABLE_5 = ("uni", "bi", "bi-mntp", "uni-simcse", "bi-simcse", "bi-mntp-simcse", "echo", "encoder")
# Table 4; Tables 1 and 2; Figures 4 and 7, with Echo beside them; Figure 5. Other suites: Table 5.
_PAPER: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        WORDS: ("uni", "bi", "bi-mntp", "bi-simcse", "bi-mntp-simcse", "encoder"),
        "full": ("uni", "bi", "bi-mntp", "bi-mntp-simcse", "echo", "encoder"),
        LEAKAGE: ("uni", "bi", "bi-mntp", "bi-mntp-simcse", "echo", "encoder"),
        LAYERS: ("bi",),
    }
)


def paper_variants(part: str, model: Model) -> tuple[str, ...]:
    """Variants of a model that the paper has in a part, in the registry's order."""
    wanted, own = _PAPER.get(part, _TABLE_5), model.kind == "encoder"
    return tuple(
        name
        for name, variant in VARIANTS.items()
        if name in wanted and (variant.attention == "own") == own
    )


def full_pooling(variant: str) -> str:
    """The one pooling that the paper's full table shows for a variant (Tables 1 and 11)."""
    return "weighted_mean" if variant == "uni" else "mean"


def grid_poolings(part: str, variant: str) -> tuple[str, ...]:
    """Poolings of a decoder's variant on a suite: Table 5's three, or the one of Tables 1 and 11.

    Echo is no part of Table 5: on MTEB it has the pooling of the full table, everywhere.
    """
    if part == "full" or (variant == "echo" and part != "offline"):
        return (full_pooling(variant),)
    return POOLINGS
