"""What differs from one family of decoders to the next. Imports no torch.

``tests/test_any_decoder.py`` takes each family through the whole recipe; its table is
``docs/architectures.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from llm2vec.registry import LoRA

_FUSED = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")

# Linear layers of a block by ``model_type``, where they are not called as in LLaMA: LoRA goes on
# all of them, as in the paper's models (D.1.1).
LORA_MODULES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "gpt2": ("c_attn", "c_proj", "c_fc"),
        "gpt_neox": _FUSED,
        "falcon": _FUSED,
        "opt": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
        "phi3": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
        "starcoder2": ("q_proj", "k_proj", "v_proj", "o_proj", "c_fc", "c_proj"),
    }
)

# Where sdpa leaves a batch without padding causal, whatever ``config.json`` says (only the flag of
# the module counts there), the implementation that keeps the switch without this package's help.
KEEPS_THE_SWITCH: Mapping[str, str] = MappingProxyType({"stablelm": "eager"})


def lora_for(model_type: str) -> LoRA:
    """The registry's LoRA on the linear layers of an architecture."""
    names = LORA_MODULES.get(model_type)
    return LoRA() if names is None else LoRA(target_modules=names)
