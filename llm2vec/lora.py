"""New LoRA matrices on a frozen backbone (paper 2.2, D.1), cheap to train on a CPU as well."""

from __future__ import annotations

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from llm2vec.errors import SettingError
from llm2vec.loading import quiet
from llm2vec.registry import LoRA


def add_lora(backbone: PreTrainedModel, lora: LoRA, seed: int) -> PeftModel:
    """New LoRA matrices in float32 on a frozen backbone; the same ones for the same seed.

    Raises :class:`SettingError` when the backbone has none of the modules.
    """
    torch.manual_seed(seed)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        bias="none",
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in backbone.modules()),
    )
    try:
        with quiet():
            model = get_peft_model(backbone, config)
    except ValueError as error:
        raise SettingError(f"LoRA does not fit this backbone: {error}") from error
    for module in model.modules():
        if isinstance(module, LoraLayer):
            # Autocast casts the small matrices; casting the activations to float32 instead would
            # double their memory.
            module.cast_input_dtype_enabled = False
            if backbone.device.type == "cpu" and lora.dropout:
                module.lora_dropout["default"] = CPUDropout(lora.dropout)
    return model


class CPUDropout(nn.Module):
    """Dropout that takes the masks of four elements from one random number.

    Drawing one number per element, as torch does, is a fifth of the time of a training step on a
    CPU; this halves it. The probability is exact to 1/65536.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.threshold = round(p * 2**16) - 2**15

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        if x.device.type != "cpu":  # the model was moved after it was built
            return nn.functional.dropout(x, self.p)
        words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        drawn = words.view(torch.int16)[: x.numel()].view(x.shape)
        return x * (drawn >= self.threshold).to(x.dtype).mul_(1 / (1 - self.p))
