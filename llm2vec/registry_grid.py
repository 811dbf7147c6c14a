"""Which variants each part of the paper's grid has: the registry's page of experiments.

Parts: suites of sentence-level tasks by their names, and the word-level tasks, pooling leakage and
layer similarity. Read by :mod:`llm2vec.grid`, which runs what is missing, and by the table of what
was not run. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from llm2vec.registry import VARIANTS, Model

WORDS, LEAKAGE, LAYERS = "words", "leakage", "layers"
_TABLE_5 = ("uni", "bi", "bi-mntp", "uni-simcse", "bi-simcse", "bi-mntp-simcse", "encoder")
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
