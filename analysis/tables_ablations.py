"""Tables of small training runs: sensitivity to learning rate and steps, and the ablations.

Made of the records of ``experiments/08_ablations.py``, laid out as its grid is; a cell that was
not run is marked, one that is not part of the grid is empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from analysis.collect import Results, points
from analysis.render import NOT_RUN, Cell, Origin, Table, bold_best, number
from analysis.tables import block_breaks, display_model, once
from llm2vec.registry import MNTP, MODELS, VARIANTS, SimCSE
from llm2vec.registry_ablations import ABLATIONS, SICK, STSB, WIKITEXT, Ablation, Measured
from llm2vec.results import Record

EXPERIMENT = "ablations"
PUBLISHED = {
    "mntp-lr": MNTP().learning_rate,
    "simcse-lr": SimCSE().learning_rate,
    "simcse-after-mntp-lr": SimCSE().learning_rate,
}
SENSITIVITY = tuple(PUBLISHED)
OTHERS = tuple(group for group in ABLATIONS if group not in SENSITIVITY)
WORDS = {
    "learning_rate": "learning rate", "steps": "steps", "mask_probability": "masked",
    "masking": "style", "attention_dropout": "attention dropout",
    "pool_over_padding": "pooled over padding", "seed": "seed",
}  # fmt: skip
UNITS = {STSB.task: "pairs", SICK.task: "pairs", WIKITEXT: "blocks of 128 tokens"}
Found = Mapping[tuple[str, str, str], Record]  # by model, setting and task


# --------------------------------------------------------------------------- records
def _found(results: Results) -> Found:
    """Ablation records by model, name of the run and task."""
    records = (r for r in results.records if r.experiment == EXPERIMENT)
    return {(r.model, str(r.setting), r.task): r for r in records}


def _models(found: Found, groups: Sequence[str]) -> list[str]:
    """Models with a record of one of the groups, in the registry's order."""
    names = {run.name for group in groups for run in ABLATIONS[group]}
    seen = {model for model, name, _ in found if name in names}
    return [model for model in MODELS if model in seen]


def _origin(results: Results, groups: Sequence[str]) -> Origin:
    names = {run.name for group in groups for run in ABLATIONS[group]}
    scores = results.scores
    return Origin.of(scores[(scores["experiment"] == EXPERIMENT) & scores["setting"].isin(names)])


def _coverage(found: Found, groups: Sequence[str]) -> str:
    wanted = [(run.name, m.task) for group in groups for run in ABLATIONS[group]
              for m in run.measured]  # fmt: skip
    done = {(name, task) for _, name, task in found}
    return f"{sum(cell in done for cell in wanted)} of {len(wanted)} measurements"


def _tidy(found: Found, groups: Sequence[str]) -> pd.DataFrame:
    rows = []
    for model in _models(found, groups):
        for group in groups:
            for run in ABLATIONS[group]:
                for measured in run.measured:
                    record = found.get((model, run.name, measured.task))
                    rows.append(_values(model, run, measured, record))
    columns = ["model", "variant", "group", "setting", "task", "split", "items", "score", "low",
               "high", "trained_tokens", "final_loss"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def _values(model: str, run: Ablation, measured: Measured, record: Record | None) -> tuple:
    head = (model, run.variant, run.group, run.name, measured.task, measured.split)
    if record is None:
        return (*head, *[None] * 6)
    low, high = record.interval or (None, None)
    trained = record.scores.get("training") or {}
    return (*head, record.n, record.score, low, high, trained.get("tokens"),
            trained.get("final_loss"))  # fmt: skip


def _place(measured: Measured) -> str:
    """What was measured, for a heading: task and split."""
    name = "Wikitext" if measured.task == WIKITEXT else measured.task
    return f"{name} ({measured.split})"


# --------------------------------------------------------------------------- learning rate x steps
def sensitivity(results: Results) -> Table:
    """Learning rate and steps of both stages, on the splits on which they are chosen."""
    found = _found(results)
    steps = sorted({run.varied["steps"] for group in SENSITIVITY for run in ABLATIONS[group]
                    if run.varied})  # fmt: skip
    header = ["Model", "Stage", "Measured on", "Learning rate", "Untrained",
              *(f"{n} steps" for n in steps)]  # fmt: skip
    rows, blocks = [], []
    for model in _models(found, SENSITIVITY):
        for group in SENSITIVITY:
            lines = _rate_rows(found, model, group, steps)
            rows += lines
            blocks += [f"{model} {group}"] * len(lines)
    return Table(
        "sensitivity", "Learning rate and steps of small training runs", header,
        rows or [["not run", *[NOT_RUN] * (len(header) - 1)]], "llll" + "r" * (len(steps) + 1),
        _tidy(found, SENSITIVITY), _origin(results, SENSITIVITY), _coverage(found, SENSITIVITY),
        breaks=block_breaks(blocks), notes=(_budget_note(SENSITIVITY), _sample_note(SENSITIVITY)),
    )  # fmt: skip


def _rate_rows(
    found: Found, model: str, group: str, steps: Sequence[int]
) -> list[list[Cell | str]]:
    """A row per learning rate; numbers of steps that are not in the group's grid stay empty."""
    runs = ABLATIONS[group]
    (measured,) = runs[0].measured
    rates = list(dict.fromkeys(run.varied["learning_rate"] for run in runs if run.varied))
    names = {(r.varied["learning_rate"], r.varied["steps"]): r.name for r in runs if r.varied}
    values = [[_score(found, model, names.get((rate, n)), measured) for n in steps]
              for rate in rates]  # fmt: skip
    flags = iter(bold_best([value for row in values for value in row]))
    untrained = next((run.name for run in runs if not run.varied), None)
    rows = []
    for index, rate in enumerate(rates):
        cells = [Cell(number(value) or (NOT_RUN if (rate, n) in names else ""), next(flags))
                 for n, value in zip(steps, values[index], strict=True)]  # fmt: skip
        label = f"{rate:g}" + (" (published)" if rate == PUBLISHED[group] else "")
        rows.append(["", "", "", label, "", *cells])
    stage = f"{VARIANTS[runs[-1].variant].display}, batch {runs[-1].base['batch_size']}"
    rows[0][:3] = display_model(model), stage, _place(measured)
    if untrained is not None:
        rows[0][4] = number(_score(found, model, untrained, measured)) or NOT_RUN
    return rows


def _score(found: Found, model: str, name: str | None, measured: Measured) -> float | None:
    record = found.get((model, str(name), measured.task))
    return None if record is None else points(record.score)


# --------------------------------------------------------------------------- the other ablations
def ablations(results: Results) -> Table:
    """Masking, dropout and pooling over padding: each varied alone, in small runs."""
    found, measured = _found(results), (STSB, SICK)
    header = ["Model", "Variant", "Varied", "Tokens", *map(_place, measured)]
    rows, blocks = [], []
    for model in _models(found, OTHERS):
        for group in OTHERS:
            lines = _group_rows(found, model, group, measured)
            rows += [[display_model(model), *line] for line in lines]
            blocks += [f"{model} {group}"] * len(lines)
    models = once([str(row[0]) for row in rows])
    shown = [[model, *row[1:]] for model, row in zip(models, rows, strict=True)]
    return Table(
        "ablations", "Ablations of the training recipe in small runs", header,
        shown or [["not run", *[NOT_RUN] * (len(header) - 1)]], "lllrrr",
        _tidy(found, OTHERS), _origin(results, OTHERS), _coverage(found, OTHERS),
        breaks=block_breaks(blocks),
        notes=(_budget_note(OTHERS), _sample_note(OTHERS),
               "In brackets: 95 % bootstrap interval. SICK-R selects nothing here."),
    )  # fmt: skip


def _group_rows(
    found: Found, model: str, group: str, measured: Sequence[Measured]
) -> list[list[Cell | str]]:
    runs = ABLATIONS[group]
    values = [[_score(found, model, run.name, m) if m in run.measured else None for m in measured]
              for run in runs]  # fmt: skip
    bold = list(zip(*(bold_best(column) for column in zip(*values, strict=True)), strict=True))
    rows = []
    for run, flags in zip(runs, bold, strict=True):
        records = [found.get((model, run.name, m.task)) for m in measured]
        cells = [Cell(_with_interval(record) if m in run.measured else "", flag)
                 for m, record, flag in zip(measured, records, flags, strict=True)]  # fmt: skip
        tokens = next((r.scores.get("training", {}).get("tokens") for r in records if r), None)
        trained = "" if tokens is None else f"{tokens:,}"
        rows.append([VARIANTS[run.variant].display, _varied(run), trained, *cells])
    return rows


def _with_interval(record: Record | None) -> str:
    if record is None:
        return NOT_RUN
    text = number(points(record.score))
    if record.interval is None:
        return text
    low, high = (number(points(bound)) for bound in record.interval)
    return f"{text} [{low}, {high}]"


def _varied(run: Ablation) -> str:
    """As in ``masked 20 %, style bert``."""
    texts = []
    for name, value in run.varied.items():
        if isinstance(value, bool):
            value = "yes" if value else "no"
        elif name == "mask_probability":
            value = f"{100 * value:g} %"
        texts.append(f"{WORDS[name]} {value}")
    return ", ".join(texts) or "nothing (untrained)"


def _budget_note(groups: Sequence[str]) -> str:
    """As in ``mntp-lr: batch size 4, block size 128``."""
    texts = []
    for group in groups:
        base = ABLATIONS[group][-1].base.items()
        values = ", ".join(f"{WORDS.get(n, n).replace('_', ' ')} {value:g}" for n, value in base)
        texts.append(f"{group}: {values}")
    return f"Small runs, all else as in the recipe; {'; '.join(texts)}."


def _sample_note(groups: Sequence[str]) -> str:
    measured = dict.fromkeys(m for g in groups for run in ABLATIONS[g] for m in run.measured)
    sizes = ", ".join(f"{_place(m)}: {m.items:,} {UNITS[m.task]}" for m in measured)
    return f"Scores times 100, bold: the best of a block. The same items for every run: {sizes}."
