"""One look for all figures: the same colour for the same variant everywhere.

Colours of variants are those of Okabe and Ito, which people with any colour vision can tell apart;
a light tone is a variant without SimCSE, its dark neighbour the same variant with it. What is no
variant (the two histograms, the two curves over layers) has colours of its own, by Tol. Sizes are
those of a one-column paper (5.5 inches of text width), so that figures need no scaling.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

TEXT_WIDTH = 5.5  # inches

VARIANT_COLOURS = {
    "uni": "#5A5A5A",
    "uni-simcse": "#000000",
    "bi": "#E69F00",
    "bi-simcse": "#D55E00",
    "bi-mntp": "#56B4E9",
    "bi-mntp-simcse": "#0072B2",
    "echo": "#CC79A7",
    "encoder": "#009E73",
}
POSITIVE, NEGATIVE = "#332288", "#C2A83E"
ALL_POSITIONS, LATER_POSITIONS = "#332288", "#AA4499"
COLOUR_MAP = "cividis"  # even in lightness, safe for colour-blind readers and in grey

_SETTINGS = {
    "font.family": "DejaVu Sans",  # matplotlib brings it: the same on every machine
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.1,
    "pdf.fonttype": 42,  # text stays text in the PDF
    "savefig.dpi": 300,
    "figure.dpi": 100,
}


@contextmanager
def paper_style() -> Iterator[None]:
    """Settings for the time of drawing; the caller's own matplotlib settings come back after."""
    with plt.rc_context(_SETTINGS):
        yield
