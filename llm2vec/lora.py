"""New LoRA matrices on a frozen backbone (paper 2.2, D.1), cheap to train on a CPU as well."""

from __future__ import annotations

import sys

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llm2vec.errors import SettingError
from llm2vec.loading import quiet
from llm2vec.registry import LoRA

LINEAR = (nn.Linear, Conv1D)


def add_lora(backbone: PreTrainedModel, lora: LoRA, seed: int) -> PeftModel:
    """New LoRA matrices in float32 on a frozen backbone; the same ones for the same seed.

    Raises :class:`SettingError` when a linear layer of the backbone's blocks would have none: peft
    alone complains only where no name fits. Parameters of blocks that are no linear layers
    (experts, routers) have none, and a line on stderr says so.
    """
    linear, bare = _contents(backbone)
    torch.manual_seed(seed)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        bias="none",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in backbone.modules()),
    )
    try:
        with quiet():
            model = get_peft_model(backbone, config)
    except ValueError as error:
        if not {_last(name) for name in linear} & set(lora.target_modules):
            raise _missed(backbone, linear, linear) from error
        raise SettingError(
            f"LoRA does not fit {backbone.config.model_type}: {error} Choose an architecture of "
            "docs/architectures.md."
        ) from error
    if missed := [n for n in linear if not isinstance(backbone.get_submodule(n), LoraLayer)]:
        raise _missed(backbone, missed, linear)
    if bare:
        print(
            f"no LoRA on {', '.join(bare)} of {backbone.config.model_type}: no linear layers but "
            "bare parameters, which peft trains only without dropout",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    for module in model.modules():
        if isinstance(module, LoraLayer):
            # Autocast casts the small matrices; casting the activations to float32 instead would
            # double their memory.
            module.cast_input_dtype_enabled = False
            if backbone.device.type == "cpu" and lora.dropout:
                module.lora_dropout["default"] = CPUDropout(lora.dropout)
    return model


def _contents(backbone: PreTrainedModel) -> tuple[list[str], list[str]]:
    """Linear layers of the text decoder's repeated blocks; other matrices, by name within a block.

    The latter are the experts and routers of transformers 5. peft could train them
    (``target_parameters``), but not with dropout, which is part of the recipe.
    """
    decoder = backbone.get_decoder()
    count = decoder.config.get_text_config().num_hidden_layers
    lists = [m for m in decoder.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    blocks = [block for modules in lists for block in modules] or [decoder]
    inside = {id(module) for block in blocks for module in block.modules()}
    named = ((name, module) for name, module in backbone.named_modules() if id(module) in inside)
    linear = [name for name, module in named if isinstance(module, LINEAR)]
    bare = {
        f"{name}.{parameter}".lstrip(".")
        for block in blocks
        for name, module in block.named_modules()
        if not isinstance(module, (*LINEAR, nn.Embedding))
        for parameter, value in module.named_parameters(recurse=False)
        if value.dim() > 1 and not parameter.endswith("bias")
    }
    return linear, sorted(bare)


def _missed(backbone: PreTrainedModel, missed: list[str], linear: list[str]) -> SettingError:
    """What to write so that LoRA reaches all linear layers of the blocks."""
    kind, without = backbone.config.model_type, dict.fromkeys(map(_last, missed))
    names = ", ".join(f'"{name}"' for name in dict.fromkeys(map(_last, linear)))
    return SettingError(
        f"LoRA would miss {len(missed)} of {len(linear)} linear layers of {kind}: "
        f"{', '.join(without)}. Add the line below to LORA_MODULES in llm2vec/architectures.py; a "
        f'model of the registry needs the architecture "{kind}" to find it, and a LoRA of your own '
        f'must name them all.\n    "{kind}": ({names}),'
    )


def _last(name: str) -> str:
    return name.rpartition(".")[2]


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
