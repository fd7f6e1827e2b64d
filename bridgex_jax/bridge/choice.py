"""From the language spectrum to the bridge: the layer window, the common layers, the argmax.

Source: spec bridgex-icl, Stage 7. Base levels differ between layers, so bridges are compared
over layers that all of them have. Axes: L layer, G bridge.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from bridgex_jax.errors import InputError

from .spectrum import Spectrum

MIN_COVERAGE = 0.5


@dataclasses.dataclass(frozen=True)
class BridgeChoice:
    """The chosen bridge and what it was chosen by.

    means holds each comparable bridge's mean score over `layers`; coverage the share of the
    window in which a bridge is present; margin the lead over the runner-up (NaN without one).
    `bridge` is None where no layer of the window holds every comparable bridge.
    """

    bridge: str | None
    means: dict[str, float]
    margin: float
    coverage: dict[str, float]
    layers: tuple[int, ...]
    not_comparable: tuple[str, ...]
    runner_up: str | None


def layer_window(n_layers: int) -> list[int]:
    """Layers l with 20 L <= 32 (2l + 1) <= 44 L: 10-21 of 32, 9-18 of 28, 2-5 of 8.

    Where there is none, the one or two layers nearest to mid-depth.
    """
    if n_layers < 1:
        raise ValueError(f"n_layers: {n_layers} is not positive")
    inside = [at for at in range(n_layers) if 20 * n_layers <= 32 * (2 * at + 1) <= 44 * n_layers]
    if inside:
        return inside
    distance = [abs(2 * at + 1 - n_layers) for at in range(n_layers)]
    return [at for at in range(n_layers) if distance[at] == min(distance)]


def checked_window(window: Sequence[int] | None, n_layers: int) -> list[int]:
    """The given window, or the default one. Raises InputError for layers that do not exist."""
    if window is None:
        return layer_window(n_layers)
    outside = [at for at in window if not 0 <= at < n_layers]
    if outside or not window:
        raise InputError(
            f"layers {list(window)} of a model with {n_layers}", remedy=f"use 0…{n_layers - 1}"
        )
    return list(dict.fromkeys(window))


def mean_weights(
    present: Bool[np.ndarray, "G L"], window: Sequence[int], compat: str | None
) -> Float[np.ndarray, "G L"]:
    """Weights of the layers in each bridge's mean; a row of zeros is not comparable.

    By default the layers of the window that every comparable bridge has. "paper" takes each
    bridge's own layers; "reference" also renumbers the layers that are left, as the released
    code does, so that its window slides.
    """
    used = np.zeros(present.shape, bool)
    if compat == "reference":
        for bridge, row in enumerate(present):
            left = np.flatnonzero(row)
            used[bridge, left[[position for position in window if position < len(left)]]] = True
    elif compat == "paper":
        used[:, list(window)] = present[:, list(window)]
    else:
        comparable = present[:, list(window)].mean(axis=1) >= MIN_COVERAGE
        if comparable.any():
            common = [at for at in window if present[comparable, at].all()]
            used[np.ix_(comparable, np.asarray(common, int))] = True
    return used / np.maximum(used.sum(axis=1, keepdims=True), 1)


def weighted_means(
    score: Float[np.ndarray, "... G L"], weights: Float[np.ndarray, "G L"]
) -> Float[np.ndarray, "... G"]:
    """Mean score of every bridge, NaN for one without layers."""
    means = np.where(weights > 0, score * weights, 0.0).sum(axis=-1)
    return np.where(weights.any(axis=1), means, np.nan)


def choose_bridge(
    spectrum: Spectrum, window: Sequence[int] | None = None, compat: str | None = None
) -> BridgeChoice:
    """The bridge with the highest mean score over the window (spec bridgex-icl, Stage 7).

    window: layer ids, default `layer_window`. Ties go to the first in the given order. Bridges
    present in under half of the window are not compared; `compat` compares all.
    """
    names = spectrum.bridges
    layers = checked_window(window, spectrum.score.shape[1])
    present = ~np.isnan(spectrum.score)
    weights = mean_weights(present, layers, compat)
    means = weighted_means(spectrum.score, weights)
    coverage = present[:, layers].mean(axis=1)
    enough = (coverage >= MIN_COVERAGE) if compat is None else weights.any(axis=1)
    order = [g for g in np.argsort(-means, kind="stable") if not math.isnan(means[g])]
    return BridgeChoice(
        bridge=names[order[0]] if order else None,
        means={name: float(means[g]) for g, name in enumerate(names) if g in order},
        margin=float(means[order[0]] - means[order[1]]) if len(order) > 1 else math.nan,
        coverage={name: float(coverage[g]) for g, name in enumerate(names)},
        layers=tuple(int(at) for at in np.flatnonzero(weights.any(axis=0))),
        not_comparable=tuple(names[g] for g in np.flatnonzero(~enough)),
        runner_up=names[order[1]] if len(order) > 1 else None,
    )
