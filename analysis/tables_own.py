"""Tables of what was measured here, apart from the paper's columns.

Models that the paper does not print (``smollm2-135m``, ``minilm-l6``) are shown here only. Every
mean is headed by its count ("8 of 15 tasks") and stays empty when one of its tasks is missing.
Tasks whose data the manifest marks carry that word in their heading and enter no mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from analysis.collect import Results, Score, mark_of
from analysis.means import exact, mean_of, tasks_by_category
from analysis.paper import ECHO_POOLING, LLM2VEC, cost_ratio, mean_costs
from analysis.render import NOT_RUN, Cell, Origin, Table, bold_best, number
from analysis.tables import (
    WORD_DISPLAY,
    block_breaks,
    display_model,
    display_pooling,
    display_variant,
    once,
)
from llm2vec.registry import MODELS, POOLINGS, SUITES, VARIANTS, WORD_TASKS
from llm2vec.results import NONE

Names = tuple[str, str, str]
Cells = Mapping[Names, Mapping[str, Score]]

POINTS_NOTE = "Scores times 100; bold: the best of a model's block."
EMPTY_NOTE = "An empty mean: at least one of its tasks was not run."
MARK_NOTE = "A task with a remark on its data is no MTEB score and enters no mean."
INTERVAL_NOTE = "In brackets: 95 % bootstrap interval over the test items."


def in_order(names: Iterable[Names]) -> list[Names]:
    """Models, variants and poolings in the registry's order."""
    poolings = (*POOLINGS, NONE)
    orders = [{name: i for i, name in enumerate(o)} for o in (MODELS, VARIANTS, poolings)]
    return sorted(names, key=lambda cell: [order[n] for order, n in zip(orders, cell, strict=True)])


def short_task(name: str) -> str:
    """A task name without its type, as a column heading."""
    return name.removesuffix("Classification").removesuffix("Clustering")


def heading(cells: Cells, task: str) -> str:
    """Short name of a task, with the remark on its data where every score shares it."""
    marks = {cell[task].mark for cell in cells.values() if task in cell}
    shared = marks.pop() if len(marks) == 1 else ""
    return short_task(task) + (f" ({shared})" if shared else "")


def _score_text(cells: Cells, names: Names, task: str) -> str:
    """A score, with the remark on its data unless the heading says it already."""
    score = cells[names].get(task)
    if score is None:
        return NOT_RUN
    said = heading(cells, task) != short_task(task)
    return number(score.value) + (f" ({score.mark})" if score.mark and not said else "")


def _nothing(
    name: str, title: str, header: Sequence[str], notes: Sequence[str], data: pd.DataFrame
) -> Table:
    rows = [["not run", *[NOT_RUN] * (len(header) - 1)]]
    return Table(name, title, header, rows, "l" * len(header), data, tasks="not run", notes=notes)


# --------------------------------------------------------------------------- scores and means
def _tidy(cells: Cells) -> pd.DataFrame:
    rows = [
        (*names, task, score.value, score.low, score.high, score.n, score.mark)
        for names in in_order(cells)
        for task, score in sorted(cells[names].items())
    ]
    columns = ["model", "variant", "pooling", "task", "score", "low", "high", "n", "remark"]
    return pd.DataFrame(rows, columns=columns)


def _summary(
    name: str,
    title: str,
    cells: Cells,
    tasks: Sequence[str],
    means: Mapping[str, Sequence[str]],
    origin: Origin,
    notes: Sequence[str],
) -> Table:
    """One row per model, variant and pooling: a column per task, then the means."""
    header = ["Model", "Variant", "Pooling",
              *(heading(cells, task) for task in tasks), *means]  # fmt: skip
    names = in_order(cells)
    if not names:
        return _nothing(name, title, header, notes, _tidy({}))
    values = [
        [cells[n][t].value if t in cells[n] else None for t in tasks]
        + [mean_of(exact(cells[n]), members).value for members in means.values()]
        for n in names
    ]
    models = [display_model(model) for model, _, _ in names]
    bold = _bold_by_block(models, values)
    rows = []
    for n, value, flags in zip(names, values, bold, strict=True):
        texts = [_score_text(cells, n, task) for task in tasks]
        texts += [number(mean) for mean in value[len(tasks) :]]
        rows.append([display_variant(n[1]), display_pooling(n[2]), *map(Cell, texts, flags)])
    wanted = set(tasks).union(*means.values())
    done = {task for cell in cells.values() for task in cell}
    return Table(
        name, title, header, [[m, *row] for m, row in zip(once(models), rows, strict=True)],
        "lll" + "r" * (len(tasks) + len(means)), _tidy(cells), origin,
        f"{len(done & wanted)} of {len(wanted)}",
        breaks=block_breaks(models), notes=notes,
    )  # fmt: skip


def _bold_by_block(
    models: Sequence[str], values: Sequence[Sequence[float | None]]
) -> list[list[bool]]:
    """Per row and column: the best of the rows of the same model."""
    bold = [[False] * len(row) for row in values]
    for model in dict.fromkeys(models):
        block = [i for i, name in enumerate(models) if name == model]
        for column in range(len(values[0])):
            flags = bold_best([values[i][column] for i in block])
            for i, flag in zip(block, flags, strict=True):
                bold[i][column] = flag
    return bold


def _intervals(name: str, title: str, cells: Cells, tasks: Sequence[str], origin: Origin) -> Table:
    """One row per model, task and variant: a column per pooling, each score with its interval."""
    header = ["Model", "Task", "Variant", *(display_pooling(p) for p in POOLINGS), "own"]
    if not cells:
        return _nothing(name, title, header, (INTERVAL_NOTE,), _tidy({}))
    rows, models, blocks = [], [], []
    pairs = list(dict.fromkeys((m, v) for m, v, _ in in_order(cells)))
    for model in dict.fromkeys(m for m, _ in pairs):
        for task in tasks:
            for variant in (v for m, v in pairs if m == model):
                scores = [cells.get((model, variant, p), {}).get(task) for p in (*POOLINGS, NONE)]
                if any(scores):
                    rows.append([display_variant(variant), *map(with_interval, scores)])
                    models.append(display_model(model))
                    blocks.append(heading(cells, task))
    rows = [[m, t, *row] for m, t, row in zip(once(models), once(blocks), rows, strict=True)]
    places = [f"{m} {t}" for m, t in zip(models, blocks, strict=True)]
    return Table(
        name, title, header, rows, "lllrrrr", _tidy(cells), origin,
        f"{len(set(blocks))} of {len(tasks)}", breaks=block_breaks(places),
        notes=("Scores times 100.", INTERVAL_NOTE),
    )  # fmt: skip


def with_interval(score: Score | None) -> str:
    """``37.12 [35.10, 39.04]``; the interval is left out where the record has none."""
    if score is None:
        return NOT_RUN
    if pd.isna(score.low):
        return number(score.value)
    return f"{number(score.value)} [{number(score.low)}, {number(score.high)}]"


# --------------------------------------------------------------------------- the tables
def _run_or(tasks: Sequence[str], cells: Cells, default: Iterable[str]) -> list[str]:
    """Tasks of a suite that were run, or that ``default`` promises, in the suite's order."""
    wanted = {task for cell in cells.values() for task in cell} | set(default)
    return [task for task in tasks if task in wanted]


def subset_tasks(results: Results) -> Table:
    """The paper's 15 tasks, as far as they were run, with means that say their count."""
    tasks = _run_or(SUITES["subset"], results.mteb, SUITES["exact8"])
    suites = [SUITES["short6"], SUITES["exact8"], SUITES["subset"]]
    means = {f"{len(suite)} of {len(SUITES['subset'])} tasks": suite for suite in suites}
    rows = results.of("mteb_subset", "mteb_full")
    return _summary(
        "subset_tasks", "Tasks of the 15-task subset by variant and pooling",
        _with_tasks(results.mteb, tasks), tasks, means, Origin.of(rows),
        (POINTS_NOTE, EMPTY_NOTE, MARK_NOTE, *_remarks(rows)),
    )  # fmt: skip


def smollm2(results: Results) -> Table:
    """smollm2-135m, which the paper does not have, on the tasks whose mirror data is exact."""
    model, tasks = "smollm2-135m", SUITES["exact8"]
    suites = [SUITES["short6"], SUITES["exact8"]]
    means = {f"{len(suite)} of {len(SUITES['subset'])} tasks": suite for suite in suites}
    cells = {names: cell for names, cell in results.mteb.items() if names[0] == model}
    rows = results.of("mteb_subset", "mteb_full")
    rows = rows[rows["model"] == model]
    return _summary(
        "smollm2", "SmolLM2-135M on tasks of the 15-task subset",
        _with_tasks(cells, tasks), tasks, means, Origin.of(rows),
        (POINTS_NOTE, EMPTY_NOTE, *_remarks(rows)),
    )  # fmt: skip


def _remarks(rows: pd.DataFrame) -> list[str]:
    """A sentence per task whose data are exact but for a remark; its scores enter the means."""
    status = rows.drop_duplicates("task").set_index("task")["dataset_status"]
    return [
        f"{short_task(task)}: {said.removeprefix('exact, ')}; it enters the means."
        for task, said in status.items() if str(said).startswith("exact, ") and not mark_of(said)
    ]  # fmt: skip


def _with_tasks(cells: Cells, tasks: Sequence[str]) -> dict[Names, Mapping[str, Score]]:
    kept = {n: {t: s for t, s in cell.items() if t in tasks} for n, cell in cells.items()}
    return {names: cell for names, cell in kept.items() if cell}


def subset_intervals(results: Results) -> Table:
    """The same scores with their intervals."""
    tasks = _run_or(SUITES["subset"], results.mteb, ())
    return _intervals(
        "subset_intervals", "Tasks of the 15-task subset with 95 % intervals",
        _with_tasks(results.mteb, tasks), tasks,
        Origin.of(results.of("mteb_subset", "mteb_full")),
    )  # fmt: skip


def offline(results: Results) -> Table:
    """The embedded suite: means per task type and over all its tasks."""
    groups = tasks_by_category(SUITES["offline"])
    means = {f"{name} ({len(members)})": members for name, members in groups.items()}
    means[f"{len(SUITES['offline'])} tasks"] = SUITES["offline"]
    return _summary(
        "offline", "The offline suite: mean per task type", results.offline, (), means,
        Origin.of(results.of("offline_suite")),
        (POINTS_NOTE, EMPTY_NOTE, "These are not MTEB scores: the suite is this repository's."),
    )  # fmt: skip


def offline_intervals(results: Results) -> Table:
    """Every task of the embedded suite with its interval."""
    return _intervals(
        "offline_intervals", "The offline suite by task, with 95 % intervals", results.offline,
        SUITES["offline"], Origin.of(results.of("offline_suite")),
    )  # fmt: skip


def echo(results: Results) -> Table:
    """What Echo scores and what it costs, beside LLM2Vec, over the tasks that both have run."""
    suites = (("MTEB", ("mteb_subset", "mteb_full"), results.mteb),
              ("offline suite", ("offline_suite",), results.offline))  # fmt: skip
    header = ["Model", "Suite", "Tasks", "LLM2Vec", "Echo", "tokens", "seconds"]
    columns = ["model", "suite", "tasks", "llm2vec", "echo", "tokens_ratio", "seconds_ratio"]
    notes = ("Scores times 100, mean pooling, of the tasks that both have run; cost: Echo's as a "
             "multiple of LLM2Vec's, the same tasks. Tokens are those of the mean's pass alone, "
             "'about' where EOS shared it and cannot be taken out. Seconds are of the runs, "
             "divided as the tokens, whatever else the machine had to do.",)  # fmt: skip
    data, exactly = [], []
    for model in MODELS:
        for suite, experiments, cells in suites:
            ours, other = (cells.get((model, variant, ECHO_POOLING), {})
                           for variant in (LLM2VEC[0], "echo"))  # fmt: skip
            both = sorted(exact(ours).keys() & exact(other).keys())
            if ratio := cost_ratio(results, model, experiments, both):
                scores = [mean_of(exact(cell), both).value for cell in (ours, other)]
                data.append((model, suite, len(both), *scores, ratio[1], ratio[0]))
                costs = mean_costs(results, model, experiments, both).values()
                exactly.append(all(c.exact for of_task in costs for c in of_task.values()))
    frame = pd.DataFrame(data, columns=columns)
    if not data:
        return _nothing("echo", "Echo: score and cost", header, notes, frame)
    rows = [[display_model(m), suite, str(n), number(ours), number(other),
             number(tokens) if exact_ else f"about {tokens:.1f}", number(seconds)]
            for (m, suite, n, ours, other, tokens, seconds), exact_
            in zip(data, exactly, strict=True)]  # fmt: skip
    origin = results.of("mteb_subset", "mteb_full", "offline_suite")
    origin = origin[origin["variant"].isin(["echo", LLM2VEC[0]])]
    return Table(
        "echo", "Echo: score and cost", header, rows, "ll" + "r" * 5, frame, Origin.of(origin),
        f"{max(row[2] for row in data)} at most", notes=notes,
        groups=[("", 3), ("Score", 2), ("Cost, Echo / LLM2Vec", 2)],
    )  # fmt: skip


def words(results: Results) -> Table:
    """Word-level accuracy (mean and deviation over the probe's seeds) and entity F1."""
    return _words("words", "Word-level tasks (CoNLL-2003): accuracy and entity F1", results, "")


def words_mini(results: Results) -> Table:
    """The same on the demonstration corpus that comes with the package."""
    title = "Word-level tasks on the demonstration corpus (not CoNLL-2003)"
    return _words("words_mini", title, results, "mini-")


def _words(name: str, title: str, results: Results, prefix: str) -> Table:
    tasks = [f"{prefix}{task}" for task in WORD_TASKS]
    cells = _with_tasks(results.words, tasks)
    header = ["Model", "Variant", *(WORD_DISPLAY[t] for t in WORD_TASKS),
              *(f"{WORD_DISPLAY[t]} F1" for t in ("chunking", "ner"))]  # fmt: skip
    note = "Accuracy per word times 100, mean ± standard deviation over the probe's seeds."
    names = in_order(cells)
    if not names:
        return _nothing(name, title, header, (note,), _word_data({}))
    f1_tasks = [f"{prefix}{task}" for task in ("chunking", "ner")]
    values = [
        [cells[n][t].value if t in cells[n] else None for t in tasks]
        + [cells[n][t].entity_f1 if t in cells[n] else None for t in f1_tasks]
        for n in names
    ]
    models = [display_model(model) for model, _, _ in names]
    bold = _bold_by_block(models, values)
    rows = []
    for n, value, flags in zip(names, values, bold, strict=True):
        deviations = [cells[n][t].std if t in cells[n] else None for t in tasks] + [None] * 2
        texts = [f"{number(x)} ± {number(d)}" if number(d) else number(x) or NOT_RUN
                 for x, d in zip(value, deviations, strict=True)]  # fmt: skip
        rows.append([display_variant(n[1]), *map(Cell, texts, flags)])
    rows_of = results.of("word_probing")
    return Table(
        name, title, header, [[m, *row] for m, row in zip(once(models), rows, strict=True)],
        "ll" + "r" * 5, _word_data(cells), Origin.of(rows_of[rows_of["task"].isin(tasks)]),
        f"{len({t for cell in cells.values() for t in cell})} of {len(tasks)}",
        breaks=block_breaks(models), notes=(note,),
    )  # fmt: skip


def _word_data(cells: Cells) -> pd.DataFrame:
    rows = [(*names[:2], task, s.value, s.std, s.low, s.high, s.entity_f1, s.n)
            for names in in_order(cells) for task, s in sorted(cells[names].items())]  # fmt: skip
    columns = ["model", "variant", "task", "accuracy", "std", "low", "high", "entity_f1", "n"]
    return pd.DataFrame(rows, columns=columns)
