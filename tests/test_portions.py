"""Portions of similar length, and the thread that works one item ahead."""

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm2vec.portions import ahead, portions

lengths_ = st.lists(st.integers(0, 500), max_size=60)


@given(lengths_, st.integers(1, 9))
def test_portions_hold_every_row_once_and_are_alike(lengths: list[int], count: int) -> None:
    fair = sum(lengths) / count
    found = portions(lengths, fair)
    flat = [row for portion in found for row in portion]
    assert flat == sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    assert all(found)
    sizes = [sum(lengths[row] for row in portion) for portion in found]
    assert all(size <= fair + max(lengths) for size in sizes)
    assert all(size >= fair for size in sizes[:-1])
    if fair:
        assert len(found) <= count + 1


def test_portions_by_hand() -> None:
    assert portions([1, 5, 3, 3, 1], 6) == [[1, 2], [3, 0, 4]]
    assert portions([], 6) == []


@given(st.lists(st.integers(), max_size=9))
def test_every_item_comes_with_its_result_in_order(items: list[int]) -> None:
    assert list(ahead(lambda item: item + 1, items)) == [(item, item + 1) for item in items]


def test_one_item_ahead_and_no_further() -> None:
    taken: list[int] = []
    turn = ahead(lambda item: item, (taken.append(i) or i for i in range(9)))
    assert next(turn) == (0, 0)
    assert taken == [0, 1]
    next(turn)
    assert taken == [0, 1, 2]


def test_the_next_is_made_while_the_caller_has_its_turn() -> None:
    made = threading.Event()
    turn = ahead(lambda item: item and made.set(), [False, True])
    next(turn)
    assert made.wait(30)


def test_an_error_comes_in_its_turn_and_no_thread_is_left() -> None:
    def make(item: int) -> int:
        if item == 1:
            raise OSError("the disk is gone")
        return item

    turn: Iterator[tuple[int, int]] = ahead(make, range(3))
    assert next(turn) == (0, 0)
    with pytest.raises(OSError, match="the disk is gone"):
        next(turn)
    turn = ahead(make, [0, 2])
    next(turn)
    turn.close()  # a caller that breaks off
    for _ in range(100):
        if not [t for t in threading.enumerate() if t.name.startswith("ahead")]:
            return
        time.sleep(0.05)
    pytest.fail("a thread is left")
