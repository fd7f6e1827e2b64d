"""What all figures have in common: the style, the way to SVG, and the parts that they are made of.

One quiet style with matplotlib's object interface: no pyplot, no state that outlives a call. The
chosen bridge is blue, everything is named at the mark itself, and colours hold for colour-blind
readers. Text stays text in the SVG, and equal results give equal bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from bridgex_jax.report.content import is_number

# The page replaces these very values by its variables, so that figures follow light and dark.
INK, MUTED, GRID, BAND, PAGE, ACCENT = (
    "#1d2126", "#68707b", "#e2e5e9", "#f0f3f7", "#fefefe", "#0067b1",
)  # fmt: skip
# After Okabe and Ito, darkened until text in them reads on white; blue means "chosen".
SERIES = ("#c25000", "#00805c", "#bd3f7f", "#8a6800", "#4b5362", "#6f56c9")
DASHES = ((), (5, 2), (1.5, 1.5))

# Inches: a column of text in the page, and what still fits on a phone.
WIDE, NARROW = 7.2, 5.4
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bridgex",
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "xtick.major.width": 0.6,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
}


@contextmanager
def style() -> Iterator[None]:
    """Our style over matplotlib's defaults, whatever the user's matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def to_svg(figure: Figure, title: str) -> str:
    """The figure as a standalone SVG on white, the same bytes for the same content."""
    with style():
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Title": title})
    return re.sub(r"'DejaVu Sans'(, [^;\"]*)?", FONTS, stream.getvalue())


def new_figure(
    width: float, height: float, *, left: float, right: float, top: float, bottom: float
) -> tuple[Figure, Axes]:
    """A figure with one axes; everything in inches."""
    figure = Figure(figsize=(width, height), facecolor=PAGE, dpi=72)
    FigureCanvasSVG(figure)
    axes = figure.add_axes(
        (left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height)
    )
    axes.set_facecolor("none")
    return figure, axes


def rows_figure(n_rows: int, width: float, *, left: float, right: float) -> tuple[Figure, Axes]:
    """A dot plot with one row of text height a line, first row on top."""
    figure, axes = new_figure(
        width, 0.85 + 0.27 * n_rows, left=left, right=right, top=0.35, bottom=0.5
    )
    axes.set_ylim(n_rows - 0.5, -0.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.margins(x=0.04)
    return figure, axes


def row_label(axes: Axes, y: float, text: str, strong: bool, faint: bool = False) -> None:
    axes.annotate(
        text,
        (0, y),
        (-8, 0),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        ha="right",
        va="center",
        weight="bold" if strong else "normal",
        color=ACCENT if strong else MUTED if faint else INK,
        annotation_clip=False,
    )


def right_text(axes: Axes, y: float, text: str, strong: bool, color: str | None = None) -> None:
    axes.annotate(
        text,
        (1, y),
        (8, 0),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        va="center",
        weight="bold" if strong else "normal",
        color=color or (ACCENT if strong else INK),
        annotation_clip=False,
    )


def note(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    *,
    ha: str = "left",
    va: str = "baseline",
    dx: float = 0,
    dy: float = 0,
    transform: str = "column",
) -> None:
    """Small muted text at (data x, share of height), or with transform "row" at (share, data y)."""
    coordinates = axes.get_yaxis_transform() if transform == "row" else axes.get_xaxis_transform()
    axes.annotate(text, (x, y), (dx, dy), xycoords=coordinates, textcoords="offset points", ha=ha,
                  va=va, color=MUTED, fontsize=8, annotation_clip=False)  # fmt: skip


def interval_mark(
    axes: Axes, y: float, value: float, low: float, high: float, color: str, *, filled: bool
) -> None:
    if is_number(low) and is_number(high):
        axes.plot([low, high], [y, y], color=color, lw=1.6, solid_capstyle="round", zorder=2)
    axes.plot(
        [value], [y], "o", ms=6.5, mfc=color if filled else PAGE, mec=color, mew=1.4, zorder=3
    )
