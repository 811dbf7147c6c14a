"""From a hidden state to logits as the architecture does it, at chosen positions alone.

Most decoders end in one linear layer. Granite divides its logits, Cohere multiplies them, Gemma 2
squashes them; :func:`check_head` compares with the model's own logits and refuses what does
anything else.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from llm2vec.errors import SettingError


class LogitHead(nn.Module):
    """Linear layer, factor and soft cap: hidden (..., d) -> logits (..., vocabulary)."""

    def __init__(self, linear: nn.Module, factor: float = 1.0, cap: float | None = None) -> None:
        super().__init__()
        self.linear, self.factor, self.cap = linear, factor, cap

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = self.linear(hidden)
        if self.factor != 1.0:
            logits = logits * self.factor
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


def head_of(model: PreTrainedModel) -> LogitHead:
    """The head of a causal language model, sharing its weights."""
    config = model.config.get_text_config()
    factor = getattr(config, "logit_scale", None) or 1.0  # Cohere
    factor /= getattr(config, "logits_scaling", None) or 1.0  # Granite
    return LogitHead(
        model.get_output_embeddings(), factor, getattr(config, "final_logit_softcapping", None)
    )


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Refuse a model whose own logits are not those of :func:`head_of` on its last states."""
    if model.device.type == "meta":
        return
    ids = torch.arange(3, 11).remainder(model.config.get_text_config().vocab_size).unsqueeze(0)
    ids, training = ids.to(model.device), model.training
    model.eval()
    theirs = model(input_ids=ids, use_cache=False).logits.float()
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    ours = head_of(model)(hidden).float()
    model.train(training)
    gap = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12))
    if not gap < 0.01:
        raise SettingError(
            f"{type(model).__name__} changes its logits after the head in a way that MNTP here "
            f"does not follow (relative difference {gap:.2g}); choose an architecture listed in "
            "docs/architectures.md"
        )
