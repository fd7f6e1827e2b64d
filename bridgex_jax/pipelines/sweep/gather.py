"""The results of all units as Parquet tables, in the plan's order; no times and no hosts.

Only what the units themselves hold goes in, so whoever gathers, whenever, writes the same bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from bridgex_jax.icl.conditions import ZERO_SHOT
from bridgex_jax.pipelines.evaluate import ANSWERS
from bridgex_jax.pipelines.sweep.units import EvaluateUnit, SelectUnit, Unit
from bridgex_jax.pipelines.sweep.work import actual
from bridgex_jax.report.content import PairReport, read_report
from bridgex_jax.store.manifest import verify_run
from bridgex_jax.store.sweeps import (
    EVALUATION_SCHEMA,
    EVALUATIONS,
    LAYER_SCHEMA,
    LAYERS,
    RESULT_SCHEMA,
    RESULTS,
    SweepDirectory,
    write_table,
)
from bridgex_jax.store.tables import Answer, read_answers


def gather(sweep: SweepDirectory, units: Sequence[SelectUnit], complete: Collection[str]) -> None:
    """Writes the tables of the choices from the units, one of them for each item of the plan.

    complete: keys of units; the others failed, and the tables name them. Raises InputError for a
    unit that is damaged.
    """
    missing = _missing(units, complete)
    lowered = sweep.lowered()
    results: list[dict[str, Any]] = []
    layers: list[dict[str, Any]] = []
    for planned in units:
        if planned.key not in complete:
            continue
        unit = actual(planned, lowered)
        assert isinstance(unit, SelectUnit)
        place = sweep.unit(unit.key)
        pair = read_report(place, verify_run(place)).pairs[0]
        results += (row | _facts(planned, unit) for row in _bridge_rows(unit, pair))
        layers += _layer_rows(unit, pair)
    write_table(sweep.root / LAYERS, LAYER_SCHEMA, layers, missing)
    write_table(sweep.root / RESULTS, RESULT_SCHEMA, results, missing)


def gather_evaluations(
    sweep: SweepDirectory, units: Sequence[EvaluateUnit], complete: Collection[str]
) -> None:
    """Writes the table of the evaluations: see `gather`."""
    lowered = sweep.lowered()
    rows: list[dict[str, Any]] = []
    for planned in units:
        if planned.key not in complete:
            continue
        unit = actual(planned, lowered)
        assert isinstance(unit, EvaluateUnit)
        place = sweep.unit(unit.key)
        choosers = verify_run(place)["inputs"]["choosers"]
        facts = _asked(planned, unit)
        rows += (
            row | facts for row in _condition_rows(unit, read_answers(place / ANSWERS), choosers)
        )
    write_table(sweep.root / EVALUATIONS, EVALUATION_SCHEMA, rows, _missing(units, complete))


def _missing(units: Sequence[Unit], complete: Collection[str]) -> list[str]:
    return sorted({unit.key for unit in units} - set(complete))


def _condition_rows(
    unit: EvaluateUnit, answers: Sequence[Answer], choosers: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """One row for zero-shot and for every bridge, in the plan's order."""
    for condition in (ZERO_SHOT, *unit.pair.bridges):
        found = [answer for answer in answers if answer.condition == condition]
        yield {
            "unit": unit.key,
            "select_unit": unit.select.key,
            "task": unit.task.form.name,
            "model": unit.model.name,
            "source": unit.pair.source,
            "target": unit.pair.target,
            "condition": condition,
            "accuracy": _mean([float(answer.correct) for answer in found]),
            "f1": _mean([answer.f1 for answer in found]),
            "log_probability": _mean([answer.log_probability for answer in found]),
            "questions": len(found),
            "choosers": sorted(name for name, bridge in choosers.items() if bridge == condition),
        }


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean of those that are known; None without any."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _asked(planned: EvaluateUnit, unit: EvaluateUnit) -> dict[str, Any]:
    """How the unit asked: model, settings, batch sizes."""
    settings = unit.settings
    return {
        "revision": unit.model.revision,
        "dtype": unit.model.dtype,
        "model_sha256": unit.count.model_pin.sha256,
        "limit": settings.limit,
        "shots": settings.shots,
        "seed": settings.seed,
        "batch_size": unit.batch_size,
        "planned_batch_size": planned.batch_size,
    }


def _name(unit: SelectUnit, bridge: str) -> dict[str, Any]:
    return {
        "unit": unit.key,
        "model": unit.model.name,
        "source": unit.pair.source,
        "target": unit.pair.target,
        "bridge": bridge,
    }


def _bridge_rows(unit: SelectUnit, pair: PairReport) -> Iterator[dict[str, Any]]:
    """One row for every bridge, in the plan's order."""
    ranking = {row.bridge: row for row in pair.ranking}
    for bridge in unit.pair.bridges:
        row = ranking[bridge]
        yield _name(unit, bridge) | {
            "chosen": bridge == pair.bridge,
            "comparable": row.comparable,
            "score": row.score.value,
            "low": row.score.low,
            "high": row.score.high,
            "p_best": row.p_best,
            "p_value": row.p_value,
            "layers": row.layers,
            "neurons": row.neurons,
            "probe_words": pair.n_words,
            "window_first": pair.window[0],
            "window_last": pair.window[-1],
        }


def _facts(planned: SelectUnit, unit: SelectUnit) -> dict[str, Any]:
    """What the unit was made from: model, data, settings, batch sizes."""
    settings = unit.settings
    same = ("top_rate", "rate_scope", "bridge_set", "top_k", "drop_common", "words",
            "probe_filter", "token_scope", "template", "seed", "resamples",
            "permutations")  # fmt: skip
    spectrum = settings.spectrum.resolved()
    scored = ("estimator", "bandwidth", "size_matching", "length_control", "compat")
    return {
        "count_unit": unit.count.key,
        "revision": unit.model.revision,
        "dtype": unit.model.dtype,
        "model_sha256": unit.count.model_pin.sha256,
        "dictionary_sha256": unit.words_pin.sha256,
        **{name: getattr(settings, name) for name in same},
        **{name: getattr(spectrum, name) for name in scored},
        "tokens": unit.count.settings.tokens,
        "row_length": unit.count.settings.row_length,
        "batch_size": unit.batch_size,
        "planned_batch_size": planned.batch_size,
        "count_batch_size": unit.count.batch_size,
        "planned_count_batch_size": planned.count.batch_size,
    }


def _layer_rows(unit: SelectUnit, pair: PairReport) -> Iterator[dict[str, Any]]:
    spectrum = pair.spectrum
    assert spectrum is not None
    for g, bridge in enumerate(spectrum.bridges):
        for layer in range(spectrum.score.shape[1]):
            yield _name(unit, bridge) | {
                "layer": layer,
                "score": float(spectrum.score[g, layer]),
                "n_shared": int(spectrum.n_shared[layer]),
                "n_bridge": int(spectrum.n_bridge[g, layer]),
            }
