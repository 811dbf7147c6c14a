"""The paper's tables with ours beside them: Tables 1, 2, 4, 5, 6 and 11.

Each function takes :class:`analysis.collect.Results` and returns a :class:`analysis.render.Table`.
Bold is the best of a model's block in its column, the paper's numbers and ours apart. Tables of
models that the paper does not have are in ``tables_own``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import pandas as pd

from analysis.collect import MTEB, PUBLISHED, Results
from analysis.means import CATEGORIES, tasks_by_category
from analysis.paper import (
    COLUMNS_OF,
    LLM2VEC,
    compare,
    cost_ratio,
    printed,
)
from analysis.render import NOT_RUN, Cell, Origin, Table, bold_best, number
from llm2vec.registry import (
    MODELS,
    POOLING_DISPLAY,
    SUITES,
    VARIANTS,
    WORD_TASKS,
)

PAPER_NOTE = "Paper: arXiv 2404.05961v2. Scores times 100."
ECHO_NOTE = "The paper does not state Echo's pooling; ours is the mean over the second occurrence."
CELL_NOTE = (
    "A reproduced cell reads: score (difference to the paper) verdict. A mean stays 'not run' "
    "until every one of its tasks is there."
)
RERUN_NOTE = (
    "† For seven tasks mteb's own re-run of this Mistral-7B checkpoint does not give the printed "
    "score either; the CSV has the number with the re-runs, and ours judged by it."
)
AUTHORS_NOTE = "§ With the authors' adapters, which the printed numbers are of; without: our own."
WORD_DISPLAY = {"chunking": "Chunking", "ner": "NER", "pos": "POS"}


def display_model(name: str) -> str:
    """Display name of a model; models that only Table 2 lists keep the paper's name."""
    return MODELS[name].display if name in MODELS else name


def display_variant(name: str) -> str:
    return VARIANTS[name].display if name in VARIANTS else NOT_RUN


def display_pooling(name: str) -> str:
    return POOLING_DISPLAY.get(name, "not stated")


def once(values: Sequence[str]) -> list[str]:
    """Repeated neighbours are shown once."""
    return [v if not i or v != values[i - 1] else "" for i, v in enumerate(values)]


def block_breaks(values: Sequence[str]) -> frozenset[int]:
    """Rows at which a new block begins."""
    return frozenset(i for i in range(1, len(values)) if values[i] != values[i - 1])


def origin_of(results: Results, frame: pd.DataFrame, *experiments: str) -> Origin:
    """The records of these experiments that belong to a comparison's models and variants."""
    rows = results.of(*experiments)
    keys = set(zip(frame["model"], frame["variant"], strict=True))
    mask = [key in keys for key in zip(rows["model"], rows["variant"], strict=True)]
    return Origin.of(rows[pd.Series(mask, index=rows.index, dtype=bool)])


def compared(number: int, results: Results, *experiments: str) -> pd.DataFrame:
    """``compare`` with the column ``adapters``: whose our number was made with, if it needs any."""
    frame = compare(number, results)
    whose = cache(lambda model, variant: results.adapters_of(model, variant, *experiments))
    return frame.assign(adapters=list(map(whose, frame["model"], frame["variant"])))


def _authors(row) -> str:
    """The mark of a number that the authors' adapters gave."""
    return "§" if row.done and row.adapters == PUBLISHED else ""


def _notes(frame: pd.DataFrame, *notes: str) -> tuple[str, ...]:
    return (*notes, AUTHORS_NOTE) if any(map(_authors, frame.itertuples())) else notes


def _best(frame: pd.DataFrame, value: str) -> dict[tuple, bool]:
    """By (model, variant, pooling, column): whether the value is its model's best."""
    best = {}
    for _, block in frame.groupby(["model", "column"], sort=False):
        flags = bold_best(list(block[value]))
        for row, flag in zip(block.itertuples(), flags, strict=True):
            best[row.model, row.variant, row.pooling, row.column] = flag
    return best


def _coverage(frame: pd.DataFrame, cells: Mapping, tasks: Sequence[str]) -> str:
    """Task count of a comparison, for the LaTeX comment."""
    models = set(frame["model"])
    run = {task for (model, _, _), cell in cells.items() if model in models for task in cell}
    return (
        f"{len(run & set(tasks))} of {len(tasks)}, "
        f"{int(frame['reproduced'].notna().sum())} of {len(frame)} printed cells reproduced"
    )


# --------------------------------------------------------------------------- Tables 1 and 2
def table1(results: Results) -> Table:
    """Unsupervised results on the 56 tasks of MTEB, category means (section 3.2)."""
    frame, columns = compared(1, results, *MTEB), COLUMNS_OF[1]
    best = {name: _best(frame, name) for name in ("paper", "reproduced")}
    rows, models = [], []
    for (model, variant, pooling), group in frame.groupby(
        ["model", "variant", "pooling"], sort=False
    ):
        by_column = {row.column: row for row in group.itertuples()}
        cells = [by_column[column] for column in columns]
        block = _stacked(cells, best)
        shown = [display_variant(variant), display_pooling(pooling)]
        rows += [[*(shown if not i else ["", ""]), *row] for i, row in enumerate(block)]
        models += [display_model(model)] * len(block)
    return Table(
        "table1", "Table 1: MTEB (56 tasks), unsupervised",
        ["Model", "Variant", "Pooling", "Numbers", *_short(columns), "Tasks run"],
        [[m, *row] for m, row in zip(once(models), rows, strict=True)],
        "llll" + "r" * len(columns) + "l", frame,
        origin_of(results, frame, *MTEB),
        _coverage(frame, results.mteb, SUITES["full"]), breaks=block_breaks(models),
        notes=_notes(frame, PAPER_NOTE, ECHO_NOTE, RERUN_NOTE),
    )  # fmt: skip


def _stacked(cells: Sequence, best: Mapping[str, Mapping[tuple, bool]]) -> list[list[Cell | str]]:
    """The paper's numbers; below them, once there are any, ours, the difference, the verdict."""

    def numbers(name: str) -> list[Cell]:
        places = [(c.model, c.variant, c.pooling, c.column) for c in cells]
        return [Cell(number(getattr(c, name)), best[name][place])
                for c, place in zip(cells, places, strict=True)]  # fmt: skip

    average = cells[-1]
    run = f"{average.done} of {average.total}" if average.done else "not run"
    run += _authors(average)
    rows = [["paper", *numbers("paper"), run]]
    if not all(pd.isna(cell.reproduced) for cell in cells):
        differences = [number(cell.difference, sign=True) for cell in cells]
        verdicts = [cell.verdict + ("†" if cell.note else "") for cell in cells]
        rows += [
            ["reproduced", *numbers("reproduced"), ""],
            ["difference", *differences, ""],
            ["verdict", *verdicts, ""],
        ]
    return rows


def table2(results: Results) -> Table:
    """Supervised results on MTEB (section 5): the paper's numbers only, out of scope here."""
    frame, columns = printed(2, results.paper), (*CATEGORIES, "Average")
    block = frame["model"].where(frame["variant"] != "external", "external")
    best: dict[tuple[str, str, str], bool] = {}
    for (_, column), group in frame.groupby([block, "category"], sort=False):
        flags = bold_best(list(group["score"]))
        best |= dict(zip(zip(group["model"], group["variant"], [column] * len(group),
                             strict=True), flags, strict=True))  # fmt: skip
    rows, models, blocks = [], [], []
    for (model, variant, pooling), group in frame.groupby(
        ["model", "variant", "pooling"], sort=False
    ):
        scores = group.set_index("category")["score"]
        cells = [Cell(number(scores[c]), best[model, variant, c]) for c in columns]
        rows.append([display_variant(variant), display_pooling(pooling), *cells])
        models.append(display_model(model))
        blocks.append("external" if variant == "external" else model)
    return Table(
        "table2", "Table 2: MTEB (56 tasks), supervised (the paper's numbers only)",
        ["Model", "Variant", "Pooling", *_short(columns)],
        [[m, *row] for m, row in zip(once(models), rows, strict=True)],
        "lll" + "r" * len(columns), frame, tasks="paper only",
        breaks=block_breaks(blocks), notes=(PAPER_NOTE,),
    )  # fmt: skip


def _short(columns: Sequence[str]) -> list[str]:
    short = {
        "Retrieval": "Retr.", "Reranking": "Rerank.", "Clustering": "Clust.",
        "PairClassification": "PairClass.", "Classification": "Class.", "Summarization": "Summ.",
        "Average": "Avg.",
    }  # fmt: skip
    return [short.get(column, column) for column in columns]


# --------------------------------------------------------------------------- Tables 4, 5 and 11
def reproduced_text(row) -> str:
    """``88.10 (+0.12) close``, ``not run``, or how far a mean has come; of a row of ``compare``."""
    mark = ("†" if row.note else "") + _authors(row)
    if pd.isna(row.reproduced):
        part = f" ({row.done} of {row.total} tasks)" if row.done else ""
        return f"not run{part}{mark}"
    difference = number(row.difference, sign=True)
    return f"{number(row.reproduced)} ({difference}) {row.verdict}{mark}"


def _side_by_side(
    frame: pd.DataFrame, columns: Sequence[str], display: Callable[[str], str]
) -> dict:
    """Rows (model, variant) and, for each column, the paper's cell and ours."""
    best = {name: _best(frame, name) for name in ("paper", "reproduced")}
    cells = {(r.model, r.variant, r.column): r for r in frame.itertuples()}
    pairs = list(dict.fromkeys(zip(frame["model"], frame["variant"], strict=True)))
    rows = []
    for model, variant in pairs:
        row: list[Cell | str] = []
        for column in columns:
            cell = cells[model, variant, column]
            place = (model, variant, cell.pooling, column)
            text = reproduced_text(cell)
            row += [Cell(number(cell.paper), best["paper"][place]),
                    Cell(text, best["reproduced"][place])]  # fmt: skip
        rows.append([display_variant(variant), *row])
    models = [display_model(model) for model, _ in pairs]
    return {
        "header": ["Model", "Variant", *["paper", "reproduced"] * len(columns)],
        "rows": [[m, *row] for m, row in zip(once(models), rows, strict=True)],
        "columns": "ll" + "rl" * len(columns),
        "groups": [("", 2), *((display(column), 2) for column in columns)],
        "breaks": block_breaks(models),
        "data": frame,
    }


def table4(results: Results) -> Table:
    """Word-level tasks, per-word accuracy (section 3.1)."""
    frame = compared(4, results, "word_probing")
    return Table(
        "table4", "Table 4: word-level tasks, accuracy",
        **_side_by_side(frame, WORD_TASKS, WORD_DISPLAY.__getitem__),
        origin=origin_of(results, frame, "word_probing"),
        tasks=_coverage(frame, results.words, WORD_TASKS),
        notes=_notes(frame, PAPER_NOTE, CELL_NOTE),
    )  # fmt: skip


def table5(results: Results) -> Table:
    """Poolings on the 15-task subset (section 3.2, appendix C)."""
    frame = compared(5, results, *MTEB)
    return Table(
        "table5", "Table 5: mean over the 15-task subset by variant and pooling",
        **_side_by_side(frame, COLUMNS_OF[5], display_pooling),
        origin=origin_of(results, frame, *MTEB),
        tasks=_coverage(frame, results.mteb, SUITES["subset"]),
        notes=_notes(frame, PAPER_NOTE, CELL_NOTE, RERUN_NOTE),
    )  # fmt: skip


def table11(results: Results) -> Table:
    """LLM2Vec (mean pooling) on each of the 56 tasks (appendix)."""
    frame = compared(11, results, *MTEB)
    models = list(dict.fromkeys(frame["model"]))
    cells = {(row.model, row.column): row for row in frame.itertuples()}
    grouped = tasks_by_category(SUITES["full"])
    names = [(c, task) for c, tasks in grouped.items() for task in sorted(tasks)]
    names.append(("Average", "Average"))
    rows = []
    for _, task in names:
        row = [task]
        for model in models:
            cell = cells[model, task]
            row += [number(cell.paper), reproduced_text(cell)]
        rows.append(row)
    categories = [category for category, _ in names]
    return Table(
        "table11", "Table 11: LLM2Vec (Bi + MNTP + SimCSE, mean pooling) on the 56 tasks",
        ["Category", "Task", *["paper", "reproduced"] * len(models)],
        [[c, *row] for c, row in zip(once(categories), rows, strict=True)],
        "ll" + "rl" * len(models), frame,
        origin_of(results, frame, *MTEB),
        _coverage(frame, results.mteb, SUITES["full"]),
        groups=[("", 2), *((display_model(model), 2) for model in models)],
        breaks=block_breaks(categories),
        notes=_notes(frame, PAPER_NOTE, CELL_NOTE, RERUN_NOTE),
    )  # fmt: skip


# --------------------------------------------------------------------------- Table 6, verdicts
def table6(results: Results) -> Table:
    """Evaluation cost of Echo and LLM2Vec: hours of the paper, ratios of both."""
    hours = printed(6, results.paper).pivot(index="model", columns="method", values="hours")
    rows, data = [], []
    for model in dict.fromkeys(printed(6, results.paper)["model"]):
        ours, echo = hours.loc[model, "llm2vec"], hours.loc[model, "echo"]
        cost = cost_ratio(results, model, MTEB, SUITES["full"])
        seconds, tokens, count = cost or (None, None, 0)
        data.append((model, ours, echo, echo / ours, seconds, tokens, count))
        rows.append([
            display_model(model), f"{ours:g}", f"{echo:g}", number(echo / ours),
            number(seconds) or "not run", number(tokens) or "not run", str(count),
        ])  # fmt: skip
    frame = pd.DataFrame(data, columns=[
        "model", "llm2vec_hours", "echo_hours", "paper_ratio", "seconds_ratio", "tokens_ratio",
        "tasks",
    ])  # fmt: skip
    named = frame.assign(variant=LLM2VEC[0])
    return Table(
        "table6", "Table 6: hours of a full MTEB evaluation and the cost of Echo",
        ["Model", "LLM2Vec, h", "Echo, h", "Echo / LLM2Vec", "in seconds", "in tokens", "Tasks"],
        rows, "lrrrrrr", frame, origin_of(results, named, *MTEB),
        f"{int(frame['tasks'].max())} of 56",
        groups=[("", 1), ("Paper", 3), ("Reproduced, Echo / LLM2Vec", 2), ("", 1)],
        notes=("The paper's hours are approximate, on 8 A100 GPUs; other hardware, so no "
               "verdict. Our ratios are over the tasks that both variants have run.",),
    )  # fmt: skip
