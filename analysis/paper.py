"""The paper's printed numbers beside the reproduced ones, with a verdict for each.

``results/paper/*.csv`` holds the numbers of arXiv 2404.05961v2 as they are printed. A verdict
(reproduced, close, differs, not run) exists only where the paper prints a number for that model;
a small model of ours stands in tables of its own. How the paper's names map to ours:

- "BERT + SimCSE" of Table 1 is our model ``bert-base-simcse``; baselines keep their own pooling.
- Echo's pooling is not stated in Tables 1 and 6; here it is the mean over the second occurrence.
- Hours (Table 6) belong to the paper's hardware and get no verdict, only a ratio.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import pandas as pd

from analysis.collect import Results
from analysis.means import Mean, columns_of_table1, exact, mean_of
from llm2vec.errors import SettingError
from llm2vec.estimates import Run, passes, runs_of
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


@dataclass(frozen=True)
class MeanCost:
    """What mean pooling alone costs on a task; ``exact``: whether its tokens are counted."""

    seconds: float
    tokens: float
    exact: bool


def mean_costs(
    results: Results, model: str, experiments: Sequence[str], tasks: Container[str]
) -> dict[str, dict[str, MeanCost]]:
    """Of Echo and LLM2Vec, by variant and task, over the tasks that both have run."""
    by_task: dict[str, list[Run]] = {}
    for run in runs_of(r for r in results.records if r.model == model and r.key in results.chosen):
        if run.records[0].experiment in experiments and run.records[0].task in tasks:
            by_task.setdefault(run.records[0].task, []).append(run)
    found: dict[str, dict[str, MeanCost]] = {"echo": {}, LLM2VEC[0]: {}}
    for task, runs in sorted(by_task.items()):  # one order, one rounding
        plain = _tokens_without_eos(runs)
        costs = {
            record.variant: _alone(record, run, plain)
            for run in runs
            for record in run.records
            if record.pooling == ECHO_POOLING and record.variant in found
        }
        if costs.keys() == found.keys():
            for variant, cost in costs.items():
                found[variant][task] = cost
    return found


def _alone(record: Record, run: Run, plain: float | None) -> MeanCost:
    """The mean's share in the passes of a run, and the scoring of its own record."""
    variant, poolings = VARIANTS[record.variant], run.poolings or frozenset(POOLINGS)
    plain = run.tokens if "eos" not in poolings else None if variant.echo else plain
    # Where it is not known, EOS, a token of each text, is left in.
    tokens = plain or run.tokens * passes(variant, (ECHO_POOLING,)) / passes(variant, poolings)
    encoding = record.cost.get("encoding_seconds", record.cost["seconds"])
    share = tokens / run.tokens if run.tokens else 1
    return MeanCost(record.cost["seconds"] - encoding + encoding * share, tokens, bool(plain))


def _tokens_without_eos(runs: Iterable[Run]) -> float | None:
    """Tokens of a pass over a task without EOS, the same with every adapter; None if not known.

    Beside ``eos`` a bidirectional model has this pass and one with EOS, a causal one the latter
    alone: the difference is exact, since texts of at most 400 tokens never lose one to EOS.
    """
    counted: dict[str, float] = {}
    for run in runs:
        variant = VARIANTS[run.records[0].variant]
        if not variant.echo and variant.attention != "own" and run.poolings:
            kind = "plain" if "eos" not in run.poolings else "eos"
            counted["both" if passes(variant, run.poolings) == 2 else kind] = run.tokens
    if counted.keys() >= {"both", "eos"}:
        counted.setdefault("plain", counted["both"] - counted["eos"])
    return counted.get("plain")


def cost_ratio(
    results: Results, model: str, experiments: Sequence[str], tasks: Container[str]
) -> tuple[float, float, int] | None:
    """Echo's seconds and tokens as multiples of LLM2Vec's, and how many tasks both have run."""
    costs = mean_costs(results, model, experiments, tasks)
    echo, ours = costs["echo"].values(), costs[LLM2VEC[0]].values()
    if not ours:
        return None
    seconds = sum(c.seconds for c in echo) / sum(c.seconds for c in ours)
    tokens = sum(c.tokens for c in echo) / sum(c.tokens for c in ours)
    return seconds, tokens, len(ours)
