"""The paper's printed numbers beside the reproduced ones, with a verdict for each.

``results/paper/*.csv`` holds the numbers of arXiv 2404.05961v2 as they are printed. A verdict
(reproduced, close, differs, not run) exists only where the paper prints a number for that model;
a small model of ours stands in tables of its own. How the paper's names map to ours:

- "BERT + SimCSE" of Table 1 is our model ``bert-base-simcse``; baselines keep their own pooling.
- Echo's pooling is not stated in Tables 1 and 6; here it is the mean over the second occurrence.
- Hours (Table 6) belong to the paper's hardware and get no verdict, only a ratio.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path

import pandas as pd

from analysis.collect import Results
from analysis.means import Mean, columns_of_table1, exact, mean_of
from llm2vec.errors import SettingError
from llm2vec.registry import POOLINGS, SUITES, VARIANTS, WORD_TASKS
from llm2vec.registry_verdicts import VERDICT_BANDS
from llm2vec.results import NONE, Record

VERSION = "arXiv:2404.05961v2"
TABLES = (1, 2, 3, 4, 5, 6, 9, 11, 12)
VERDICTS = ("reproduced", "close", "differs", "not run")
ECHO_POOLING = "mean"
HARNESS_TOLERANCE = 0.00005  # four decimals of a score from 0 to 1
LLM2VEC = ("bi-mntp-simcse", "mean")  # variant and pooling of Tables 6 and 11


def verdict(paper: float, reproduced: float | None, kind: str) -> str:
    """Judge a difference in points, rounded as it is shown, by the band of its kind."""
    if reproduced is None:
        return "not run"
    difference = round(abs(reproduced - paper), 2)
    band = VERDICT_BANDS[kind]
    if difference <= band.reproduced:
        return "reproduced"
    return "close" if difference <= band.close else "differs"


def verdict_of_harness(difference: float | None) -> str:
    """``equal`` to four decimals, ``differs`` or ``not run``; for scores from 0 to 1."""
    if difference is None:
        return "not run"
    return "equal" if abs(difference) <= HARNESS_TOLERANCE else "differs"


# --------------------------------------------------------------------------- the printed numbers
@cache
def read_numbers(path: Path) -> pd.DataFrame:
    """A file of ``results/paper``; :class:`SettingError` names it where it cannot be read."""
    try:
        return pd.read_csv(path)
    except (OSError, pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeError) as error:
        raise SettingError(f"{path} cannot be read ({error}). Restore it from git.") from error


def printed(number: int, folder: Path) -> pd.DataFrame:
    """A table as printed: the columns of ``results/paper/table{number}.csv``."""
    if number not in TABLES:
        raise SettingError(f"Table {number} has no numbers here. Valid: {TABLES}.")
    return read_numbers(folder / f"table{number}.csv")


@cache
def reruns(folder: Path) -> Mapping[tuple[str, str], float]:
    """How far mteb's own re-runs moved Table 11's scores, by model and task, in points."""
    rows = read_numbers(folder / "reruns.csv")
    rows = rows[rows["table"] == "Table 11"]
    return {(row.model, row.task): row.rerun - row.printed for row in rows.itertuples()}


def subset_noise(folder: Path) -> dict[str, float]:
    """By model, how far Table 5's mean over the subset is from that of the same tasks in Table 11.

    Both are printed of the same checkpoint and pooling, so this is what a re-run moves a mean by.
    """
    variant, pooling = LLM2VEC
    five = printed(5, folder).set_index(["model", "variant", "pooling"])["score"]
    tasks = printed(11, folder).pivot(index="task", columns="model", values="score")
    means = tasks.loc[list(SUITES["subset"])].mean()
    return {model: five[model, variant, pooling] - means[model] for model in tasks}


def our_names(model: str, variant: str, pooling: str) -> tuple[str, str, str]:
    """Our (model, variant, pooling) for the paper's."""
    if variant == "encoder-simcse":
        model, variant = f"{model}-simcse", "encoder"
    if variant == "encoder":
        return model, variant, NONE
    if variant == "echo":
        return model, variant, ECHO_POOLING
    return model, variant, pooling


# --------------------------------------------------------------------------- the join
_COLUMNS = (
    "table", "model", "variant", "pooling", "column", "kind", "paper", "reproduced",
    "difference", "verdict", "done", "total", "note",
)  # fmt: skip


@lru_cache(maxsize=16)
def compare(number: int, results: Results) -> pd.DataFrame:
    """Every printed number of Table 1, 4, 5 or 11 with ours, in points.

    Columns: table, our model, variant and pooling, the table's column, the kind of band, paper,
    reproduced, difference, verdict, how many of how many tasks were run, a note. Rows are in the
    paper's order.
    """
    makers = {1: _table1, 4: _table4, 5: _table5, 11: _table11}
    if number not in makers:
        raise SettingError(f"Table {number} has no reproduced side. Valid: {tuple(makers)}.")
    rows = []
    for names, column, kind, paper, mean, note in makers[number](results):
        known = mean.value is not None
        rows.append((
            f"Table {number}", *names, column, kind, paper, mean.value,
            round(mean.value - paper, 2) if known else None,
            verdict(paper, mean.value, kind), mean.done, mean.total, note,
        ))  # fmt: skip
    frame = pd.DataFrame(rows, columns=list(_COLUMNS))
    return frame.astype({"reproduced": "float64", "difference": "float64"})


def _rerun_note(
    results: Results, names: tuple, tasks: Sequence[str], paper: float, mean: Mean, kind: str
) -> str:
    """What the number would be with mteb's re-runs of this checkpoint, and ours judged by that."""
    if names[1:] != LLM2VEC:
        return ""
    again = reruns(results.paper)
    shifts = [again[key] for task in tasks if (key := (names[0], task)) in again]
    if not shifts:
        return ""
    other = paper + sum(shifts) / len(tasks)
    note = f"with mteb's re-run of {len(shifts)} of {len(tasks)} tasks: {other:.2f}"
    return note if mean.value is None else f"{note} ({verdict(other, mean.value, kind)})"


def _table1(results: Results):
    columns = columns_of_table1()
    for row in printed(1, results.paper).itertuples():
        names = our_names(row.model, row.variant, row.pooling)
        scores = exact(results.mteb.get(names, {}))
        tasks = columns[row.category]
        mean = mean_of(scores, tasks)
        note = _rerun_note(results, names, tasks, row.score, mean, "mean")
        yield names, row.category, "mean", row.score, mean, note


def _table4(results: Results):
    for row in printed(4, results.paper).itertuples():
        names = our_names(row.model, row.variant, NONE)
        scores = exact(results.words.get(names, {}))
        yield names, row.task, "word", row.score, mean_of(scores, [row.task]), ""


def _table5(results: Results):
    for row in printed(5, results.paper).itertuples():
        names = our_names(row.model, row.variant, row.pooling)
        scores = exact(results.mteb.get(names, {}))
        mean = mean_of(scores, SUITES["subset"])
        note = _rerun_note(results, names, SUITES["subset"], row.score, mean, "mean")
        yield names, row.pooling, "mean", row.score, mean, note


def _table11(results: Results):
    for row in printed(11, results.paper).itertuples():
        names = (row.model, *LLM2VEC)
        average = row.task == "Average"
        kind, tasks = ("mean", SUITES["full"]) if average else ("task", (row.task,))
        mean = mean_of(exact(results.mteb.get(names, {})), tasks)
        note = _rerun_note(results, names, tasks, row.score, mean, kind)
        yield names, row.task, kind, row.score, mean, note


COLUMNS_OF = {
    1: tuple(columns_of_table1()),
    4: WORD_TASKS,
    5: POOLINGS,
}


def verdict_counts(results: Results) -> pd.DataFrame:
    """Per table: printed cells and how many have each verdict."""
    rows = []
    for number in (1, 4, 5, 11):
        counts = compare(number, results)["verdict"].value_counts()
        numbers = [int(counts.get(name, 0)) for name in VERDICTS]
        rows.append((f"Table {number}", sum(numbers), *numbers))
    return pd.DataFrame(rows, columns=["table", "printed numbers", *VERDICTS])


def cost_alone(record: Record) -> tuple[float, float]:
    """Seconds and tokens of a record as if no other pooling had been asked for with it.

    Poolings that are recorded together share their passes, but ``eos`` under bidirectional
    attention has a pass of its own, as long as the other's.
    """
    cost, bidirectional = record.cost, VARIANTS[record.variant].attention == "bidirectional"
    passes = 2 if bidirectional and cost.get("poolings_sharing", 1) > 1 else 1
    encoding = cost.get("encoding_seconds", cost["seconds"])
    return cost["seconds"] - encoding + encoding / passes, cost["tokens"] / passes


def cost_ratio(
    results: Results, model: str, experiments: Sequence[str], tasks: Container[str]
) -> tuple[float, float, int] | None:
    """Echo's seconds and tokens as multiples of LLM2Vec's, and how many tasks both have run."""
    cost: dict[str, dict[str, tuple[float, float]]] = {"echo": {}, LLM2VEC[0]: {}}
    for record in results.records:
        if (
            record.experiment in experiments and record.model == model
            and record.setting is None and record.pooling == ECHO_POOLING
            and record.variant in cost and record.task in tasks
        ):  # fmt: skip
            cost[record.variant][record.task] = cost_alone(record)
    both = sorted(cost["echo"].keys() & cost[LLM2VEC[0]].keys())  # one order, one rounding
    if not both:
        return None
    echo, ours = (
        [sum(cost[variant][task][part] for task in both) for part in (0, 1)]
        for variant in ("echo", LLM2VEC[0])
    )
    return echo[0] / ours[0], echo[1] / ours[1], len(both)
