"""Tables of ``docs/performance.md``: speed, memory and cost, from ``benchmarks/results/*.json``.

What ``make bench`` measured on one machine; its figures mean most as ratios within a file, where
the sides worked in turns. Files lie beside the results folder; one that is absent is *not run*.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import pandas as pd

from analysis import tables_gpu, tables_retrieval
from analysis.collect import Results
from analysis.render import NOT_RUN, Origin, Table, number
from analysis.tables import once
from llm2vec.errors import RecordError

Values = Mapping[str, Any]  # of one JSON file
Row = Mapping[str, Any]
OURS, PUBLISHED = "ours", "published"
BUSY = 0.5  # load per core from which other work must have slowed the measurements
SIDES = {OURS: "here", PUBLISHED: "published code"}
STAGES = {"mntp": "MNTP", "simcse": "SimCSE"}


# --------------------------------------------------------------------------- files
def read(results: Results, name: str) -> Values | None:
    """What a benchmark measured, or None where it was not run."""
    path = results.root.resolve().parent / "benchmarks" / "results" / f"{name}.json"
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        tables_of(values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(
            f"{path}: not what a benchmark writes ({type(error).__name__}: {error}). Remove it, "
            "or run 'make bench' again."
        ) from error
    return values


def origin(values: Values) -> Origin:
    made = values["provenance"]
    return Origin(
        len(values["rows"]), (str(made["commit"])[:10],), made["started"][:10], int(made["dirty"])
    )


def machine_note(values: Values) -> str:
    """Which machine it was, and whether it did other work at the same time."""
    machine = values["machine"]
    text = (f"Measured on {machine['processor']}, {machine['cores']} cores, "
            f"{values['provenance']['started'][:10]}.")  # fmt: skip
    if machine["load"] > BUSY * machine["cores"]:
        text += (f" The machine was busy (load {machine['load']:.1f} at the start): shares of "
                 "the limit and ratios are rough.")  # fmt: skip
    return text


def _table(
    name: str,
    title: str,
    columns: Sequence[tuple[str, str]],
    values: Values | None,
    make: Callable[[Values], tuple[list[list[str]], frozenset[int], Sequence[str]]],
) -> Table:
    """``columns``: (heading, LaTeX type); ``make`` gives rows, rules and notes."""
    header, types = [c for c, _ in columns], "".join(t for _, t in columns)
    if values is None:
        rows = [["not run", *[NOT_RUN] * (len(header) - 1)]]
        return Table(name, title, header, rows, types, pd.DataFrame(columns=["benchmark"]))
    rows, breaks, notes = make(values)
    data = pd.json_normalize([{"benchmark": values["benchmark"], **r} for r in values["rows"]])
    return Table(
        name, title, header, rows, types, data, origin(values), f"{len(rows)} rows",
        breaks=breaks, notes=(*notes, machine_note(values)),
    )  # fmt: skip


def _breaks(keys: Sequence[Any]) -> frozenset[int]:
    return frozenset(i + 1 for i, (a, b) in enumerate(pairwise(keys)) if a != b)


def ratio(one: float | None, other: float | None, digits: int = 2) -> str:
    """``one`` over ``other`` as text; a dash where one of them is missing."""
    return f"{one / other:.{digits}f}x" if one is not None and other else NOT_RUN


def percent(share: float | None) -> str:
    return NOT_RUN if share is None else f"{100 * share:.0f} %"


# --------------------------------------------------------------------------- encoding
def encoding_of(values: Values | None) -> Table:
    """Tokens a second of each side, its share of the matrix-product limit, memory, ratios."""
    columns = [("Dtype", "l"), ("Texts", "l"), ("Side", "l"), ("Tokens/s", "r"),
               ("Of the limit", "r"), ("Padding", "r"), ("Peak MB", "r"), ("Here : side", "r"),
               ("Here : published float32", "r")]  # fmt: skip
    return _table("performance_encode", "Encoding", columns, values, _encoding)


def _encoding(values: Values) -> tuple[list[list[str]], frozenset[int], Sequence[str]]:
    found = {(r["dtype"], r["mix"], r["side"]): r for r in values["rows"]}

    def rate(dtype: str, mix: str, side: str) -> float | None:
        row = found.get((dtype, mix, side))
        return row and row["tokens_per_second"]

    rows = []
    for (dtype, mix, side), row in found.items():
        ours = rate(dtype, mix, OURS)
        default = rate("float32", mix, PUBLISHED) if side == OURS else None
        rows.append([
            dtype, mix, SIDES.get(side, side), f"{row['tokens_per_second']:,.0f}",
            f"{percent(row['share_of_limit'])} ({percent(row['share_with_attention'])})",
            percent(row["padding"] / (row["tokens"] + row["padding"])), f"{row['peak_mb']:,.0f}",
            "" if side == OURS else ratio(ours, row["tokens_per_second"]),
            ratio(ours, default) if default else "",
        ])  # fmt: skip
    keys = [row[:2] for row in rows]
    return rows, _breaks(keys), [_limit_note(values), _agreement_note(values)]


def _limit_note(values: Values) -> str:
    limits = []
    for dtype, limit in values["limits"].items():
        best = limit["flops_per_second"]
        others = ", ".join(f"{name} {rate / best:.0%}" for name, rate in limit["by"].items())
        limits.append(
            f"{dtype}: {best / 1e9:,.0f} GFLOP/s = {limit['tokens_per_second']:,.0f} tokens/s "
            f"({others}; products of the model's own shapes: "
            f"{limit['flops_per_second_layers'] / best:.0%} of it)"
        )
    return (f"Limit: the fastest large square matrix product in the same dtype, measured in turns "
            f"with the sides; {'; '.join(limits)}. Counted are the products with weights; in "
            "brackets those of attention as well.")  # fmt: skip


def _agreement_note(values: Values) -> str:
    lowest: dict[tuple[str, str], float] = {}
    for row in values["rows"]:
        if row["lowest_cosine"] is not None:
            key = row["dtype"], SIDES.get(row["side"], row["side"])
            lowest[key] = min(row["lowest_cosine"], lowest.get(key, 1.0))
    told = "; ".join(f"{d}, {side}: {value:.5f}" for (d, side), value in lowest.items())
    return f"Lowest cosine between a side's vectors and those here: {told or 'no other side'}."


# --------------------------------------------------------------------------- where the time goes
PARTS = {
    "products": "Products", "attention": "Attention", "layers": "Norms, rotary, activation",
    "tokenizing": "Tokenizing", "rest": "Rest",
}  # fmt: skip


def breakdown_of(values: Values | None) -> Table:
    """Shares of the time of encoding, and how near the products come to the limit."""
    columns = [("Dtype", "l"), ("Texts", "l"), ("Tokens/s", "r"), ("Of the limit", "r"),
               *((heading, "r") for heading in PARTS.values()), ("Padding", "r"),
               ("Products of the limit", "r")]  # fmt: skip
    return _table("performance_breakdown", "Where the time goes", columns, values, _breakdown)


def _breakdown(values: Values) -> tuple[list[list[str]], frozenset[int], Sequence[str]]:
    rows = []
    for row in values["rows"]:
        shares = {part: row["parts"][part] / row["seconds"] for part in PARTS}
        through = row["tokens"] + row["padding"]
        reached = row["share_of_limit"] * through / row["tokens"] / shares["products"]
        rows.append([
            row["dtype"], row["mix"], f"{row['tokens_per_second']:,.0f}",
            percent(row["share_of_limit"]), *map(percent, shares.values()),
            percent(row["padding"] / through), percent(reached),
        ])  # fmt: skip
    note = ("Under torch's profiler, which costs a little. The share of the limit is that of the "
            "products in the time, times how near they come to the limit (the last column), times "
            "what is not padding. Rest: Python, and what no operator accounts for.")  # fmt: skip
    return rows, _breaks([row[0] for row in rows]), [note]


# --------------------------------------------------------------------------- choices
def choices_of(values: Values | None) -> Table:
    """How much faster or slower encoding is with each choice than with the default."""
    mixes = list(dict.fromkeys(r["mix"] for r in values["rows"])) if values else ["short", "long"]
    columns = [("Dtype", "l"), ("Choice", "l"), *((mix, "r") for mix in mixes)]
    return _table("performance_choices", "What helped, what did not", columns, values, _choices)


def _choices(values: Values) -> tuple[list[list[str]], frozenset[int], Sequence[str]]:
    found = {(r["dtype"], r["choice"], r["mix"]): r for r in values["rows"]}
    mixes = list(dict.fromkeys(mix for _, _, mix in found))
    names = [name for name in dict.fromkeys(key[:2] for key in found) if name[1] != "as it is"]
    rows = [
        [*name, *(ratio(found[*name, mix]["ratio"], 1.0) if (*name, mix) in found else NOT_RUN
                  for mix in mixes)]
        for name in names
    ]  # fmt: skip
    waits = [f"{dtype} {r['warm_up_seconds']:,.0f} s" for (dtype, choice, mix), r in found.items()
             if choice == "compiled" and mix == mixes[0]]  # fmt: skip
    notes = ["Speed with the choice over speed without it, in turns: below 1, the default is "
             "the better one."]  # fmt: skip
    notes += [f"Until compiled layers were ready: {', '.join(waits)}."] if waits else []
    return rows, _breaks([row[0] for row in rows]), notes


# --------------------------------------------------------------------------- training
def training_of(values: Values | None) -> Table:
    """One step of each stage: real tokens a second and memory against the published classes."""
    columns = [("Stage", "l"), ("Dtype", "l"), ("Side", "l"), ("Tokens of a step", "r"),
               ("Tokens/s", "r"), ("Peak MB", "r"), ("Added MB", "r"), ("Here : side, speed", "r"),
               ("Here : side, peak", "r")]  # fmt: skip
    return _table("performance_training", "Training steps", columns, values, _training)


def _training(values: Values) -> tuple[list[list[str]], frozenset[int], Sequence[str]]:
    found = {(r["stage"], r["dtype"], r["side"]): r for r in values["rows"]}
    rows = []
    for (stage, dtype, side), row in found.items():
        ours = found.get((stage, dtype, OURS), {})
        other = side != OURS
        rows.append([
            STAGES[stage], dtype, SIDES.get(side, side), f"{row['tokens']:,.0f}",
            f"{row['tokens_per_second']:,.0f}", f"{row['peak_mb']:,.0f}",
            f"{row['added_mb']:,.0f}",
            ratio(ours.get("tokens_per_second"), row["tokens_per_second"]) if other else "",
            percent(ours["peak_mb"] / row["peak_mb"]) if other and ours else "",
        ])  # fmt: skip
    losses = [f"{STAGES[stage]} {dtype}, {SIDES.get(side, side)} {row['first_loss']:.4f}"
              for (stage, dtype, side), row in found.items()]  # fmt: skip
    notes = [
        "Tokens are real ones, padding not counted (SimCSE: both views). Peak: of the process, "
        "libraries and weights included; added: by the steps themselves. Loss of the first step "
        f"(SimCSE: with other draws of dropout): {'; '.join(losses)}."
    ]
    return rows, _breaks([row[:2] for row in rows]), notes


# --------------------------------------------------------------------------- word features
def words_of(values: Values | None) -> Table:
    """Word-level probing of one variant: the backbone once, or in every step of every probe."""
    columns = [("Way", "l"), ("Tokens", "r"), ("Of them padding", "r"), ("Backbone s", "r"),
               ("Probes s", "r"), ("Seconds", "r"), ("Way : here, tokens", "r"),
               ("Way : here, time", "r")]  # fmt: skip
    return _table("performance_words", "Word-level probing", columns, values, _words)


def _words(values: Values) -> tuple[list[list[str]], frozenset[int], Sequence[str]]:
    here = next(row for row in values["rows"] if row["here"])  # as many probes as published
    rows = [
        [r["way"], f"{r['tokens']:,}", percent(r["padding"] / r["tokens"]),
         f"{r['backbone_seconds']:,.0f}",
         NOT_RUN if r["probe_seconds"] is None else f"{r['probe_seconds']:,.0f}",
         f"{r['seconds']:,.0f}",
         *(("", "") if r["here"] else (ratio(r["tokens"], here["tokens"], 1),
                                       ratio(r["seconds"], here["seconds"], 1)))]
        for r in values["rows"]
    ]  # fmt: skip
    unit = values["measured"]
    note = (f"Tokens are counted; seconds are extrapolated from {values['settings']['sentences']} "
            f"sentences and {values['settings']['steps']} published steps. Features here: "
            f"{1 / unit['token']:,.0f} tokens/s, {percent(unit['share_of_limit'])} of the limit, "
            f"peak {unit['peak_mb']:,.0f} MB.")  # fmt: skip
    return rows, _breaks([row["here"] for row in values["rows"]]), [note]


# --------------------------------------------------------------------------- scale
def scale_of(values: Values | None) -> Table:
    """Time and memory of ``encode`` over the number of texts, with a tiny model."""
    columns = [("Texts", "r"), ("Seconds", "r"), ("Texts/s", "r"), ("Output MB", "r"),
               ("Added MB", "r"), ("Without output", "r")]  # fmt: skip
    return _table("performance_scale", "Encoding many texts", columns, values, _scale)


def _scale(values: Values) -> tuple[list[list[str]], frozenset[int], Sequence[str]]:
    rows = [
        [f"{r['texts']:,}", number(r["seconds"]), f"{r['texts'] / r['seconds']:,.0f}",
         number(r["output_mb"], digits=1), f"{r['added_mb']:,.0f}",
         f"{max(0.0, r['added_mb'] - r['output_mb']):,.0f}"]
        for r in values["rows"] if r["kind"] == "encode"
    ]  # fmt: skip
    return (
        rows,
        frozenset(),
        ["A random model of two layers, short synthetic texts, all different."],
    )


def startup_of(values: Values | None) -> Table:
    """How long the command line takes before there is anything to compute."""
    columns = [("Command", "l"), ("Seconds", "r")]
    return _table("performance_startup", "Start-up", columns, values, _startup)


def _startup(values: Values) -> tuple[list[list[str]], frozenset[int], Sequence[str]]:
    rows = [[r["command"], number(r["seconds"])] for r in values["rows"] if r["kind"] == "start"]
    return rows, frozenset(), ["Median of a few starts; none of them imports torch."]


# --------------------------------------------------------------------------- the grid
def grid_of(values: Values | None) -> Table:
    """Tokens through the model for Tables 4 and 5, the published way and here."""
    columns = [("Table", "l"), ("Way", "l"), ("Tokens", "r"), ("Of them padding", "r"),
               ("Way : here", "r")]  # fmt: skip
    return _table("performance_grid", "Tokens through the model", columns, values, _grid)


def _grid(values: Values) -> tuple[list[list[str]], frozenset[int], Sequence[str]]:
    here = {r["table"]: r["tokens"] for r in values["rows"] if r["here"]}
    rows = [
        [r["table"], r["way"], f"{r['tokens']:,}", percent(r["padding"] / r["tokens"]),
         "" if r["here"] else ratio(r["tokens"], here.get(r["table"]), 1)]
        for r in values["rows"]
    ]  # fmt: skip
    tables = [row[0] for row in rows]
    shown = [[name, *row[1:]] for name, row in zip(once(tables), rows, strict=True)]
    return shown, _breaks(tables), values["notes"]


# --------------------------------------------------------------------------- one GPU
def gpu_of(values: Values | None) -> Table:
    """Training steps and encoding of a random 7B model on one GPU, beside the paper's times."""
    return _table("performance_gpu", "One GPU", tables_gpu.COLUMNS, values, tables_gpu.rows_of)


def retrieval_of(values: Values | None) -> Table:
    """Peak memory of a search over the size of its corpus."""
    return _table("performance_retrieval", "Searching a large corpus", tables_retrieval.COLUMNS,
                  values, tables_retrieval.rows_of)  # fmt: skip


# --------------------------------------------------------------------------- by name
_OF: Mapping[str, Sequence[Callable[[Values | None], Table]]] = {
    "encode": (encoding_of,),
    "breakdown": (breakdown_of,),
    "choices": (choices_of,),
    "training": (training_of,),
    "word_features": (words_of,),
    "scale": (scale_of, startup_of),
    "grid_cost": (grid_of,),
    "gpu": (gpu_of,),
    "retrieval_memory": (retrieval_of,),
}


def tables_of(values: Values) -> list[Table]:
    """The tables of one benchmark's file."""
    return [make(values) for make in _OF[values["benchmark"]]]


def encoding(results: Results) -> Table:
    return encoding_of(read(results, "encode"))


def breakdown(results: Results) -> Table:
    return breakdown_of(read(results, "breakdown"))


def choices(results: Results) -> Table:
    return choices_of(read(results, "choices"))


def training(results: Results) -> Table:
    return training_of(read(results, "training"))


def words(results: Results) -> Table:
    return words_of(read(results, "word_features"))


def scale(results: Results) -> Table:
    return scale_of(read(results, "scale"))


def startup(results: Results) -> Table:
    return startup_of(read(results, "scale"))


def grid(results: Results) -> Table:
    return grid_of(read(results, "grid_cost"))


def gpu(results: Results) -> Table:
    return gpu_of(read(results, "gpu"))


def retrieval(results: Results) -> Table:
    return retrieval_of(read(results, "retrieval_memory"))
