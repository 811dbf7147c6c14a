"""What differs from one family of decoders to the next. Imports no torch.

``tests/test_any_decoder.py`` takes the families of ``docs/architectures.md`` through the whole
recipe; ``tests/test_lora.py`` looks at the linear layers of those named here alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TypeVar

from llm2vec.registry import MNTP, LoRA, SimCSE

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_FUSED = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
_TWO_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
_GATE_UP = (*_ATTENTION, "gate_up_proj", "down_proj")

# Linear layers of a block by ``model_type``, where they are not called as in LLaMA: LoRA goes on
# all of them, as in the paper's models (D.1.1). Experts and routers that are bare parameters get
# none (see ``lora.py``), so some mixtures of experts have it on attention alone; the gate of
# Qwen 2's shared expert is a linear layer and has it.
LORA_MODULES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "gpt2": ("c_attn", "c_proj", "c_fc"),
        "gpt_neox": _FUSED,
        "falcon": _FUSED,
        "opt": _TWO_LAYERS,
        "xglm": _TWO_LAYERS,
        "biogpt": _TWO_LAYERS,
        "phi": ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"),
        "phi3": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
        "gptj": ("q_proj", "k_proj", "v_proj", "out_proj", "fc_in", "fc_out"),
        "glm": _GATE_UP,
        "glm4": _GATE_UP,
        "starcoder2": (*_ATTENTION, "c_fc", "c_proj"),
        "mixtral": _ATTENTION,
        "gpt_oss": _ATTENTION,
        "olmoe": _ATTENTION,
        "qwen3_moe": _ATTENTION,
        "qwen2_moe": (*LoRA().target_modules, "shared_expert_gate"),
    }
)

# Where sdpa leaves a batch without padding causal, whatever ``config.json`` says (only the flag of
# the module counts there), the implementation that keeps the switch without this package's help.
KEEPS_THE_SWITCH: Mapping[str, str] = MappingProxyType({"stablelm": "eager"})

_Settings = TypeVar("_Settings", MNTP, SimCSE)


def lora_for(model_type: str) -> LoRA:
    """The registry's LoRA on the linear layers of an architecture."""
    names = LORA_MODULES.get(model_type)
    return LoRA() if names is None else LoRA(target_modules=names)


def fitted(settings: _Settings, model_type: str) -> _Settings:
    """The settings with the registry's LoRA on the linear layers of an architecture.

    Modules that were chosen, and so are not LLaMA's, stay as they are.
    """
    if settings.lora.target_modules != LoRA().target_modules:
        return settings
    modules = lora_for(model_type).target_modules
    return replace(settings, lora=replace(settings.lora, target_modules=modules))
