"""How sure a choice is: a bootstrap over the words, and a permutation test within token counts.

hsic-core, Resampling. Standardisation, bandwidths, neuron sets and each neuron's best matches are
held at the full sample, so intervals are conditional on them. The normalisation of CKA follows
the resample to first order. Axes: G bridges, L layers, W words, R resamples or permutations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from bridgex_jax.bridge.choice import choose_bridge
from bridgex_jax.bridge.length import permutations as orders_within
from bridgex_jax.bridge.length import strata
from bridgex_jax.bridge.spectrum import (
    Layer,
    ProbeValues,
    SpectrumSettings,
    dependence,
    language_spectrum,
    prepare_layers,
    set_score,
    smallest_set,
)
from bridgex_jax.kernels.hsic.api import (
    Plan,
    bucket,
    host_standardise,
    make_plan,
    pad_rows,
    pad_sigma,
)
from bridgex_jax.kernels.hsic.cholesky import centred_factors
from bridgex_jax.kernels.hsic.estimators import NORMALISED
from bridgex_jax.kernels.hsic.exact import exp_minus_one
from bridgex_jax.kernels.hsic.resampling import (
    BootstrapSums,
    FactorSet,
    bootstrap_sums,
    factor_set,
    permuted_values,
)
from bridgex_jax.kernels.hsic.score import subset_maximum_weights

PERMUTATIONS_AT_ONCE = 50  # bounds [R, n1, n2]


@dataclass(frozen=True)
class Bootstrap:
    """draws [R, G] of the compared bridges' means; interval: 2.5 and 97.5 %; p_best: share of
    draws in which a bridge is the highest; n = R."""

    bridges: tuple[str, ...]
    draws: Float[np.ndarray, "R G"]
    interval: dict[str, tuple[float, float]]
    p_best: dict[str, float]

    @property
    def n(self) -> int:
        return len(self.draws)

    def tied_with(self, bridge: str, sure: float = 0.95) -> tuple[str, ...]:
        """The bridges that `bridge` does not beat in a share `sure` of the draws."""
        own = self.draws[:, self.bridges.index(bridge)]
        return tuple(
            other
            for g, other in enumerate(self.bridges)
            if other != bridge and float((own > self.draws[:, g]).mean()) < sure
        )


@dataclass(frozen=True)
class PermutationTest:
    """p_values: (1 + permutations whose highest bridge reaches this one) / (R + 1); n = R."""

    p_values: dict[str, float]
    null_maximum: Float[np.ndarray, " R"]

    @property
    def n(self) -> int:
        return len(self.null_maximum)


@dataclass(frozen=True)
class _Compared:
    """What both tests need: the compared bridges, their layers, settings, observed means."""

    bridges: tuple[str, ...]
    columns: list[int]  # of the spectrum's bridges
    layers: list[Layer]
    means: dict[str, float]
    settings: SpectrumSettings

    def size(self, layer: Layer) -> int | None:
        """m of the size-matched score in a layer, as the spectrum has it."""
        sizes = layer.columns.sum(axis=1)
        return smallest_set(sizes) if self.settings.size_matching else None


def _compare(
    probe: ProbeValues,
    shared: Bool[np.ndarray, "L F"],
    bridges: Mapping[str, Bool[np.ndarray, "L F"]],
    settings: SpectrumSettings | None,
    window: Sequence[int] | None,
) -> _Compared:
    resolved = (settings or SpectrumSettings()).resolved()
    spectrum = language_spectrum(probe, shared, bridges, resolved)
    # Both tests run over common layers, whatever `compat` does with them: a comparison needs it.
    choice = choose_bridge(spectrum, window)
    names = tuple(choice.means)
    layers = [
        layer
        for layer in prepare_layers(probe, shared, bridges, resolved)
        if layer.index in choice.layers
    ]
    columns = [spectrum.bridges.index(name) for name in names]
    return _Compared(names, columns, layers, choice.means, resolved)


def bootstrap(
    probe: ProbeValues,
    shared: Bool[np.ndarray, "L F"],
    bridges: Mapping[str, Bool[np.ndarray, "L F"]],
    settings: SpectrumSettings | None = None,
    window: Sequence[int] | None = None,
    *,
    n: int = 1000,
    seed: int = 0,
) -> Bootstrap:
    """Resamples the words n times; the means of all bridges move together. Arguments as for
    `language_spectrum` and `choose_bridge`."""
    compared = _compare(probe, shared, bridges, settings, window)
    n_words = len(probe.n_tokens)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(n_words, np.full(n_words, 1 / n_words), size=n).T
    draws = np.zeros((n, len(compared.bridges)))
    for layer in compared.layers:
        draws += _resampled_layer(layer, compared, weights.astype(np.float32))
    draws /= max(1, len(compared.layers))
    low, high = np.quantile(draws, (0.025, 0.975), axis=0)
    best = np.bincount(draws.argmax(axis=1), minlength=len(compared.bridges)) / n
    return Bootstrap(
        compared.bridges,
        draws,
        {b: (float(low[g]), float(high[g])) for g, b in enumerate(compared.bridges)},
        {b: float(best[g]) for g, b in enumerate(compared.bridges)},
    )


def _resampled_layer(
    layer: Layer, compared: _Compared, weights: Float[np.ndarray, "W R"]
) -> Float[np.ndarray, "R G"]:
    m = compared.size(layer)
    if compared.settings.bandwidth == "variable_median":
        s, plan = dependence(layer.x, layer.y, compared.settings)
        fixed = np.stack([_matches(s, layer.columns[g], m) for g in compared.columns])
        return _weighted(layer.x, layer.y, plan, s, fixed, weights)
    found = []
    for g in compared.columns:
        rows = layer.bridge_rows(g)
        s, plan = dependence(layer.x, rows, compared.settings)
        fixed = _matches(s, np.ones(len(rows), bool), m)[None]
        found.append(_weighted(layer.x, rows, plan, s, fixed, weights)[:, 0])
    return np.stack(found, axis=1)


def _matches(
    s: Float[np.ndarray, "n1 n2"], columns: Bool[np.ndarray, " n2"], m: int | None
) -> Float[np.ndarray, "n1 n2"]:
    """Coefficients that turn S into the score with the best matches of the full sample."""
    own = np.flatnonzero(columns)
    own = own[np.isfinite(s[:, own]).any(axis=0)]
    rows = np.flatnonzero(np.isfinite(s[:, own]).any(axis=1))
    left = s[np.ix_(rows, own)]
    coefficients = np.zeros(left.shape)
    ranked = np.argsort(-left, axis=1, kind="stable")
    shares = subset_maximum_weights(len(own), m) if m is not None else np.eye(1, len(own))[0]
    np.put_along_axis(coefficients, ranked, np.broadcast_to(shares / len(rows), left.shape), axis=1)
    coefficients[left.argmax(axis=0), np.arange(len(own))] += 1 / len(own)
    whole = np.zeros(s.shape)
    whole[np.ix_(rows, own)] = coefficients / 2
    return whole


def _weighted(
    x: Float[np.ndarray, "n1 W"],
    y: Float[np.ndarray, "n2 W"],
    plan: Plan,
    s: Float[np.ndarray, "n1 n2"],
    fixed: Float[np.ndarray, "G n1 n2"],
    weights: Float[np.ndarray, "W R"],
) -> Float[np.ndarray, "R G"]:
    """The groups' scores under the weights; CKA's own values to first order."""
    normalised = plan.estimator in NORMALISED
    unit = np.ones((len(weights), 1), np.float32)
    whole = _sums(x, y, plan, np.zeros_like(fixed), unit)  # for the own values of the sample
    roots = (np.ones(len(x)), np.ones(len(y)))
    if normalised:
        roots = tuple(np.sqrt(np.maximum(own[:, 0], 1e-300)) for own in whole[1:])
    sums = _sums(x, y, plan, fixed / roots[0][None, :, None] / roots[1][None, None, :], weights)
    if not normalised:
        return sums.groups.T
    share = fixed * np.where(np.isfinite(s), s, 0.0)[None]
    moved_x = sums.own_x.T / roots[0] ** 2 - 1
    moved_y = sums.own_y.T / roots[1] ** 2 - 1
    return sums.groups.T - 0.5 * (moved_x @ share.sum(axis=2).T + moved_y @ share.sum(axis=1).T)


def _sums(
    x: Float[np.ndarray, "n1 W"],
    y: Float[np.ndarray, "n2 W"],
    plan: Plan,
    coefficients: Float[np.ndarray, "G n1 n2"],
    weights: Float[np.ndarray, "W R"],
) -> BootstrapSums:
    """`bootstrap_sums` on sets padded to shared shapes, back on the host in float64."""
    n1, n2 = len(x), len(y)
    to_x, to_y = bucket(n1), bucket(n2)
    padded = np.pad(coefficients, ((0, 0), (0, to_x - n1), (0, to_y - n2))).astype(np.float32)
    sums = bootstrap_sums(
        pad_rows(x, to_x),
        pad_rows(y, to_y),
        pad_sigma(plan.sigma_x, to_x),
        pad_sigma(plan.sigma_y, to_y),
        plan.words,
        padded,
        weights,
        estimator=plan.estimator,
        tile=plan.tile,
        precision=plan.precision,
        minus_one=jnp.expm1 if plan.cancels else exp_minus_one,
        epsilon=plan.epsilon,
    )
    groups, own_x, own_y = (np.asarray(part, np.float64) for part in sums)
    return BootstrapSums(groups, own_x[:n1], own_y[:n2])


def permutation_test(
    probe: ProbeValues,
    shared: Bool[np.ndarray, "L F"],
    bridges: Mapping[str, Bool[np.ndarray, "L F"]],
    settings: SpectrumSettings | None = None,
    window: Sequence[int] | None = None,
    *,
    n: int = 499,
    seed: int = 0,
) -> PermutationTest:
    """Moves the words of the shared neurons within their token counts n times, and compares each
    bridge with the highest of all bridges under the null (so p-values are for the best of G)."""
    compared = _compare(probe, shared, bridges, settings, window)
    rng = np.random.default_rng(seed)
    orders = orders_within(strata(probe.n_tokens), n, rng)
    identity = np.arange(orders.shape[1])[None]
    orders = np.concatenate([identity, orders]).astype(np.int32)
    means = np.zeros((n + 1, len(compared.bridges)))
    for layer in compared.layers:
        means += _permuted_layer(layer, compared, orders)
    means /= max(1, len(compared.layers))
    # Row 0 is the sample itself, by the same low-rank factors as its permutations.
    highest = means[1:].max(axis=1)
    p = {
        b: float((1 + (highest >= means[0, g]).sum()) / (n + 1))
        for g, b in enumerate(compared.bridges)
    }
    return PermutationTest(p, highest)


def _permuted_layer(
    layer: Layer, compared: _Compared, orders: np.ndarray
) -> Float[np.ndarray, "R G"]:
    m = compared.size(layer)
    if compared.settings.bandwidth == "variable_median":
        blocks = _permuted(layer.x, layer.y, compared.settings, orders)
        return np.concatenate(
            [
                np.stack([set_score(s[..., layer.columns[g]], m) for g in compared.columns], 1)
                for s in blocks
            ]
        )
    found = []
    for g in compared.columns:
        blocks = _permuted(layer.x, layer.bridge_rows(g), compared.settings, orders)
        found.append(np.concatenate([set_score(s, m) for s in blocks]))
    return np.stack(found, axis=1)


def _permuted(
    x: Float[np.ndarray, "n1 W"],
    y: Float[np.ndarray, "n2 W"],
    settings: SpectrumSettings,
    orders: np.ndarray,
) -> Iterator[Float[np.ndarray, "R n1 n2"]]:
    """S with the words of x in every order, some orders at a time."""
    plan = make_plan(x, y, estimator=settings.estimator, bandwidth=settings.bandwidth)
    left = _factors(x, np.asarray(plan.sigma_x), plan.epsilon)
    right = _factors(y, np.asarray(plan.sigma_y), plan.epsilon)
    for start in range(0, len(orders), PERMUTATIONS_AT_ONCE):
        part = orders[start : start + PERMUTATIONS_AT_ONCE]
        missing = PERMUTATIONS_AT_ONCE - len(part)
        whole = np.concatenate([part, np.repeat(part[:1], missing, axis=0)])
        values = permuted_values(
            left, right, whole, estimator=plan.estimator, precision=plan.precision
        )
        yield np.asarray(values, np.float64)[: len(part), : len(x), : len(y)]


def _factors(
    rows: Float[np.ndarray, "n W"], sigma: Float[np.ndarray, " n"], epsilon: float
) -> FactorSet:
    """Low-rank factors of the rows' Gram matrices, padded to shared shapes."""
    found = centred_factors(host_standardise(rows, epsilon), sigma.astype(np.float64))
    n, rank = found.centred.shape[:2]
    more = bucket(n) - n
    centred = np.pad(found.centred, ((0, more), (0, -rank % 4), (0, 0)))
    return factor_set(centred, np.pad(found.raw_rows, ((0, more), (0, 0))))
