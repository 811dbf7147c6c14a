"""Rows and notes of the table of ``benchmarks/results/gpu.json``: steps and encoding on one GPU.

The paper's own times (2.2) stand beside them where the shape is that of a 7B model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from analysis.render import NOT_RUN

COLUMNS = (
    ("Work", "l"), ("Configuration", "l"), ("Tokens", "r"), ("Padding", "r"), ("Tokens/s", "r"),
    ("1,000 steps, min", "r"), ("First step s", "r"), ("Peak GB", "r"), ("Of the limit", "r"),
)  # fmt: skip
KINDS = {"mntp": "MNTP", "simcse": "SimCSE", "encode": "encoding"}
PAPER_MINUTES = {"mntp": 100, "simcse": 180}  # paper 2.2: 1,000 steps of a 7B model, one A100
PAPER_SHAPE = "mistral-7b"


def rows_of(values: Mapping[str, Any]) -> tuple[list[list[str]], frozenset[int], Sequence[str]]:
    """Cells, rules between kinds, notes."""
    rows = []
    for kind, name in KINDS.items():
        here = [row for row in values["rows"] if row["kind"] == kind]
        if here and kind in PAPER_MINUTES and values["settings"]["shape"] == PAPER_SHAPE:
            told = f"{PAPER_MINUTES[kind]:,}"
            rows.append([name, "paper: one A100", *[NOT_RUN] * 3, told, *[NOT_RUN] * 3])
        rows += [[name, row["name"], *_cells(row)] for row in here]
    breaks = frozenset(i + 1 for i, (a, b) in enumerate(pairwise(rows)) if a[0] != b[0])
    return rows, breaks, [_set_up(values), *_attention(values), *_missing(values)]


def _cells(row: Mapping[str, Any]) -> list[str]:
    if "seconds" not in row:
        return [NOT_RUN] * (len(COLUMNS) - 2)
    share, peak, training = row["share_of_limit"], row["peak_gb"], row["kind"] in PAPER_MINUTES
    return [
        f"{row['tokens']:,}", f"{100 * row['padding'] / (row['tokens'] + row['padding']):.0f} %",
        f"{row['tokens_per_second']:,.0f}",
        f"{row['seconds'] * 1000 / 60:,.1f}" if training else "",
        f"{row['warm_up_seconds']:,.1f}" if training else "",
        NOT_RUN if peak is None else f"{peak:.1f}",
        NOT_RUN if share is None else f"{100 * share:.0f} %",
    ]  # fmt: skip


def _set_up(values: Mapping[str, Any]) -> str:
    device, limits = values["device"], values["limits"]
    text = (f"Random weights of the shape {values['settings']['shape']}, bfloat16, on one "
            f"{device['name']}, torch {values['torch']}.")  # fmt: skip
    if "flops_per_second" not in limits:
        return f"{text} The limit could not be measured: {limits['error']}."
    own = ", ".join(
        f"{layer['flops_per_second'] / limits['flops_per_second']:.0%} with {layer['tokens']:,}"
        for layer in limits["layers"]
    )
    return (f"{text} Limit: a product of {limits['side']:,} x {limits['side']:,} matrices, "
            f"{limits['flops_per_second'] / 1e12:,.1f} TFLOP/s; the MLP's first product reaches "
            f"{own} tokens.")  # fmt: skip


def _attention(values: Mapping[str, Any]) -> list[str]:
    found: dict[str, None] = {}
    for row in values["rows"]:
        for name in row.get("attention", {}).get("operators", ()):
            if not name.endswith("_backward"):
                found[f"{KINDS[row['kind']]} {name.removeprefix('aten::_')}"] = None
    return [f"Attention that ran: {', '.join(found)}."] if found else []


def _missing(values: Mapping[str, Any]) -> list[str]:
    """Why configurations have no figures, and where compiled layers were none."""
    told = [f"{KINDS[row['kind']]}, {row['name']}: {row.get('error') or row['skipped']}"
            for row in values["rows"] if "seconds" not in row]  # fmt: skip
    notes = [f"Not measured: {'; '.join(told)}."] if told else []
    plain = [f"{KINDS[row['kind']]}, {row['name']}" for row in values["rows"]
             if row.get("programs") == 0]  # fmt: skip
    return notes + ([f"Not compiled although asked to be: {'; '.join(plain)}."] if plain else [])
