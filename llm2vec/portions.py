"""Work in portions: of similar length, and each prepared while the one before it runs.

What a text needs on its way through a model (strings, offsets, ids as Python's integers) is ten
times its vector; in portions this does not add up over the texts. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def portions(lengths: Sequence[int], limit: float) -> list[list[int]]:
    """Rows in portions of similar length, longest first, ties in order.

    A portion is closed when its lengths add up to ``limit`` or more. Every row occurs once.
    """
    found: list[list[int]] = []
    size = 0.0
    for row in sorted(range(len(lengths)), key=lambda r: -lengths[r]):
        if not found or size >= limit:
            found.append([])
            size = 0.0
        found[-1].append(row)
        size += lengths[row]
    return found


def ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[tuple[Item, Made]]:
    """Each item with what ``make`` makes of it, in order, one item ahead in a thread.

    An error of ``make`` is raised when its item's turn comes.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        waiting: tuple[Item, Future[Made]] | None = None
        for item in items:
            following = item, thread.submit(make, item)
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = following
        if waiting is not None:
            yield waiting[0], waiting[1].result()
