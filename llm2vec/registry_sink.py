"""What the attention-sink experiment leaves out of the pooled span: the registry's page of it.

A question of this project, not of the paper: SmolLM2's tokenizer adds no BOS, so the first token
of a text (or of the instruction before it) is the attention sink. Run by
``experiments/09_attention_sink.py``. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llm2vec.registry_ablations import STSB

FIRST = (0, 1, 4)  # positions left out; Figure 5's means leave out the first four as well
PAIRS = STSB  # the pairs on which the training ablations are compared
VARIANTS_ASKED = ("uni", "bi", "bi-mntp", "bi-simcse", "bi-mntp-simcse")


@dataclass(frozen=True)
class Left:
    """The first ``first`` positions are not pooled.

    ``of``: positions of the whole ``sequence``, of which the instruction is a part, or of the
    ``text`` behind the instruction. The latter is the control: it takes words away and no sink.
    """

    first: int
    instruction: bool = False
    of: Literal["sequence", "text"] = "sequence"

    @property
    def setting(self) -> str:
        """As in ``no-instruction-without-first-4``: the setting of its record."""
        place = "text-" if self.of == "text" else ""
        return f"{'' if self.instruction else 'no-'}instruction-without-{place}first-{self.first}"


PLAIN = tuple(Left(first) for first in FIRST)
INSTRUCTED = tuple(Left(first, instruction=True) for first in FIRST)
CONTROL = tuple(Left(first, instruction=True, of="text") for first in FIRST if first)
