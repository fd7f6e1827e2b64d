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
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Bool, Float, Int

from bridgex_jax.kernels.hsic import api
from bridgex_jax.kernels.hsic import plan as plans
from bridgex_jax.kernels.hsic.batch import SetPairs, SetScores, pair_axes, score_set_pairs
from bridgex_jax.kernels.hsic.plan import Plan, Rung
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
    the sets, `collapsed_bandwidths`, and `ran_exact`, `ran_features`, …: layers by implementation.
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


@dataclasses.dataclass
class _Job:
    """A block, whose it is, and what came of it."""

    pair: int
    block: Block
    matched: int
    score: Float[np.ndarray, " b"] = dataclasses.field(default_factory=lambda: np.zeros(0))
    values: tuple[Float[np.ndarray, "n1 n2"], ...] = ()  # of the block, or of each bridge
    sigma: Float[np.ndarray, " b"] | None = None  # each bridge's own, if so
    ran: str = ""

    @property
    def sizes(self) -> tuple[int, int, int]:
        """n1, n2 and N."""
        return len(self.block.x), len(self.block.y), self.block.x.shape[1]

    @property
    def released(self) -> bool:
        """Whether the bandwidth is the released one, each bridge's own."""
        return self.block.epsilon > 0

    @property
    def collapsed(self) -> Bool[np.ndarray, " b"]:
        """Bridges whose released bandwidth is that of a row and itself: every entry is N - 1."""
        if self.sigma is None:
            return np.zeros(len(self.block.bridges), bool)
        return self.sigma <= 2 * self.block.epsilon


def score_pairs(
    pairs: Sequence[ProbedPair],
    settings: SpectrumSettings | None = None,
    mesh: Mesh | None = None,
    *,
    progress: Callable[[int], object] = lambda layers: None,
) -> list[PairScores]:
    """`language_spectrum` of many pairs at once, sharded over any mesh (kernels/hsic/batch.py).

    Blocks of like size run together, by the cheapest implementation first; those whose error it
    does not certify go on to the next. progress: called with the number of layers (of any pair)
    that are done. Raises ValueError for an implementation that the devices lack, and for a low
    rank that was asked for and certifies nothing.
    """
    settings = (settings or SpectrumSettings()).resolved()
    api.check_platform(settings.implementation)
    sets = [layer_sets(pair.probe, pair.shared, pair.bridges, settings) for pair in pairs]
    jobs = [
        _Job(p, block, int(one.matched[block.layer]))
        for p, one in enumerate(sets)
        for block in one.blocks
    ]
    progress(sum(len(pair.probe.values) for pair in pairs) - len(jobs))  # layers without a block
    for group in group_by_size([job.sizes for job in jobs]):
        some = [jobs[i] for i in group]
        _solve(some, _rungs(some, settings), settings, mesh)
        progress(len(some))
    widest = np.zeros((max((len(pair.probe.values) for pair in pairs), default=0), 3), np.int64)
    for job in jobs:
        sizes = (*job.sizes[:2], job.block.member.sum(axis=1).max())
        widest[job.block.layer] = np.maximum(widest[job.block.layer], sizes)
    return [
        _of_pair(pair, one, [job for job in jobs if job.pair == p], settings, widest)
        for p, (pair, one) in enumerate(zip(pairs, sets, strict=True))
    ]


def _of_pair(
    pair: ProbedPair,
    sets: LayerSets,
    jobs: Sequence[_Job],
    settings: SpectrumSettings,
    widest: Int[np.ndarray, "L 3"],
) -> PairScores:
    """One pair's spectrum; where the bandwidth collapsed it is missing, except under `compat`."""
    score = np.full((len(pair.bridges), len(pair.probe.values)), np.nan)
    for job in jobs:
        kept = ~job.collapsed | (settings.compat is not None)
        score[np.array(job.block.bridges)[kept], job.block.layer] = job.score[kept]
    notes = dict(sets.notes)
    if collapsed := sum(int(job.collapsed.sum()) for job in jobs):
        notes["collapsed_bandwidths"] = collapsed
    notes |= sorted(Counter(f"ran_{job.ran}" for job in jobs).items())
    bridges = tuple(pair.bridges)
    spectrum = Spectrum(bridges, score, sets.n_shared, sets.n_bridge, sets.matched, notes)
    blocks = tuple(block for job in jobs for block in _with_bandwidths(job))
    sets = dataclasses.replace(sets, blocks=blocks)
    values = tuple(values for job in jobs for values in job.values)
    return PairScores(spectrum, sets, settings, values, widest)


def _solve(
    group: Sequence[_Job], left: Sequence[Rung], settings: SpectrumSettings, mesh: Mesh | None
) -> None:
    """Runs every job of the group by the first rung that certifies it."""
    if not left:
        raise ValueError(
            f"implementation: no rank certifies {settings.implementation} to {plans.TOLERANCE:g}; "
            "take exact"
        )
    rung, *left = left
    bounds = _run_group(group, rung, settings, mesh)
    if rung.implementation not in plans.LOW_RANK:
        return
    missed: dict[tuple[Rung, ...], list[_Job]] = {}
    for bound, job in zip(bounds, group, strict=True):
        largest = np.concatenate([values.ravel() for values in job.values])
        relative = plans.relative_bound(bound, largest)
        if relative > plans.TOLERANCE:
            rest = tuple(plans.worth_trying(left, rung, relative))
            missed.setdefault(rest, []).append(job)
    for rest, some in missed.items():
        _solve(some, rest, settings, mesh)


def _rungs(group: Sequence[_Job], settings: SpectrumSettings) -> list[Rung]:
    """What to try for the group, by its largest sizes; `cholesky` cannot meet the tolerance."""
    n1, n2, n_words = (max(sizes) for sizes in zip(*(job.sizes for job in group), strict=True))
    return plans.rungs(
        (n1, n2, n_words),
        None if group[0].released else _sigma_range(group)[0],
        implementation=settings.implementation,
    )


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
        return len(group) * plans.exact_cost(*largest)

    def cut(group: list[int]) -> list[list[int]]:
        work, whole = sum(plans.exact_cost(*sizes[i]) for i in group), padded(group)
        if whole <= MAX_PADDING * work or whole - work < COMPILATION_FLOPS:
            return [group]
        at = min(range(1, len(group)), key=lambda k: padded(group[:k]) + padded(group[k:]))
        return cut(group[:at]) + cut(group[at:])

    return cut(order)


def _run_group(
    group: Sequence[_Job], rung: Rung, settings: SpectrumSettings, mesh: Mesh | None
) -> list[float]:
    """Runs the group in calls of one shape; every job takes its score, values and bandwidths.

    Returns the jobs' error bounds.
    """
    n1, n2, n_words = (max(sizes) for sizes in zip(*(job.sizes for job in group), strict=True))
    n1, n2 = plans.round_up(n1, SIZE_MULTIPLE), plans.round_up(n2, SIZE_MULTIPLE)
    n_words = plans.round_up(n_words, 32)
    epsilon = group[0].block.epsilon
    fields = Plan(
        None,
        None,
        None,
        estimator=settings.estimator,
        implementation=rung.implementation,
        rank=rung.rank,
        tile=plans.tile_size(n1, n2, n_words),
        epsilon=epsilon,
        cancels=epsilon > 0 or _sigma_range(group)[1] > plans.CANCELLATION_SIGMA,
    )
    devices = math.prod(mesh.shape[axis] for axis in pair_axes(mesh)) if mesh else 1
    most = max(1, BATCH_BYTES // (4 * n_words * (n1 + n2))) * devices
    calls = -(-len(group) // most)
    size = plans.round_up(-(-len(group) // calls), devices)
    bounds: list[float] = []
    for start in range(0, len(group), size):
        some = group[start : start + size]
        stacked = _stack(some, fields, size, n1, n2, n_words)
        found = _call(stacked, settings.size_matching, mesh)
        assert found.values is not None
        for row, job in enumerate(some):
            rows, columns, _ = job.sizes
            job.score = found.score[row, : len(job.block.bridges)]
            job.ran = rung.implementation
            if found.sigma is None:
                job.values = (found.values[row, :rows, :columns],)
            else:
                job.sigma = found.sigma[row, : len(job.block.bridges)]
                counts = job.block.member.sum(axis=1)
                job.values = tuple(found.values[row, g, :rows, :n] for g, n in enumerate(counts))
        bounds += found.bound[: len(some)].tolist()
    return bounds


def _with_bandwidths(job: _Job) -> Iterator[Block]:
    """The block; where bandwidths are each bridge's own, one for every bridge."""
    block = job.block
    if job.sigma is None:
        yield block
        return
    for bridge, member, sigma in zip(block.bridges, block.member, job.sigma, strict=True):
        y = block.y[member]
        yield dataclasses.replace(
            block,
            bridges=(bridge,),
            y=y,
            sigma_x=np.full(len(block.x), sigma),
            sigma_y=np.full(len(y), sigma),
            member=np.ones((1, len(y)), bool),
        )


def _sigma_range(group: Sequence[_Job]) -> tuple[float, float]:
    sigma = np.concatenate([np.r_[job.block.sigma_x, job.block.sigma_y] for job in group])
    return float(sigma.min()), float(sigma.max())


def _stack(
    jobs: Sequence[_Job], fields: Plan, size: int, n1: int, n2: int, n_words: int
) -> SetPairs:
    """Blocks side by side, padded; entries after the last are empty."""
    groups = max(len(job.block.member) for job in jobs)
    widest = max(int(job.block.member.sum(axis=1).max()) for job in jobs)
    width = plans.round_up(widest, SIZE_MULTIPLE)
    released = fields.epsilon > 0  # such bandwidths are made on the device
    plan = dataclasses.replace(
        fields,
        sigma_x=None if released else np.ones((size, n1), np.float32),
        sigma_y=None if released else np.ones((size, n2), np.float32),
        words=np.ones((size, n_words), np.float32),
    )
    stacked = SetPairs(
        x=np.zeros((size, n1, n_words), np.float32),
        y=np.zeros((size, n2, n_words), np.float32),
        plan=plan,
        n_rows=np.zeros(size, np.int32),
        columns=np.full((size, groups, width), -1, np.int32),
        weights=np.zeros((size, groups, width), np.float32),
    )
    for row, job in enumerate(jobs):
        block = job.block
        more = n_words - block.x.shape[1]
        plans.put_rows(block.x, stacked.x[row])
        plans.put_rows(block.y, stacked.y[row])
        if not released:
            plan.sigma_x[row] = plans.pad_sigma(block.sigma_x, n1)
            plan.sigma_y[row] = plans.pad_sigma(block.sigma_y, n2)
        plan.words[row, n_words - more :] = 0.0
        stacked.n_rows[row] = len(block.x)
        for g, member in enumerate(block.member):
            own = np.flatnonzero(member)
            stacked.columns[row, g, : len(own)] = own
            stacked.weights[row, g, : len(own)] = subset_maximum_weights(
                len(own), job.matched or len(own)
            )
    return stacked


def _call(pairs: SetPairs, matched: bool, mesh: Mesh | None) -> SetScores:
    """The batch's scores and values on the host of every process."""
    how = {"matched": matched, "with_values": True}
    if mesh is None:
        return jax.device_get(score_set_pairs(pairs, **how))
    sharding = NamedSharding(mesh, P(pair_axes(mesh)))
    found = score_set_pairs(jax.device_put(pairs, sharding), mesh, **how)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(found, tiled=True)
    return jax.device_get(found)
