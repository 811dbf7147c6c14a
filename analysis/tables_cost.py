"""What was spent: tokens and seconds per experiment, those of trainings included."""

from __future__ import annotations

import pandas as pd

from analysis.collect import Results, pass_of
from analysis.render import NOT_RUN, Origin, Table
from analysis.tables import block_breaks, display_model, display_variant, once
from analysis.trainings import trainings


def _costs(results: Results) -> pd.DataFrame:
    """One row per forward pass: experiment, model, variant, device, tokens, padding, seconds.

    Poolings that share a forward pass repeat its cost: the largest is counted. So do the word
    tasks of a variant, whose features are computed once per corpus: each counts its probe only,
    and the features count as a run of their own.
    """
    rows = []
    for record in results.records:
        spent = {name: float(record.cost.get(name, 0)) for name in
                 ("tokens", "padding_tokens", "seconds", "feature_seconds")}  # fmt: skip
        axes = (record.experiment, record.model, record.variant, record.provenance["device"])
        if spent["feature_seconds"]:
            probe = spent["seconds"] - spent["feature_seconds"]
            rows.append((*axes, pass_of(record), 0.0, 0.0, probe))
            rows.append((*axes, f"features of {record.dataset['id']}", spent["tokens"],
                         spent["padding_tokens"], spent["feature_seconds"]))  # fmt: skip
        else:
            rows.append((*axes, pass_of(record), spent["tokens"], spent["padding_tokens"],
                         spent["seconds"]))  # fmt: skip
    rows += [("training", t.model, t.variant, t.device, t.name, t.tokens, 0.0, t.seconds)
             for t in trainings(results)]  # fmt: skip
    columns = ["experiment", "model", "variant", "device", "run", "tokens", "padding", "seconds"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.groupby(columns[:5], as_index=False, sort=False).max()


def cost(results: Results) -> Table:
    """Tokens and seconds per experiment, model and variant, to plan a larger run by."""
    axes = ["experiment", "model", "variant", "device"]
    frame = _costs(results).groupby(axes, as_index=False).agg(
        runs=("run", "size"), tokens=("tokens", "sum"), padding=("padding", "sum"),
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
               "of one pass, features of the word tasks, an ablation's training) is counted once. "
               "Training: the shipped adapters and the ablations' own; padding not recorded.",),
    )  # fmt: skip
