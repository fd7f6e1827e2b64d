"""The language spectrum: how strongly each bridge's neurons depend on the shared ones, by layer.

Per layer and bridge, HSIC between every shared neuron and every neuron of the bridge over the
probe words, summed up into one score. All pairs, bridges and layers go through few compiled calls,
sharded over a mesh. Source: spec bridgex-icl, Stage 6, and hsic-core. Axes: L layer, F neuron,
G bridge, N words; n1 shared and n2 bridge neurons; M blocks of a batch.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Bool, Float, Int

from bridgex_jax.kernels.hsic import api
from bridgex_jax.kernels.hsic.batch import How, SetPairs, SetScores, pair_axes, score_set_pairs
from bridgex_jax.kernels.hsic.score import subset_maximum_weights

from .sets import Block, LayerSets, ProbeValues, SpectrumSettings, layer_sets

__all__ = [
    "PairScores",
    "ProbeValues",
    "ProbedPair",
    "Spectrum",
    "SpectrumSettings",
    "language_spectrum",
    "score_pairs",
]

MAX_PADDING = 1.2  # padded work over work, unless the difference is less than a compilation
COMPILATION_FLOPS = 2e11  # what a CPU could compute while XLA compiles one more shape
BATCH_BYTES = 1 << 28  # of one call's input on each device
SIZE_MULTIPLE = 16  # padded numbers of neurons
RANKS = (4, 6, 8, 10, 12)  # of features: few compilations


@dataclasses.dataclass(frozen=True)
class ProbedPair:
    """One pair of languages: its probe values, its shared neurons, each bridge's own."""

    probe: ProbeValues
    shared: Bool[np.ndarray, "L F"]
    bridges: Mapping[str, Bool[np.ndarray, "L F"]]


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """Scores of the bridges by layer, NaN where a bridge is missing; layers keep their ids.

    n_shared and n_bridge count the neurons in use; matched is the subset size m of the
    size-matched score (0 without). notes: `constant_neurons` and `zero_median_neurons` that left
    the sets, `collapsed_bandwidths`, and `ran_exact`, `ran_features`: blocks by implementation.
    """

    bridges: tuple[str, ...]
    score: Float[np.ndarray, "G L"]
    n_shared: Int[np.ndarray, " L"]
    n_bridge: Int[np.ndarray, "G L"]
    matched: Int[np.ndarray, " L"]
    notes: dict[str, int]


@dataclasses.dataclass(frozen=True)
class PairScores:
    """A spectrum with what it was made from, for resampling.

    values: HSIC [n1, n2] of each of `sets.blocks`. widest [L, 3]: for every layer the largest n1,
    n2 and n2 of a single bridge of all pairs that were scored together, so that resampling
    compiles once for them.
    """

    spectrum: Spectrum
    sets: LayerSets
    settings: SpectrumSettings
    values: tuple[Float[np.ndarray, "n1 n2"], ...]
    widest: Int[np.ndarray, "L 3"]


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
    return score_pairs([ProbedPair(probe, shared, bridges)], settings)[0].spectrum


@dataclasses.dataclass(frozen=True)
class _Job:
    """A block, whose it is, and how it is to run."""

    pair: int
    number: int  # among the pair's blocks
    block: Block
    matched: int
    how: How


def score_pairs(
    pairs: Sequence[ProbedPair],
    settings: SpectrumSettings | None = None,
    mesh: Mesh | None = None,
    *,
    progress: Callable[[int], object] = lambda layers: None,
) -> list[PairScores]:
    """`language_spectrum` of many pairs at once, sharded over any mesh (kernels/hsic/batch.py).

    A block whose low rank turns out not to be certified runs again exactly, unless the settings
    name the implementation. progress: called with the number of layers (of any pair) that are
    done. Raises ValueError for an implementation that the devices lack.
    """
    settings = (settings or SpectrumSettings()).resolved()
    api.check_platform(settings.implementation)
    sets = [layer_sets(pair.probe, pair.shared, pair.bridges, settings) for pair in pairs]
    jobs = [
        _Job(p, b, block, int(one.matched[block.layer]), block_plan(block, settings))
        for p, one in enumerate(sets)
        for b, block in enumerate(one.blocks)
    ]
    scores = [np.full((len(pair.bridges), len(pair.probe.values)), np.nan) for pair in pairs]
    values: list[list[np.ndarray]] = [[np.zeros((0, 0))] * len(one.blocks) for one in sets]
    left = Counter((job.pair, job.block.layer) for job in jobs)
    progress(sum(len(pair.probe.values) for pair in pairs) - len(left))  # layers without blocks
    ran = {(job.pair, job.number): job.how.implementation for job in jobs}
    for group in _groups(jobs):
        uncertain = _run_group(group, mesh, scores, values)
        if uncertain and settings.implementation is None:
            exact = [
                dataclasses.replace(job, how=job.how._replace(implementation="exact", rank=None))
                for job in uncertain
            ]
            _run_group(exact, mesh, scores, values)
            ran |= dict.fromkeys(((job.pair, job.number) for job in exact), "exact")
        left.subtract((job.pair, job.block.layer) for job in group)
        done = [layer for layer, blocks in left.items() if blocks == 0]
        progress(len(done))
        for layer in done:
            del left[layer]
    widest = np.zeros((max((len(pair.probe.values) for pair in pairs), default=0), 3), np.int64)
    for job in jobs:
        sizes = (len(job.block.x), len(job.block.y), job.block.member.sum(axis=1).max())
        widest[job.block.layer] = np.maximum(widest[job.block.layer], sizes)
    results = []
    for p, (pair, one) in enumerate(zip(pairs, sets, strict=True)):
        used = Counter(f"ran_{name}" for (pair_, _), name in ran.items() if pair_ == p)
        notes = one.notes | dict(sorted(used.items()))
        spectrum = Spectrum(
            tuple(pair.bridges), scores[p], one.n_shared, one.n_bridge, one.matched, notes
        )
        results.append(PairScores(spectrum, one, settings, tuple(values[p]), widest))
    return results


def block_plan(block: Block, settings: SpectrumSettings) -> How:
    """How HSIC of the block runs; its bandwidths are given."""
    z_x, z_y = (api.host_standardise(part, block.epsilon) for part in (block.x, block.y))
    chosen = api.choose_implementation(
        z_x, z_y, block.sigma_x, block.sigma_y, implementation=settings.implementation
    )
    rank = chosen["rank"] and next(r for r in RANKS if r >= chosen["rank"])
    return How(
        estimator=settings.estimator,
        epsilon=block.epsilon,
        matched=settings.size_matching,
        **chosen | {"rank": rank},
    )


def _groups(jobs: Sequence[_Job]) -> list[list[_Job]]:
    """Jobs that run in one compiled call: alike in all that is static, and padded alike."""
    by_kind: dict[tuple, list[_Job]] = {}
    for job in jobs:
        by_kind.setdefault((job.how.implementation, job.how.epsilon), []).append(job)
    groups = []
    for kind in by_kind.values():
        sizes = [(len(job.block.x), len(job.block.y), job.block.x.shape[1]) for job in kind]
        groups += [[kind[i] for i in group] for group in group_by_size(sizes)]
    return groups


def group_by_size(sizes: Sequence[tuple[int, int, int]]) -> list[list[int]]:
    """Splits blocks of (n1, n2, N) into groups, each padded to its largest sizes.

    A group is cut in two, where it saves most, while padding adds more than a fifth to the work
    and that is more than compiling one more shape costs.
    """
    if not sizes:
        return []
    order = sorted(range(len(sizes)), key=lambda i: math.prod(sizes[i]))

    def padded(group: Sequence[int]) -> float:
        largest = [max(sizes[i][axis] for i in group) for axis in range(3)]
        return len(group) * api.exact_cost(*largest)

    def cut(group: list[int]) -> list[list[int]]:
        work, whole = sum(api.exact_cost(*sizes[i]) for i in group), padded(group)
        if whole <= MAX_PADDING * work or whole - work < COMPILATION_FLOPS:
            return [group]
        at = min(range(1, len(group)), key=lambda k: padded(group[:k]) + padded(group[k:]))
        return cut(group[:at]) + cut(group[at:])

    return cut(order)


def _run_group(
    group: Sequence[_Job],
    mesh: Mesh | None,
    scores: Sequence[Float[np.ndarray, "G L"]],
    values: Sequence[list[np.ndarray]],
) -> list[_Job]:
    """Runs the group in calls of one shape and puts scores and values where they belong.

    Returns the jobs whose error bound is too wide.
    """
    uncertain = []
    blocks = [job.block for job in group]
    n1 = api.round_up(max(len(block.x) for block in blocks), SIZE_MULTIPLE)
    n2 = api.round_up(max(len(block.y) for block in blocks), SIZE_MULTIPLE)
    n_words = api.round_up(max(block.x.shape[1] for block in blocks), 32)
    first = group[0].how
    ranks = [job.how.rank for job in group if job.how.rank is not None]
    how = first._replace(
        rank=max(ranks, default=None),
        tile=api.tile_size(n1, n2, n_words),
        cancels=any(job.how.cancels for job in group),
    )
    devices = math.prod(mesh.shape[axis] for axis in pair_axes(mesh)) if mesh else 1
    most = max(1, BATCH_BYTES // (4 * n_words * (n1 + n2))) * devices
    calls = -(-len(group) // most)
    size = api.round_up(-(-len(group) // calls), devices)
    for start in range(0, len(group), size):
        some = group[start : start + size]
        found = _call(_stack(some, size, n1, n2, n_words), how, mesh)
        assert found.values is not None
        for row, job in enumerate(some):
            places = list(job.block.bridges)
            scores[job.pair][places, job.block.layer] = found.score[row, : len(places)]
            kept = found.values[row, : len(job.block.x), : len(job.block.y)]
            values[job.pair][job.number] = kept
            if not api.is_certified(found.bound[row], kept):
                uncertain.append(job)
    return uncertain


def _stack(jobs: Sequence[_Job], size: int, n1: int, n2: int, n_words: int) -> SetPairs:
    """Blocks side by side, padded; entries after the last are empty."""
    groups = max(len(job.block.member) for job in jobs)
    widest = max(int(job.block.member.sum(axis=1).max()) for job in jobs)
    stacked = SetPairs(
        x=np.zeros((size, n1, n_words), np.float32),
        y=np.zeros((size, n2, n_words), np.float32),
        sigma_x=np.ones((size, n1), np.float32),
        sigma_y=np.ones((size, n2), np.float32),
        words=np.ones((size, n_words), np.float32),
        n_rows=np.zeros(size, np.int32),
        columns=np.full((size, groups, api.round_up(widest, SIZE_MULTIPLE)), -1, np.int32),
        weights=np.zeros((size, groups, api.round_up(widest, SIZE_MULTIPLE)), np.float32),
    )
    for row, job in enumerate(jobs):
        block = job.block
        more = n_words - block.x.shape[1]
        stacked.x[row] = api.pad_rows(block.x, n1, more)
        stacked.y[row] = api.pad_rows(block.y, n2, more)
        stacked.sigma_x[row] = api.pad_sigma(block.sigma_x, n1)
        stacked.sigma_y[row] = api.pad_sigma(block.sigma_y, n2)
        stacked.words[row, n_words - more :] = 0.0
        stacked.n_rows[row] = len(block.x)
        for g, member in enumerate(block.member):
            own = np.flatnonzero(member)
            stacked.columns[row, g, : len(own)] = own
            stacked.weights[row, g, : len(own)] = subset_maximum_weights(
                len(own), job.matched or len(own)
            )
    return stacked


def _call(pairs: SetPairs, how: How, mesh: Mesh | None) -> SetScores:
    """The batch's scores and values on the host of every process."""
    if mesh is None:
        return jax.device_get(score_set_pairs(pairs, how, with_values=True))
    sharding = NamedSharding(mesh, P(pair_axes(mesh)))
    found = score_set_pairs(jax.device_put(pairs, sharding), how, mesh, with_values=True)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(found, tiled=True)
    return jax.device_get(found)
