"""A figure of what the paper has no figure of: the ablations, and the means without the sink.

    python -m analysis.build --figures

Made of the same data as the tables of the ablations and of the attention sink, for the first model
that has any. Lines and dots have their variant's colour; what varies has markers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import figure_data as data
from analysis.collect import Results
from analysis.style import TEXT_WIDTH, VARIANT_COLOURS, paper_style
from llm2vec.registry import MODELS, VARIANTS
from llm2vec.registry_ablations import SICK, STSB, WIKITEXT

MARKERS = ("o", "s", "^", "D")
MASKING = {"bert": "BERT style", "all": "all masked"}
SETTINGS = {
    "simcse-dropout-0.1": "dropout\n0.1", "simcse-dropout-0.3": "dropout\n0.3",
    "simcse-padding-false": "text\nonly", "simcse-padding-true": "with\npadding",
}  # fmt: skip
LEFT_OUT = (
    ("sequence", 1, "first token"), ("sequence", 4, "first four"),
    ("text", 1, "first word be-\nhind instruction"),
)  # fmt: skip


def follow_ups(results: Results) -> Figure | None:
    """MNTP's rate and masking, SimCSE's seeds, and STSBenchmark without the first positions."""
    runs, sink = data.ablations(results), data.without_first(results)
    sink = sink.assign(score=sink["difference"])
    for frame in (runs, sink):  # in points
        frame[["score", "low", "high"]] *= 100
    both = [*runs["model"], *sink["model"]]
    model = next((name for name in MODELS if name in both), None)
    if model is None:
        return None
    runs, sink = (frame[frame["model"] == model] for frame in (runs, sink))
    with paper_style():
        figure, grid = plt.subplots(2, 2, figsize=(TEXT_WIDTH, 4.3), layout="constrained")
        _rates(grid[0, 0], runs[(runs["group"] == "mntp-lr") & (runs["task"] == WIKITEXT)])
        _masking(grid[0, 1], runs[(runs["group"] == "mntp-masking") & (runs["task"] == SICK.task)])
        _seeds(grid[1, 0], runs[runs["task"] == STSB.task])
        # Behind an instruction the control alone: words are left out, no sink is.
        asked = sink["instruction"] == (sink["left_out_of"] == "text")
        _without_first(grid[1, 1], sink[asked & (sink["first"] > 0)])
    return figure


def _rates(axes: Axes, part: pd.DataFrame) -> None:
    colour = VARIANT_COLOURS["bi-mntp"]
    trained = part[part["steps"].notna()]
    for marker, (rate, own) in zip(MARKERS, trained.groupby("learning_rate"), strict=False):
        own = own.sort_values("steps")
        axes.plot(own["steps"], own["score"], color=colour, marker=marker, markersize=3.5,
                  markeredgecolor="black", markeredgewidth=0.4, label=f"{rate:g}")  # fmt: skip
    _untrained(axes, part)
    axes.set_xlabel("Steps")
    axes.set_ylabel("Masked tokens right, %")
    axes.set_title("(a) MNTP: learning rate")
    _legend(axes, title="Rate", loc="center right")


def _masking(axes: Axes, part: pd.DataFrame) -> None:
    colour = VARIANT_COLOURS["bi-mntp"]
    for place, (marker, (style, name)) in enumerate(zip(MARKERS, MASKING.items(), strict=False)):
        own = part[part["masking"] == style].sort_values("mask_probability")
        if own.empty:
            continue
        places = 100 * own["mask_probability"] + 1.2 * (place - 0.5)
        axes.errorbar(places, own["score"], _spread(own),
                      color=colour, marker=marker, markersize=3.5, markeredgecolor="black",
                      markeredgewidth=0.4, linestyle="-" if place else "--", elinewidth=0.8,
                      label=name)  # fmt: skip
    _untrained(axes, part)
    axes.set_xlabel("Masked, %")
    axes.set_ylabel(f"{SICK.task} ({SICK.split})")
    axes.set_title("(b) MNTP: masking")
    _legend(axes, room=0.12, loc="lower left", ncols=3, columnspacing=0.8)


def _seeds(axes: Axes, part: pd.DataFrame) -> None:
    names = [name for name in SETTINGS if part["setting"].str.startswith(name).any()]
    for place, name in enumerate(names):
        own = part[part["setting"].str.startswith(f"{name}-")]
        _dots(axes, place, own, VARIANT_COLOURS["bi-simcse"])
    axes.set_xticks(range(len(names)), [SETTINGS[name] for name in names])
    axes.set_xlim(-0.6, max(len(names), 1) - 0.4)
    axes.set_ylabel(f"{STSB.task} ({STSB.split})")
    axes.set_title("(c) SimCSE, 20 steps: seeds 42, 43")


def _without_first(axes: Axes, part: pd.DataFrame) -> None:
    variants = [v for v in VARIANTS if v in set(part["variant"])]
    for place, (of, first, _) in enumerate(LEFT_OUT):
        chosen = part[(part["left_out_of"] == of) & (part["first"] == first)].set_index("variant")
        for index, variant in enumerate(v for v in variants if v in chosen.index):
            row = chosen.loc[[variant]]
            x = place + 0.14 * (index - (len(variants) - 1) / 2)
            axes.errorbar([x], row["score"], _spread(row), color=VARIANT_COLOURS[variant],
                          marker=MARKERS[index % len(MARKERS)], markersize=3.5, elinewidth=0.9,
                          linestyle="none",
                          label=None if place else VARIANTS[variant].display)  # fmt: skip
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_xticks(range(len(LEFT_OUT)), [name for *_, name in LEFT_OUT])
    axes.set_xlim(-0.5, len(LEFT_OUT) - 0.5)
    axes.set_ylabel(f"Change, {STSB.task}")
    axes.set_title("(d) Mean pooling without ...")
    _legend(axes, room=0.4, loc="lower left", ncols=2)


# --------------------------------------------------------------------------- parts of panels
def _spread(rows: pd.DataFrame) -> list[Any]:
    """Lengths of the interval below and above each score."""
    return [rows["score"] - rows["low"], rows["high"] - rows["score"]]


def _dots(axes: Axes, place: float, rows: pd.DataFrame, colour: str) -> None:
    places = [place + 0.22 * (i - (len(rows) - 1) / 2) for i in range(len(rows))]
    axes.errorbar(places, rows["score"], _spread(rows), color=colour, marker="o", markersize=3.5,
                  linestyle="none", elinewidth=0.9)  # fmt: skip


def _untrained(axes: Axes, part: pd.DataFrame) -> None:
    own = part[part["setting"].str.endswith("-untrained")]
    if len(own):
        axes.axhline(own["score"].iloc[0], color=VARIANT_COLOURS["bi"], linestyle=":",
                     label="untrained")  # fmt: skip


def _legend(axes: Axes, room: float = 0.0, **options: Any) -> None:
    """A legend where there is something to name; ``room`` below what is drawn, of its height."""
    handles: Sequence[Any] = axes.get_legend_handles_labels()[0]
    if handles:
        low, high = axes.get_ylim()
        axes.set_ylim(low - room * (high - low), high)
        axes.legend(fontsize=6, title_fontsize=6, handlelength=1.8, **options)
