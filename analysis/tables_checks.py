"""Tables beside the scores: the harness proof, the analyses, departures from the paper."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import pandas as pd

from analysis.collect import AXES, Results, number_in
from analysis.paper import read_numbers, verdict_of_harness
from analysis.render import NOT_RUN, Origin, Table, number
from analysis.tables import (
    WORD_DISPLAY,
    block_breaks,
    display_model,
    display_pooling,
    display_variant,
    once,
)
from analysis.tables_dtypes import in_another_dtype
from analysis.tables_own import in_order, short_task
from llm2vec.errors import RecordError
from llm2vec.registry import VARIANTS, WORD_TASKS
from llm2vec.results import NONE

ORDER = "the mirror's row order differs from the hub's, so other examples are drawn to train on"
PARTLY = "; random orders do not reach the measured score, so this may be a part of the cause alone"


# --------------------------------------------------------------------------- harness proof
def published_minilm(folder: Path) -> pd.DataFrame:
    """Public scores of all-MiniLM-L6-v2 (0 to 1): task, main_metric, score, hf_revision, ..."""
    return read_numbers(folder / "published_minilm.csv")


def harness(results: Results) -> Table:
    """minilm-l6 through this harness against its published scores."""
    ours = results.mteb.get(("minilm-l6", "encoder", NONE), {})
    orders = _orders(results)
    data, rows = [], []
    for row in published_minilm(results.paper).itertuples():
        found = ours.get(row.task)
        score = None if found is None else found.value / 100
        mark = found.mark if found else ""
        difference = None if score is None else score - row.score
        verdict = verdict_of_harness(difference)
        cause = _cause(row.task, row.score, score, orders) if verdict == "differs" else ""
        cause = f"no proof: its data are {mark}" if mark else cause
        data.append((row.task, row.main_metric, row.score, score, difference, verdict, cause))
        measured = number(score, digits=5) + (f" ({mark})" if mark else "")
        rows.append([
            row.task, row.main_metric, number(row.score, digits=5), measured or NOT_RUN,
            number(difference, digits=5, sign=True) or NOT_RUN, verdict, cause,
        ])  # fmt: skip
    frame = pd.DataFrame(data, columns=[
        "task", "metric", "published", "measured", "difference", "verdict", "cause",
    ])  # fmt: skip
    records = results.of("mteb_subset", "mteb_full")
    return Table(
        "harness", "Harness proof: all-MiniLM-L6-v2 against its published scores",
        ["Task", "Metric", "Published", "Measured", "Difference", "Verdict", "Cause"],
        rows, "llrrrlp", frame, Origin.of(records[records["model"] == "minilm-l6"]),
        f"{int(frame['measured'].notna().sum())} of {len(frame)}",
        notes=("Equal: within 0.00005, so to four decimals. Published: embeddings-benchmark/"
               "results, revision " + published_minilm(results.paper)["hf_revision"][0][:8] + ".",),
    )  # fmt: skip


def _cause(task: str, published: float, measured: float, orders: Orders | None) -> str:
    """The traced cause of a difference: only what the scores of other row orders bear out."""
    if orders is None or orders.task != task:
        return ""
    low, high = min(orders.scores), max(orders.scores)
    if not low <= published <= high:
        return ""
    return ORDER + ("" if low <= measured <= high else PARTLY)


@dataclass(frozen=True)
class Orders:
    """What ``benchmarks/row_order.py`` measured: one task in the mirror's and in random orders."""

    task: str
    mirror: float
    scores: tuple[float, ...]
    origin: Origin

    def share_below(self, score: float) -> float:
        return sum(other < score for other in self.scores) / len(self.scores)


def _orders(results: Results) -> Orders | None:
    file = results.root.resolve().parent / "benchmarks" / "results" / "row_order.json"
    if not file.is_file():
        return None
    try:
        made = json.loads(file.read_text(encoding="utf-8"))
        scores, origin = tuple(map(float, made["rows"])), made["provenance"]
        source = Origin(
            len(scores), (str(origin["commit"])[:10],), origin["started"][:10], int(origin["dirty"])
        )
        return Orders(str(made["task"]), float(made["as_it_is"]), scores, source)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(
            f"{file}: not what benchmarks/row_order.py writes ({error}). Run it again."
        ) from error


def row_order(results: Results) -> Table:
    """The proof's one deviation: scores of the same rows in other orders."""
    header = ["Task", "Random orders", "Mean", "Std", "Range", "Published", "Mirror's order"]
    title = "The order of the training rows alone moves the score"
    found = _orders(results)
    if found is None:
        rows = [["not run", *[NOT_RUN] * (len(header) - 1)]]
        return Table("row_order", title, header, rows, "lrrrrrr", pd.DataFrame(), tasks="not run")
    public = published_minilm(results.paper).set_index("task")["score"][found.task]
    low, high = min(found.scores), max(found.scores)
    row = (
        found.task,
        len(found.scores),
        mean(found.scores),
        stdev(found.scores),
        low,
        high,
        public,
        found.share_below(public),
        found.mirror,
        found.share_below(found.mirror),
    )
    digits = {name: number(value, digits=4) for name, value in (
        ("mean", row[2]), ("std", row[3]), ("low", low), ("high", high), ("public", public),
        ("mirror", found.mirror))}  # fmt: skip
    shown = [
        found.task, str(len(found.scores)), digits["mean"], digits["std"],
        f"{digits['low']} to {digits['high']}",
        f"{digits['public']} (above {100 * row[7]:.0f} %)",
        f"{digits['mirror']} (above {100 * row[9]:.0f} %)",
    ]  # fmt: skip
    columns = ["task", "orders", "mean", "std", "low", "high", "published", "published_above",
               "mirror_order", "mirror_above"]  # fmt: skip
    return Table(
        "row_order", title, header, [shown], "lrrrrrr", pd.DataFrame([row], columns=columns),
        found.origin, "1 task",
        notes=("mteb draws eight training texts a label by their position: other orders, other "
               "training sets. In brackets: the share of the random orders below.",),
    )  # fmt: skip


# --------------------------------------------------------------------------- the two analyses
def leakage(results: Results) -> Table:
    """Do the states of a sentence's beginning know its end? (section 4.1, Figures 4 and 7)"""
    records = results.records_of("pooling_leakage")
    header = ["Model", "Variant", "Triples", "cos(q, s+)", "cos(q, s-)", "Gap", "Ranked right, %",
              "p"]  # fmt: skip
    data = []
    for record in records:
        value = functools.partial(number_in, record, root=results.root)
        low, high = record.scores.get("gap_interval") or (None, None)
        data.append((
            record.model, record.variant, record.n, value("cosine_positive"),
            value("cosine_negative"), value("gap"), low, high, 100 * record.score, value("p"),
        ))  # fmt: skip
    frame = pd.DataFrame(data, columns=[
        "model", "variant", "triples", "cos_pos", "cos_neg", "gap", "gap_low", "gap_high",
        "ranked_right", "p",
    ])  # fmt: skip
    rows = [
        [display_variant(r.variant), str(r.triples), number(r.cos_pos, digits=4),
         number(r.cos_neg, digits=4), _gap(r), number(r.ranked_right, digits=1), _p_value(r.p)]
        for r in frame.itertuples()
    ]  # fmt: skip
    models = [display_model(model) for model in frame["model"]]
    rows = [[m, *row] for m, row in zip(once(models), rows, strict=True)]
    return Table(
        "leakage", "Pooling only over a shared beginning: do its states know the ending?",
        header, rows or [["not run", *[NOT_RUN] * 7]], "llrrrrrr", frame,
        Origin.of(results.of("pooling_leakage")), f"{len(frame)} variants",
        breaks=block_breaks(models),
        notes=("Gap: cos(q, s+) - cos(q, s-), with its 95 % bootstrap interval; a tie counts as "
               "half right; p: Wilcoxon's signed-rank test. The paper prints no numbers.",),
    )  # fmt: skip


def _gap(row) -> str:
    gap = number(row.gap, digits=4, sign=True)
    if pd.isna(row.gap_low):
        return gap
    low, high = (number(x, digits=4, sign=True) for x in (row.gap_low, row.gap_high))
    return f"{gap} [{low}, {high}]"


def _p_value(p: float) -> str:
    return f"{p:.1e}" if p < 0.001 else f"{p:.3f}"


def layers(results: Results) -> Table:
    """Cosine of causal and bidirectional states, untrained weights (section 4.2, Figure 5)."""
    data = []
    for record in results.records_of("layer_similarity"):
        per_layer = record.scores.get("mean") or []
        low, high = record.interval or (None, None)
        lowest = min(range(1, len(per_layer)), key=per_layer.__getitem__, default=None)
        data.append((
            record.model, record.n, record.score, low, high,
            number_in(record, "cosine_without_first", results.root), lowest,
            None if lowest is None else per_layer[lowest], per_layer[-1] if per_layer else None,
        ))  # fmt: skip
    frame = pd.DataFrame(data, columns=[
        "model", "paragraphs", "cosine", "low", "high", "without_first", "lowest_layer",
        "lowest", "last_layer",
    ])  # fmt: skip
    rows = [
        [display_model(r.model), str(r.paragraphs), _cosine(r), number(r.without_first, digits=3),
         "" if pd.isna(r.lowest_layer) else f"{number(r.lowest, digits=3)} ({r.lowest_layer:.0f})",
         number(r.last_layer, digits=3)]
        for r in frame.itertuples()
    ]  # fmt: skip
    header = ["Model", "Paragraphs", "Mean cosine", "Without first positions", "Lowest (layer)",
              "Last layer"]  # fmt: skip
    return Table(
        "layers", "How near are causal and bidirectional states of the same untrained weights?",
        header, rows or [["not run", *[NOT_RUN] * 5]], "lrrrrr", frame,
        Origin.of(results.of("layer_similarity")), f"{len(frame)} models",
        notes=("Mean over positions and layers, without the embedding layer; in brackets its 95 % "
               "interval over paragraphs. The attention sink is among the first four positions, "
               "which one column leaves out. The paper prints no numbers.",),
    )  # fmt: skip


def _cosine(row) -> str:
    text = number(row.cosine, digits=3)
    if pd.isna(row.low):
        return text
    return f"{text} [{number(row.low, digits=3)}, {number(row.high, digits=3)}]"


# --------------------------------------------------------------------------- departures
def alignment(results: Results) -> Table:
    """Which position holds a word: its own states, or those before it (the MNTP alignment)?"""
    scores = results.scores
    rows = scores[(scores["experiment"] == "word_probing") & scores["task"].isin(WORD_TASKS)]
    rows = rows[rows["setting"].isna() | rows["setting"].isin(["same", "previous"])]
    own = ["previous" if "mntp" in VARIANTS[v].stages else "same" for v in rows["variant"]]
    rows = rows.assign(alignment=rows["setting"].fillna(pd.Series(own, rows.index, dtype="str")))
    values = {(r.model, r.variant, r.task, r.alignment): 100 * r.score for r in rows.itertuples()}
    names = in_order({(m, v, NONE) for m, v, _, _ in values})
    shown, data = [], []
    for model, variant, _ in names:
        cells = []
        for task in WORD_TASKS:
            pair = [values.get((model, variant, task, a)) for a in ("same", "previous")]
            cells += [number(x) or NOT_RUN for x in pair]
            data.append((model, variant, task, *pair))
        paper = "previous" if "mntp" in VARIANTS[variant].stages else "same"
        shown.append([display_variant(variant), paper, *cells])
    models = [display_model(model) for model, _, _ in names]
    shown = [[m, *row] for m, row in zip(once(models), shown, strict=True)]
    return Table(
        "alignment", "Which position holds the word? Accuracy by word alignment",
        ["Model", "Variant", "Paper's", *["same", "previous"] * len(WORD_TASKS)],
        shown or [["not run", *[NOT_RUN] * 8]], "lll" + "r" * 6,
        pd.DataFrame(data, columns=["model", "variant", "task", "same", "previous"]),
        Origin.of(rows), f"{rows['task'].nunique()} of {len(WORD_TASKS)}",
        groups=[("", 3), *((WORD_DISPLAY[t], 2) for t in WORD_TASKS)],
        breaks=block_breaks(models),
        notes=("Same: a word's own sub-tokens; previous: the positions before them.",),
    )  # fmt: skip


def departures(results: Results) -> Table:
    """Every record that departs from the paper's setting, beside the one that does not.

    Ablations, the attention sink, the other word alignment and other dtypes have tables of their
    own.
    """
    scores = results.scores[~results.scores["experiment"].isin(["ablations", "attention_sink"])]
    chosen = results.in_setting[scores.index]
    plain = scores[chosen].set_index(list(AXES[:-1]))["score"].to_dict()
    # Own adapters stand here, too, where the authors' count in their place.
    rows = scores[~chosen & ~in_another_dtype(scores)].fillna({"setting": "own adapters"})
    rows = rows[~((rows["experiment"] == "word_probing")
                  & rows["setting"].isin(["same", "previous"]))]  # fmt: skip
    data = []
    for r in rows.itertuples():
        base = plain.get((r.experiment, r.model, r.variant, r.pooling, r.task))
        data.append((r.experiment, r.model, r.variant, r.pooling, r.task, r.setting,
                     r.score, base, None if base is None else r.score - base))  # fmt: skip
    frame = pd.DataFrame(data, columns=[*AXES, "score", "in_paper_setting", "difference"])
    shown = [
        [display_model(r.model), display_variant(r.variant), display_pooling(r.pooling),
         short_task(r.task), r.setting, number(100 * r.score),
         number(100 * r.in_paper_setting) or NOT_RUN,
         number(100 * r.difference, sign=True) or NOT_RUN]
        for r in frame.astype({"in_paper_setting": float, "difference": float}).itertuples()
    ]  # fmt: skip
    header = ["Model", "Variant", "Pooling", "Task", "Setting", "Score", "Paper's setting",
              "Difference"]  # fmt: skip
    return Table(
        "departures", "Runs that depart from the paper's setting",
        header, shown or [["none", *[NOT_RUN] * 7]], "lllllrrr", frame, Origin.of(rows),
        f"{rows['task'].nunique()} tasks", notes=("Scores times 100.",),
    )  # fmt: skip
