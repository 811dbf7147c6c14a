"""The benchmark of word features counts what it says, and both of its ways learn the same."""

from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.word_features import TEST_WIDTH, accuracies, padded, published_tokens
from llm2vec.attention import set_attention
from llm2vec.encoder import LLM2Vec
from llm2vec.registry import MODELS, PROBE, VARIANTS, WORD_TASKS
from llm2vec.words import TAGS, load_corpus


def test_padded_tokens_are_those_of_the_rectangles() -> None:
    assert padded(np.array([3, 5, 2, 7]), [[0, 1], [2], [3]]) == 10 + 2 + 7


def test_published_tokens_by_hand() -> None:
    """Two steps of eight sentences in each of three tasks; the test split padded to 512."""
    lengths = {
        "train": np.full(16, 10), "validation": np.array([4] * 8 + [9]), "test": np.array([5, 6]),
    }  # fmt: skip
    found = published_tokens(lengths, steps=2, validate=False)
    assert found == {
        "train": 3 * 2 * PROBE.batch_size * 10, "validation": 0, "test": 3 * 2 * TEST_WIDTH,
        "real": 3 * (160 + 11),
    }  # fmt: skip
    found = published_tokens(lengths, steps=1000, validate=True)  # validated twice
    assert found["validation"] == 3 * 2 * (8 * 4 + 9)
    assert found["real"] == 3 * (1000 * 80 + 2 * 41 + 11)


@pytest.mark.parametrize("variant", ["uni", "bi-mntp"])
def test_probes_on_live_and_on_stored_states_are_the_same(
    variant: str, make_tiny_llama: Callable
) -> None:
    tiny = make_tiny_llama(add_bos=False)
    set_attention(tiny.model.model, VARIANTS[variant].attention == "bidirectional")
    encoder = LLM2Vec(
        tiny.model.model, tiny.tokenizer, model=MODELS["smollm2-135m"], variant=VARIANTS[variant]
    )
    corpus, _ = load_corpus("mini", max_sentences=20)
    rows = accuracies(encoder, corpus, 25, ("float32", "float16"))
    assert [row["accuracy"] for row in rows] == list(WORD_TASKS)
    for row in rows:
        assert row["at every step"] == pytest.approx(row["float32"], abs=0.5)  # a word or two
        assert row["float16"] == pytest.approx(row["float32"], abs=2)
        assert row["float32"] > 100 / len(TAGS[row["accuracy"]])  # learned something
    (row, *_) = accuracies(encoder, corpus, 5, ("float32",), live=False)
    assert list(row) == ["accuracy", "float32"]
