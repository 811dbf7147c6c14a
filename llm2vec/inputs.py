"""What ``encode`` takes: texts, [instruction, text] pairs, poolings, checked before it runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Set
from typing import Any, Protocol

import numpy as np

from llm2vec.errors import SettingError, UnknownNameError
from llm2vec.registry import Variant, get_pooling

Pair = tuple[str, str]


def as_pairs(sentences: Any) -> list[Pair]:
    """(instruction, text) of every item, in order; lone surrogates become U+FFFD.

    Raises TypeError naming the first item that is neither a text nor a pair of two, or the whole
    where it has no items or no order of its own.
    """
    if isinstance(sentences, np.ndarray):
        sentences = np.atleast_1d(sentences).tolist()
    if not isinstance(sentences, Iterable) or isinstance(sentences, str | bytes | Mapping | Set):
        raise TypeError(
            f"cannot encode {type(sentences).__name__}: give a text (str), or a list of texts and "
            "[instruction, text] pairs"
        )
    return [_as_pair(item, index) for index, item in enumerate(sentences)]


def _as_pair(item: Any, index: int) -> Pair:
    parts = ("", item) if isinstance(item, str) else item
    if (
        not isinstance(parts, list | tuple)
        or len(parts) != 2
        or not all(isinstance(part, str) for part in parts)
    ):
        raise TypeError(
            f"item {index} is {type(item).__name__}: give a text (str) or a pair "
            "[instruction, text] of two strings"
        )
    instruction, text = map(_valid, parts)
    return instruction.strip(), text


def _valid(text: str) -> str:
    """The text itself where UTF-8 can hold it: of many texts, copies would be felt."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return str(text)


class Pooled(Protocol):
    """What a pooling is asked of: an encoder, or one that stands for several."""

    variant: Variant

    @property
    def poolings(self) -> tuple[str, ...]: ...


def pooling_of(encoder: Pooled, name: str) -> str:
    """The encoder's name of a pooling; an error of ``llm2vec`` says which ones it has."""
    own = encoder.variant.attention == "own"
    name = name if own else get_pooling(name)
    if name in encoder.poolings:
        return name
    if own:
        raise UnknownNameError("pooling of an encoder baseline", name, encoder.poolings)
    valid = ", ".join(encoder.poolings)
    raise SettingError(f"pooling {name!r}: the tokenizer has no EOS token. Valid: {valid}.")


def forward_passes(
    variant: Variant, poolings: Collection[str]
) -> list[tuple[tuple[str, ...], bool]]:
    """Groups of poolings that share a forward pass, and whether EOS is appended in it.

    Under causal attention no other state feels an EOS at the end; under bidirectional attention
    all do, so ``eos`` has a pass of its own beside other poolings.
    """
    plain = tuple(name for name in poolings if name != "eos")
    if not plain or "eos" not in poolings or variant.attention == "causal":
        return [(tuple(poolings), "eos" in poolings)]
    return [(plain, False), (("eos",), True)]
