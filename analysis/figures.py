"""The paper's figures, drawn from records or from the paper's own numbers.

    python -m analysis.build --figures        # all of them, into results/figures/

One function a figure. Each takes :class:`analysis.collect.Results` and returns a matplotlib
figure, or None where there is nothing to draw. Figures 2 and 3 take ``source="paper"`` to redraw
the paper's Tables 4 and 5; the paper prints no numbers for Figures 4, 5, 7, 8 and 9. Deviations:
Figures 2 and 3 draw every variant of their tables, where the paper leaves out SimCSE without MNTP;
histograms and layer maps carry what the paper only describes (the mean of each histogram; a curve
per layer with its spread over paragraphs).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis import figure_data as data
from analysis.collect import Results
from analysis.figure_data import Source
from analysis.figures_own import follow_ups
from analysis.style import (
    ALL_POSITIONS,
    COLOUR_MAP,
    LATER_POSITIONS,
    NEGATIVE,
    POSITIVE,
    TEXT_WIDTH,
    VARIANT_COLOURS,
    paper_style,
)
from llm2vec.registry import MODELS, POOLING_DISPLAY, POOLINGS, VARIANTS, WORD_TASKS

WORD_TITLES = {"chunking": "Chunking", "ner": "NER", "pos": "POS tagging"}
ENCODERS = ("deberta-v3-large", "bert-large", "minilm-l6")  # the first that is there is drawn
DARK = ("uni", "uni-simcse", "bi-simcse", "bi-mntp-simcse")  # white letters can be read on these
HISTOGRAM_BINS = 32
HISTOGRAM_TAIL = 0.02  # share of the cosines that may lie left of the first bin's right edge
MOST_COLUMNS = 4


def _display(model: str) -> str:
    return MODELS[model].display


def _letter(index: int) -> str:
    return f"({chr(ord('a') + index)})"


def _label_foot(axes: Axes, place: float, score: float, variant: str) -> None:
    """Write the score into the foot of its bar, where neither line nor other bar is in its way."""
    axes.annotate(f"{score:.1f}", (place, 0.02), xycoords=axes.get_xaxis_transform(),
                  ha="center", va="bottom", fontsize=5.5, rotation=90,
                  color="white" if variant in DARK else "black")  # fmt: skip


# --------------------------------------------------------------------------- Figure 2
def figure2(results: Results, source: Source = "results") -> Figure | None:
    """Word-level tasks: bars per variant, ``uni`` as a solid and an encoder as a dashed line.

    As in the paper the axis does not begin at zero; every bar carries its number and, where it was
    measured over seeds of the probe, its standard deviation.
    """
    frame = data.bars_of_words(results, source)
    decoders = [m for m in frame["model"].unique() if MODELS[m].kind == "decoder"]
    if not decoders:
        return None
    encoder = next((m for m in ENCODERS if m in set(frame["model"])), None)
    bars = [v for v in data.FIGURE2_VARIANTS if v in set(frame["variant"])]
    scores = frame.set_index(["model", "variant", "task"])[["score", "std"]]
    with paper_style():
        figure, panels = plt.subplots(1, len(WORD_TASKS), figsize=(TEXT_WIDTH, 2.15),
                                      layout="constrained")  # fmt: skip
        for index, (axes, task) in enumerate(zip(panels, WORD_TASKS, strict=True)):
            _word_panel(axes, scores, task, decoders, bars, encoder)
            axes.set_title(f"{_letter(index)} {WORD_TITLES[task]}")
        panels[0].set_ylabel("Accuracy, %")
        handles = [Patch(color=VARIANT_COLOURS[v], label=VARIANTS[v].display) for v in bars]
        handles.append(Line2D([], [], color=VARIANT_COLOURS["uni"], linewidth=1.6, label="Uni"))
        if encoder:
            handles.append(Line2D([], [], color=VARIANT_COLOURS["encoder"], linestyle="--",
                                  label=_display(encoder)))  # fmt: skip
        figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)),
                      handlelength=1.4, columnspacing=1.2)  # fmt: skip
    return figure


def _word_panel(
    axes: Axes, rows: pd.DataFrame, task: str, models: Sequence[str], bars: Sequence[str],
    encoder: str | None,
) -> None:  # fmt: skip
    width = 0.8 / max(len(bars), 1)
    scores, spread = rows["score"], rows["std"]
    shown = []
    for group, model in enumerate(models):
        for index, variant in enumerate(bars):
            score = scores.get((model, variant, task))
            if score is not None:
                place = group - 0.4 + (index + 0.5) * width
                axes.bar(place, score, width * 0.92, color=VARIANT_COLOURS[variant])
                if not np.isnan(deviation := spread[model, variant, task]):
                    axes.errorbar(place, score, deviation, color="black", linewidth=0.8, capsize=2)
                _label_foot(axes, place, score, variant)
                shown.append(score)
        uni = scores.get((model, "uni", task))
        if uni is not None:
            axes.plot(
                [group - 0.44, group + 0.44],
                [uni, uni],
                color=VARIANT_COLOURS["uni"],
                linewidth=1.6,
                solid_capstyle="butt",
            )
            shown.append(uni)
    base = scores.get((encoder, "encoder", task)) if encoder else None
    if base is not None:
        axes.axhline(base, color=VARIANT_COLOURS["encoder"], linestyle="--")
        shown.append(base)
    if shown:
        low = max(0.0, np.floor(min(shown) - 0.35 * (max(shown) - min(shown)) - 0.5))
        axes.set_ylim(low, max(shown) + 0.06 * (max(shown) - low))
    axes.set_xlim(-0.6, len(models) - 0.4)
    # "LLaMA-2-7B" over two lines: three names fit below a panel.
    names = ["\n".join(_display(model).rsplit("-", 1)) for model in models]
    axes.set_xticks(range(len(models)), names)
    axes.tick_params(axis="x", length=0)


# --------------------------------------------------------------------------- Figure 3
def figure3(results: Results, source: Source = "results") -> Figure | None:
    """Mean over the subset: bars per pooling and variant, one panel per model."""
    frame = data.bars_of_poolings(results, source)
    panels = list(frame.groupby(["panel", "model"], sort=False))
    if not panels:
        return None
    variants = [v for v in data.FIGURE3_VARIANTS if v in set(frame["variant"])]
    columns = min(2, len(panels))  # of three, bars would be narrower than their numbers
    rows = -(-len(panels) // columns)
    with paper_style():
        figure, grid = plt.subplots(rows, columns, figsize=(TEXT_WIDTH, 0.35 + 1.75 * rows),
                                    layout="constrained", squeeze=False, sharey=True)  # fmt: skip
        for index, (axes, ((_, model), part)) in enumerate(zip(grid.flat, panels, strict=False)):
            _pooling_panel(axes, part, variants)
            title = f"{_letter(index)} {_display(model)}"
            axes.set_title(title if source == "paper" else f"{title}\n{part['tasks'].iloc[0]}")
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes in grid[:, 0]:
            axes.set_ylabel("Mean score")
        grid[0, 0].set_ylim(0, 1.06 * frame["score"].max())
        handles = [Patch(color=VARIANT_COLOURS[v], label=VARIANTS[v].display) for v in variants]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles),
                      handlelength=1.4, columnspacing=1.2)  # fmt: skip
    return figure


def _pooling_panel(axes: Axes, part: pd.DataFrame, variants: Sequence[str]) -> None:
    width = 0.84 / len(variants)
    for index, variant in enumerate(variants):
        own = part[part["variant"] == variant]
        places = [POOLINGS.index(p) - 0.42 + (index + 0.5) * width for p in own["pooling"]]
        axes.bar(places, own["score"], width * 0.92, color=VARIANT_COLOURS[variant])
        for place, score in zip(places, own["score"], strict=True):
            _label_foot(axes, place, score, variant)
    axes.set_xlim(-0.55, len(POOLINGS) - 0.45)  # the same place for every pooling, measured or not
    axes.set_xticks(range(len(POOLINGS)), [POOLING_DISPLAY[p] for p in POOLINGS])
    axes.tick_params(axis="x", length=0)


# --------------------------------------------------------------------------- Figures 4 and 7
def figure4(results: Results, source: Source = "results") -> Figure | None:
    """Cosines of triples before and after MNTP: ``bi`` and ``bi-mntp``."""
    return _histograms(data.cosines_of_triples(results, source), ("bi", "bi-mntp"))


def figure7(results: Results, source: Source = "results") -> Figure | None:
    """Cosines of triples for every model and variant."""
    return _histograms(data.cosines_of_triples(results, source))


def _histograms(frame: pd.DataFrame, variants: Sequence[str] = tuple(VARIANTS)) -> Figure | None:
    """Panels of a model side by side and of one range; a model that fits goes on in the row."""
    grid_of: list[list[tuple[str, str]]] = []
    for model in frame["model"].unique():
        present = set(frame[frame["model"] == model]["variant"]) & set(variants)
        places = [(model, variant) for variant in VARIANTS if variant in present]
        if grid_of and len(grid_of[-1]) + len(places) <= MOST_COLUMNS:
            grid_of[-1] += places
        else:
            grid_of += [places[i : i + MOST_COLUMNS] for i in range(0, len(places), MOST_COLUMNS)]
    if not grid_of:
        return None
    columns = max(map(len, grid_of))
    with paper_style():
        figure, grid = plt.subplots(len(grid_of), columns, layout="constrained", squeeze=False,
                                    figsize=(TEXT_WIDTH, 0.4 + 1.3 * len(grid_of)))  # fmt: skip
        index = 0
        for row, places in zip(grid, grid_of, strict=True):
            row[0].set_ylabel("Density")
            for axes in row[len(places) :]:
                axes.set_visible(False)
            for axes, (model, variant) in zip(row, places, strict=False):
                own = frame[frame["model"] == model]
                _histogram_panel(axes, own[own["variant"] == variant], histogram_edges(own))
                axes.set_title(f"{_letter(index)} {_display(model)}\n{VARIANTS[variant].display}")
                index += 1
        for column in grid.T:
            lowest = [axes for axes in column if axes.get_visible()][-1]
            lowest.set_xlabel("Cosine similarity")
        handles = [Patch(facecolor=POSITIVE, alpha=0.6, label="sim(q, s+): same meaning"),
                   Patch(facecolor=NEGATIVE, alpha=0.6, label="sim(q, s–): another meaning"),
                   Line2D([], [], color="black", linestyle=":", label="means")]  # fmt: skip
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def histogram_edges(part: pd.DataFrame) -> np.ndarray:
    """Bin edges up to 1, the cosine of equal states, and down to all but a few cosines of ``part``.

    A few outliers would squeeze all others into two bins: the first bin takes what lies below it.
    """
    cosines = part[["cos_pos", "cos_neg"]].to_numpy()
    high = max(1.0, float(cosines.max()))
    low = float(np.quantile(cosines, HISTOGRAM_TAIL))
    low = min(low, high - 0.05)  # under causal attention every cosine is 1
    return np.linspace(low, high, HISTOGRAM_BINS + 1)


def _histogram_panel(axes: Axes, part: pd.DataFrame, edges: np.ndarray) -> None:
    for column, colour in (("cos_neg", NEGATIVE), ("cos_pos", POSITIVE)):
        shown = part[column].clip(lower=edges[0])
        axes.hist(shown, edges, density=True, color=colour, alpha=0.5)
        axes.hist(shown, edges, density=True, histtype="step", color=colour, linewidth=0.9)
        axes.axvline(part[column].mean(), ymax=0.74, color=colour, linestyle=":", linewidth=1.1)
    text = f"gap {(part['cos_pos'] - part['cos_neg']).mean() + 0.0:+.3f}"
    if below := int((part[["cos_pos", "cos_neg"]] < edges[0]).to_numpy().sum()):
        text += f"\n{below} below {edges[0]:.2f}"
    axes.text(0.03, 0.99, text, transform=axes.transAxes, va="top", fontsize=6)
    width = edges[-1] - edges[0]
    axes.set_xlim(edges[0] - 0.02 * width, edges[-1] + 0.03 * width)
    axes.set_ylim(top=1.4 * axes.get_ylim()[1])  # the text stands above bars and lines
    axes.set_yticks([])
    axes.locator_params(axis="x", nbins=4)


# --------------------------------------------------------------------------- Figures 5, 8 and 9
MISTRALS = ("mistral-7b-v0.1", "mistral-7b-instruct-v0.1", "mistral-7b")
OTHER_RELEASES = MISTRALS[:2]


def figure5(results: Results, source: Source = "results") -> Figure | None:
    """Layer by position: cosine of causal and bidirectional states, and its mean per layer."""
    maps = data.maps_of_paragraph(results, 0, source)
    models = [m for m in maps["model"].unique() if m not in OTHER_RELEASES]
    return _map_figure(
        [(maps, model, _display(model)) for model in models], data.layer_means(results)
    )


def figure8(results: Results, source: Source = "results") -> Figure | None:
    """The same maps for two further paragraphs."""
    panels = []
    for paragraph in (1, 2):
        maps = data.maps_of_paragraph(results, paragraph, source)
        panels += [(maps, m, f"{_display(m)}\nparagraph {paragraph + 1}")
                   for m in maps["model"].unique() if m not in OTHER_RELEASES]  # fmt: skip
    return _map_figure(panels, None)


def figure9(results: Results, source: Source = "results") -> Figure | None:
    """The same maps for the releases of Mistral-7B."""
    maps = data.maps_of_paragraph(results, 0, source)
    models = [m for m in MISTRALS if m in set(maps["model"])]
    return _map_figure(
        [(maps, model, _display(model)) for model in models], data.layer_means(results)
    )


def _map_figure(
    panels: Sequence[tuple[pd.DataFrame, str, str]], means: pd.DataFrame | None
) -> Figure | None:
    """Maps (values, model, title) side by side; below each, if ``means``, the mean per layer."""
    if not panels:
        return None
    columns = min(3, len(panels)) if means is None else len(panels)
    rows = -(-len(panels) // columns) if means is None else 2
    with paper_style():
        width = TEXT_WIDTH if columns > 1 else 0.62 * TEXT_WIDTH
        figure, grid = plt.subplots(rows, columns, figsize=(width, 0.3 + 1.75 * rows),
                                    layout="constrained", squeeze=False)  # fmt: skip
        top = list(grid.flat if means is None else grid[0])
        for index, (axes, (maps, model, title)) in enumerate(zip(top, panels, strict=False)):
            image = _map_panel(axes, maps[maps["model"] == model])
            axes.set_title(f"{_letter(index)} {title}")
            if means is not None:
                _mean_panel(grid[1, index], means[means["model"] == model])
                grid[1, index].set_title(f"{_letter(columns + index)} {title}, mean")
        for axes in list(grid.flat)[len(panels) :] if means is None else ():
            axes.set_visible(False)
        for row in grid if means is None else grid[:1]:
            row[0].set_ylabel("Layer")
        bar = figure.colorbar(image, ax=top, shrink=0.9, pad=0.02)
        bar.set_label("Cosine, causal to\nbidirectional")
        bar.outline.set_linewidth(0.5)
        if means is not None:
            grid[1, 0].set_ylabel("Mean cosine")
            for axes in grid[1, 1:]:
                axes.tick_params(labelleft=False)
            handles, labels = grid[1, -1].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def _map_panel(axes: Axes, part: pd.DataFrame):
    table = part.pivot(index="layer", columns="position", values="cosine").to_numpy()
    image = axes.imshow(table, origin="lower", aspect="auto", cmap=COLOUR_MAP, vmin=0, vmax=1,
                        interpolation="nearest")  # fmt: skip
    axes.set_xlabel("Token position")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(True)
    return image


def _mean_panel(axes: Axes, part: pd.DataFrame) -> None:
    styles = {"kept": (ALL_POSITIONS, "-", "all positions"),
              "left out": (LATER_POSITIONS, "--", "without the first positions")}  # fmt: skip
    for first, (colour, line, label) in styles.items():
        own = part[part["first"] == first]
        axes.plot(own["layer"], own["mean"], color=colour, linestyle=line, label=label)
        axes.fill_between(own["layer"], own["mean"] - own["std"], own["mean"] + own["std"],
                          color=colour, alpha=0.2, linewidth=0)  # fmt: skip
    axes.set_ylim(min(0.0, (part["mean"] - part["std"]).min()), 1.02)
    axes.set_xlabel("Layer")


FIGURES: dict[str, Callable[[Results], Figure | None]] = {
    "figure2_paper": lambda results: figure2(results, "paper"),
    "figure3_paper": lambda results: figure3(results, "paper"),
    "figure2": figure2,
    "figure3": figure3,
    "figure4": figure4,
    "figure5": figure5,
    "figure7": figure7,
    "figure8": figure8,
    "figure9": figure9,
    "follow_ups": follow_ups,
}
