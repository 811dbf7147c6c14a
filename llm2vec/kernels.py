"""Fewer passes over memory while a backbone encodes on a CPU; nothing of it stays behind.

Not in the paper. torch multiplies float32 matrices with MKL although oneDNN, which it brings along,
is faster on some processors and can apply an activation, or multiply by another matrix, before it
writes a product. Within ``with replaced(faster_forwards(backbone)):``

- linear layers in float32 go through oneDNN;
- a gated MLP of Llama's form (SwiGLU) is three products and nothing else: in torch's own kernels
  the activation and the multiplication cost two passes more over the widest states.

The numbers are the same up to rounding. ``benchmarks/choices.py`` measures each of the two. On
other devices, and where oneDNN has no such product or gives other numbers, torch's own kernels
stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.activations import SiLUActivation
from transformers.models.llama.modeling_llama import LlamaMLP

from llm2vec.mixed import MixedLinear

Forward = Callable[[torch.Tensor], torch.Tensor]
Forwards = Mapping[nn.Module, Forward]
LINEAR, GATED = "linear", "gated"
SILU = (nn.SiLU, SiLUActivation)


def faster_forwards(backbone: nn.Module, kinds: tuple[str, ...] = (LINEAR, GATED)) -> Forwards:
    """A faster ``forward`` for each layer that has one, for :func:`replaced`.

    Layers that somebody has hooked into or changed are left alone, and so are those of a kind
    that is not named.
    """
    found: dict[nn.Module, Forward] = {}
    for module in backbone.modules():
        if GATED in kinds and _is_gated(module) and works(module.gate_proj.weight.dtype):
            found[module] = partial(_gated, module)
        elif LINEAR in kinds and _is_plain(module) and _gains(module):
            found[module] = partial(_linear, module)
    return found


@contextmanager
def replaced(forwards: Forwards) -> Iterator[None]:
    """Let the modules run these instead of their own ``forward``; threads may share them."""
    for module, forward in forwards.items():
        module.__dict__["forward"] = forward
    try:
        yield
    finally:
        for module in forwards:
            module.__dict__.pop("forward", None)  # another thread may have been faster


# --------------------------------------------------------------------------- which layers
def _is_plain(module: nn.Module) -> bool:
    """A linear layer on the CPU that nobody has changed or listens to."""
    known = type(module) in (nn.Linear, MixedLinear)
    return known and module.weight.device.type == "cpu" and _untouched(module)


def _gains(layer: nn.Linear) -> bool:
    """torch takes oneDNN for bfloat16 by itself."""
    return layer.weight.dtype == torch.float32 and works(torch.float32)


def _untouched(module: nn.Module) -> bool:
    hooks = module._forward_hooks or module._forward_pre_hooks
    return not hooks and "forward" not in module.__dict__


def _is_gated(module: nn.Module) -> bool:
    """An MLP whose ``forward`` is Llama's, instruction for instruction, with SiLU inside."""
    if not _computes_as_llama(type(module)) or type(module.act_fn) not in SILU:
        return False
    layers = (module.gate_proj, module.up_proj, module.down_proj)
    if not all(map(_is_plain, layers)) or not _untouched(module):
        return False
    return len({layer.weight.dtype for layer in layers}) == 1


@cache
def _computes_as_llama(kind: type[nn.Module]) -> bool:
    code, known = getattr(kind.forward, "__code__", None), LlamaMLP.forward.__code__
    return code is not None and (code.co_code, code.co_names) == (known.co_code, known.co_names)


# --------------------------------------------------------------------------- what they run
def product(
    states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    then: str = "none",
    times: torch.Tensor | None = None,
) -> torch.Tensor:
    """oneDNN's ``then(states W' + b)``, or ``(states W' + b) * times``: (..., in) -> (..., out).

    ``then``: ``none`` or ``swish``. Raises AttributeError or RuntimeError where it has none.
    """
    operator = torch.ops.mkldnn._linear_pointwise
    if times is None:
        return operator(states, weight, bias, then, [], "")
    return operator.binary(states, times, weight, bias, "mul")


def _linear(layer: nn.Linear, states: torch.Tensor) -> torch.Tensor:
    return product(states.contiguous(), layer.weight, layer.bias)


def _gated(mlp: Any, states: torch.Tensor) -> torch.Tensor:
    gate, up, down = mlp.gate_proj, mlp.up_proj, mlp.down_proj
    rounded = states.to(gate.weight.dtype).contiguous()
    opened = product(rounded, gate.weight, gate.bias, then="swish")
    inner = product(rounded, up.weight, up.bias, times=opened)
    return product(inner, down.weight, down.bias).to(states.dtype)


@cache
def works(dtype: torch.dtype) -> bool:
    """Whether oneDNN has these products in this type on this machine, and they are right."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    numbers = torch.linspace(-1, 1, 48 * 32 + 5 * 32).to(dtype)
    weight, states = numbers[: 48 * 32].reshape(48, 32), numbers[48 * 32 :].reshape(1, 5, 32)
    with torch.inference_mode():
        expected = functional.linear(states, weight)
        try:
            swish = product(states, weight, then="swish")
            times = product(states, weight, times=expected)
        except (AttributeError, RuntimeError):
            return False
        gaps = (swish - functional.silu(expected), times - expected**2)
    close = 1e-5 if dtype == torch.float32 else 0.02
    return all(float(gap.abs().max()) <= close * float(times.abs().max()) for gap in gaps)
