"""Step 1 of the recipe: bidirectional attention, by one switch (paper 2.1).

transformers >= 5.2 honours ``config.is_causal = False`` in its masks and kernels, so no model
file needs to be copied. Two traps are closed here: some architectures (stablelm with sdpa, falcon
with flash attention) read the flag of the attention *module* where no mask is given, so both are
set; and what ignores the flag is found by :func:`check_attention`, which changes the last token and
looks at every earlier position, and refused.

A look at the last states alone cannot see two things, so they are refused by what the model is:
recurrent or convolutional layers, which stay causal while one attention layer beside them lets
every position see every other, and ALiBi as transformers has it, a bias by the key's position,
which is the distance under a causal mask alone.

Sliding windows stay as the model has them: a window then reaches to both sides.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from llm2vec.errors import AttentionError

# What config.layer_types may name; `moe` and `mlp` mix no positions.
BOTH_SIDES = {
    "attention", "full_attention", "sliding_attention", "chunked_attention", "moe", "mlp",
}  # fmt: skip
# Relative change that is rounding: an expert's matrix product rounds by how many tokens it gets,
# also those after the last. Measured on tiny random decoders: at most 3e-6 in float32; 2e-2 and
# 2e-3 in the others with one result in a thousand off by a unit in the last place. A bidirectional
# decoder with experts moves by 4e-2 and more.
ROUNDING = {torch.bfloat16: 2e-2, torch.float16: 2e-3}
INSTEAD = (
    "Use a decoder with softmax attention in every layer that transformers can switch (llama, "
    "mistral, qwen2, qwen3, gemma, phi3, gpt_neox, ...)."
)


def set_attention(model: PreTrainedModel, bidirectional: bool, verify: bool = True) -> None:
    """Make a decoder's attention bidirectional or causal, in place.

    ``verify`` runs two forward passes of a few tokens and raises :class:`AttentionError` if the
    model does not do as told (skipped where the weights are not on a device yet). Layers that stay
    causal and ALiBi are refused in any case, before anything is changed.
    """
    if bidirectional:
        _refuse_what_stays_causal(model)
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        config.is_causal = not bidirectional
    for module in model.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = not bidirectional
    if verify and model.device.type != "meta":
        _verify(model, bidirectional)


def _verify(model: PreTrainedModel, bidirectional: bool) -> None:
    moved = moved_positions(model, *_probe_pair(model))
    if bool(moved.all()) if bidirectional else not bool(moved.any()):
        return
    wanted = "bidirectional" if bidirectional else "causal"
    raise AttentionError(
        f"the attention of {type(model).__name__} ({model.config.model_type}) cannot be made "
        f"{wanted} by config.is_causal: changing the last token moved {int(moved.sum())} of "
        f"{moved.numel()} earlier positions. {INSTEAD}"
    )


def _refuse_what_stays_causal(model: PreTrainedModel) -> None:
    config = model.config.get_text_config()
    # MPT's code in transformers adds the bias whatever its attn_config.alibi says.
    if getattr(config, "alibi", False) or config.model_type in ("bloom", "mpt"):
        reason = (
            "its ALiBi bias depends on the position of the key alone, so that without the causal "
            "mask every token attends most to the end of the text. Use a decoder with rotary or "
            "learned positions (llama, mistral, qwen2, qwen3, gemma, gpt2, ...)."
        )
    elif kinds := _one_sided_by_name(config) or _one_sided_by_build(model):
        reason = (
            f"{kinds}. Recurrent and convolutional layers stay causal; only full, sliding and "
            f"chunked attention is known to switch. {INSTEAD}"
        )
    else:
        return
    raise AttentionError(
        f"{type(model).__name__} ({config.model_type}) cannot be made bidirectional: {reason}"
    )


def _one_sided_by_name(config: PreTrainedConfig) -> str:
    """Which layers are no attention, by the configuration; empty where all are."""
    types = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ()
    others = Counter(str(kind) for kind in types if kind not in BOTH_SIDES)
    named = ", ".join(f"{number} {kind}" for kind, number in others.items())
    return f"of its {len(types)} layers are {named}" if named else ""


def _one_sided_by_build(model: PreTrainedModel) -> str:
    """A convolution over positions or a state-space matrix in a layer of the text decoder."""
    for child in model.base_model.get_decoder().children():
        # Towers for images and sound lie beside the list of layers, and may convolve.
        layers = child.named_modules() if isinstance(child, nn.ModuleList) else ()
        for name, module in layers:
            wide = isinstance(module, nn.Conv1d) and module.kernel_size[0] > 1
            if wide or hasattr(module, "A_log") or isinstance(module, nn.RNNBase):
                return f"its layers have a recurrent or convolutional part ({name})"
    return ""


def _probe_pair(model: PreTrainedModel, length: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Two inputs of shape (1, length) that differ in their last token alone."""
    vocabulary = model.config.get_text_config().vocab_size
    first = torch.arange(3, 3 + length).remainder(vocabulary).unsqueeze(0)
    second = first.clone()
    second[0, -1] = (first[0, -1] + vocabulary // 2).remainder(vocabulary)
    return first, second


@torch.no_grad()
def states(
    model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Last hidden states (batch, length, hidden) in evaluation mode, dropout off."""
    inner = model.base_model
    training = inner.training
    inner.eval()
    try:
        extra = {}
        if attention_mask is not None:
            # Absolute positions count from the first real token, whichever side is padded.
            extra["position_ids"] = (attention_mask.cumsum(1) - 1).clamp(min=0).to(model.device)
            attention_mask = attention_mask.to(model.device)
        return inner(
            input_ids=input_ids.to(model.device),
            attention_mask=attention_mask,
            use_cache=False,
            **extra,
        ).last_hidden_state
    finally:
        inner.train(training)


def moved_positions(
    model: PreTrainedModel,
    first: torch.Tensor,
    second: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    row: int = 0,
) -> torch.Tensor:
    """Which real positions before the last one differ between two inputs: bool (length - 1,).

    A position differs where the mean change of its state, relative to the mean size (which one
    huge channel does not hide), is more than rounding. Raises :class:`AttentionError` for states
    that are not finite.
    """
    one, other = (states(model, ids, attention_mask)[row] for ids in (first, second))
    if attention_mask is not None:
        real = attention_mask[row].bool().to(one.device)
        one, other = one[real], other[real]
    if not bool((one.isfinite() & other.isfinite()).all()):
        raise AttentionError(
            f"{type(model).__name__} in {model.dtype} gives states that are not finite numbers; "
            "use another dtype or check the weights"
        )
    one, other = one[:-1].float(), other[:-1].float()
    return (one - other).abs().mean(-1) > _rounding(model) * one.abs().mean(-1)


def _rounding(model: PreTrainedModel) -> float:
    """Half precision without experts repeats exactly, and a tolerance would hide small moves."""
    if model.dtype not in ROUNDING:
        return 1e-5
    names = (f"{name} {type(module).__name__}" for name, module in model.named_modules())
    return ROUNDING[model.dtype] if any("expert" in name.lower() for name in names) else 0.0


def check_attention(model: PreTrainedModel, bidirectional: bool, tolerance: float = 1e-4) -> None:
    """The full leak check; raises :class:`AttentionError` naming the case that fails.

    Cases: batch size 1 without a mask, with a mask of ones, two rows without padding, and a short
    row padded on either side, which must also equal that row alone up to ``tolerance`` (absolute,
    in units of the states' largest value). Bidirectional, what :func:`set_attention` refuses.
    """
    if bidirectional:
        _refuse_what_stays_causal(model)
    first, second = _probe_pair(model, 12)
    ones = torch.ones_like(first)
    cases = {
        "batch size 1, no mask": (first, second, None, 0),
        "batch size 1, mask of ones": (first, second, ones, 0),
        "two rows, no padding": (
            torch.cat([first, first.flip(1)]), torch.cat([second, first.flip(1)]),
            torch.cat([ones, ones]), 0,
        ),
    }  # fmt: skip
    short_first, short_second = first[:, -7:], second[:, -7:]
    for side in ("left", "right"):
        one, other = (_padded(first, short, side) for short in (short_first, short_second))
        mask = _padded(ones, torch.ones_like(short_first), side)
        cases[f"padded on the {side}"] = (one, other, mask, 1)
    for name, (one, other, mask, row) in cases.items():
        moved = moved_positions(model, one, other, mask, row)
        if not (moved.all() if bidirectional else not moved.any()):
            wanted = "all" if bidirectional else "none"
            raise AttentionError(
                f"{model.config.model_type}, {name}: changing the last token moved "
                f"{int(moved.sum())} of {moved.numel()} earlier positions, expected {wanted}"
            )
    alone = states(model, short_first)[0]
    for name in ("padded on the left", "padded on the right"):
        one, _, mask, row = cases[name]
        together = states(model, one, mask)[row][mask[row].bool().to(model.device)]
        gap = float((alone - together).abs().max() / alone.abs().max())
        if not gap <= tolerance:
            raise AttentionError(
                f"{model.config.model_type}, {name}: a row differs from the row alone by {gap:.2g}"
            )


def _padded(long: torch.Tensor, short: torch.Tensor, side: str) -> torch.Tensor:
    """Two rows: ``long``, and ``short`` filled with zeros on one side."""
    fill = torch.zeros(1, long.shape[1] - short.shape[1], dtype=long.dtype)
    row = torch.cat([fill, short] if side == "left" else [short, fill], dim=1)
    return torch.cat([long, row])
