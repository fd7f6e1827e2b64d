"""Figures of a report: ranking, spectrum, overlap, accuracies; and the roofline of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from bridgex_jax.report.content import Evaluation, PairReport, is_number
from bridgex_jax.report.drawing import (
    ACCENT,
    BAND,
    DASHES,
    GRID,
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
from bridgex_jax.report.text import label, name, number, percent
from bridgex_jax.store.tables import OverlapMatrix, PairSpectrum

if TYPE_CHECKING:
    from bridgex_jax.kernels.hsic.bench import Row  # loads jax


def spectrum_figure(
    spectrum: PairSpectrum, window: Sequence[int], chosen: str | None, score_name: str
) -> Figure:
    """Score by layer, a line a bridge; missing layers are gaps, the layer window is shaded."""
    height = max(3.2, 0.9 + 0.19 * len(spectrum.bridges))
    with style():
        figure, axes = new_figure(WIDE, height, left=0.55, right=1.35, top=0.42, bottom=0.5)
        n_layers = spectrum.score.shape[1]
        if len(window):
            axes.axvspan(min(window) - 0.5, max(window) + 0.5, color=BAND, linewidth=0)
            note(axes, (min(window) + max(window)) / 2, 1.0, "layer window", dy=4, ha="center")
        axes.set_xlim(-0.5, n_layers - 0.5)
        ends = []
        for g, bridge in enumerate(spectrum.bridges):
            layers = np.flatnonzero(np.isfinite(spectrum.score[g]))
            _spectrum_line(axes, spectrum.score[g], g, is_chosen=bridge == chosen)
            if len(layers):
                ends.append((layers[-1], spectrum.score[g, layers[-1]], bridge, g))
        axes.grid(axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xticks(_layer_ticks(n_layers))
        axes.set_xlabel("layer")
        axes.set_title(score_name, loc="left", fontsize=9, color=MUTED, x=-0.075, y=1.035)
        if ends:
            _end_labels(axes, ends, n_layers, height - 0.92, chosen)
        else:
            note(axes, (n_layers - 1) / 2, 0.5, "no bridge is present in any layer", ha="center")
        return figure


def roofline_figure(rows: Sequence[Row]) -> Figure:
    """GFLOP/s of products against FLOPs a byte, on logarithmic axes, under the measured peak."""
    with style():
        figure, axes = new_figure(WIDE, 4.2, left=0.75, right=1.6, top=0.42, bottom=0.55)
        peak = max(row.gflops / row.share for row in rows)
        names = list(dict.fromkeys(row.implementation for row in rows))
        for row in rows:
            color = SERIES[names.index(row.implementation) % len(SERIES)]
            area = 10 + 20 * np.log10(max(row.n1 * row.n2 * row.n_words / 1e5, 1))
            axes.scatter(row.intensity, row.gflops, s=area, color=color, linewidths=0)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.axhline(peak, color=MUTED, linewidth=0.8)
        axes.grid(axis="y")
        axes.set_xlabel("FLOPs in products a byte held (larger marks: larger sizes)")
        axes.set_title("GFLOP/s", loc="left", fontsize=9, color=MUTED, x=-0.1, y=1.035)
        axes.text(
            axes.get_xlim()[0],
            peak * 1.08,
            f"one matrix product: {peak:,.0f}",
            fontsize=8,
            color=MUTED,
        )
        for i, name_ in enumerate(names):
            axes.text(1.03, 0.95 - 0.08 * i, name_, transform=axes.transAxes, fontsize=9,
                      color=SERIES[i % len(SERIES)])  # fmt: skip
        return figure


def ranking_figure(pair: PairReport, score_name: str) -> Figure:
    """Mean score of every bridge with its bootstrap interval, best on top, with P(best)."""
    rows = pair.ranking
    with style():
        figure, axes = rows_figure(len(rows), NARROW, left=1.3, right=0.85)
        for y, row in enumerate(rows):
            is_chosen = row.bridge == pair.bridge
            row_label(axes, y, label(row.bridge), is_chosen, faint=not row.comparable)
            if not row.comparable:
                note(axes, 0.0, y, "not comparable: absent from over half of the window",
                      transform="row", va="center", dx=2)  # fmt: skip
                continue
            interval_mark(axes, y, row.score.value, row.score.low, row.score.high,
                           ACCENT if is_chosen else MUTED, filled=True)  # fmt: skip
            right_text(axes, y, percent(row.p_best), is_chosen)
        right_text(axes, -0.95, "P(best)", False, color=MUTED)
        axes.set_xlabel(f"{score_name}, mean over {len(pair.compared)} layers")
        return figure


def overlap_figure(matrix: OverlapMatrix) -> Figure:
    """Neurons that languages share: counts below the diagonal, Jaccard (%) above, sizes on it."""
    n = len(matrix.languages)
    cell, left, top = 0.42, 1.3, 0.42
    apart = ~np.eye(n, dtype=bool) & np.isfinite(matrix.jaccard)
    darkest = max(float(matrix.jaccard[apart].max()) if apart.any() else 0.0, 1e-12)
    with style():
        figure, axes = new_figure(
            left + n * cell + 0.1,
            top + n * 0.8 * cell + 0.1,
            left=left,
            right=0.1,
            top=top,
            bottom=0.1,
        )
        axes.set(xlim=(0, n), ylim=(n, 0))
        axes.set_axis_off()
        for i, a in enumerate(matrix.languages):
            axes.annotate(label(a), (0, i + 0.5), (-6, 0), textcoords="offset points",
                          ha="right", va="center", annotation_clip=False)  # fmt: skip
            axes.annotate(a, (i + 0.5, 0), (0, 5), textcoords="offset points", ha="center",
                          color=MUTED, annotation_clip=False)  # fmt: skip
            for j in range(n):
                _overlap_cell(axes, matrix, i, j, darkest)
        return figure


def accuracy_figure(evaluation: Evaluation) -> Figure:
    """Accuracy pooled over directions: zero-shot, bridges, choosers, chosen, oracle."""
    rows = sorted(evaluation.pooled, key=lambda row: row.accuracy.value)[::-1]
    with style():
        figure, axes = rows_figure(len(rows), NARROW, left=1.55, right=0.75)
        for y, row in enumerate(rows):
            is_chosen = row.kind == "chosen"
            color = {"chosen": ACCENT, "bridge": MUTED}.get(row.kind, INK)
            row_label(axes, y, row.name, is_chosen, faint=row.kind == "bridge")
            interval_mark(axes, y, row.accuracy.value, row.accuracy.low, row.accuracy.high,
                           color, filled=row.kind in ("chosen", "bridge"))  # fmt: skip
            right_text(axes, y, percent(row.accuracy.value, 1), is_chosen)
        axes.xaxis.set_major_formatter(lambda value, _: percent(value))
        axes.set_xlabel(f"accuracy over {evaluation.n_words:,} words, 95 % intervals")
        return figure


def directions_figure(evaluation: Evaluation) -> Figure:
    """Accuracy in every direction: one dot a bridge, the chosen one blue, zero-shot hollow."""
    rows = evaluation.directions
    with style():
        figure, axes = rows_figure(len(rows), WIDE, left=2.0, right=1.55)
        for y, row in enumerate(rows):
            row_label(axes, y, f"{name(row.source)} → {name(row.target)}", False)
            values = list(row.bridges.values())
            axes.plot(values, [y] * len(values), "-", color=GRID, lw=2.5, zorder=1)
            axes.plot(values, [y] * len(values), "o", ms=4.5, color=MUTED, alpha=0.55, mew=0)
            if is_number(row.zero_shot):
                axes.plot([row.zero_shot], [y], "s", ms=4.5, mfc="none", mec=INK, mew=1)
            if row.chosen is not None and row.chosen in row.bridges:
                axes.plot([row.bridges[row.chosen]], [y], "o", ms=7, color=ACCENT, mew=0, zorder=4)
            right_text(axes, y, _chosen_and_best(row.chosen, row.best),
                        strong=row.chosen is not None and row.chosen == row.best)  # fmt: skip
        right_text(axes, -0.95, "chosen · best", False, color=MUTED)
        _legend(axes)
        axes.xaxis.set_major_formatter(lambda value, _: percent(value))
        axes.set_xlabel("accuracy")
        return figure


# Parts of figures --------------------------------------------------------------------------------


def _spectrum_line(
    axes: Axes, score: Float[np.ndarray, "L"], index: int, *, is_chosen: bool
) -> None:
    axes.plot(
        np.arange(len(score)),
        score,
        color=ACCENT if is_chosen else SERIES[index % len(SERIES)],
        lw=2.2 if is_chosen else 1.2,
        dashes=() if is_chosen else DASHES[index // len(SERIES) % len(DASHES)],
        marker="o",  # a layer between two gaps has no line
        ms=4.2 if is_chosen else 2.6,
        mew=0,
        zorder=4 if is_chosen else 3,
    )


def _end_labels(
    axes: Axes,
    ends: Sequence[tuple[int, float, str, int]],
    n_layers: int,
    height: float,
    chosen: str | None,
) -> None:
    """Names of the lines at the right, moved apart where they would touch."""
    low, high = axes.get_ylim()
    unit = height * 72 / (high - low)  # points per unit of score
    ends = sorted(ends, key=lambda end: end[1])
    places = _spread([(end[1] - low) * unit for end in ends], gap=12.5, top=height * 72)
    for (layer, value, bridge, g), place in zip(ends, places, strict=True):
        color = ACCENT if bridge == chosen else SERIES[g % len(SERIES)]
        axes.annotate(
            label(bridge),
            (layer, value),
            (n_layers - 0.5 + 0.02 * n_layers, low + place / unit),
            textcoords="data",
            va="center",
            color=color,
            weight="bold" if bridge == chosen else "normal",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "lw": 0.5, "alpha": 0.6, "shrinkA": 1,
                        "shrinkB": 3, "relpos": (0, 0.5)},
        )  # fmt: skip


def _spread(places: Sequence[float], gap: float, top: float) -> list[float]:
    """Ascending positions at least `gap` apart and up to `top`, near the wanted ones."""
    spread: list[float] = []
    for place in places:
        spread.append(max(place, spread[-1] + gap) if spread else place)
    limit = top
    for i in range(len(spread) - 1, -1, -1):
        spread[i] = min(spread[i], limit)
        limit = spread[i] - gap
    return spread


def _layer_ticks(n_layers: int) -> list[int]:
    step = next(s for s in (1, 2, 4, 5, 10, 20) if n_layers / s <= 17 or s == 20)
    return list(range(0, n_layers, step))


def _overlap_cell(axes: Axes, matrix: OverlapMatrix, i: int, j: int, darkest: float) -> None:
    jaccard = matrix.jaccard[i, j]
    share = float(jaccard) / darkest if np.isfinite(jaccard) and i != j else 0.0
    if share > 0:  # never so dark that text on it would have to change colour
        axes.add_patch(
            Rectangle((j + 0.03, i + 0.03), 0.94, 0.94, facecolor=ACCENT, lw=0,
                      alpha=0.05 + 0.5 * share, clip_on=False)
        )  # fmt: skip
    text = f"{int(matrix.overlap[i, j]):,}" if i >= j else number(100 * jaccard, 1)
    color = MUTED if i == j else INK
    axes.text(j + 0.5, i + 0.52, text, ha="center", va="center", fontsize=7.5, color=color)


def _chosen_and_best(chosen: str | None, best: str | None) -> str:
    return f"{chosen or 'none'} · {best or 'none'}"


def _legend(axes: Axes) -> None:
    """The marks of `directions_figure`, in one line above the rows."""
    marks = (
        ("o", ACCENT, ACCENT, "chosen"),
        ("o", MUTED, MUTED, "other bridges"),
        ("s", "none", INK, "zero-shot"),
    )
    transform = axes.get_yaxis_transform()
    for x, (marker, face, edge, text) in zip((0.02, 0.24, 0.56), marks, strict=True):
        axes.plot(
            [x],
            [-0.95],
            marker,
            ms=5,
            mfc=face,
            mec=edge,
            mew=1,
            transform=transform,
            clip_on=False,
        )
        note(axes, x, -0.95, text, transform="row", va="center", dx=7)
