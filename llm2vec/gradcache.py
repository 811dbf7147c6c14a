"""Contrastive loss over a large batch in the memory of a small one (Gao et al. 2021, GradCache).

The loss needs all vectors of the batch, but its gradient reaches the model through each vector
alone: run the batch in parts without keeping activations, take the gradient of the loss with
respect to the vectors, then run each part again and push its share of that gradient through it.
Dropout must be the same both times; here the caller seeds it per part.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

Encode = Callable[[int], torch.Tensor]
Loss = Callable[[torch.Tensor], torch.Tensor]


def backward(
    encode: Encode,
    parts: int,
    loss_of: Loss,
    *,
    cache: bool,
    no_sync: Callable[[], AbstractContextManager],
) -> torch.Tensor:
    """Accumulate the gradients of ``loss_of(all vectors)``; returns the loss, detached.

    ``encode(k)`` gives the vectors (rows, d) of part ``k``, the same ones whenever it is called.
    With ``cache`` each part runs twice and one part's activations are held at a time; without,
    once, and all are held. Under data parallelism gradients are exchanged with the last part
    alone; ``no_sync`` is the context for the others.
    """
    held: list[torch.Tensor] = []
    for part in range(parts):
        if cache and parts > 1:
            with torch.no_grad():
                held.append(encode(part))
        else:
            held.append(_synced(encode, part, part == parts - 1, no_sync))
    vectors = torch.cat([v.detach() for v in held]).requires_grad_()
    loss = loss_of(vectors)
    (gradient,) = torch.autograd.grad(loss, vectors)
    shares = gradient.split([len(v) for v in held])
    if not (cache and parts > 1):
        # One backward pass over all parts: each parameter's gradient is then exchanged once.
        torch.autograd.backward(held, [g.to(v.dtype) for v, g in zip(held, shares, strict=True)])
        return loss.detach()
    for part, share in enumerate(shares):
        last = part == parts - 1
        again = _synced(encode, part, last, no_sync)
        if last:
            again.backward(share.to(again.dtype))
        else:
            with no_sync():
                again.backward(share.to(again.dtype))
    return loss.detach()


def _synced(
    encode: Encode, part: int, last: bool, no_sync: Callable[[], AbstractContextManager]
) -> torch.Tensor:
    if last:
        return encode(part)
    with no_sync():
        return encode(part)
