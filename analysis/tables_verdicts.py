"""Verdicts on the paper's printed numbers, and the bands that they rest on.

A band is a choice, in the registry; what stands beside it is measured: how far the same number
moves when nothing but chance, or the hand that runs it, is another.
"""

from __future__ import annotations

import pandas as pd

from analysis.collect import Results
from analysis.paper import VERDICTS, our_names, printed, subset_noise, verdict_counts
from analysis.render import Origin, Table
from llm2vec.registry_verdicts import VERDICT_BANDS

_KINDS = {"word": "word-level task", "task": "sentence-level task", "mean": "mean over tasks"}


def verdicts(results: Results) -> Table:
    """How many printed numbers are reproduced, close, different, not run."""
    frame = verdict_counts(results)
    rows = [[str(value) for value in row] for row in frame.itertuples(index=False)]
    done = int(frame["printed numbers"].sum() - frame["not run"].sum())
    models = {our_names(row.model, row.variant, row.pooling)[0]
              for row in printed(1, results.paper).itertuples()}  # fmt: skip
    scores = results.scores
    return Table(
        "verdicts", "Verdicts on the paper's printed numbers",
        ["Table", "Printed numbers", *(name.capitalize() for name in VERDICTS)],
        rows, "lrrrrr", frame, Origin.of(scores[scores["model"].isin(models)]),
        f"{done} of {int(frame['printed numbers'].sum())} printed cells reproduced",
    )  # fmt: skip


def bands(results: Results) -> Table:
    """The bands of the verdicts, their reasons, and the noise that has been observed."""
    observed = {"word": _of_seeds(results), "task": _of_reruns(results), "mean": _of_means(results)}
    rows, data = [], []
    for kind, band in VERDICT_BANDS.items():
        text, median, largest, number = observed[kind]
        rows.append([
            _KINDS[kind], f"{band.reproduced:g}", f"{band.close:g}", band.reason,
            text.format(median=median, largest=largest, number=number) if number else "not run",
        ])  # fmt: skip
        data.append((kind, band.reproduced, band.close, median, largest, number))
    columns = ["kind", "reproduced", "close", "noise_median", "noise_largest", "noise_n"]
    own = results.of("word_probing")
    return Table(
        "bands", "Verdicts: largest difference to the printed number, in points",
        ["One number", "Reproduced", "Close", "Why", "Observed noise"],
        rows, "lrrpp", pd.DataFrame(data, columns=columns), Origin.of(own),
        f"{len(own)} records of word-level tasks",
        notes=("A larger difference: differs. Only numbers that the paper prints are judged.",),
    )  # fmt: skip


Noise = tuple[str, float, float, int]


def _summary(text: str, values: pd.Series) -> Noise:
    values = values.dropna().abs()
    if values.empty:
        return text, float("nan"), float("nan"), 0
    return text, round(values.median(), 3), round(values.max(), 3), len(values)


def _of_seeds(results: Results) -> Noise:
    rows = results.of("word_probing")
    rows = rows[~rows["task"].str.startswith("mini-")]
    text = "standard deviation over probe seeds: {median:.2f} in the median, {largest:.2f} at " \
           "most, of {number} records here"  # fmt: skip
    return _summary(text, 100 * rows["std"])


def _of_reruns(results: Results) -> Noise:
    rows = pd.read_csv(results.paper / "reruns.csv")
    text = "mteb's own re-runs of published checkpoints: {number} scores moved, by {median:.1f} " \
           "in the median, {largest:.1f} at most (reruns.csv)"  # fmt: skip
    return _summary(text, rows["rerun"] - rows["printed"])


def _of_means(results: Results) -> Noise:
    text = "the paper's Tables 5 and 11 on the same checkpoints and tasks: {largest:.2f} apart " \
           "at most, of {number} means"  # fmt: skip
    return _summary(text, pd.Series(subset_noise(results.paper)))
