"""Benchmarks of one side alone: parts of the time, and choices that must not change a vector."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import breakdown, choices, encode_worker
from benchmarks.breakdown import PARTS, part_of, parts_of, profiled, tokenizing_timed
from llm2vec import LLM2Vec
from llm2vec.kernels import works
from llm2vec.mixed import set_precision
from llm2vec.registry import POOLINGS

TEXTS = [
    "The quick brown fox",
    "a dog",
    "the other dog sleeps",
    "fox " * 30,
    "dog " * 9,
    "the " * 40,
]  # more letters than any other, not the most tokens
lengths_ = st.lists(st.integers(1, 700), max_size=40)


@pytest.fixture
def encoder(tiny_llama_dir: Path) -> LLM2Vec:
    return LLM2Vec.from_pretrained(tiny_llama_dir, device="cpu")


# --------------------------------------------------------------------------- the limit
def test_the_limit_is_the_fastest_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch's own product is the slower one, no share may be measured against it."""
    speeds = {"torch": iter([3.0, 2.0]), "onednn": iter([5.0, 1.0])}
    both = {name: lambda *_, name=name: next(speeds[name]) for name in speeds}
    monkeypatch.setattr(encode_worker, "products", lambda _: both)
    monkeypatch.setattr(encode_worker, "rate", lambda work, *_: work())
    monkeypatch.setattr(encode_worker, "of_a_layer", lambda product, *_: product())
    config = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2,
              "num_key_value_heads": 1}  # fmt: skip
    found = encode_worker.limits(config, torch.float32, 0.1)
    assert found == {"square": 5.0, "layers": 2.0, "by": {"torch": 3.0, "onednn": 5.0}}


def test_every_product_is_the_same_one() -> None:
    states, weight = torch.randn(3, 8), torch.randn(5, 8)
    for product in encode_worker.products(torch.float32).values():
        torch.testing.assert_close(product(states, weight), states @ weight.T)
    assert list(encode_worker.products(torch.float16)) == ["torch"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "bfloat16-mixed"])
def test_the_limit_is_that_of_the_products(
    precision: str, make_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(encode_worker, "limits", lambda _config, dtype, _s: asked.append(dtype))
    side = encode_worker.Ours("tiny")
    side.encoder, side.config = make_encoder(), {}
    if precision == "bfloat16":
        side.encoder.backbone.bfloat16()
    set_precision(side.encoder.backbone, precision)
    side.limit()
    assert asked == [side.encoder.backbone.layers[0].mlp.up_proj.weight.dtype]


# --------------------------------------------------------------------------- parts of the time
def test_parts_add_up_to_the_whole() -> None:
    operators = [("aten::mm", 3.0), ("mkldnn::_linear_pointwise.binary", 2.0), ("aten::mul", 1.0),
                 ("aten::_scaled_dot_product_flash_attention_for_cpu", 0.5),
                 ("[memory]", 99.0)]  # fmt: skip
    found = parts_of(operators, 8.0, 0.25)
    assert found == {"products": 5, "attention": 0.5, "layers": 1, "tokenizing": 0.25, "rest": 1.25}
    assert tuple(found) == PARTS
    assert part_of("aten::addmm") == "products" and part_of("Optimizer.step") is None


def test_a_profile_finds_products_and_attention_of_the_model(encoder: LLM2Vec) -> None:
    """With the faster kernels and without: else an operator's new name would go unnoticed."""
    for kinds in ((), ("linear", "gated")):
        with choices.kernels(*kinds):
            seconds, parts = profiled(encoder, TEXTS)
        assert all(parts[name] > 0 for name in ("products", "attention", "layers", "tokenizing"))
        assert sum(parts.values()) == pytest.approx(seconds)
    if works(torch.float32):  # every product of the model has a name that counts
        before = encoder.counter.passes
        with torch.profiler.profile() as log, choices.kernels("linear", "gated"):
            encoder.encode(TEXTS)
        counts = {e.key: e.count for e in log.key_averages() if part_of(e.key) == "products"}
        passes = encoder.counter.passes - before
        assert counts == {"mkldnn::_linear_pointwise": 14 * passes}


def test_tokenizing_is_timed_and_left_as_it_was(encoder: LLM2Vec) -> None:
    with tokenizing_timed(encoder) as seconds, pytest.raises(TypeError):
        encoder.encode(TEXTS)
        encoder.encode([None])
    assert len(seconds) == 1 and seconds[0] > 0
    assert "tokenize" not in vars(encoder)


# --------------------------------------------------------------------------- choices
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_choice_changes_a_vector(encoder: LLM2Vec, dtype: str) -> None:
    encoder.backbone.to(getattr(torch, dtype))
    found = choices.choices_of(dtype, 1024, with_compiled=False)
    expected = encoder.encode_poolings(TEXTS)
    for name, choice in found.items():
        with choice(encoder):
            got = encoder.encode_poolings(TEXTS)
        for pooling in POOLINGS:
            scale = float(np.abs(expected[pooling]).max())
            close = scale * (1e-5 if dtype == "float32" else 0.05)
            np.testing.assert_allclose(got[pooling], expected[pooling], 0, close, err_msg=name)
    assert encoder.max_tokens == LLM2Vec(encoder.backbone, encoder.tokenizer).max_tokens
    assert "1024 tokens a batch" not in found and "2048 tokens a batch" in found
    assert ("fused MLP alone" in found) == (dtype == "float32")


def test_choices_take_effect(encoder: LLM2Vec) -> None:
    found = choices.choices_of("float32", 1024, with_compiled=False)
    counter, passes = encoder.counter, {}
    for name in (choices.DEFAULT, "256 tokens a batch", "unsorted", "packed"):
        before = counter.passes, counter.padding
        with found[name](encoder):
            encoder.encode([f"{text} fox {i}" for text in TEXTS for i in range(9)])
        passes[name] = counter.passes - before[0], counter.padding - before[1]
    assert passes["256 tokens a batch"][0] > passes[choices.DEFAULT][0]
    assert passes["unsorted"][1] >= passes[choices.DEFAULT][1] > 0


@given(lengths_)
def test_packs_hold_every_row_once_within_the_limit(lengths: list[int]) -> None:
    found = choices.packs(lengths)
    assert sorted(row for pack in found for row in pack) == list(range(len(lengths)))
    for pack in found:
        assert len(pack) == 1 or sum(lengths[row] for row in pack) <= choices.PACK


@given(lengths_, st.integers(1, 2000))
def test_unsorted_batches_keep_order_and_budget(lengths: list[int], budget: int) -> None:
    found = choices.unsorted_batches(lengths, budget)
    assert [row for batch in found for row in sorted(batch)] == list(range(len(lengths)))
    for batch in found:
        assert lengths[batch[0]] == max(lengths[row] for row in batch)  # it sets the width
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= budget


def test_a_ratio_is_the_defaults_time_over_the_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    class Side:
        def __init__(self, _model: str) -> None:
            self.encoder = type("Encoder", (), {"max_tokens": 1024})()

        def load(self, dtype: str) -> None:
            assert dtype == "float32"

    taken = {choices.DEFAULT: 6.0, "slow": 12.0, "fast": 3.0}
    named = {name: lambda _, name=name: nullcontext(name) for name in taken}
    monkeypatch.setattr(encode_worker, "Ours", Side)
    monkeypatch.setattr(choices, "choices_of", lambda *_: named)

    def seconds_of(side: Side, choice: choices.Choice, chosen: list[str]) -> float:
        with choice(side.encoder) as name:
            return taken[name] * len(chosen)

    monkeypatch.setattr(choices, "seconds_of", seconds_of)
    rows = choices.measure("float32", {"short": ["a"] * 16}, 3, False)
    assert {row["choice"]: row["ratio"] for row in rows} == {
        choices.DEFAULT: 1.0, "slow": 0.5, "fast": 2.0,
    }  # fmt: skip
    assert {row["warm_up_seconds"] for row in rows} == {12.0, 24.0, 6.0}
    assert [len(row["all"]) for row in rows] == [3, 3, 3]


def test_a_breakdown_sums_its_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    class Side:
        encoder = None

        def __init__(self, _model: str) -> None:
            self.counter = self

        def load(self, dtype: str) -> dict[str, float]:
            return {"flops_per_token": 2.0}

        def encode(self, **_: object) -> None:
            pass

        def limit(self) -> dict[str, float]:
            return {"square": 100.0}

        def take(self) -> dict[str, int]:
            return {"tokens": 200, "padding": 10}

    monkeypatch.setattr(encode_worker, "Ours", Side)
    monkeypatch.setattr(breakdown, "profiled", lambda *_: (4.0, {"products": 3.0, "rest": 1.0}))
    (row,) = breakdown.measure("float32", {"short": ["a", "b"]}, 2)
    assert row["parts"] == {"products": 6.0, "rest": 2.0}
    assert (row["tokens_per_second"], row["share_of_limit"]) == (25.0, 0.5)
