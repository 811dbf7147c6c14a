"""Batches by token count, longest first, and the one loop that runs a backbone over them.

A fixed number of texts wastes most of a batch on padding; here a batch is closed when its
padded size would exceed ``max_tokens``, or when too much of it would be padding. Rows are padded
on the right, which every positional encoding takes; a batch without padding runs without a mask.
On a CPU some layers run in faster kernels meanwhile (:mod:`llm2vec.kernels`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm2vec.kernels import faster_forwards, replaced

MAX_TOKENS = 2048
GPU_TOKENS = 16_384  # fewer leave a GPU waiting for the next kernel
MOST_PADDING = 0.05  # share of a batch; few texts of many lengths would be a third of it
FEWEST, SIXTEENTH = 128, 16  # padded tokens, and part of the most, that a batch may always have


@dataclass(frozen=True)
class Batch:
    """``indices`` of the sequences, their states (b, l, d) and the mask of real tokens (b, l).

    With ``layers=True``, ``layers`` holds the embedding layer and every block's output, the last
    one after the final norm.
    """

    indices: list[int]
    hidden: torch.Tensor
    mask: torch.Tensor
    layers: tuple[torch.Tensor, ...] = ()


def tokens_per_pass(device: torch.device) -> int:
    """Padded tokens of a batch that suit a device: few for a CPU and its cache, many for a GPU."""
    return GPU_TOKENS if device.type == "cuda" else MAX_TOKENS


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """What fills a row: the padding token, else EOS, else 0; the mask hides it in any case."""
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(index for index in ids if index is not None)


def fewest_tokens(max_tokens: int) -> int:
    """Padded tokens up to which a batch is filled, whatever part of it is padding."""
    return max(FEWEST, max_tokens // SIXTEENTH)


def token_batches(
    lengths: Sequence[int],
    max_tokens: int = MAX_TOKENS,
    max_rows: int | None = None,
    fewest: int | None = None,
) -> list[list[int]]:
    """Indices in batches of at most ``max_tokens`` padded tokens, longest first, ties in order.

    A batch is smaller, but not below ``fewest`` (default: :func:`fewest_tokens`), where more rows
    would mean more than ``MOST_PADDING``. A sequence longer than ``max_tokens`` gets a batch of
    its own. Every index occurs once.
    """
    batches: list[list[int]] = []
    width = real = 0
    least = fewest_tokens(max_tokens) if fewest is None else fewest
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        rows = len(batches[-1]) + 1 if batches else 0
        size, real = rows * width, real + lengths[index]
        full = size > max_tokens or (max_rows is not None and rows > max_rows)
        wasteful = size > least and size - real > MOST_PADDING * size
        if not batches or full or wasteful:
            batches.append([])
            width = real = lengths[index]
        batches[-1].append(index)
    return batches


class TokenCounter:
    """Counts what really goes through a backbone, by a hook on its forward pass.

    ``tokens``: real tokens; ``padding``: the rest of the rectangles; ``passes``: calls.
    """

    def __init__(self, backbone: torch.nn.Module) -> None:
        self.tokens = self.padding = self.passes = 0
        self._hook = backbone.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        mask = kwargs.get("attention_mask")
        real = ids.numel() if mask is None else int(mask.sum())
        self.tokens += real
        self.padding += ids.numel() - real
        self.passes += 1

    def close(self) -> None:
        self._hook.remove()


@torch.inference_mode()
def iterate(
    backbone: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    pad_id: int,
    max_tokens: int = MAX_TOKENS,
    *,
    max_rows: int | None = None,
    layers: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Batch]:
    """Run the backbone over token sequences, none of them empty, in batches of similar length.

    ``progress`` is told the number of sequences after each batch. The model must be in
    evaluation mode.
    """
    device, forwards = backbone.device, faster_forwards(backbone)
    for indices in token_batches([len(s) for s in sequences], max_tokens, max_rows):
        width = len(sequences[indices[0]])
        ids = torch.full((len(indices), width), pad_id, dtype=torch.long)
        mask = torch.zeros(len(indices), width, dtype=torch.bool)
        for row, index in enumerate(indices):
            length = len(sequences[index])
            ids[row, :length] = torch.as_tensor(sequences[index], dtype=torch.long)
            mask[row, :length] = True
        mask = mask.to(device)
        extra: dict[str, Any] = {} if backbone.config.is_encoder_decoder else {"use_cache": False}
        with replaced(forwards):
            out = backbone(
                input_ids=ids.to(device),
                attention_mask=None if bool(mask.all()) else mask.long(),
                output_hidden_states=layers,
                **extra,
            )
        yield Batch(indices, out.last_hidden_state, mask, out.hidden_states if layers else ())
        if progress is not None:
            progress(len(indices))
