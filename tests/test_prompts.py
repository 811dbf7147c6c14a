"""Prompts: which tokens are pooled, and how texts are shortened."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest
from conftest import tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from llm2vec import assets
from llm2vec.prompts import (
    ECHO_TEMPLATE,
    build_prompt,
    build_prompts,
    format_instruction,
    shorten,
    tokenize,
)
from llm2vec.registry import MODELS, SUITES, TASKS, Model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INSTRUCTION = "Retrieve the other dog:"
TEXT = "The quick brown fox jumps."
MISTRAL, LLAMA_3, PLAIN = (MODELS[n] for n in ("mistral-7b", "llama-3-8b", "smollm2-135m"))
texts = st.text(max_size=40)
words = st.sampled_from(["the", "fox", "1999", "naïve", "a", "…", "internationalization", "犬"])


@pytest.fixture(scope="module")
def tokenizer() -> "PreTrainedTokenizerBase":
    return tiny_tokenizer(add_bos=True)


@pytest.fixture(scope="module")
def no_bos() -> "PreTrainedTokenizerBase":
    return tiny_tokenizer(add_bos=False)


def pooled(
    tokenizer: "PreTrainedTokenizerBase",
    instruction: str,
    text: str,
    model: Model | None = None,
    echo: bool = False,
    append_eos: bool = False,
) -> tuple[str, str]:
    """The decoded tokens (before the pooled span, in it); the span must be one run."""
    prompt = build_prompt(instruction, text, model, echo)
    (tokens,) = tokenize([prompt], tokenizer, 512, append_eos)
    assert len(tokens.ids) == len(tokens.span)
    first, size = tokens.span.index(True), sum(tokens.span)
    assert tokens.span[first : first + size] == [True] * size
    before, inside = tokens.ids[:first], tokens.ids[first : first + size]
    return tokenizer.decode(before), tokenizer.decode(inside)


# --------------------------------------------------------------------------- the string
def test_the_instruction_ends_in_one_colon() -> None:
    assert format_instruction(" Find a dog ") == "Find a dog:"
    assert format_instruction("Find a dog:") == "Find a dog:"
    assert format_instruction("  ") == ""


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (None, "Find: a  dog "),
        (PLAIN, "Find: a  dog "),
        (MISTRAL, "[INST] Find: a  dog [/INST]"),
        (LLAMA_3, "<|start_header_id|>user<|end_header_id|>\n\nFind: a  dog<|eot_id|>"),
    ],
)
def test_the_whole_string(model: Model | None, expected: str) -> None:
    """As the published code builds it, which strips the end of the text in a chat format."""
    assert build_prompt("Find:", "a  dog ", model).string == expected


@given(texts, texts, st.sampled_from([None, MISTRAL, LLAMA_3]), st.booleans())
def test_the_span_of_the_string_is_text_and_closing(
    instruction: str, text: str, model: Model | None, echo: bool
) -> None:
    prompt = build_prompt(instruction, text, model, echo)
    closing = model.chat[1] if model else ""
    kept = text.rstrip() if model else text
    assert prompt.string[prompt.start : prompt.end] == kept + closing
    assert prompt.end == len(prompt.string)
    assert prompt.string[: prompt.start].count(instruction) >= (1 if instruction else 0)


# --------------------------------------------------------------------------- the pooled tokens
@given(text=texts.filter(str.strip), instruction=texts, append_eos=st.booleans())
def test_bos_eos_and_instruction_are_never_pooled(
    tokenizer: "PreTrainedTokenizerBase", text: str, instruction: str, append_eos: bool
) -> None:
    """At most the blank before the text comes along, merged into the text's first token."""
    before, inside = pooled(tokenizer, instruction, text, append_eos=append_eos)
    assert inside in (text, f" {text}")
    assert before.startswith("<s>")
    whole = f"{instruction} {text}" if instruction else text
    assert before.removeprefix("<s>") + inside == whole


@given(text=texts.filter(str.strip))
def test_without_bos_the_first_token_is_pooled(
    no_bos: "PreTrainedTokenizerBase", text: str
) -> None:
    assert pooled(no_bos, "", text) == ("", text)


@pytest.mark.parametrize("model", [MISTRAL, LLAMA_3])
@pytest.mark.parametrize("instruction", ["", INSTRUCTION])
@pytest.mark.parametrize("text", [TEXT, TEXT.lower()])  # " The" are two tokens, " the" is one
def test_the_closing_part_of_a_chat_format_is_pooled(
    tokenizer: "PreTrainedTokenizerBase", model: Model, instruction: str, text: str
) -> None:
    before, inside = pooled(tokenizer, instruction, text, model, append_eos=True)
    assert inside in (text + model.chat[1], f" {text}{model.chat[1]}")
    assert before + inside == "<s>" + build_prompt(instruction, text, model).string


@pytest.mark.parametrize("model", [None, MISTRAL])
def test_echo_pools_the_second_occurrence(
    tokenizer: "PreTrainedTokenizerBase", model: Model | None
) -> None:
    first, again = ECHO_TEMPLATE
    text = TEXT.lower()
    opening, closing = model.chat if model else ("", "")
    before, inside = pooled(tokenizer, INSTRUCTION, text, model, echo=True)
    assert before == f"<s>{opening}{INSTRUCTION} {first}{text}{again}".rstrip()
    assert inside == f" {text}{closing}"


@pytest.mark.parametrize("model", [None, MISTRAL])
@settings(max_examples=40, deadline=None)
@given(text=st.lists(words, min_size=1, max_size=80).map(" ".join), instructed=st.booleans())
def test_of_echo_the_whole_second_occurrence_is_there_to_be_pooled(
    tokenizer: "PreTrainedTokenizerBase", model: Model | None, text: str, instructed: bool
) -> None:
    """Else a long text would be pooled over its beginning alone, or not at all."""
    size, instruction = 200, INSTRUCTION if instructed else ""
    pairs = [("", "the fox"), (instruction, text)]
    _, prompt = build_prompts(pairs, tokenizer, model, 190, size, echo=True)
    _, again = ECHO_TEMPLATE
    closing = model.chat[1] if model else ""
    first, second = prompt.string.removesuffix(closing).split(again)
    assert first.endswith(second) and text.startswith(second) and second
    for append_eos in (False, True):
        (tokens,) = tokenize([prompt], tokenizer, size, append_eos)
        pooled_ids = [i for i, inside in zip(tokens.ids, tokens.span, strict=True) if inside]
        assert tokenizer.decode(pooled_ids).strip() == second + closing
    (alone,) = tokenizer([text], add_special_tokens=False)["input_ids"]
    (frame,) = tokenize([build_prompt(instruction, "", model, echo=True)], tokenizer, size)
    if 2 * (len(alone) + 1) + len(frame.ids) < size:
        assert second == text, "what fits is not shortened"


@pytest.mark.slow
@pytest.mark.parametrize("name", SUITES["short6"])
def test_echo_shortens_none_of_the_texts_of_mteb(mirror_env: Path, name: str) -> None:
    """Its records are of whole texts, both times."""
    from transformers import AutoTokenizer

    task, found = TASKS[name], set()
    for file in (mirror_env / task.dataset).rglob("*.parquet"):
        table = pd.read_parquet(file)
        for column in {"text", "sentence1", "sentence2"} & set(table.columns):
            found |= set(table[column])
    assert len(found) > 400
    real = AutoTokenizer.from_pretrained(assets.model_folder(PLAIN.name))
    pairs = [(format_instruction(task.instruction), text) for text in sorted(found)]
    whole = [build_prompt(*pair, PLAIN, echo=True) for pair in pairs]
    assert build_prompts(pairs, real, PLAIN, echo=True) == whole


def test_without_echo_a_text_may_be_as_long_as_before(
    tokenizer: "PreTrainedTokenizerBase",
) -> None:
    text = " ".join(["fox"] * 60)
    (plain,) = build_prompts([(INSTRUCTION, text)], tokenizer, None, 50, 80)
    assert plain == build_prompt(INSTRUCTION, shorten([text], tokenizer, 50, 80)[0])


def test_special_strings_in_a_text_are_just_pooled(tokenizer: "PreTrainedTokenizerBase") -> None:
    text = "a </s> b <s>"
    assert pooled(tokenizer, "", text)[1] == text


# --------------------------------------------------------------------------- nothing to pool
def test_an_empty_text_is_pooled_over_its_last_token(
    tokenizer: "PreTrainedTokenizerBase", no_bos: "PreTrainedTokenizerBase"
) -> None:
    (bos_alone,) = tokenize([build_prompt("", "")], tokenizer, 512)
    assert (bos_alone.ids, bos_alone.span) == ([tokenizer.bos_token_id], [True])
    (put_in,) = tokenize([build_prompt("", "")], no_bos, 512)
    assert (put_in.ids, put_in.span) == ([no_bos.bos_token_id], [True])
    (with_eos,) = tokenize([build_prompt("", "")], tokenizer, 512, append_eos=True)
    assert with_eos.ids == [tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert with_eos.span == [True, False]
    (instructed,) = tokenize([build_prompt(INSTRUCTION, "")], tokenizer, 512)
    assert instructed.span == [False] * (len(instructed.ids) - 1) + [True]


def test_an_instruction_that_fills_everything_leaves_its_last_token(
    tokenizer: "PreTrainedTokenizerBase",
) -> None:
    for append_eos in (False, True):
        (tokens,) = tokenize([build_prompt("x " * 50, TEXT)], tokenizer, 20, append_eos)
        assert len(tokens.ids) == 20
        assert tokens.span.index(True) == 19 - append_eos and sum(tokens.span) == 1


# --------------------------------------------------------------------------- max_length
@given(text=texts, max_length=st.integers(3, 30))
def test_eos_has_its_place_within_max_length(
    tokenizer: "PreTrainedTokenizerBase", text: str, max_length: int
) -> None:
    prompt = build_prompt("", text)
    (plain,) = tokenize([prompt], tokenizer, max_length)
    (ended,) = tokenize([prompt], tokenizer, max_length, append_eos=True)
    full = tokenizer(text)["input_ids"]
    assert plain.ids == full[:max_length] and not plain.cut
    assert ended.ids == [*full[: max_length - 1], tokenizer.eos_token_id]
    assert ended.cut == (len(full) >= max_length)
    assert len(ended.span) == len(ended.ids) <= max_length
    assert not ended.span[-1] and any(ended.span)
    if not ended.cut:
        assert ended.span[:-1] == plain.span


# --------------------------------------------------------------------------- shortening
def published(
    text: str, tokenizer: "PreTrainedTokenizerBase", limit: int = 400, max_length: int = 512
) -> str:
    """What the published evaluation does, one text at a time, told again in own words.

    It counts tokens with truncation on, so a text is never longer than ``max_length``.
    """

    def count(string: str) -> int:
        return min(len(tokenizer.encode(string, add_special_tokens=False)), max_length)

    while (length := count(text)) > limit:
        pieces = text.split()
        text = " ".join(pieces[: int(len(pieces) * (limit / length))])
    return text


@given(
    parts=st.lists(words, min_size=1, max_size=30),
    times=st.integers(1, 60),
    blank=st.sampled_from([" ", "  ", "\n"]),
)
@settings(max_examples=40)
def test_shortening_equals_the_published_algorithm(
    tokenizer: "PreTrainedTokenizerBase", parts: list[str], times: int, blank: str
) -> None:
    text = blank.join(parts * times)
    expected = published(text, tokenizer)
    (got,) = shorten([text], tokenizer)
    assert got == expected or (expected == "" and got == text.split()[0])
    if got != text:
        assert len(tokenizer.encode(got, add_special_tokens=False)) <= 400
        assert text.split()[: len(got.split())] == got.split()


def test_a_very_long_text_is_shortened_in_rounds(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Counting it whole would end elsewhere: the rounds are part of the published numbers."""
    text = " ".join(f"{'fox ' * (i % 7)}internationalization{i}" for i in range(400))
    (got,) = shorten([text], tokenizer)
    assert got == published(text, tokenizer)
    assert got != published(text, tokenizer, max_length=10**9)


def test_short_texts_stay_as_they_are_among_long_ones(
    tokenizer: "PreTrainedTokenizerBase",
) -> None:
    long = "fox " * 900
    short = ["", "  a\n\tb  ", "x" * 399, "é" * 150]
    got = shorten([long, *short, long], tokenizer)
    assert got[1:-1] == short
    assert got[0] == got[-1] == published(long, tokenizer)


def test_only_more_than_the_limit_is_too_long(tokenizer: "PreTrainedTokenizerBase") -> None:
    fits = "! " * 199 + " !"  # 400 tokens: no merge in this vocabulary
    assert len(tokenizer.encode(fits, add_special_tokens=False)) == 400
    assert shorten([fits, fits + "!"], tokenizer) == [fits, published(fits + "!", tokenizer)]


def test_an_endless_word_keeps_its_first_tokens(tokenizer: "PreTrainedTokenizerBase") -> None:
    """The published code leaves nothing of it, and pools whatever is there instead."""
    word = "z" * 5000
    assert shorten([word, f"{word} a"], tokenizer) == [word, word]
    assert published(word, tokenizer) == ""
    (tokens,) = tokenize([build_prompt(INSTRUCTION, word)], tokenizer, 512)
    assert len(tokens.ids) == 512
    inside = [i for i, marked in zip(tokens.ids, tokens.span, strict=True) if marked]
    assert set(tokenizer.decode(inside)) <= {" ", "z"}


def test_a_model_without_chat_is_a_model_without_wrapping() -> None:
    assert build_prompt("", TEXT, replace(MISTRAL, chat=None)).string == TEXT
