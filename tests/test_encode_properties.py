"""`encode` under anything that a caller may hand it: the right rows in order, or a clear error."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm2vec import LLM2Vec
from llm2vec.inputs import as_pairs
from llm2vec.registry import POOLINGS

anything = st.text(st.characters(exclude_categories=[]), max_size=40)
odd = st.sampled_from(
    ["", " ", "\x00", "a\x00b", "\ud800", "x\udc00y", "<s></s><pad>", "</s>" * 9,
     "\u202eabc", "👩‍👩‍👧",
     "word " * 900, "z" * 4000, "你好" * 500, "\n" * 700, "\ufeff", "e\u0301" * 30]
)  # fmt: skip
texts = anything | odd
pairs = st.tuples(texts, texts)
items = texts | pairs | pairs.map(list)
no_text = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.binary(max_size=4)
    | st.lists(texts, max_size=4).filter(lambda x: len(x) != 2)
    | st.tuples(texts, st.none() | st.integers() | st.binary(max_size=2))
    | st.dictionaries(texts, texts, max_size=2)
    | st.sampled_from([np.float64(1), np.array(["a", "b"]), np.array([None, "b"]), len])
)


@pytest.fixture(scope="module", params=[True, False], ids=["bi", "uni"])
def encoder(request: pytest.FixtureRequest, tiny_llama_dir: Path) -> LLM2Vec:
    return LLM2Vec.from_pretrained(
        tiny_llama_dir, enable_bidirectional=request.param, max_length=96, device="cpu"
    )


def close(got: object, expected: object) -> None:
    np.testing.assert_allclose(np.asarray(got), np.asarray(expected), rtol=0, atol=2e-5)


# --------------------------------------------------------------------------- right rows
@given(st.lists(items, max_size=7), st.randoms(use_true_random=False))
@settings(max_examples=25)
def test_every_row_is_that_of_its_text_alone(encoder: LLM2Vec, given_: list, random) -> None:
    got = encoder.encode_poolings(given_)
    assert {p: v.shape for p, v in got.items()} == dict.fromkeys(POOLINGS, (len(given_), 32))
    for vectors in got.values():
        assert np.isfinite(vectors).all() and vectors.dtype == np.float32
    order = list(range(len(given_)))
    random.shuffle(order)
    again = encoder.encode([given_[i] for i in order])
    close(again, got["mean"][order])
    for row, item in enumerate(given_[:2]):
        for pooling, alone in encoder.encode_poolings([item]).items():
            close(got[pooling][row], alone[0])


@given(st.lists(st.sampled_from(["a dog", "", "x\udc00", "the fox"]), max_size=12))
@settings(max_examples=20)
def test_duplicates_are_the_same_row_to_the_last_bit(encoder: LLM2Vec, given_: list[str]) -> None:
    got = encoder.encode([*given_, *given_], convert_to_numpy=True)
    np.testing.assert_array_equal(got[: len(given_)], got[len(given_) :])
    first = {text: row for row, text in reversed(list(enumerate(given_)))}
    for row, text in enumerate(given_):
        np.testing.assert_array_equal(got[row], got[first[text]])


@given(texts)
@settings(max_examples=20)
def test_a_plain_text_is_a_pair_without_instruction(encoder: LLM2Vec, text: str) -> None:
    got = encoder.encode([text, ("", text), ["", text], (" \n", text)])
    close(got, got[:1].expand(4, -1))
    close(encoder.encode(text), got[0])


@pytest.mark.parametrize(
    "container",
    [list, tuple, iter, np.array, lambda x: np.array(x, object), pd.Series,
     lambda x: (t for t in x), lambda x: map(str, x)],
    ids=["list", "tuple", "iterator", "array", "objects", "series", "generator", "map"],
)  # fmt: skip
def test_any_ordered_container_will_do(encoder: LLM2Vec, container) -> None:
    given_ = ["a dog", "the quick fox", "dog"]
    close(encoder.encode(container(given_)), encoder.encode(given_))


def test_arrays_of_pairs_and_single_texts(encoder: LLM2Vec) -> None:
    pair = [["Find it:", "a dog"], ["Find it:", "fox"]]
    close(encoder.encode(np.array(pair)), encoder.encode(pair))
    close(encoder.encode(np.str_("a dog")), encoder.encode("a dog"))
    assert encoder.encode(np.array("a dog")).shape == (1, 32)
    assert encoder.encode([]).shape == encoder.encode(iter(())).shape == (0, 32)
    assert encoder.encode(np.array([], str)).dtype == torch.float32


# --------------------------------------------------------------------------- clear errors
@given(st.lists(items, max_size=4), no_text, st.integers(0, 4))
def test_one_wrong_item_is_named_wherever_it_stands(
    encoder: LLM2Vec, given_: list, wrong: object, at: int
) -> None:
    at = min(at, len(given_))
    with pytest.raises(TypeError, match=f"^item {at} is {type(wrong).__name__}: give a text"):
        encoder.encode([*given_[:at], wrong, *given_[at:]])


@pytest.mark.parametrize("wrong", [None, 7, 1.5, b"bytes", {"a": "b"}, {"a"}, frozenset("a"), len])
def test_what_has_no_ordered_items_is_named(encoder: LLM2Vec, wrong: object) -> None:
    with pytest.raises(TypeError, match=f"^cannot encode {type(wrong).__name__}: give"):
        encoder.encode(wrong)


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_size_without_texts_is_refused(encoder: LLM2Vec, size: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size must be 1 or more, not {size}"):
        encoder.encode(["a"], batch_size=size)


@given(st.lists(items, max_size=6))
def test_what_is_read_is_valid_unicode_and_nothing_is_lost(given_: list) -> None:
    read = as_pairs(x for x in given_)
    assert len(read) == len(given_)
    for (instruction, text), item in zip(read, given_, strict=True):
        (instruction + text).encode("utf-8")
        assert instruction == instruction.strip()
        whole = item if isinstance(item, str) else item[1]
        if whole.isascii():
            assert text == whole


def test_valid_texts_are_not_copied() -> None:
    """Of a million texts each copy would be felt."""
    given_ = ["a dog", "naïve café", "👩‍👩‍👧", "x\udc00y"]
    same = [read is text for (_, read), text in zip(as_pairs(given_), given_, strict=True)]
    assert same == [True, True, True, False]
    ((instruction, text),) = as_pairs([(np.str_("find:"), np.str_("a dog"))])
    assert type(instruction) is type(text) is str


def test_an_error_inside_a_generator_is_not_swallowed(encoder: LLM2Vec) -> None:
    def broken() -> Iterable[str]:
        yield "a dog"
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        encoder.encode(broken())
