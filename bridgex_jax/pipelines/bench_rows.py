"""What every benchmark returns, and how it is shown: a table, JSON, a roofline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bridgex_jax.kernels.hsic import bench as hsic_bench
from bridgex_jax.report.drawing import to_svg
from bridgex_jax.report.figures import roofline_figure

Row = dict[str, Any]


def bench_row(
    benchmark: str,
    what: str,
    ours: float,
    other: float | None,
    *,
    unit: str = "s",
    ratio: float | None = None,
    target: float | None = None,
    note: str = "",
) -> Row:
    """A row; see `bench.run` for what its fields mean."""
    return {
        "benchmark": benchmark,
        "what": what,
        "ratio": ratio,
        "target": target,
        "ours": ours,
        "other": other,
        "unit": unit,
        "note": note,
    }


def format_table(rows: Sequence[Row]) -> str:
    """The rows as text: the ratio first, columns aligned, notes below their rows."""
    head = ("ratio", "target", "benchmark", "ours", "other", "what")
    lines = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    right = (0, 1, 3, 4)  # columns of numbers
    text = []
    for line, note in zip(lines, ["", *(row["note"] for row in rows)], strict=True):
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        text.append("  ".join(cells).rstrip())
        if note:
            text.append(" " * (sum(widths[:5]) + 10) + note)
    return "\n".join(text)


def _cells(row: Row) -> tuple[str, ...]:
    def number(key: str, unit: str) -> str:
        value = row[key]
        if value is None:
            return "-"
        return f"{value:,.0f} {unit}" if value >= 1000 else f"{value:.3g} {unit}"

    target = "" if row["target"] is None else f">= {row['target']:g}"
    ours, other = (number(key, row["unit"]) for key in ("ours", "other"))
    return number("ratio", "x"), target, row["benchmark"], ours, other, row["what"]


def write_bench(rows: Sequence[Row], directory: Path) -> None:
    """The rows as bench.json and, of `hsic`, a roofline as roofline.svg and roofline.png."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "bench.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
    details = [hsic_bench.Row(**row["detail"]) for row in rows if "detail" in row]
    if details:
        figure = roofline_figure(details)
        (directory / "roofline.svg").write_text(to_svg(figure, "Roofline of the HSIC kernels"))
        figure.savefig(directory / "roofline.png", dpi=160)
