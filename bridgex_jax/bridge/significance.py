"""How sure the choice of a bridge is: a bootstrap over the words and a permutation null.

Both see whole means over layers, hold the neuron sets, standardisation and bandwidths, and batch
all replicates of a layer. Intervals are conditional on the neuron sets. Source: spec hsic-core,
Resampling. Axes: L layer, F neuron, G bridge, N words, B replicates.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from bridgex_jax.kernels.hsic import plan as plans
from bridgex_jax.kernels.hsic.cholesky import centred_factors
from bridgex_jax.kernels.hsic.resampling import (
    FactorSet,
    bootstrap_scores,
    factor_set,
    permuted_values,
)
from bridgex_jax.kernels.hsic.score import (
    released_score,
    size_matched_score,
    subset_maximum_weights,
)

from .choice import checked_window, mean_weights, weighted_means
from .sets import Block, SpectrumSettings
from .spectrum import PairScores

PERMUTATIONS_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class BootstrapResult:
    """Draws [B, G] of every bridge's mean score, NaN for bridges that are not comparable.

    point holds the full-sample means; intervals the central 95 %; p_best the share of draws in
    which a bridge is the best.
    """

    bridges: tuple[str, ...]
    draws: Float[np.ndarray, "B G"]
    point: Float[np.ndarray, " G"]
    intervals: dict[str, tuple[float, float]]
    p_best: dict[str, float]

    def tied_with(self, bridge: str) -> tuple[str, ...]:
        """Bridges whose distance to `bridge` has 0 in its central 95 %, or that lead it."""
        own = self.draws[:, self.bridges.index(bridge)]
        return tuple(
            other
            for g, other in enumerate(self.bridges)
            if other != bridge
            and other in self.intervals
            and float(np.quantile(own - self.draws[:, g], 0.025)) <= 0
        )


@dataclasses.dataclass(frozen=True)
class PermutationResult:
    """p_values of every comparable bridge against the largest mean of a permutation.

    observed [G] are the means that were compared, from the same low-rank kernels as the null
    [B, G]; lost is the largest share of a kernel's squared norm that the low rank leaves out.
    """

    bridges: tuple[str, ...]
    p_values: dict[str, float]
    observed: Float[np.ndarray, " G"]
    null: Float[np.ndarray, "B G"]
    lost: float


@dataclasses.dataclass(frozen=True)
class _Chosen:
    """The blocks of the layers that count with their values, and the layers' weights.

    sizes: padded n1, n2 and n2 of a single bridge, alike for all pairs.
    """

    blocks: tuple[tuple[Block, Float[np.ndarray, "n1 n2"]], ...]
    weights: Float[np.ndarray, "G L"]
    sizes: tuple[int, int, int]


def _chosen_layers(scores: PairScores, window: Sequence[int] | None) -> _Chosen:
    present = ~np.isnan(scores.spectrum.score)
    layers = checked_window(window, present.shape[1])
    weights = mean_weights(present, layers, scores.settings.compat)
    pairs = zip(scores.sets.blocks, scores.values, strict=True)
    kept = ((b, values) for b, values in pairs if weights[list(b.bridges), b.layer].any())
    n1, n2, single = scores.widest[layers].max(axis=0).tolist()
    return _Chosen(tuple(kept), weights, (plans.bucket(n1), plans.bucket(n2), plans.bucket(single)))


def score_coefficients(
    values: Float[np.ndarray, "n1 n2"], matched: int
) -> Float[np.ndarray, "n1 n2"]:
    """C with sum_ij C_ij S_ij = the score of values S: the best matches, fixed.

    matched is the subset size of the size-matched score, 0 for the released one. The row maximum
    over random subsets is a fixed mixture of the row's ordered values.
    """
    n1, n2 = values.shape
    coefficients = np.zeros((n1, n2))
    order = np.argsort(-values, axis=1, kind="stable")
    weights = subset_maximum_weights(n2, matched or n2)
    np.put_along_axis(coefficients, order, 0.5 * weights[None, :] / n1, axis=1)
    coefficients[values.argmax(axis=0), np.arange(n2)] += 0.5 / n2
    return coefficients


def bootstrap(
    scores: PairScores, window: Sequence[int] | None = None, *, n: int = 1000, seed: int = 0
) -> BootstrapResult:
    """n bootstrap draws over the probe words of every bridge's mean score over the window.

    A draw reweights pairs of *distinct* words (a word drawn twice does not meet its copy) in
    kernels centred on the full sample; every neuron's matches stay those of the full sample. The
    same words are drawn in all layers. Raises InputError for layers that do not exist.
    """
    chosen, names = _chosen_layers(scores, window), scores.spectrum.bridges
    n_words = len(scores.sets.strata)
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(n_words, np.full(n_words, 1 / n_words), size=n)
    weights = np.concatenate([np.ones((1, n_words)), counts]).T.astype(np.float32)  # [N, 1 + B]
    drawn = np.full((n + 1, *scores.spectrum.score.shape), np.nan)
    size = (chosen.sizes[0], chosen.sizes[2])
    for block, values in chosen.blocks:
        matched = int(scores.sets.matched[block.layer])
        of_block = _block_draws(block, values, matched, weights, size, scores.settings)
        drawn[:, list(block.bridges), block.layer] = of_block.T
    means = weighted_means(drawn, chosen.weights)
    return _summary(names, means[1:], means[0])


def _block_draws(
    block: Block,
    values: Float[np.ndarray, "n1 n2"],
    matched: int,
    weights: Float[np.ndarray, "N B"],
    size: tuple[int, int],
    settings: SpectrumSettings,
) -> Float[np.ndarray, "b B"]:
    """Scores of the block's bridges for all weights; each bridge's rows apart, padded to `size`."""
    n1, n_words = block.x.shape
    to_x, to_y = size
    missing = -n_words % 32
    y = np.zeros((len(block.member), to_y, n_words + missing), np.float32)
    sigma_y = np.ones((len(block.member), to_y), np.float32)
    own = np.zeros((2, len(block.member), to_x, to_y), np.float32)  # C and S
    for g, member in enumerate(block.member):
        n2 = int(member.sum())
        y[g] = plans.pad_rows(block.y[member], to_y, missing)
        sigma_y[g] = plans.pad_sigma(block.sigma_y[member], to_y)
        own[0, g, :n1, :n2] = score_coefficients(values[:, member], matched)
        own[1, g, :n1, :n2] = values[:, member]
    cancels = max(block.sigma_x.max(), block.sigma_y.max()) > plans.CANCELLATION_SIGMA
    drawn = bootstrap_scores(
        plans.pad_rows(block.x, to_x, missing),
        y,
        plans.pad_sigma(block.sigma_x, to_x),
        sigma_y,
        np.pad(np.ones(n_words, np.float32), (0, missing)),
        *own,
        np.pad(weights, ((0, missing), (0, 0))),
        estimator=settings.estimator,
        tile=32,
        precision="highest",
        cancels=bool(cancels),
        epsilon=block.epsilon,
    )
    return np.asarray(drawn, np.float64)


def _summary(
    names: tuple[str, ...], draws: Float[np.ndarray, "B G"], point: Float[np.ndarray, " G"]
) -> BootstrapResult:
    compared = np.flatnonzero(~np.isnan(point))
    intervals = {}
    p_best = dict.fromkeys(names, 0.0)
    for g in compared:
        low, high = np.quantile(draws[:, g], (0.025, 0.975))
        intervals[names[g]] = (float(low), float(high))
    if compared.size:
        best = compared[draws[:, compared].argmax(axis=1)]
        p_best |= {names[g]: float((best == g).mean()) for g in compared}
    return BootstrapResult(names, draws, point, intervals, p_best)


def stratified_permutations(
    strata: Int[np.ndarray, " N"], n: int, seed: int
) -> Int[np.ndarray, "n N"]:
    """n random orders of the words, each within its stratum (`pool_strata` labels)."""
    generator = np.random.default_rng(seed)
    orders = np.tile(np.arange(len(strata)), (n, 1))
    for label in np.unique(strata):
        words = np.flatnonzero(strata == label)
        orders[:, words] = generator.permuted(np.tile(words, (n, 1)), axis=1)
    return orders


def permutation_test(
    scores: PairScores, window: Sequence[int] | None = None, *, n: int = 200, seed: int = 0
) -> PermutationResult:
    """Permute the words of the shared neurons within strata of the token count, n times.

    Every pair is recomputed and re-matched. A bridge's p-value is the share of permutations,
    itself included, whose *largest* mean over the bridges reaches the bridge's own, which holds
    the error over all bridges together. Raises InputError for layers that do not exist.
    """
    chosen, names = _chosen_layers(scores, window), scores.spectrum.bridges
    strata = scores.sets.strata
    orders = np.concatenate(
        [np.arange(len(strata))[None], stratified_permutations(strata, n, seed)]
    )
    drawn = np.full((n + 1, *scores.spectrum.score.shape), np.nan)
    lost = 0.0
    for block, _ in chosen.blocks:
        of_block, left_out = _permuted_scores(block, chosen.sizes[:2], orders, scores)
        drawn[:, list(block.bridges), block.layer] = of_block
        lost = max(lost, left_out)
    means = weighted_means(drawn, chosen.weights)
    largest = np.nanmax(means[1:], axis=1, initial=-np.inf)
    p_values = {
        name: float((1 + (largest >= means[0, g]).sum()) / (n + 1))
        for g, name in enumerate(names)
        if not math.isnan(means[0, g])
    }
    return PermutationResult(names, p_values, means[0], means[1:], lost)


def _factors(
    rows: Float[np.ndarray, "n N"], sigma: Float[np.ndarray, " n"], size: int, epsilon: float
) -> tuple[FactorSet, float]:
    """Factors of one side, padded to `size` variables and an even rank; and what they lose."""
    found = centred_factors(plans.host_standardise(rows, epsilon), sigma)
    more, even = size - len(rows), found.centred.shape[1] % 2
    centred = np.pad(found.centred, ((0, more), (0, even), (0, 0)))
    raw_rows = np.pad(found.raw_rows, ((0, more), (0, 0)))
    return factor_set(centred, raw_rows), float(found.lost.max())


def _permuted_scores(
    block: Block, size: tuple[int, int], orders: Int[np.ndarray, "B N"], scores: PairScores
) -> tuple[Float[np.ndarray, "B b"], float]:
    """Scores of the block's bridges under every order of the words of its shared neurons."""
    x, lost_x = _factors(block.x, block.sigma_x, size[0], block.epsilon)
    y, lost_y = _factors(block.y, block.sigma_y, size[1], block.epsilon)
    n1, n2 = len(block.x), len(block.y)
    parts = -(-len(orders) // PERMUTATIONS_AT_ONCE)
    at_once = -(-len(orders) // parts)
    padded = np.pad(orders, ((0, parts * at_once - len(orders)), (0, 0)), mode="edge")
    drawn = []
    for part in np.split(padded.astype(np.int32), parts):
        values = permuted_values(
            x,
            y,
            part,
            estimator=scores.settings.estimator,
            precision="highest",
        )
        own = np.asarray(values)[:, :n1, :n2]
        drawn.append(_block_scores(block, own, scores))
    return np.concatenate(drawn, axis=1)[:, : len(orders)].T, max(lost_x, lost_y)


def _block_scores(
    block: Block, values: Float[np.ndarray, "B n1 n2"], scores: PairScores
) -> Float[np.ndarray, "b B"]:
    """Scores of the block's bridges from HSIC values."""
    matched = int(scores.sets.matched[block.layer])
    found = []
    for member in block.member:
        own = values[..., member]
        found.append(size_matched_score(own, matched) if matched else released_score(own))
    return np.stack(found)
