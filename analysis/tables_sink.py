"""Tables of the attention sink: what mean pooling gains without the first positions.

Made of the records of ``experiments/09_attention_sink.py``; what is left out, and the control,
stand in ``llm2vec/registry_sink.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from analysis.collect import Results, points
from analysis.render import NOT_RUN, Origin, Table, number
from analysis.tables import block_breaks, display_model, display_variant, once
from llm2vec.registry import MODELS, VARIANTS
from llm2vec.registry_sink import CONTROL, INSTRUCTED, PAIRS, PLAIN, Left
from llm2vec.results import Record

EXPERIMENT, TRIPLES = "attention_sink", "triples"
Names = tuple[str, str]  # model, variant
Found = Mapping[tuple[str, str, str, Left], Record]  # by model, variant, task and what is left out


def _found(results: Results) -> Found:
    lefts = {left.setting: left for left in (*PLAIN, *INSTRUCTED, *CONTROL)}
    return {
        (r.model, r.variant, r.task, lefts[r.setting]): r
        for r in results.records
        if r.experiment == EXPERIMENT and r.setting in lefts
    }


def _names(found: Found, task: str) -> list[Names]:
    seen = {(model, variant) for model, variant, name, _ in found if name == task}
    return [(m, v) for m in MODELS for v in VARIANTS if (m, v) in seen]


def _tidy(found: Found, task: str) -> pd.DataFrame:
    rows = []
    for (model, variant, name, left), record in found.items():
        if name == task:
            low, high = record.scores["difference_interval"]
            first = record.scores.get("first_position") or {}
            shown = (first.get(n) for n in ("norm_ratio", "share", "even_share"))
            rows.append((model, variant, left.instruction, left.of, left.first, record.score,
                         record.scores["difference"], low, high, record.scores.get("gap"),
                         *shown))  # fmt: skip
    return pd.DataFrame(rows, columns=[
        "model", "variant", "instruction", "left_out_of", "first", "score", "difference", "low",
        "high", "gap", "norm_ratio", "share", "even_share",
    ])  # fmt: skip


def _origin(results: Results, task: str) -> Origin:
    scores = results.scores
    return Origin.of(scores[(scores["experiment"] == EXPERIMENT) & (scores["task"] == task)])


def _table(
    name: str,
    title: str,
    header: Sequence[str],
    groups: Sequence[tuple[str, int]],
    lines: Mapping[Names, Sequence[str]],
    frame: pd.DataFrame,
    origin: Origin,
    notes: Sequence[str],
) -> Table:
    models = [display_model(model) for model, _ in lines]
    shown = zip(once(models), lines.items(), strict=True)
    rows = [[model, display_variant(variant), *cells] for model, ((_, variant), cells) in shown]
    return Table(
        name, title, ["Model", "Variant", *header],
        rows or [["not run", *[NOT_RUN] * (len(header) + 1)]], "ll" + "r" * len(header), frame,
        origin, f"{len(lines)} variants", groups=[("", 2), *groups],
        breaks=block_breaks(models), notes=notes,
    )  # fmt: skip


# --------------------------------------------------------------------------- pairs
def sink(results: Results) -> Table:
    """The first position's norm and share, and the pairs' correlation without it."""
    found = _found(results)
    lines = {}
    for names in _names(found, PAIRS.task):
        records = {left: found.get((*names, PAIRS.task, left))
                   for left in (*PLAIN, *INSTRUCTED, *CONTROL)}  # fmt: skip
        whole, behind = records[PLAIN[0]], records[INSTRUCTED[0]]
        lines[names] = [
            *_first_position(whole), *_scores([records[x] for x in PLAIN]),
            *_scores([behind, *(records[x] for x in CONTROL)]),
        ]  # fmt: skip
    without = [f"without {left.first}" for left in PLAIN[1:]]
    return _table(
        "sink", "Does the attention sink on the first token dominate mean pooling?",
        ["first, pooled", "first, inside (layer)", "any, inside (layer)", "of first", "even",
         "whole", *without, "whole", *without],
        [("Norm", 3), ("Share, %", 2), (f"{PAIRS.task}, no instruction", len(PLAIN)),
         (f"{PAIRS.task}, behind the instruction", 1 + len(CONTROL))],
        lines, _tidy(found, PAIRS.task), _origin(results, PAIRS.task),
        (
            f"{PAIRS.items:,} pairs of the {PAIRS.split} split, mean pooling, Spearman times 100: "
            "of the whole text, then the difference when its first tokens are not pooled, with "
            "its paired 95 % bootstrap interval. Without an instruction the first of them is the "
            "sink; behind one the sink is the instruction's and words alone are left out.",
            "Norm: of the first position's state over the median of the others', as pooled, and "
            "inside, at the layer where it is largest; any: of the position where it is largest. "
            "Share: of the first position in the pooled vector; even: one over the number of "
            "pooled positions. No instruction; median (norm) and mean (share) over texts.",
            *_instructed_note(found),
        ),
    )  # fmt: skip


def _first_position(record: Record | None) -> list[str]:
    first = record.scores["first_position"] if record else None
    if not first:
        return [NOT_RUN] * 5
    return [
        number(first["norm_ratio"]), _top(first["norm_ratio_by_layer"]),
        _top(first["largest_ratio_by_layer"]), number(100 * first["share"], digits=1),
        number(100 * first["even_share"], digits=1),
    ]  # fmt: skip


def _top(layers: Sequence[float]) -> str:
    """``165.1 (12)``: the largest value and its layer, the embedding layer being 0."""
    top = max(range(len(layers)), key=layers.__getitem__)
    return f"{number(layers[top], digits=1)} ({top + 1})"


def _scores(records: Sequence[Record | None]) -> list[str]:
    whole, *others = records
    return [number(points(whole.score)) if whole else NOT_RUN,
            *(_difference(record, 100, 2) for record in others)]  # fmt: skip


def _difference(record: Record | None, times: float, digits: int) -> str:
    """``+1.20 [+0.31, +2.02]``: a difference to the whole span."""
    if record is None:
        return NOT_RUN
    bounds = (record.scores["difference"], *record.scores["difference_interval"])
    value, low, high = (number(times * x, digits=digits, sign=True) for x in bounds)
    return f"{value} [{low}, {high}]"


def _instructed_note(found: Found) -> list[str]:
    """What the instruction's own first positions change: measured, not supposed."""
    changes = [100 * abs(record.scores["difference"])
               for (_, _, _, left), record in found.items() if left in INSTRUCTED[1:]]  # fmt: skip
    if not changes:
        return []
    firsts = " or ".join(str(left.first) for left in INSTRUCTED[1:])
    return [
        f"Behind the instruction, leaving out the first {firsts} positions of the sequence changes "
        f"a score by {max(changes):.2f} at most: they are the instruction's."
    ]


# --------------------------------------------------------------------------- triples
def sink_triples(results: Results) -> Table:
    """The leakage triples without the first positions."""
    found = _found(results)
    lines = {}
    for names in _names(found, TRIPLES):
        records = [found.get((*names, TRIPLES, left)) for left in PLAIN]
        whole = records[0]
        lines[names] = [
            number(whole.scores["gap"], digits=4, sign=True) if whole else NOT_RUN,
            *(_difference(record, 1, 4) for record in records[1:]),
            *(number(100 * r.score, digits=1) if r else NOT_RUN for r in records),
        ]  # fmt: skip
    without = [f"without {left.first}" for left in PLAIN[1:]]
    return _table(
        "sink_triples", "Pooling leakage without the first positions of the beginning",
        ["whole", *without] * 2, [("Gap", len(PLAIN)), ("Ranked right, %", len(PLAIN))],
        lines, _tidy(found, TRIPLES), _origin(results, TRIPLES),
        ("Gap: cos(q, s+) - cos(q, s-) of the whole beginning, then the difference when its first "
         "tokens are not pooled, with its paired 95 % bootstrap interval.",),
    )  # fmt: skip
