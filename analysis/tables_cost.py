"""What was spent: tokens and seconds per experiment, those of trainings included."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.collect import Results
from analysis.render import NOT_RUN, Origin, Table
from analysis.tables import block_breaks, display_model, display_variant, once
from analysis.trainings import trainings
from llm2vec.estimates import origin_of
from llm2vec.results import Record


@dataclass(frozen=True)
class Work:
    """Something done once: the passes and the scoring of some ``records``, or word features."""

    experiment: str
    model: str
    variant: str
    records: int
    tokens: float
    padding: float
    seconds: float
    origin: Mapping[str, Any]


def works(results: Results) -> Iterator[Work]:
    """All that the records cost, each piece once; their trainings apart.

    Poolings that shared the passes of one run repeat their cost, which counts once; another run
    of the same task is work of its own. The word tasks of a variant share the features of a
    corpus, which are the work of the first command.
    """
    runs: dict[tuple[Any, ...], list[Record]] = {}
    features: dict[tuple[Any, ...], Record] = {}
    for record in sorted(results.records, key=lambda r: str(r.provenance["started"])):
        runs.setdefault((*_place(record), _pass_of(record), *origin_of(record)), []).append(record)
        if seconds := record.cost.get("feature_seconds"):
            corpus = (record.dataset["id"], seconds, record.cost["tokens"])
            features.setdefault((*_place(record), *corpus), record)
    yield from map(_run, runs.values())
    for record in features.values():
        cost = record.cost
        yield Work(*_place(record), 0, cost["tokens"], cost.get("padding_tokens", 0),
                   cost["feature_seconds"], record.provenance)  # fmt: skip


def _place(record: Record) -> tuple[str, str, str]:
    return record.experiment, record.model, record.variant


def _pass_of(record: Record) -> str:
    """Task and setting; those of the attention sink differ in what is left out of a pass."""
    setting = str(record.setting)
    if record.experiment == "attention_sink":
        setting = re.sub(r"-without-(text-)?first-\d+", "", setting)
    return f"{record.task}@{setting}"


def _run(records: Sequence[Record]) -> Work:
    """The passes of one run, and what each record took beside them: its scoring, or its probe."""
    shared, own, tokens, padding = 0.0, 0.0, 0.0, 0.0
    for cost in (record.cost for record in records):
        seconds, features = float(cost.get("seconds", 0)), cost.get("feature_seconds")
        own += seconds - (features or cost.get("encoding_seconds", seconds))
        if not features:
            shared = max(shared, float(cost.get("encoding_seconds", seconds)))
            tokens = max(tokens, float(cost.get("tokens", 0)))
            padding = max(padding, float(cost.get("padding_tokens", 0)))
    place, origin = _place(records[0]), records[0].provenance
    return Work(*place, len(records), tokens, padding, shared + own, origin)


def _costs(results: Results) -> pd.DataFrame:
    """One row per piece of work, trainings included."""
    rows = [(w.experiment, w.model, w.variant, w.origin["device"], w.tokens, w.padding, w.seconds)
            for w in works(results)]  # fmt: skip
    rows += [("training", t.model, t.variant, t.device, t.tokens, 0.0, t.seconds)
             for t in trainings(results)]  # fmt: skip
    columns = ["experiment", "model", "variant", "device", "tokens", "padding", "seconds"]
    return pd.DataFrame(rows, columns=columns)


def cost(results: Results) -> Table:
    """Tokens and seconds per experiment, model and variant, to plan a larger run by."""
    axes = ["experiment", "model", "variant", "device"]
    frame = _costs(results).groupby(axes, as_index=False).agg(
        runs=("seconds", "size"), tokens=("tokens", "sum"), padding=("padding", "sum"),
        seconds=("seconds", "sum"),
    )  # fmt: skip
    frame["tokens_per_second"] = frame["tokens"] / frame["seconds"].where(frame["seconds"] > 0)
    rows = [
        [display_model(r.model), display_variant(r.variant), r.device, str(r.runs),
         f"{r.tokens:,.0f}", f"{100 * r.padding / max(r.tokens + r.padding, 1):.0f} %",
         f"{r.seconds:,.0f}", f"{r.tokens_per_second:,.0f}"]
        for r in frame.itertuples()
    ]  # fmt: skip
    experiments = list(frame["experiment"])
    header = ["Experiment", "Model", "Variant", "Device", "Runs", "Tokens", "Padding", "Seconds",
              "Tokens/s"]  # fmt: skip
    shown = [[e, *row] for e, row in zip(once(experiments), rows, strict=True)]
    return Table(
        "cost", "Cost of what was measured here", header,
        shown or [["not run", *[NOT_RUN] * 8]], "llllrrrrr", frame, Origin.of(results.scores),
        f"{int(frame['runs'].sum())} runs", breaks=block_breaks(experiments),
        notes=("Tokens went through the model, padding apart. What several scores share (poolings "
               "of one run, features of the word tasks, an ablation's training and the shorter "
               "one that it goes on from) is counted once. Training: the shipped adapters and the "
               "ablations' own; padding not recorded.",),
    )  # fmt: skip
