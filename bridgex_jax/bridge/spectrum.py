"""The language spectrum of a pair: how strongly each bridge's neurons depend on the shared ones.

Per layer and bridge, HSIC between every shared neuron and every neuron of the bridge over the
probe words, summed up into one score. Source: spec bridgex-icl, Stage 6, and hsic-core. Axes:
L layer, F neuron, G bridge, N words; n1 shared and n2 bridge neurons.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from bridgex_jax.kernels.hsic import api, released_score, size_matched_score

from .sets import Block, LayerSets, ProbeValues, SpectrumSettings, layer_sets

__all__ = ["ProbeValues", "Spectrum", "SpectrumSettings", "language_spectrum"]

MAX_PADDING_COST = 2.0  # beyond it another compilation (about a second) is the lesser cost


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """Scores of the bridges by layer, NaN where a bridge is missing; layers keep their ids.

    n_shared and n_bridge count the neurons in use; matched is the subset size m of the
    size-matched score (0 without). notes: `constant_neurons` and `zero_median_neurons` that left
    the sets, `collapsed_bandwidths`, and `ran_exact`, `ran_features`: kernel calls by
    implementation.
    """

    bridges: tuple[str, ...]
    score: Float[np.ndarray, "G L"]
    n_shared: Int[np.ndarray, " L"]
    n_bridge: Int[np.ndarray, "G L"]
    matched: Int[np.ndarray, " L"]
    notes: dict[str, int]


def language_spectrum(
    probe: ProbeValues,
    shared: Bool[np.ndarray, "L F"],
    bridges: Mapping[str, Bool[np.ndarray, "L F"]],
    settings: SpectrumSettings | None = None,
) -> Spectrum:
    """Score every bridge in every layer (spec bridgex-icl, Stage 6).

    shared: neurons that source and target share; bridges: each bridge's own neurons, disjoint
    from them. A layer is missing for a bridge where one of the two sets is empty, under size
    matching where the bridge has fewer than 4 neurons, and where the released bandwidth
    collapses. Raises InputError for sets that overlap and for fewer than 4 words.
    """
    settings = (settings or SpectrumSettings()).resolved()
    sets = layer_sets(probe, shared, bridges, settings)
    score = np.full((len(bridges), len(probe.values)), np.nan)
    notes = dict(sets.notes)
    for block, values, implementation in block_values(sets.blocks, settings):
        name = f"ran_{implementation}"
        notes[name] = notes.get(name, 0) + 1
        score[list(block.bridges), block.layer] = block_scores(block, values, sets, settings)
    return Spectrum(tuple(bridges), score, sets.n_shared, sets.n_bridge, sets.matched, notes)


def block_scores(
    block: Block,
    values: Float[np.ndarray, "... n1 n2"],
    sets: LayerSets,
    settings: SpectrumSettings,
) -> Float[np.ndarray, "b ..."]:
    """Scores of the block's bridges from HSIC values; leading axes (replicates) stay."""
    scores = []
    for member in block.member:
        own = values[..., member]
        if settings.size_matching:
            scores.append(size_matched_score(own, int(sets.matched[block.layer])))
        else:
            scores.append(released_score(own))
    return np.stack(scores)


def common_sizes(sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Padded sizes (n1, n2) for ragged ones: one for all, unless that multiplies the work.

    XLA compiles once for every size, which costs as much as some dozens of layers of a small
    model.
    """
    own = [(api.bucket(n1), api.bucket(n2)) for n1, n2 in sizes]
    if not own:
        return []
    largest = (max(n1 for n1, _ in own), max(n2 for _, n2 in own))
    together = len(own) * api.exact_cost(*largest, 1)
    apart = sum(api.exact_cost(n1, n2, 1) for n1, n2 in own)
    return [largest] * len(own) if together <= MAX_PADDING_COST * apart else own


def block_plan(block: Block, settings: SpectrumSettings) -> api.Plan:
    """How HSIC of the block runs; its bandwidths are given."""
    z_x, z_y = (api.host_standardise(part, block.epsilon) for part in (block.x, block.y))
    chosen = api.choose_implementation(
        z_x, z_y, block.sigma_x, block.sigma_y, implementation=settings.implementation
    )
    return api.Plan(
        np.asarray(block.sigma_x, np.float32),
        np.asarray(block.sigma_y, np.float32),
        np.ones(block.x.shape[1], np.float32),
        estimator=settings.estimator,
        epsilon=block.epsilon,
        **chosen,
    )


def block_values(
    blocks: Sequence[Block], settings: SpectrumSettings
) -> list[tuple[Block, Float[np.ndarray, "n1 n2"], str]]:
    """HSIC of every block and the implementation that ran; padded to few sizes and ranks."""
    plans = [block_plan(block, settings) for block in blocks]
    sizes = common_sizes([(len(block.x), len(block.y)) for block in blocks])
    tile = min((plan.tile for plan in plans), default=0)
    cancels = any(plan.cancels for plan in plans)
    results = []
    for block, plan, size in zip(blocks, plans, sizes, strict=True):
        # Everything static that may be shared is: each combination compiles.
        rank = plan.rank and next(r for r in (4, 6, 8, 10, 12) if r >= plan.rank)
        plan = dataclasses.replace(plan, tile=tile, cancels=cancels, rank=rank)
        result = api.run_padded(block.x, block.y, plan, size)
        results.append((block, result.values, plan.implementation))
    return results
