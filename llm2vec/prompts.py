"""What a text looks like to the model, and which of its tokens are pooled (paper 3.2, C.2, E).

``{instruction} {text}``, wrapped by the model's chat format where it has one; the pooled span is
the text and, as in the published evaluation, the closing part of the chat format; never BOS and
never the instruction. Echo (Springer et al. 2024) shows the text twice and pools the second
occurrence; a text that does not fit twice is shortened until it does, so that what is pooled is
what was read before.

Deviations on purpose. The span is found by character offsets; the published code counts the
tokens of the text tokenized alone, which is off by a token where the blank before the text
merges. A text of one endless word keeps its first tokens; there it becomes empty. EOS is the
token itself; there the string `` </s>``, which not every tokenizer knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm2vec.registry import MAX_LENGTH, TEXT_MAX_LENGTH, Model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ECHO_TEMPLATE = ("Rewrite the following sentence: ", "\nThe rewritten sentence: ")


@dataclass(frozen=True)
class Prompt:
    """The whole string and where, in characters, its pooled part begins and ends."""

    string: str
    start: int
    end: int


@dataclass(frozen=True)
class Tokens:
    """Token ids of one prompt and, for each, whether it is pooled.

    ``cut``: the last token gave way to EOS, so the span is not what it is without EOS.
    """

    ids: list[int]
    span: list[bool]
    cut: bool = False


def format_instruction(instruction: str) -> str:
    """The instruction as the paper's evaluation writes it: ending in a colon, or empty."""
    instruction = instruction.strip()
    return instruction if not instruction or instruction.endswith(":") else instruction + ":"


def build_prompt(
    instruction: str, text: str, model: Model | None = None, echo: bool = False
) -> Prompt:
    """The string that is tokenized for one text, and its pooled span."""
    opening, closing = (model.chat if model is not None else None) or ("", "")
    if closing:
        text = text.rstrip()  # as the published code does before it closes the chat format
    head = f"{opening}{instruction} " if instruction else opening
    if echo:
        before, again = ECHO_TEMPLATE
        head = f"{head}{before}{text}{again}"
    string = f"{head}{text}{closing}"
    return Prompt(string, len(head), len(string))


def build_prompts(
    pairs: Sequence[tuple[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    model: Model | None = None,
    limit: int = TEXT_MAX_LENGTH,
    max_length: int = MAX_LENGTH,
    echo: bool = False,
) -> list[Prompt]:
    """The prompt of each (instruction, text), its text shortened to ``limit`` tokens."""
    rows: dict[int, list[int]] = {}
    limits = {
        instruction: min(limit, _echo_room(instruction, tokenizer, model, max_length))
        if echo else limit
        for instruction, _ in pairs
    }  # fmt: skip
    for index, (instruction, _) in enumerate(pairs):
        rows.setdefault(limits[instruction], []).append(index)
    texts = [text for _, text in pairs]
    for most, own in rows.items():
        kept = shorten([texts[i] for i in own], tokenizer, most, max_length)
        for index, text in zip(own, kept, strict=True):
            texts[index] = text
    return [
        build_prompt(instruction, text, model, echo)
        for (instruction, _), text in zip(pairs, texts, strict=True)
    ]


def _echo_room(
    instruction: str, tokenizer: PreTrainedTokenizerBase, model: Model | None, max_length: int
) -> int:
    """Tokens of a text that fits twice beside what else Echo's prompt has, EOS included."""
    frame = build_prompt(instruction, "", model, echo=True).string
    # Either occurrence may be a token longer there than alone, where a blank does not merge.
    return max(1, (max_length - len(tokenizer(frame)["input_ids"]) - 1) // 2 - 1)


def shorten(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    limit: int = TEXT_MAX_LENGTH,
    max_length: int = MAX_LENGTH,
) -> list[str]:
    """Cut texts of more than ``limit`` tokens by whole words, as the published evaluation does.

    The number of words is scaled by limit / length until the text fits; at least one word stays.
    The length is counted up to ``max_length``, as there: a very long text takes several rounds.
    """
    shortened = list(texts)
    # A token is at least one byte: short strings cannot be too long.
    suspects = [i for i, text in enumerate(texts) if len(text.encode("utf-8", "replace")) > limit]
    while suspects:
        encoded = tokenizer(
            [shortened[i] for i in suspects],
            add_special_tokens=False,
            truncation=True,
            max_length=max_length,
        )["input_ids"]
        still = []
        for index, ids in zip(suspects, encoded, strict=True):
            words = shortened[index].split()
            if len(ids) > limit and len(words) > 1:
                kept = max(1, int(len(words) * (limit / len(ids))))
                shortened[index] = " ".join(words[:kept])
                still.append(index)
        suspects = still
    return shortened


def tokenize(
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    append_eos: bool = False,
) -> list[Tokens]:
    """Ids and pooled span of each prompt, at most ``max_length`` tokens, EOS included.

    Where nothing is left to pool (an empty text), the last token stands for the text; where there
    is no token at all, BOS (else EOS) is put in.
    """
    kept = max_length - 1 if append_eos else max_length
    encoded = tokenizer(
        [p.string for p in prompts],
        truncation=True,
        max_length=max_length,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    rows = []
    for prompt, ids, offsets, special in zip(
        prompts,
        encoded["input_ids"],
        encoded["offset_mapping"],
        encoded["special_tokens_mask"],
        strict=True,
    ):
        span = [
            not marked and low < prompt.end and high > prompt.start
            for (low, high), marked in zip(offsets, special, strict=True)
        ][:kept]
        cut = len(ids) > kept
        ids = list(ids)[:kept] or [_any_special(tokenizer)]
        if not any(span):
            span = [False] * (len(ids) - 1) + [True]
        if append_eos:
            ids, span = [*ids, tokenizer.eos_token_id], [*span, False]
        rows.append(Tokens(ids, span, cut))
    return rows


def _any_special(tokenizer: PreTrainedTokenizerBase) -> int:
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        if token is not None:
            return token
    return 0
