"""`bridgex sweep status DIR` and the dry run: what there is to do, and how far it is.

Everything follows from the units' manifests and the records beside them. There is no log to be
appended to: object stores cannot append, and a kill would leave it torn or short, while manifests
and records are whole or not there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bridgex_jax.errors import InputError
from bridgex_jax.pipelines.select import SelectSettings
from bridgex_jax.pipelines.sweep.estimates import Work, measured_rate
from bridgex_jax.pipelines.sweep.units import (
    CountUnit,
    EvaluateUnit,
    SelectUnit,
    Unit,
    settings_title,
)
from bridgex_jax.store.manifest import read_manifest
from bridgex_jax.store.sweeps import SweepDirectory, is_silent

COMPLETE, FAILED, RUNNING, WAITING = "complete", "failed", "running", "waiting"


@dataclass(frozen=True)
class Status:
    """Rows: key, kind, title, settings, tokens, flops, state, reason, where, stage, seconds."""

    place: str
    rows: tuple[dict[str, Any], ...]

    def number(self, state: str) -> int:
        return sum(row["state"] == state for row in self.rows)

    @property
    def spent(self) -> float:
        """Seconds of work in the units that are complete."""
        return sum(row["seconds"] or 0.0 for row in self.rows)

    @property
    def left(self) -> float | None:
        """Seconds of work that are left, at the speed so far; None where that is not known."""
        rate = measured_rate(self.rows)
        todo = [row for row in self.rows if row["state"] in (RUNNING, WAITING)]
        seconds = [rate.seconds(row["kind"], row["flops"]) for row in todo]
        return None if None in seconds else sum(s for s in seconds if s is not None)

    def to_json(self) -> dict[str, Any]:
        states = (COMPLETE, FAILED, RUNNING, WAITING)
        return {
            "sweep": self.place,
            "units": len(self.rows),
            **{state: self.number(state) for state in states},
            "seconds_spent": round(self.spent, 3),
            "seconds_left": None if self.left is None else round(self.left, 1),
            "rows": list(self.rows),
        }

    def text(self, *, every_unit: bool = False) -> str:
        """For people; every_unit: also those that are complete or wait."""
        states = (COMPLETE, FAILED, RUNNING, WAITING)
        counts = ", ".join(f"{self.number(state)} {state}" for state in states)
        flops = sum(row["flops"] or 0.0 for row in self.rows)
        lines = [f"{self.place}: {len(self.rows)} units, {counts}; {flops / 1e12:.3g} TFLOP"]
        for row in self.rows:
            if every_unit or row["state"] in (FAILED, RUNNING):
                lines.append(_line(row))
        left = f"about {duration(self.left)} left" if self.left is not None else "time unknown"
        lines.append(f"{duration(self.spent)} of work done, {left} (of one worker)")
        return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    what = " ".join(filter(None, (row["title"], row["settings"])))
    cost = "" if row["flops"] is None else f"  {row['tokens']:,} tokens {row['flops'] / 1e12:.3g} T"
    more = {
        FAILED: f"  {row['reason']}",
        RUNNING: f"  {row['stage']} on {row['where']}",
        COMPLETE: f"  {duration(row['seconds'])}" if row["seconds"] is not None else "",
    }.get(row["state"], "")
    return f"  {row['key'][:14]}  {row['state']:<8}  {what}{cost}{more}"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def describe(units: Sequence[Unit], works: Iterable[Work | None]) -> list[dict[str, Any]]:
    """The units as `sweep.json` holds them, for a reader that has neither models nor data."""
    choices = list({u.settings: None for u in units if isinstance(u, SelectUnit)})
    return [
        {
            "key": unit.key,
            "kind": unit.kind,
            "title": f"{unit.title} of {unit.model.title}",
            "settings": _settings_title(unit, choices),
            "inputs": [pin.name for pin in unit.pins],
            "tokens": work.tokens if work else None,
            "flops": work.flops if work else None,
        }
        for unit, work in zip(units, works, strict=True)
    ]


def _settings_title(unit: Unit, choices: Sequence[SelectSettings]) -> str:
    if isinstance(unit, CountUnit):
        return ""
    select = unit.select if isinstance(unit, EvaluateUnit) else unit
    return settings_title(select.settings, choices)


def read_status(directory: str) -> Status:
    """The status of a sweep from its directory alone. Raises InputError where there is none."""
    sweep = SweepDirectory(directory)
    index = sweep.read()
    if index is None:
        remedy = "give the --out of bridgex sweep"
        raise InputError("holds no sweep (no sweep.json)", file=directory, remedy=remedy)
    return status_of(sweep, index["units"])


def status_of(sweep: SweepDirectory, units: Iterable[dict[str, Any]]) -> Status:
    """The status of units as `describe` gives them."""
    finished, failures = sweep.finished(), sweep.failures()
    lowered = sweep.lowered()
    running = {r["unit"]: r for r in sweep.running() if not is_silent(r)}
    rows = []
    for unit in units:
        key = unit["key"]
        made = lowered.get(key, {}).get("made") or key
        row = unit | {"state": WAITING, "reason": None, "where": None, "stage": None}
        row |= {"made": made, "seconds": None}
        if made in finished:
            row |= {"state": COMPLETE, "seconds": _seconds(sweep, made)}
        elif key in running:
            sign = running[key]
            row |= {"state": RUNNING, "where": sign["host"], "stage": _stage(sign)}
        elif key in failures:
            row |= {"state": FAILED, "reason": failures[key]["reason"]}
        rows.append(row)
    return Status(str(sweep.root), tuple(rows))


def _seconds(sweep: SweepDirectory, key: str) -> float | None:
    try:
        return sum(read_manifest(sweep.unit(key))["timings"].values())
    except (InputError, KeyError):
        return None


def _stage(sign: dict[str, Any]) -> str:
    if not sign.get("total"):
        return "starting"
    return f"{sign['stage']} {sign['done']}/{sign['total']}"
