"""The two neuron sets of every layer as matrices that the HSIC kernel takes.

Prompt length is taken out (every neuron regressed on dummies of the token count), neurons that
carry nothing leave, and all bridges of a layer share one matrix where the bandwidth allows it, so
that no neuron is computed twice. Source: spec bridgex-icl, Stages 4-6. Axes: L layer, F neuron,
G bridge, N words; n1 shared and n2 bridge neurons.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from bridgex_jax.errors import InputError
from bridgex_jax.kernels.hsic import api, bandwidth, plan

MIN_STRATUM = 5  # token counts with fewer words are pooled
MIN_MATCHED = 4  # a bridge with fewer neurons in a layer is missing there
FLOAT32_NOISE = 4 * float(np.finfo(np.float32).eps)
LENGTH_CONTROLS = ("strata", "none")
COMPATS = (None, "paper", "reference")


@dataclasses.dataclass(frozen=True)
class SpectrumSettings:
    """How a layer is scored.

    `compat` fixes the four choices above it as published: "paper" is biased HSIC, "reference"
    the released code's trace_khl, both with set_median, without size matching or length control.
    """

    estimator: str = "cka_debiased"
    bandwidth: str | float = "variable_median"
    size_matching: bool = True
    length_control: str = "strata"
    implementation: str | None = None
    compat: str | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("estimator", self.estimator, api.ESTIMATORS),
            ("length_control", self.length_control, LENGTH_CONTROLS),
            ("implementation", self.implementation, (None, *plan.IMPLEMENTATIONS)),
            ("compat", self.compat, COMPATS),
        ):
            if value not in known:
                raise InputError(
                    f"{name} {value!r} is unknown", remedy=f"one of {', '.join(map(str, known))}"
                )

    def resolved(self) -> SpectrumSettings:
        """The settings that `compat` stands for; without it, these."""
        if self.compat is None:
            return self
        return dataclasses.replace(
            self,
            estimator="biased" if self.compat == "paper" else "trace_khl",
            bandwidth="set_median",
            size_matching=False,
            length_control="none",
        )


@dataclasses.dataclass(frozen=True)
class ProbeValues:
    """Activations of the gathered neurons on the probe words of one pair.

    values[l] [n_l, N] belongs to the neurons neurons[l] [n_l] of layer l; strata [N] is the token
    count of every probe word's prompt.
    """

    values: Sequence[Float[np.ndarray, "n_l N"]]
    neurons: Sequence[Int[np.ndarray, " n_l"]]
    strata: Int[np.ndarray, " N"]

    def __post_init__(self) -> None:
        n_words = len(self.strata)
        if len(self.values) != len(self.neurons):
            raise ValueError(f"{len(self.values)} layers of values, {len(self.neurons)} of neurons")
        for layer, (rows, ids) in enumerate(zip(self.values, self.neurons, strict=True)):
            if rows.shape != (len(ids), n_words):
                raise ValueError(
                    f"layer {layer}: values {rows.shape} for {len(ids)} neurons, {n_words} words"
                )


@dataclasses.dataclass(frozen=True)
class Block:
    """Some bridges of one layer against the shared neurons.

    The released bandwidth depends on the bridge and is made with HSIC: NaN until then, and then
    every bridge has a block of its own.
    """

    layer: int
    bridges: tuple[int, ...]  # positions in the given order
    x: Float[np.ndarray, "n1 N"]
    y: Float[np.ndarray, "n2 N"]
    sigma_x: Float[np.ndarray, " n1"]
    sigma_y: Float[np.ndarray, " n2"]
    member: Bool[np.ndarray, "b n2"]  # which rows of y are neurons of which of `bridges`
    epsilon: float  # added to a row's deviation when it is standardised (released code)


@dataclasses.dataclass(frozen=True)
class LayerSets:
    """All layers as blocks, with what was counted on the way."""

    blocks: tuple[Block, ...]
    n_shared: Int[np.ndarray, " L"]
    n_bridge: Int[np.ndarray, "G L"]
    matched: Int[np.ndarray, " L"]  # m of the size-matched score; 0 without
    strata: Int[np.ndarray, " N"]  # labels of `pool_strata`
    notes: dict[str, int]


def pool_strata(token_counts: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    """Labels 0… of token counts; counts with fewer than 5 words form one stratum together."""
    counts, label, size = np.unique(token_counts, return_inverse=True, return_counts=True)
    rare = size < MIN_STRATUM
    merged = np.where(rare, len(counts), np.arange(len(counts)))
    return np.unique(merged[label], return_inverse=True)[1].astype(np.int64)


def remove_stratum_means(
    values: Float[np.ndarray, "n N"], strata: Int[np.ndarray, " N"]
) -> Float[np.ndarray, "n N"]:
    """Residuals of the regression of every row on dummies of the strata, in float64."""
    values = np.asarray(values, np.float64)
    member = (strata[None, :] == np.arange(strata.max() + 1)[:, None]).astype(np.float64)
    means = values @ member.T / member.sum(axis=1)[None, :]
    return values - means @ member


def _rows_of(
    probe: ProbeValues, layer: int, wanted: Bool[np.ndarray, " F"]
) -> Int[np.ndarray, " k"]:
    """Positions in probe.values[layer] of the wanted neurons, in order of their ids."""
    ids = np.asarray(probe.neurons[layer])
    order = np.argsort(ids, kind="stable")
    want = np.flatnonzero(wanted)
    at = np.searchsorted(ids, want, sorter=order)
    held = at < len(ids)
    held[held] = ids[order[at[held]]] == want[held]
    if not held.all():
        raise ValueError(f"layer {layer}: no probe values of neurons {want[~held][:8].tolist()}")
    return order[at]


class _Notes(dict[str, int]):
    def add(self, name: str, count: int) -> None:
        self[name] = self.get(name, 0) + int(count)


def _informative(
    values: Float[np.ndarray, "n N"], residuals: Float[np.ndarray, "n N"]
) -> Bool[np.ndarray, " n"]:
    """Rows that vary by more than the rounding of float32 activations."""
    spread = residuals.std(axis=1, dtype=np.float64)
    finite = np.isfinite(values).all(axis=1)
    return finite & (spread > FLOAT32_NOISE * np.abs(values).max(axis=1, initial=0.0))


def layer_sets(
    probe: ProbeValues,
    shared: Bool[np.ndarray, "L F"],
    bridges: Mapping[str, Bool[np.ndarray, "L F"]],
    settings: SpectrumSettings,
) -> LayerSets:
    """Cut the probe values of one pair into blocks, for resolved settings.

    Neurons that are constant once length is taken out, or whose median distance is 0, leave the
    sets, counted. Raises InputError where a bridge's neurons overlap the shared ones (5 of 30
    alike double a score) unless `compat` asks for it, or where values are not finite.
    """
    n_layers, n_bridges = len(probe.values), len(bridges)
    _check_sets(probe, shared, bridges, settings)
    strata = pool_strata(np.asarray(probe.strata))
    notes = _Notes()
    n_shared = np.zeros(n_layers, np.int64)
    n_bridge = np.zeros((n_bridges, n_layers), np.int64)
    matched = np.zeros(n_layers, np.int64)
    blocks: list[Block] = []
    prepared = _prepared_layers(probe, shared, bridges, strata, settings, notes)
    for layer, (rows, sigma, is_shared, member) in enumerate(prepared):
        n_shared[layer] = is_shared.sum()
        n_bridge[:, layer] = member.sum(axis=1)
        least = MIN_MATCHED if settings.size_matching else 1
        present = np.flatnonzero((n_bridge[:, layer] >= least) & (n_shared[layer] > 0))
        if settings.size_matching and present.size:
            matched[layer] = n_bridge[present, layer].min()
        if present.size:
            epsilon = bandwidth.RELEASED_EPSILON if settings.bandwidth == "set_median" else 0.0
            used = member[present].any(axis=0)
            blocks.append(
                Block(
                    layer,
                    tuple(present.tolist()),
                    rows[is_shared],
                    rows[used],
                    sigma[is_shared],
                    sigma[used],
                    member[present][:, used],
                    epsilon,
                )
            )
    return LayerSets(tuple(blocks), n_shared, n_bridge, matched, strata, dict(notes))


def _check_sets(
    probe: ProbeValues,
    shared: Bool[np.ndarray, "L F"],
    bridges: Mapping[str, Bool[np.ndarray, "L F"]],
    settings: SpectrumSettings,
) -> None:
    if not bridges:
        raise InputError("no bridge to compare", remedy="name at least one bridge language")
    if len(probe.strata) < 4:
        raise InputError(f"{len(probe.strata)} probe words", remedy="use at least 4")
    for name, neurons in bridges.items():
        if neurons.shape != shared.shape or len(shared) != len(probe.values):
            raise ValueError(
                f"{name}: sets of shape {neurons.shape} and {shared.shape}, "
                f"{len(probe.values)} layers of values"
            )
        overlap = int((shared & neurons).sum())
        if overlap and settings.compat is None:
            raise InputError(
                f"bridge {name}: {overlap} neurons are in the shared set too",
                remedy="take the bridge's neurons without those that source and target share",
            )


Prepared = tuple[
    Float[np.ndarray, "n N"],
    Float[np.ndarray, " n"],
    Bool[np.ndarray, " n"],
    Bool[np.ndarray, "G n"],
]


def _prepared_layers(
    probe: ProbeValues,
    shared: Bool[np.ndarray, "L F"],
    bridges: Mapping[str, Bool[np.ndarray, "L F"]],
    strata: Int[np.ndarray, " N"],
    settings: SpectrumSettings,
    notes: _Notes,
) -> Iterator[Prepared]:
    """Per layer: rows in use, their bandwidths, which are shared, which belong to which bridge.

    The bandwidths of all layers are computed together, in few compiled shapes.
    """
    stacked = np.stack(list(bridges.values()))  # [G, L, F]
    layers = []
    for layer, all_values in enumerate(probe.values):
        wanted = shared[layer] | stacked[:, layer].any(axis=0)
        ids = np.flatnonzero(wanted)
        values = np.asarray(all_values[_rows_of(probe, layer, wanted)])
        rows = values
        if settings.length_control == "strata" and len(ids):
            rows = remove_stratum_means(values, strata)
        keep = _informative(values, rows)
        notes.add("constant_neurons", (~keep).sum())
        layers.append((rows, ids) if keep.all() else (rows[keep], ids[keep]))
    sigmas = _bandwidths([rows for rows, _ in layers], settings)
    for layer, ((rows, ids), sigma) in enumerate(zip(layers, sigmas, strict=True)):
        keep = ~(sigma < api.SIGMA_RANGE[0])  # NaN stays
        notes.add("zero_median_neurons", (~keep).sum())
        if not keep.all():
            rows, ids, sigma = rows[keep], ids[keep], sigma[keep]
        yield rows, sigma, shared[layer][ids], stacked[:, layer][:, ids]


def _bandwidths(
    layers: Sequence[Float[np.ndarray, "n N"]], settings: SpectrumSettings
) -> list[Float[np.ndarray, " n"]]:
    sizes = [len(rows) for rows in layers]
    if settings.bandwidth != "variable_median":
        value = np.nan if settings.bandwidth == "set_median" else float(settings.bandwidth)
        return [np.full(size, value) for size in sizes]
    if not sum(sizes):
        return [np.zeros(0) for _ in sizes]
    together = np.concatenate([plan.host_standardise(rows) for rows in layers if len(rows)])
    return np.split(api.host_variable_median(together).astype(np.float64), np.cumsum(sizes)[:-1])
