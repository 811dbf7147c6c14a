"""Batches by token count, the loop over them, and the counter of what really went through."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm2vec.attention import set_attention
from llm2vec.batching import (
    GPU_TOKENS,
    MAX_TOKENS,
    MOST_PADDING,
    TokenCounter,
    fewest_tokens,
    iterate,
    token_batches,
    tokens_per_pass,
)

lengths_ = st.lists(st.integers(1, 60), max_size=60)
budgets = st.integers(1, 200)
row_caps = st.none() | st.integers(1, 5)

SEQUENCES = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [5, 6, 7], [14, 15], [20] * 9, [3, 4, 5, 6]]


@pytest.fixture
def backbone(tiny_llama) -> torch.nn.Module:
    return tiny_llama.model.model


# --------------------------------------------------------------------------- the plan
@given(lengths_, budgets, row_caps)
def test_every_index_occurs_once_and_the_longest_come_first(
    lengths: list[int], budget: int, cap: int | None
) -> None:
    flat = [index for batch in token_batches(lengths, budget, cap) for index in batch]
    assert flat == sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))


@given(lengths_, budgets, row_caps)
def test_the_budget_is_held_and_used(lengths: list[int], budget: int, cap: int | None) -> None:
    batches = token_batches(lengths, budget, cap)
    for number, batch in enumerate(batches):
        width = max(lengths[i] for i in batch)
        assert len(batch) == 1 or len(batch) * width <= budget
        assert cap is None or len(batch) <= cap
        size = len(batch) * width
        padding = size - sum(lengths[i] for i in batch)
        assert size <= fewest_tokens(budget) or padding <= MOST_PADDING * size
        if number + 1 < len(batches):  # no room for one more, or too much of it for padding
            size, padding = size + width, padding + width - lengths[batches[number + 1][0]]
            wasteful = size > fewest_tokens(budget) and padding > MOST_PADDING * size
            assert size > budget or len(batch) == cap or wasteful


def test_a_plan_by_hand() -> None:
    assert token_batches([2, 9, 3, 4, 30, 1], max_tokens=12) == [[4], [1], [3, 2, 0], [5]]
    assert token_batches([2, 9, 3, 4, 30, 1], max_tokens=12, max_rows=2) == [
        [4], [1], [3, 2], [0, 5],
    ]  # fmt: skip
    assert token_batches([]) == []
    # A sixteenth of the budget is 200, then 400. Two rows pad by 10 of 220, three by 21 of 330.
    assert token_batches([110, 100, 99, 90], max_tokens=3200) == [[0, 1], [2, 3]]
    assert token_batches([110, 100, 99, 90], max_tokens=6400) == [[0, 1, 2], [3]]


def test_few_texts_of_many_lengths_are_hardly_padded() -> None:
    lengths = list(range(5, 45))  # as sentences are; one batch of 2,048 would be half padding
    batches = token_batches(lengths)
    size = sum(len(batch) * lengths[batch[0]] for batch in batches)
    assert size < 1.12 * sum(lengths) and len(batches) < len(lengths) / 3


# --------------------------------------------------------------------------- the loop
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("max_tokens", [1, 12, 1000])
def test_together_or_one_by_one_is_the_same(
    backbone: torch.nn.Module, bidirectional: bool, max_tokens: int
) -> None:
    set_attention(backbone, bidirectional)
    seen = []
    for batch in iterate(backbone, SEQUENCES, pad_id=0, max_tokens=max_tokens, layers=True):
        assert batch.mask.sum(1).tolist() == [len(SEQUENCES[i]) for i in batch.indices]
        torch.testing.assert_close(batch.hidden, batch.layers[-1])
        assert len(batch.layers) == 3
        for row, index in enumerate(batch.indices):
            seen.append(index)
            with torch.no_grad():
                alone = backbone(torch.tensor([SEQUENCES[index]]), output_hidden_states=True)
            for layer, expected in zip(batch.layers, alone.hidden_states, strict=True):
                torch.testing.assert_close(
                    layer[row, batch.mask[row]], expected[0], rtol=0, atol=1e-5
                )
    assert sorted(seen) == list(range(len(SEQUENCES)))


def test_padding_is_on_the_right_and_no_mask_is_made_without_need(
    backbone: torch.nn.Module,
) -> None:
    calls: list[dict[str, torch.Tensor | None]] = []
    backbone.register_forward_pre_hook(
        lambda _module, _args, kwargs: calls.append(kwargs), with_kwargs=True
    )
    batches = list(iterate(backbone, [[5, 6], [7, 8], [9]], pad_id=77, max_tokens=4))
    assert [call["input_ids"].tolist() for call in calls] == [[[5, 6], [7, 8]], [[9]]]
    assert [call["attention_mask"] for call in calls] == [None, None]

    calls.clear()
    (batch,) = iterate(backbone, [[9], [5, 6]], pad_id=77, max_tokens=4)
    assert calls[0]["input_ids"].tolist() == [[5, 6], [9, 77]]
    assert calls[0]["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch.indices == [1, 0]
    assert batch.layers == () and not batch.hidden.requires_grad
    assert len(batches) == 2


def test_progress_counts_every_sequence(backbone: torch.nn.Module) -> None:
    told: list[int] = []
    list(iterate(backbone, SEQUENCES, pad_id=0, max_tokens=12, progress=told.append))
    assert sum(told) == len(SEQUENCES) and len(told) > 1
    assert list(iterate(backbone, [], pad_id=0)) == []


# --------------------------------------------------------------------------- the counter
def test_the_counter_agrees_with_a_count_by_hand(backbone: torch.nn.Module) -> None:
    counter = TokenCounter(backbone)
    # Budget 10: a rectangle 2 x 5 with lengths 5 and 3, then 2 x 2 with lengths 2 and 1.
    list(iterate(backbone, [[5], [5, 6], [5, 6, 7], [5, 6, 7, 8, 9]], pad_id=0, max_tokens=10))
    assert (counter.tokens, counter.padding, counter.passes) == (11, 3, 2)
    backbone(torch.tensor([[5, 6, 7]]))  # positional, no mask
    assert (counter.tokens, counter.padding, counter.passes) == (14, 3, 3)
    counter.close()
    backbone(torch.tensor([[5, 6, 7]]))
    assert counter.tokens == 14


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(1, 40))
def test_the_counter_adds_up_to_the_rectangles(lengths: list[int], budget: int) -> None:
    class Recorder(torch.nn.Module):
        """Stands for a backbone: takes ids and a mask, returns nothing of worth."""

        device = torch.device("cpu")

        class config:
            is_encoder_decoder = False

        def forward(self, input_ids: torch.Tensor, **_: object) -> object:
            class Output:
                last_hidden_state = input_ids

            return Output

    stub = Recorder()
    counter = TokenCounter(stub)
    shapes = [
        tuple(batch.hidden.shape)
        for batch in iterate(stub, [[1] * n for n in lengths], pad_id=0, max_tokens=budget)
    ]
    assert counter.tokens == sum(lengths)
    assert counter.tokens + counter.padding == sum(rows * width for rows, width in shapes)
    assert counter.passes == len(shapes)


def test_a_gpu_takes_more_tokens_at_a_time_than_a_cpu() -> None:
    assert tokens_per_pass(torch.device("cpu")) == MAX_TOKENS
    assert tokens_per_pass(torch.device("cuda", 1)) == GPU_TOKENS >= 8 * MAX_TOKENS
