"""``bfloat16-mixed``: products with weights in bfloat16, everything around them in float32.

    load_encoder("smollm2-135m", "bi", dtype="bfloat16-mixed")

Not in the paper, which evaluates in bfloat16 throughout. There a layer adds its small update to a
residual stream that has eight bits of precision, and the first token, the attention sink, makes
that stream large: what is added gets lost. Here the residual stream, norms, rotary embeddings,
attention and pooling stay in float32; linear layers keep their weights in bfloat16 and round what
comes in. Adapters are merged before the weights are rounded.

Two settings of torch would do without this module, but not on every processor: ``autocast`` rounds
the weights anew in every pass, and ``mkldnn.matmul.fp32_precision`` needs AMX instructions.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from llm2vec.errors import SettingError

MIXED = "bfloat16-mixed"


class MixedLinear(nn.Linear):
    """A linear layer that multiplies in the type of its weights: (..., in) -> (..., out)."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        product = functional.linear(states.to(self.weight.dtype), self.weight, self.bias)
        return product.to(states.dtype)


def loading_dtype(dtype: str | torch.dtype | None) -> str | torch.dtype | None:
    """The dtype to load weights in: float32 for the mixed one."""
    return "float32" if dtype == MIXED else dtype


def set_precision(backbone: nn.Module, dtype: str | torch.dtype | None) -> None:
    """Turn a loaded backbone, adapters merged, into a mixed one if ``dtype`` says so.

    Raises :class:`SettingError` for a backbone without linear layers (GPT-2 has convolutions).
    """
    if dtype != MIXED:
        return
    layers = [module for module in backbone.modules() if type(module) is nn.Linear]
    if not layers:
        raise SettingError(
            f"{type(backbone).__name__} has no linear layers to run in {MIXED}; use bfloat16 or "
            "float32"
        )
    for layer in layers:
        layer.__class__ = MixedLinear
        layer.to(torch.bfloat16)


def precision_of(backbone: nn.Module) -> str:
    """Name of the dtype as commands take it: ``float32``, ``bfloat16-mixed``, ..."""
    if any(isinstance(module, MixedLinear) for module in backbone.modules()):
        return MIXED
    return str(backbone.dtype).removeprefix("torch.")
