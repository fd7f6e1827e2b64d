"""The results of all units as two Parquet tables, in the plan's order; no times and no hosts.

Only what the units themselves hold goes in, so whoever gathers, whenever, writes the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from bridgex_jax.pipelines.sweep.units import SelectUnit
from bridgex_jax.pipelines.sweep.work import actual
from bridgex_jax.report.content import PairReport, read_report
from bridgex_jax.store.manifest import verify_run
from bridgex_jax.store.sweeps import (
    LAYER_SCHEMA,
    LAYERS,
    RESULT_SCHEMA,
    RESULTS,
    SweepDirectory,
    write_table,
)


def gather(sweep: SweepDirectory, units: Sequence[SelectUnit], missing: Sequence[str]) -> None:
    """Writes both tables from complete units, one of them for each item of the plan.

    missing: keys of the plan's units that failed, which the tables name. Raises InputError for a
    unit that is damaged.
    """
    lowered = sweep.lowered()
    results: list[dict[str, Any]] = []
    layers: list[dict[str, Any]] = []
    for planned in units:
        unit = actual(planned, lowered)
        assert isinstance(unit, SelectUnit)
        place = sweep.unit(unit.key)
        pair = read_report(place, verify_run(place)).pairs[0]
        results += (row | _facts(planned, unit) for row in _bridge_rows(unit, pair))
        layers += _layer_rows(unit, pair)
    write_table(sweep.root / LAYERS, LAYER_SCHEMA, layers, missing)
    write_table(sweep.root / RESULTS, RESULT_SCHEMA, results, missing)


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
