"""How sensitive a choice is: the rows of `bridgex ablate`, in a table, a sentence and a figure.

A row is one value of one setting; the base's own value is among those of every setting. Rows that
gave no choice say why and count neither as agreement nor as change.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bridgex_jax.errors import InputError
from bridgex_jax.report.drawing import (
    ACCENT,
    BAND,
    GRID,
    INK,
    MUTED,
    PAGE,
    SERIES,
    new_figure,
    note,
    style,
)
from bridgex_jax.report.text import label, number, percent
from bridgex_jax.store.files import plain, write_bytes
from bridgex_jax.store.paths import AnyPath, read_bytes

SCHEMA = pa.schema(
    [
        pa.field("setting", pa.string(), nullable=False),
        pa.field("value", pa.string(), nullable=False),
        pa.field("is_base", pa.bool_(), nullable=False),
        pa.field("bridge", pa.string()),
        pa.field("same_as_base", pa.bool_()),
        pa.field("rank_correlation", pa.float64()),
        pa.field("margin", pa.float64()),
        pa.field("p_best", pa.float64()),
        pa.field("n_words", pa.int32()),
        pa.field("coverage", pa.float64()),
        pa.field("note", pa.string(), nullable=False),
        pa.field(
            "scores",
            pa.list_(pa.struct([("bridge", pa.string()), ("score", pa.float64())])),
            nullable=False,
        ),
    ]
)


@dataclass(frozen=True)
class AblationRow:
    """One value of one setting, and the bridge that it chooses.

    bridge: None where nothing was chosen; note says why. rank_correlation: Spearman's of the
    bridges' scores with the base's. margin: the lead over the runner-up. p_best: of the bootstrap,
    at the base alone. coverage: the share of the layer window that has the chosen bridge. scores:
    every bridge's mean over the window, None where it is not comparable.
    """

    setting: str
    value: str
    is_base: bool
    bridge: str | None = None
    same_as_base: bool | None = None
    rank_correlation: float | None = None
    margin: float | None = None
    p_best: float | None = None
    n_words: int | None = None
    coverage: float | None = None
    note: str = ""
    scores: dict[str, float | None] = field(default_factory=dict)

    @property
    def runner_up(self) -> str | None:
        """The second of the comparable bridges, in the given order on ties."""
        known = {bridge: score for bridge, score in self.scores.items() if score is not None}
        known.pop(self.bridge or "", None)
        return max(known, key=lambda bridge: known[bridge]) if known else None


@dataclass(frozen=True)
class Sensitivity:
    """How the variations of one setting came out, the base left out.

    instead: the bridges that other values chose, the most frequent first; lowest: the lowest rank
    correlation with the base.
    """

    setting: str
    answered: int
    changed: int
    unanswered: int
    instead: tuple[str, ...]
    lowest: float | None


@dataclass(frozen=True)
class Ablation:
    """All rows, settings together in their order."""

    rows: tuple[AblationRow, ...]

    @property
    def base(self) -> AblationRow:
        """The base point, which every setting repeats."""
        return next(row for row in self.rows if row.is_base)

    @property
    def bridges(self) -> tuple[str, ...]:
        return tuple(self.base.scores)

    @property
    def settings(self) -> tuple[Sensitivity, ...]:
        """Each setting's share of changes."""
        by_setting = groupby(self.rows, key=lambda row: row.setting)
        return tuple(_sensitivity(name, tuple(rows)) for name, rows in by_setting)


def _sensitivity(setting: str, rows: Sequence[AblationRow]) -> Sensitivity:
    varied = [row for row in rows if not row.is_base]
    others = [row.bridge for row in varied if row.bridge and not row.same_as_base]
    answered = sum(row.bridge is not None for row in varied)
    correlations = [r.rank_correlation for r in varied if r.rank_correlation is not None]
    return Sensitivity(
        setting,
        answered,
        len(others),
        len(varied) - answered,
        tuple(sorted(dict.fromkeys(others), key=others.count, reverse=True)),
        min(correlations, default=None),
    )


def write_ablation(path: Path, ablation: Ablation) -> None:
    """Writes `ablation.parquet`, a row a variation; equal results give equal bytes."""
    rows = [
        asdict(row) | {"scores": [{"bridge": b, "score": score} for b, score in row.scores.items()]}
        for row in ablation.rows
    ]
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), stream, compression="zstd")
    write_bytes(path, stream.getvalue())


def read_ablation(path: AnyPath) -> Ablation:
    """Reads `ablation.parquet`. Raises InputError where it is no such table."""
    remedy = "run bridgex ablate again"
    data = read_bytes(path, missing="is missing", remedy=remedy)
    try:
        table = pq.read_table(pa.BufferReader(data))
    except pa.ArrowException as error:
        raise InputError(f"is not a Parquet file ({error})", file=path, remedy=remedy) from error
    if table.schema.names != [item.name for item in fields(AblationRow)]:
        raise InputError("lacks columns", file=path, remedy=remedy)
    return Ablation(
        tuple(
            AblationRow(**row | {"scores": {one["bridge"]: one["score"] for one in row["scores"]}})
            for row in table.to_pylist()
        )
    )


def ablation_json(ablation: Ablation) -> dict[str, Any]:
    """The rows and each setting's share of changes, as plain values."""
    return plain(
        {
            "bridge": ablation.base.bridge,
            "p_best": ablation.base.p_best,
            "settings": [asdict(setting) for setting in ablation.settings],
            "rows": [asdict(row) for row in ablation.rows],
            "sentence": ablation_sentence(ablation),
        }
    )


# Words -------------------------------------------------------------------------------------------

_NAMES = {
    "layers": "layer window",
    "words": "number of words",
    "seed": "seed of the words",
}
_WITHOUT_ARTICLE = ("size matching", "length control")


def setting_name(setting: str) -> str:
    """`token scope` for token_scope."""
    return _NAMES.get(setting, setting.replace("_", " "))


def ablation_table(ablation: Ablation) -> str:
    """For every setting how often the choice changes, to what, and why values were not run."""
    lines = [
        _base_line(ablation.base),
        f"{'setting':<18} {'changed':<9} {'lowest ρ':>8}  chosen instead",
    ]
    for one in ablation.settings:
        changed = f"{one.changed} of {one.answered}" if one.answered else "–"
        lowest = number(one.lowest, 2)
        instead = " ".join(one.instead) or "–"
        lines.append(f"{setting_name(one.setting):<18} {changed:<9} {lowest:>8}  {instead}")
    lines.append("ρ: rank correlation of the bridges' scores with the base's")
    silent = [row for row in ablation.rows if row.bridge is None]
    for (setting, reason), rows in groupby(silent, key=lambda row: (row.setting, row.note)):
        values = ", ".join(row.value for row in rows)
        lines.append(f"no choice with {setting_name(setting)} {values}: {reason}")
    return "\n".join(lines)


def _base_line(base: AblationRow) -> str:
    """`base: English (en), P(best) 43 %, runner-up French (fr)`."""
    parts = [label(base.bridge or "")]
    if base.p_best is not None:
        parts.append(f"P(best) {percent(base.p_best)}")
    if base.runner_up is not None:
        parts.append(f"runner-up {label(base.runner_up)}")
    return f"base: {', '.join(parts)}"


def ablation_sentence(ablation: Ablation) -> str:
    """The answer: how often the choice changes, and with which settings, most changes first."""
    settings = ablation.settings
    answered = sum(one.answered for one in settings)
    assert ablation.base.bridge is not None
    choice = f"The choice of {label(ablation.base.bridge)}"
    if not answered:
        return f"{choice} could not be compared: no variation gave a choice."
    changing = [one for one in settings if one.changed]
    if not changing:
        return f"{choice} changes in none of {answered} variations."
    changing.sort(key=lambda one: -one.changed / one.answered)
    parts = [f"{_with_article(one.setting)} ({one.changed} of {one.answered})" for one in changing]
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    changed = sum(one.changed for one in changing)
    return f"{choice} changes in {changed} of {answered} variations: with {listed}."


def _with_article(setting: str) -> str:
    name = setting_name(setting)
    return name if name in _WITHOUT_ARTICLE else f"the {name}"


# Figure ------------------------------------------------------------------------------------------

_ROW, _GAP, _COLUMN = 0.2, 0.45, 0.4  # inches a row, rows between settings, inches a bridge
_LEFT, _RIGHT, _TOP, _BOTTOM = 3.05, 1.75, 0.62, 0.3
_NOTE_CHARACTERS = 70


def ablation_figure(ablation: Ablation) -> Figure:
    """Which bridge every value chooses: a row a value, a column a bridge, a block a setting.

    The base's bridge is blue, its rows are shaded; runners-up are hollow. At the right the rank
    correlation with the base, and how many values of a setting agree with it.
    """
    places = _places(ablation.rows)
    bridges = ablation.bridges
    height = places[-1] + 1
    inside = max(6, len(bridges)) * _COLUMN
    with style():
        figure, axes = new_figure(
            _LEFT + inside + _RIGHT,
            _TOP + height * _ROW + _BOTTOM,
            left=_LEFT,
            right=_RIGHT,
            top=_TOP,
            bottom=_BOTTOM,
        )
        axes.set(xlim=(-0.5, max(6, len(bridges)) - 0.5), ylim=(height - 0.5, -0.5))
        axes.set_axis_off()
        _columns(axes, ablation, height)
        shares = {one.setting: one for one in ablation.settings}
        before = None
        for y, row in zip(places, ablation.rows, strict=True):
            if row.setting != before:
                _block(axes, y, shares[row.setting], is_first=before is None)
                before = row.setting
            _row(axes, y, row, ablation)
        _legend(axes, ablation.base)
        return figure


def _places(rows: Sequence[AblationRow]) -> list[float]:
    """Where rows stand, in heights of a row, with a gap before each setting."""
    places: list[float] = []
    for before, row in zip((None, *rows), rows, strict=False):
        gap = _GAP if before is not None and before.setting != row.setting else 0.0
        places.append(places[-1] + 1 + gap if places else 0.0)
    return places


def _columns(axes: Axes, ablation: Ablation, height: float) -> None:
    """The bridges' codes above and below, and a line through the base's choice."""
    for x, bridge in enumerate(ablation.bridges):
        is_base = bridge == ablation.base.bridge
        for y, va, dy in ((-0.5, "bottom", 4), (height - 0.5, "top", -4)):
            axes.annotate(bridge, (x, y), (0, dy), textcoords="offset points", ha="center", va=va,
                          color=ACCENT if is_base else INK, weight="bold" if is_base else "normal",
                          annotation_clip=False)  # fmt: skip
        axes.plot([x, x], [-0.5, height - 0.5], color=ACCENT if is_base else GRID,
                  lw=1.0 if is_base else 0.6, alpha=0.45 if is_base else 1, zorder=1)  # fmt: skip
    for inches, text in ((0.48, "ρ"), (0.62, "same choice")):
        axes.annotate(text, (1, -0.5), (72 * inches, 4), xycoords=axes.get_yaxis_transform(),
                      textcoords="offset points", ha="right" if text == "ρ" else "left",
                      va="bottom", color=MUTED, annotation_clip=False)  # fmt: skip


def _block(axes: Axes, y: float, setting: Sensitivity, *, is_first: bool) -> None:
    """The setting's name at the left, its share of agreement at the right."""
    width = axes.get_xlim()[1] - axes.get_xlim()[0]
    left, right = (inches / (_COLUMN * width) for inches in (_LEFT - 0.1, _RIGHT - 0.1))
    transform = axes.get_yaxis_transform()
    if not is_first:
        axes.plot([-left, 1 + right], [y - 0.5 - _GAP / 2] * 2, color=GRID, lw=0.6,
                  transform=transform, clip_on=False)  # fmt: skip
    axes.text(-left, y, setting_name(setting.setting), transform=transform, va="center",
              weight="bold", color=INK)  # fmt: skip
    agreed = setting.answered - setting.changed
    share = f"{agreed} of {setting.answered}" if setting.answered else "–"
    axes.annotate(share, (1, y), (72 * 0.62, 0), xycoords=transform, textcoords="offset points",
                  va="center", color=INK if setting.changed else MUTED,
                  weight="bold" if setting.changed else "normal",
                  annotation_clip=False)  # fmt: skip


def _row(axes: Axes, y: float, row: AblationRow, ablation: Ablation) -> None:
    transform = axes.get_yaxis_transform()
    if row.is_base:
        axes.axhspan(y - 0.5, y + 0.5, color=BAND, lw=0, zorder=0)
    axes.annotate(row.value, (0, y), (-8, 0), xycoords=transform, textcoords="offset points",
                  ha="right", va="center", color=MUTED if row.bridge is None else INK,
                  weight="bold" if row.is_base else "normal", annotation_clip=False)  # fmt: skip
    if row.bridge is None:
        note = row.note
        if len(note) > _NOTE_CHARACTERS:
            note = note[: _NOTE_CHARACTERS - 1].rstrip() + "…"
        axes.annotate(note, (0, y), (2, 0), xycoords=transform, textcoords="offset points",
                      va="center", color=MUTED, fontsize=7.5, annotation_clip=False,
                      bbox={"facecolor": PAGE, "edgecolor": "none", "pad": 1})  # fmt: skip
        return
    if row.runner_up is not None:
        _dot(axes, y, row.runner_up, ablation, filled=False)
    _dot(axes, y, row.bridge, ablation, filled=True)
    if row.rank_correlation is not None and not row.is_base:
        axes.annotate(number(row.rank_correlation, 2), (1, y), (72 * 0.48, 0), xycoords=transform,
                      textcoords="offset points", ha="right", va="center", color=MUTED,
                      annotation_clip=False)  # fmt: skip


def _dot(axes: Axes, y: float, bridge: str, ablation: Ablation, *, filled: bool) -> None:
    at = ablation.bridges.index(bridge)
    color = ACCENT if bridge == ablation.base.bridge else SERIES[at % len(SERIES)]
    axes.plot([at], [y], "o", ms=7 if filled else 4.5, mfc=color if filled else PAGE, mec=color,
              mew=0 if filled else 1, zorder=3, clip_on=False)  # fmt: skip


def _legend(axes: Axes, base: AblationRow) -> None:
    """The base's choice at the left, and what the marks mean, in one line above the columns."""
    transform = axes.get_yaxis_transform()
    y = -0.5 - 0.36 / _ROW
    width = axes.get_xlim()[1] - axes.get_xlim()[0]
    share = 1 / (_COLUMN * width)  # of the width, an inch
    sure = f", P(best) {percent(base.p_best)}" if base.p_best is not None else ""
    axes.text(share * (0.1 - _LEFT), y, f"{label(base.bridge or '')}{sure}", transform=transform,
              va="center", color=ACCENT, weight="bold")  # fmt: skip
    for inches, filled, text in ((0.2, True, "chosen"), (0.9, False, "runner-up")):
        x = share * inches
        axes.plot([x], [y], "o", ms=7 if filled else 4.5, mfc=MUTED if filled else PAGE,
                  mec=MUTED, mew=0 if filled else 1, transform=transform,
                  clip_on=False)  # fmt: skip
        note(axes, x, y, text, transform="row", va="center", dx=7)
    note(axes, share * 1.75, y, "shaded: base · ρ: rank correlation with it", transform="row",
          va="center")  # fmt: skip
