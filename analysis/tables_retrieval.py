"""Memory of a search over a large corpus, as ``benchmarks/retrieval_memory.py`` measured it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MEGABYTE = 1e6
COLUMNS = [("Passages", "r"), ("Texts MB", "r"), ("Vectors MB", "r"), ("Peak MB", "r"),
           ("Above the start", "r"), ("Seconds", "r")]  # fmt: skip


def rows_of(values: Mapping[str, Any]) -> tuple[list[list[str]], frozenset[int], Sequence[str]]:
    """Rows, rules and notes of the table."""
    rows = [
        [f"{r['passages']:,}", f"{r['texts'] / MEGABYTE:,.1f}", f"{r['vectors'] / MEGABYTE:,.0f}",
         f"{r['peak'] / MEGABYTE:,.0f}", f"{(r['peak'] - r['before']) / MEGABYTE:,.0f}",
         f"{r['seconds']:,.0f}"]
        for r in values["rows"]
    ]  # fmt: skip
    note = (
        f"A random model of one layer, vectors of {values['settings']['hidden_size']} numbers, "
        "synthetic passages, all different; the vectors are on disk. Start: model, libraries."
    )
    return rows, frozenset(), [note]
