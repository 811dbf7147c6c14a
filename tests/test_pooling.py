"""Pooling: hand-counted values, and properties over random states, spans and garbage."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm2vec.pooling import last_pool, mean_pool, rows_of, weighted_mean_pool

POOLS = (mean_pool, weighted_mean_pool, last_pool)
MEANS = (mean_pool, weighted_mean_pool)
Pool = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

pools = st.sampled_from(POOLS)
seeds = st.integers(0, 2**16)
row_lengths = st.lists(st.integers(1, 9), min_size=1, max_size=5)
garbage = st.sampled_from([0.0, 1e30, -7.0, float("inf"), float("-inf"), float("nan")])


def rows(lengths: list[int], seed: int, width: int = 3) -> list[torch.Tensor]:
    """Random states (length, width) of each row."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, width, generator=generator) for length in lengths]


def rectangle(
    states: list[torch.Tensor], side: str, fill: float = 0.0, extra: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows padded on one side with ``fill``, ``extra`` columns wider than need be, and the mask."""
    longest = max(len(row) for row in states) + extra
    hidden = torch.full((len(states), longest, states[0].shape[1]), fill)
    mask = torch.zeros(len(states), longest, dtype=torch.bool)
    for i, row in enumerate(states):
        place = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        hidden[i, place], mask[i, place] = row, True
    return hidden, mask


def column(*values: float) -> torch.Tensor:
    """States (1, n, 1)."""
    return torch.tensor(values).reshape(1, -1, 1)


# --------------------------------------------------------------------------- by hand
@pytest.mark.parametrize(
    ("pool", "span", "expected"),
    [
        (mean_pool, [1, 1, 1, 1], (1 + 2 + 4 + 8) / 4),
        (weighted_mean_pool, [1, 1, 1, 1], (1 * 1 + 2 * 2 + 3 * 4 + 4 * 8) / 10),
        (last_pool, [1, 1, 1, 1], 8),
        # An instruction in front: weights count from the first pooled token.
        (mean_pool, [0, 0, 1, 1], (4 + 8) / 2),
        (weighted_mean_pool, [0, 0, 1, 1], (1 * 4 + 2 * 8) / 3),
        # EOS behind: not pooled by the means.
        (mean_pool, [0, 1, 1, 0], (2 + 4) / 2),
        (weighted_mean_pool, [0, 1, 1, 0], (1 * 2 + 2 * 4) / 3),
        (last_pool, [0, 1, 1, 0], 4),
    ],
)
def test_values_counted_by_hand(pool: Pool, span: list[int], expected: float) -> None:
    pooled = pool(column(1, 2, 4, 8), torch.tensor([span], dtype=torch.bool))
    assert pooled.tolist() == [[pytest.approx(expected)]]


def test_half_precision_is_summed_in_float32() -> None:
    """In bfloat16 a running sum of ones stops at 256."""
    ones = torch.ones(1, 1000, 2, dtype=torch.bfloat16)
    ones[0, 0, 0] = 3.0
    for pool in POOLS:
        assert pool(ones, torch.ones(1, 1000, dtype=torch.bool)).dtype == torch.float32
    pooled = mean_pool(ones, torch.ones(1, 1000, dtype=torch.bool))
    torch.testing.assert_close(pooled, torch.tensor([[1.002, 1.0]]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("pool", POOLS)
def test_an_empty_span_is_an_error(pool: Pool) -> None:
    mask = torch.tensor([[True, False], [False, False]])
    with pytest.raises(ValueError, match="empty span"):
        pool(torch.ones(2, 2, 3), mask)


# --------------------------------------------------------------------------- properties
@given(pools, row_lengths, seeds, st.integers(0, 3), garbage)
def test_neither_the_side_of_the_padding_nor_what_it_holds_matters(
    pool: Pool, lengths: list[int], seed: int, extra: int, fill: float
) -> None:
    states = rows(lengths, seed)
    alone = torch.cat([pool(row.unsqueeze(0), torch.ones(1, len(row)).bool()) for row in states])
    for side in ("left", "right"):
        pooled = pool(*rectangle(states, side, fill, extra))
        torch.testing.assert_close(pooled, alone, rtol=1e-5, atol=1e-6)


@given(pools, row_lengths, st.floats(-100, 100, width=32))
def test_constant_states_give_that_constant(pool: Pool, lengths: list[int], value: float) -> None:
    hidden, mask = rectangle([torch.full((n, 2), value) for n in lengths], "left", float("nan"))
    expected = torch.full((len(lengths), 2), value)
    torch.testing.assert_close(pool(hidden, mask), expected, rtol=1e-5, atol=1e-6)


@given(st.sampled_from(MEANS), st.integers(1, 6), st.integers(0, 4), st.integers(0, 4), seeds)
def test_unpooled_tokens_before_and_behind_shift_nothing(
    pool: Pool, length: int, before: int, behind: int, seed: int
) -> None:
    (states,) = rows([before + length + behind], seed)
    span = torch.zeros(1, len(states), dtype=torch.bool)
    span[0, before : before + length] = True
    inner = states[before : before + length].unsqueeze(0)
    torch.testing.assert_close(
        pool(states.unsqueeze(0), span), pool(inner, torch.ones(1, length).bool())
    )


@given(st.integers(1, 9), seeds, st.randoms(use_true_random=False))
def test_the_mean_does_not_know_the_order(length: int, seed: int, random) -> None:
    (states,) = rows([length], seed)
    order = list(range(length))
    random.shuffle(order)
    span = torch.ones(1, length, dtype=torch.bool)
    torch.testing.assert_close(
        mean_pool(states[order].unsqueeze(0), span), mean_pool(states.unsqueeze(0), span)
    )


@given(st.integers(2, 9))
def test_the_weighted_mean_leans_to_the_end(length: int) -> None:
    """Its weight on the n-th token is n / (1 + ... + length), read off one-hot states."""
    states = torch.eye(length).unsqueeze(0)
    weights = weighted_mean_pool(states, torch.ones(1, length, dtype=torch.bool))[0]
    expected = torch.arange(1, length + 1) / (length * (length + 1) / 2)
    torch.testing.assert_close(weights, expected)


@given(pools, row_lengths, seeds)
def test_rows_do_not_mix(pool: Pool, lengths: list[int], seed: int) -> None:
    hidden, mask = rectangle(rows(lengths, seed), "right")
    before = pool(hidden, mask)
    hidden[0] += 5.0
    torch.testing.assert_close(pool(hidden, mask)[1:], before[1:])
    torch.testing.assert_close(pool(hidden, mask)[0], before[0] + 5.0, rtol=1e-5, atol=1e-5)


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=6), min_size=1, max_size=5))
def test_marks_of_rows_make_one_mask(spans: list[list[bool]]) -> None:
    mask = torch.zeros(len(spans), max(map(len, spans)), dtype=torch.long)
    got = rows_of(spans, mask)
    assert got.dtype == torch.bool and got.shape == mask.shape
    for row, marks in zip(got.tolist(), spans, strict=True):
        assert row == [*marks, *[False] * (len(row) - len(marks))]
