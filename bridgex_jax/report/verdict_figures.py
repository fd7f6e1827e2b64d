"""Figures of the verdict: does the score follow accuracy, who loses how much, where it was right.

In the style of figures.py, with its parts. Accuracies are shares of 1; pairs are directions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from bridgex_jax.report.content import Bounds, Direction, is_number
from bridgex_jax.report.drawing import (
    ACCENT,
    DASHES,
    INK,
    MUTED,
    NARROW,
    SERIES,
    WIDE,
    interval_mark,
    new_figure,
    note,
    right_text,
    row_label,
    rows_figure,
    style,
)
from bridgex_jax.report.text import label, name, number, p_relation

_MARKERS = ("o", "s", "^")
assert len(_MARKERS) == len(DASHES)


def score_against_accuracy(
    directions: Sequence[Direction],
    scores: Sequence[Mapping[str, float]],
    correlation: Bounds,
    p: float | None = None,
    *,
    by: Literal["rank", "z"] = "rank",
) -> Figure:
    """Score within each pair against accuracy minus the pair's mean; a colour a bridge.

    Args:
      scores: for every direction, the score of its bridges; those without one are left out.
      correlation: the mean rank correlation over pairs, for the title, with its p.
      by: places scores by their rank in the pair, 1 the lowest, or as z-scores of the pair.
    """
    points = _centred_points(directions, scores, by)
    names = list(dict.fromkeys(bridge for one in directions for bridge in one.bridges))
    # Ranks are few, so each bridge stands a little beside them.
    step = 0.6 / len(names) if names and by == "rank" else 0.0
    aside = {bridge: step * (g - (len(names) - 1) / 2) for g, bridge in enumerate(names)}
    height = max(3.6, 1.4 + 0.24 * (len(names) + 1))
    line = 0.24 / (height - 1.12)  # of the key, as a share of the axes
    with style():
        figure, axes = new_figure(WIDE, height, left=0.6, right=1.75, top=0.62, bottom=0.5)
        axes.axhline(0, color=MUTED, lw=0.8, zorder=1)
        for g, bridge in enumerate(names):
            own = np.array([(x, y) for which, x, y, _ in points if which == bridge])
            color, marker = _series(g)
            if len(own):
                own[:, 0] += aside[bridge]
                axes.plot(own[:, 0], own[:, 1], marker, color=color, ms=6, alpha=0.75, mew=0)
            _key(axes, 0.98 - g * line, label(bridge), marker, color, color)
        rings = np.array([(x + aside[b], y) for b, x, y, is_chosen in points if is_chosen])
        if len(rings):
            axes.plot(rings[:, 0], rings[:, 1], "o", ms=10, mfc="none", mec=ACCENT, mew=1.4)
            _key(axes, 0.98 - (len(names) + 0.4) * line, "chosen", "o", "none", ACCENT)
        axes.grid(axis="y")
        axes.spines["left"].set_visible(False)
        axes.margins(0.06)
        if by == "rank":
            axes.set_xticks(range(1, 1 + round(max((x for _, x, *_ in points), default=1))))
        axes.yaxis.set_major_formatter(_tick)
        axes.set_xlabel({"rank": "rank of the score in its pair, 1 the lowest",
                         "z": "score in its pair, standard deviations"}[by])  # fmt: skip
        _titles(axes, _correlation_title(correlation, p), "points above the mean of the pair")
        return figure


def regret_by_chooser(
    regrets: Mapping[str, Bounds], judged: str | None = None, *, n_words: int | None = None
) -> Figure:
    """How much less each chooser gets than the oracle, least first; the judged one in blue."""
    rows = sorted(regrets.items(), key=lambda row: (not is_number(row[1].value), row[1].value))
    with style():
        longest = max((len(chooser) for chooser in regrets), default=0)
        left = max(1.0, 0.35 + 0.085 * longest)
        width = max(NARROW, left + 4.2)  # the axis's own label needs as much
        figure, axes = rows_figure(len(rows), width, left=left, right=0.75)
        axes.axvline(0, color=MUTED, lw=0.8, zorder=1)
        for y, (chooser, regret) in enumerate(rows):
            is_judged = chooser == judged
            row_label(axes, y, chooser, is_judged)
            interval_mark(axes, y, regret.value, regret.low, regret.high,
                           ACCENT if is_judged else MUTED, filled=True)  # fmt: skip
            right_text(axes, y, number(100 * regret.value, 1), is_judged)
        axes.xaxis.set_major_formatter(_tick)
        words = f" over {n_words:,} words" if n_words is not None else ""
        axes.set_xlabel(f"points below the oracle{words}, 95 % intervals")
        return figure


def pair_by_bridge(directions: Sequence[Direction]) -> Figure:
    """Accuracy (%) of every pair through every bridge; the chosen one outlined, the best dotted.

    Cells are shaded within their row, from the pair's worst bridge to its best, since pairs differ
    more than bridges. A bridge that a pair lacks leaves its cell empty.
    """
    bridges = list(dict.fromkeys(bridge for one in directions for bridge in one.bridges))
    labels = [f"{name(one.source)} → {name(one.target)}" for one in directions]
    left = 0.3 + 0.078 * max((len(text) for text in labels), default=0)
    width, height, top, bottom = 0.62, 0.3, 0.4, 0.5
    columns = len(bridges) + 1  # zero-shot in front
    right = max(0.15, NARROW - left - width * columns)
    with style():
        figure, axes = new_figure(
            left + width * columns + right,
            top + height * len(directions) + bottom,
            left=left,
            right=right,
            top=top,
            bottom=bottom,
        )
        axes.set(xlim=(0, columns), ylim=(len(directions), 0))
        axes.set_axis_off()
        for x, text in enumerate(("zero-shot", *bridges)):
            note(axes, x + 0.5, 1.0, text, ha="center", dy=6)
        for y, (one, text) in enumerate(zip(directions, labels, strict=True)):
            row_label(axes, y + 0.5, text, False)
            if is_number(one.zero_shot):
                _cell_text(axes, 0, y, one.zero_shot, MUTED)
            _pair_row(axes, y, one, bridges)
        _cell_legend(axes, len(directions))
        return figure


# Parts of figures --------------------------------------------------------------------------------


def _centred_points(
    directions: Sequence[Direction], scores: Sequence[Mapping[str, float]], by: str
) -> list[tuple[str, float, float, bool]]:
    """(bridge, score in its pair, accuracy − the pair's mean, whether it was chosen)."""
    found = []
    for one, score in zip(directions, scores, strict=True):
        names = [bridge for bridge in one.bridges if is_number(score.get(bridge))]
        if not names:
            continue
        places = _places(np.array([score[bridge] for bridge in names], np.float64), by)
        mean = float(np.mean([one.bridges[bridge] for bridge in names]))
        found += [
            (bridge, float(x), one.bridges[bridge] - mean, bridge == one.chosen)
            for bridge, x in zip(names, places, strict=True)
        ]
    return found


def _places(values: Float[np.ndarray, " G"], by: str) -> Float[np.ndarray, " G"]:
    """Ranks from 1, ties sharing their mean, or z-scores; 0 for equal ones."""
    if by == "z":
        return (values - values.mean()) / (values.std() or 1.0)
    below = (values[None, :] < values[:, None]).sum(axis=1)
    equal = (values[None, :] == values[:, None]).sum(axis=1)
    return below + (equal + 1) / 2


def _series(index: int) -> tuple[str, str]:
    """Colour and marker of a bridge; the seventh has the first colour and another marker."""
    return SERIES[index % len(SERIES)], _MARKERS[index // len(SERIES) % len(_MARKERS)]


def _key(axes: Axes, y: float, text: str, marker: str, face: str, edge: str) -> None:
    """A mark and its name at the right of the axes, at a share y of their height."""
    axes.plot([1.04], [y], marker, ms=9 if face == "none" else 6, mfc=face, mec=edge, mew=1.4,
              transform=axes.transAxes, clip_on=False)  # fmt: skip
    axes.text(1.07, y, text, transform=axes.transAxes, va="center")


def _titles(axes: Axes, title: str, unit: str) -> None:
    """The finding on top, below it what the vertical axis counts."""
    axes.annotate(title, (0, 1), (-34, 24), xycoords="axes fraction", textcoords="offset points",
                  color=INK, weight="bold", annotation_clip=False)  # fmt: skip
    axes.annotate(unit, (0, 1), (-34, 8), xycoords="axes fraction", textcoords="offset points",
                  color=MUTED, annotation_clip=False)  # fmt: skip


def _correlation_title(correlation: Bounds, p: float | None) -> str:
    if not is_number(correlation.value):
        return "No pair has two different scores and two different accuracies"
    text = f"Mean rank correlation {number(correlation.value, 2)}"
    if is_number(correlation.low) and is_number(correlation.high):
        low, high = number(correlation.low, 2), number(correlation.high, 2)
        text += f" (95 % interval {low} to {high})"
    return text if p is None or not is_number(p) else f"{text}, p {p_relation(p)}"


def _tick(value: float, _: float) -> str:
    """Points of a share, with as many digits as the ticks need."""
    return f"{100 * value:.6g}".replace("-", "−")


def _pair_row(axes: Axes, y: int, one: Direction, bridges: Sequence[str]) -> None:
    values = [value for value in one.bridges.values() if is_number(value)]
    low, high = min(values, default=0.0), max(values, default=0.0)
    for x, bridge in enumerate(bridges, start=1):
        value = one.bridges.get(bridge)
        if value is None or not is_number(value):
            continue
        share = (value - low) / (high - low) if high > low else 0.0
        # Never so dark that text on it would have to change colour.
        axes.add_patch(Rectangle((x + 0.04, y + 0.06), 0.92, 0.88, facecolor=MUTED, lw=0,
                                 alpha=0.06 + 0.34 * share))  # fmt: skip
        is_chosen = bridge == one.chosen
        if is_chosen:
            axes.add_patch(Rectangle((x + 0.04, y + 0.06), 0.92, 0.88, fill=False, ec=ACCENT,
                                     lw=1.8, zorder=4, clip_on=False))  # fmt: skip
        if value == high:
            axes.plot([x + 0.86], [y + 0.27], "o", ms=3.6, color=INK, mew=0, zorder=5)
        _cell_text(axes, x, y, value, INK, strong=is_chosen)


def _cell_text(
    axes: Axes, x: int, y: int, value: float, color: str, *, strong: bool = False
) -> None:
    axes.text(x + 0.5, y + 0.52, number(100 * value, 1), ha="center", va="center",
              fontsize=8, color=color, weight="bold" if strong else "normal")  # fmt: skip


def _cell_legend(axes: Axes, n_rows: int) -> None:
    """What outline and dot mean, in a line under the cells."""
    y = n_rows + 0.75
    axes.add_patch(Rectangle((0.04, y - 0.25), 0.35, 0.5, fill=False, ec=ACCENT, lw=1.8,
                             clip_on=False))  # fmt: skip
    axes.text(0.5, y, "chosen", fontsize=8, color=MUTED, va="center")
    axes.plot([1.75], [y], "o", ms=3.6, color=INK, mew=0, clip_on=False)
    axes.text(1.9, y, "best (oracle)", fontsize=8, color=MUTED, va="center")
