"""Pooling of token states into one vector: ``mean``, ``weighted_mean``, ``eos`` (paper 3.2).

Pure functions over a mask of the pooled span; the side of the padding does not matter. The
weighted mean (SGPT, Muennighoff 2022) gives the n-th token of the span the weight n, counted from
the first pooled token, so an instruction shifts nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def rows_of(spans: Sequence[Sequence[bool]], mask: torch.Tensor) -> torch.Tensor:
    """Marks of each row as one mask, False where there is padding: mask (b, l) -> (b, l) bool."""
    span = torch.zeros(mask.shape, dtype=torch.bool)
    for row, marks in enumerate(spans):
        span[row, : len(marks)] = torch.as_tensor(marks)
    return span.to(mask.device)


def mean_pool(hidden: torch.Tensor, span: torch.Tensor) -> torch.Tensor:
    """Mean over the span: hidden (b, l, d), span (b, l) bool -> (b, d) float32."""
    return _weighted(hidden, span.float())


def weighted_mean_pool(hidden: torch.Tensor, span: torch.Tensor) -> torch.Tensor:
    """Mean with weights 1, 2, ..., n along the span: (b, l, d), (b, l) -> (b, d) float32."""
    return _weighted(hidden, span.cumsum(1).float() * span.float())


def last_pool(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """State of the last token of the sequence: (b, l, d), (b, l) -> (b, d) float32."""
    _no_empty_row(mask)
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask.bool(), positions, -1).amax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last].float()


def _weighted(hidden: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    _no_empty_row(weights > 0)
    # Padding may hold anything, also inf: it must not enter the sum as 0 * inf.
    states = hidden.float().masked_fill((weights == 0).unsqueeze(-1), 0.0)
    return torch.einsum("bl,bld->bd", weights / weights.sum(1, keepdim=True), states)


def _no_empty_row(span: torch.Tensor) -> None:
    if not bool(span.any(1).all()):
        raise ValueError("cannot pool over an empty span: every row needs at least one token")
