"""The language spectrum of one pair: how strongly each bridge depends on the shared neurons.

For every layer, HSIC of every shared neuron with every neuron of a bridge across the probe words,
then one score for the two sets (bridgex-icl Stage 6, hsic-core). With a bandwidth per variable
a layer is computed once for the union of all bridges' neurons. Axes: G bridges, L layers,
F neurons, W words; C = neurons of a layer that were read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from bridgex_jax.bridge.length import strata, within_strata
from bridgex_jax.kernels.hsic import released_score, size_matched_score
from bridgex_jax.kernels.hsic.api import Plan, bucket, make_plan, run_padded
from bridgex_jax.kernels.hsic.bandwidth import variable_median

_variable_median = jax.jit(variable_median)

Compat = Literal["paper", "reference"]
FEWEST_NEURONS = 4  # a size-matched bridge with fewer in a layer is missing there


@dataclass(frozen=True)
class ProbeValues:
    """Probe activations of one pair.

    values: for every layer [C, W]; neurons: their indices, ascending; n_tokens: tokens in scope
    of every probe prompt.
    """

    values: list[Float[np.ndarray, "C W"]]
    neurons: list[Int[np.ndarray, " C"]]
    n_tokens: Int[np.ndarray, " W"]


@dataclass(frozen=True)
class SpectrumSettings:
    """How dependence is measured. `compat` names two fixed sets of choices, see `resolved`."""

    estimator: str = "cka_debiased"
    bandwidth: str = "variable_median"
    size_matching: bool = True
    length_control: str = "strata"
    implementation: str | None = None
    compat: Compat | None = None

    def resolved(self) -> SpectrumSettings:
        """`paper`: biased HSIC, set_median, not size-matched. `reference`: the released code,
        trace_khl, set_median, not size-matched, token counts left in."""
        if self.compat is None:
            return self
        released: dict[str, Any] = {"bandwidth": "set_median", "size_matching": False}
        if self.compat == "paper":
            return replace(self, estimator="biased", **released)
        return replace(self, estimator="trace_khl", length_control="none", **released)


@dataclass(frozen=True)
class Spectrum:
    """score [G, L], NaN where a bridge is missing; n_shared [L] and n_bridge [G, L] neurons used.

    notes: estimator, bandwidth, the implementations that ran, neurons left out by reason.
    """

    bridges: tuple[str, ...]
    score: Float[np.ndarray, "G L"]
    n_shared: Int[np.ndarray, " L"]
    n_bridge: Int[np.ndarray, "G L"]
    notes: dict[str, Any]


@dataclass(frozen=True)
class Layer:
    """One layer, ready for HSIC: rows that vary, and which columns belong to which bridge.

    x [n1, W], y [n2, W]: the shared neurons and the union of the bridges', float64, token counts
    taken out. columns [G, n2]. dropped: neurons without variation.
    """

    index: int
    x: Float[np.ndarray, "n1 W"]
    y: Float[np.ndarray, "n2 W"]
    columns: Bool[np.ndarray, "G n2"]
    dropped: int

    def bridge_rows(self, g: int) -> Float[np.ndarray, "m W"]:
        return self.y[self.columns[g]]


def prepare_layers(
    probe: ProbeValues,
    shared: Bool[np.ndarray, "L F"],
    bridges: Mapping[str, Bool[np.ndarray, "L F"]],
    settings: SpectrumSettings,
) -> Iterator[Layer]:
    """Every layer's rows. Constant rows, and rows whose median distance is 0, leave the sets."""
    control = settings.length_control == "strata"
    stratum = strata(probe.n_tokens) if control else np.zeros(len(probe.n_tokens), np.int64)
    members = np.stack(list(bridges.values()))
    for index, (values, neurons) in enumerate(zip(probe.values, probe.neurons, strict=True)):
        rows = within_strata(values, stratum) if control else values.astype(np.float64)
        is_shared = shared[index, neurons]
        of_bridge = members[:, index, neurons]
        kept = usable_rows(rows, settings.bandwidth)
        wanted = is_shared | of_bridge.any(axis=0)
        in_y = kept & of_bridge.any(axis=0)
        yield Layer(
            index,
            rows[is_shared & kept],
            rows[in_y],
            of_bridge[:, in_y],
            int((wanted & ~kept).sum()),
        )


def usable_rows(rows: Float[np.ndarray, "C W"], bandwidth: str) -> Bool[np.ndarray, " C"]:
    """Rows that vary, and whose median distance is not 0 where that is the bandwidth."""
    if not len(rows):
        return np.zeros(0, bool)
    scale = np.abs(rows).max(axis=1, initial=0.0)
    varies = np.ptp(rows, axis=1) > 1e-6 * scale  # below it lies float32 rounding of a constant
    if bandwidth == "variable_median" and varies.any():
        varies[varies] = median_distances(rows[varies]) > 0
    return varies


def median_distances(rows: Float[np.ndarray, "C W"]) -> Float[np.ndarray, " C"]:
    """Per row the median distance of two words, in standard deviations; 0 where most are equal."""
    z = (rows - rows.mean(axis=1, keepdims=True)) / rows.std(axis=1, ddof=1, keepdims=True)
    padded = np.zeros((bucket(len(z)), z.shape[1]), np.float32)
    padded[: len(z)] = z
    found = np.asarray(_variable_median(padded, np.ones(z.shape[1], np.float32)))[: len(z)]
    return np.where(found > 1e-30, found, 0.0)


def dependence(
    x: Float[np.ndarray, "n1 W"], y: Float[np.ndarray, "n2 W"], settings: SpectrumSettings
) -> tuple[Float[np.ndarray, "n1 n2"], Plan]:
    """S = HSIC of every row of x with every row of y, and the plan that ran."""
    plan = make_plan(
        x,
        y,
        estimator=settings.estimator,
        bandwidth=settings.bandwidth,
        implementation=settings.implementation,
    )
    return np.asarray(run_padded(x, y, plan).values, np.float64), plan


def smallest_set(sizes: Int[np.ndarray, " G"]) -> int:
    """m of the size-matched score: the smallest set that is compared in a layer; 0 if none is."""
    compared = sizes[sizes >= FEWEST_NEURONS]
    return int(compared.min()) if len(compared) else 0


def set_score(s: Float[np.ndarray, "... n1 n2"], m: int | None) -> Float[np.ndarray, "..."]:
    """Released score, or size-matched where m is given; rows and columns of NaN are left out."""
    flat = s.reshape(-1, *s.shape[-2:])
    rows = np.isfinite(flat).any(axis=(0, 2))
    columns = np.isfinite(flat).any(axis=(0, 1))
    left = s[..., rows, :][..., columns]
    if left.shape[-2] == 0 or left.shape[-1] < (m or 1):
        return np.full(s.shape[:-2], np.nan)
    return released_score(left) if m is None else size_matched_score(left, m)


def language_spectrum(
    probe: ProbeValues,
    shared: Bool[np.ndarray, "L F"],
    bridges: Mapping[str, Bool[np.ndarray, "L F"]],
    settings: SpectrumSettings | None = None,
) -> Spectrum:
    """The score of every bridge in every layer.

    Raises ValueError where HSIC does (fewer than 4 words for the debiased estimators).
    """
    settings = (settings or SpectrumSettings()).resolved()
    n_layers = len(probe.values)
    score = np.full((len(bridges), n_layers), np.nan)
    n_shared = np.zeros(n_layers, np.int32)
    n_bridge = np.zeros((len(bridges), n_layers), np.int32)
    ran: set[str] = set()
    dropped = 0
    for layer in prepare_layers(probe, shared, bridges, settings):
        n_shared[layer.index] = len(layer.x)
        n_bridge[:, layer.index] = layer.columns.sum(axis=1)
        dropped += layer.dropped
        if len(layer.x):
            score[:, layer.index], names = _layer_scores(layer, settings)
            ran |= names
    notes = {
        "estimator": settings.estimator,
        "bandwidth": settings.bandwidth,
        "score": f"{settings.estimator}" + (", size-matched" if settings.size_matching else ""),
        "length_control": settings.length_control,
        "compat": settings.compat,
        "implementations": sorted(ran),
        "neurons_without_variation": dropped,
    }
    return Spectrum(tuple(bridges), score, n_shared, n_bridge, notes)


def _layer_scores(
    layer: Layer, settings: SpectrumSettings
) -> tuple[Float[np.ndarray, " G"], set[str]]:
    sizes = layer.columns.sum(axis=1)
    m = smallest_set(sizes) if settings.size_matching else None
    least = FEWEST_NEURONS if settings.size_matching else 1
    present = [g for g in range(len(sizes)) if sizes[g] >= least]
    scores = np.full(len(sizes), np.nan)
    if not present:
        return scores, set()
    if settings.bandwidth == "variable_median":
        s, plan = dependence(layer.x, layer.y, settings)
        for g in present:
            scores[g] = set_score(s[:, layer.columns[g]], m)
        return scores, {plan.implementation}
    ran = set()
    for g in present:
        # Of one or two neurons a side the median distance is 0 and the kernel the identity:
        # every entry is the same number. The released code keeps such a layer.
        if len(layer.x) <= 2 and sizes[g] <= 2 and settings.compat is None:
            continue
        s, plan = dependence(layer.x, layer.bridge_rows(g), settings)
        scores[g] = set_score(s, m)
        ran.add(plan.implementation)
    return scores, ran
