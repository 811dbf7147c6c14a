"""Step 1 of the recipe: bidirectional attention, by one switch (paper 2.1).

transformers >= 5.2 honours ``config.is_causal = False`` in its masks and kernels, so no model
file needs to be copied. Two traps are closed here: some architectures (stablelm with sdpa, falcon
with flash attention) read the flag of the attention *module* where no mask is given, so both are
set; and what ignores the flag (recurrent layers, say) is found by :func:`check_attention`, which
changes the last token and looks at every earlier position, and refused.

Sliding windows stay as the model has them: a window then reaches to both sides.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from llm2vec.errors import AttentionError


def set_attention(model: PreTrainedModel, bidirectional: bool, verify: bool = True) -> None:
    """Make a decoder's attention bidirectional or causal, in place.

    ``verify`` runs two forward passes of a few tokens and raises :class:`AttentionError` if the
    model does not do as told (skipped where the weights are not on a device yet).
    """
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
        f"{moved.numel()} earlier positions. Use a softmax-attention decoder that transformers "
        "can switch (llama, mistral, qwen2, qwen3, gemma, phi3, gpt_neox, ...)."
    )


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
    """Which real positions before the last one differ between two inputs: bool (length - 1,)."""
    one, other = (states(model, ids, attention_mask)[row] for ids in (first, second))
    if attention_mask is not None:
        real = attention_mask[row].bool().to(one.device)
        one, other = one[real], other[real]
    if not bool(one.isfinite().all()):
        raise AttentionError(
            f"{type(model).__name__} in {model.dtype} gives states that are not finite numbers; "
            "use another dtype or check the weights"
        )
    return (one != other).any(-1)[:-1]


def check_attention(model: PreTrainedModel, bidirectional: bool, tolerance: float = 1e-4) -> None:
    """The full leak check; raises :class:`AttentionError` naming the case that fails.

    Cases: batch size 1 without a mask, with a mask of ones, two rows without padding, and a short
    row padded on either side, which must also equal that row alone up to ``tolerance`` (absolute,
    in units of the states' largest value).
    """
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
