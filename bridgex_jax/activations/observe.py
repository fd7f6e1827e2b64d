"""`observe`: any reducers at any sites of a model, over many batches, in one pass each.

One compiled step a shape of batch. Inside the scan over layers every reducer renews its own layer's
slice of a buffer, so no array of [layers × tokens × features] is made unless all layers' full
activations are asked for. Statistics stay on the devices, in donated buffers; results of examples
come to the host one batch behind. Axes: L B T F (axes.py); Q = examples of a row, S = the
reducer's layers, E = examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int, Num

from bridgex_jax import runtime
from bridgex_jax.activations.examples import ExampleReducer, TokenMean, padded_neurons
from bridgex_jax.activations.sites import Features, site_features
from bridgex_jax.activations.statistics import (
    MOST_TOKENS,
    MOST_TOKENS_A_BATCH,
    Statistic,
)
from bridgex_jax.data.batching import Batch
from bridgex_jax.data.trees import TreeBatch
from bridgex_jax.errors import InputError
from bridgex_jax.models.decoder import Output, Taps, run_decoder, tree_attend
from bridgex_jax.models.load import Model
from bridgex_jax.store.activations import token_places

Reducer: TypeAlias = Statistic | ExampleReducer
Progress = Callable[[int], object]


class PlainRows(NamedTuple):
    """One example a row, on the devices."""

    tokens: Int[Array, "B T"]
    mask: Bool[Array, "B T"]
    scope: Bool[Array, "B 1 T"]


class TreeRows(NamedTuple):
    """Several examples a row, on the devices; see `TreeBatch`."""

    tokens: Int[Array, "B T"]
    positions: Int[Array, "B T"]
    ancestors: Bool[Array, "B T T"]
    scope: Bool[Array, "B Q T"]


@dataclass(frozen=True)
class Block:
    """What one batch gave for one reducer of examples, on the host.

    examples: the index of every example, in the order of `values`. token_counts: how many entries
    of the second axis each has; None for one each.
    """

    name: str
    examples: Int[np.ndarray, " E"]
    values: Num[np.ndarray, "S E *F"]
    token_counts: Int[np.ndarray, " E"] | None


@dataclass(frozen=True)
class Observed:
    """Statistics by the name of their reducer; observations of other texts can be added.

    A statistic is [L, *F], with the bins last for a histogram; counts are int64, sums float64. At
    `embeddings` and `final_norm` L is 1. tokens: in how many the sums run.
    """

    statistics: dict[str, Num[np.ndarray, "L *F"]] = field(default_factory=dict)
    tokens: int = 0

    def __add__(self, other: Observed) -> Observed:
        if not self.statistics:
            return other
        merged = {name: found + other.statistics[name] for name, found in self.statistics.items()}
        return Observed(merged, self.tokens + other.tokens)


def observe(
    model: Model,
    batches: Iterable[Batch | TreeBatch],
    reducers: Mapping[str, Reducer],
    mesh: Mesh | None = None,
    *,
    sink: Callable[[Block], object] | None = None,
    dtype: str = "float32",
    slots: slice = slice(None),
    progress: Progress = lambda examples: None,
) -> Observed:
    """Runs the model over `batches` once; all reducers see every batch.

    Args:
      reducers: by the name under which their results come. A token that several examples share
        counts once for each of them.
      mesh: devices with the axes of `runtime.make_mesh`; None for the model's.
      sink: is called with every block of results of examples, in the order of the batches. None
        only without such reducers.
      dtype: of these results: float32, bfloat16 or float16.
      slots: of their layers, those that this process gets; others may get others.

    Raises InputError for more tokens than an int32 count can hold in one pass, ValueError for an
    unknown site or layer.
    """
    if sink is None and any(isinstance(r, ExampleReducer) for r in reducers.values()):
        raise ValueError("reducers of examples need a sink; see InMemory")
    mesh = mesh or model.mesh
    plan, chosen = _plan(model, reducers, mesh, dtype)
    state = plan.start()
    tokens, waiting = 0, None
    for batch in batches:
        n_tokens = int(batch.scope.sum())
        tokens += n_tokens
        if tokens > MOST_TOKENS or n_tokens > MOST_TOKENS_A_BATCH:
            raise InputError(
                f"{tokens:,} tokens in one pass, {n_tokens:,} in one batch: too many to count",
                remedy="observe the text in parts and add what they give",
            )
        state, found = _step(model, _put(batch, mesh), state, chosen, plan)
        for array in found.values():
            if array.is_fully_addressable and slots == slice(None):
                array.copy_to_host_async()
        if waiting is not None:  # the device works on this batch while the one before is fetched
            _deliver(*waiting, plan, sink, slots, progress)
        waiting = batch, found
    if waiting is not None:
        _deliver(*waiting, plan, sink, slots, progress)
    on_host = runtime.fetch(state)
    return Observed({name: r.finish(on_host[name]) for name, r in plan.statistics}, tokens)


@dataclass(frozen=True)
class _Plan:
    """What a compiled step depends on, beside shapes."""

    statistics: tuple[tuple[str, Statistic], ...]
    examples: tuple[tuple[str, ExampleReducer], ...]
    features: tuple[tuple[str, Features], ...]
    mesh: Mesh
    dtype: str

    def of(self, site: str) -> Features:
        return dict(self.features)[site]

    def start(self) -> dict[str, Any]:
        """Zeros on the devices, split along neurons or heads."""

        def zeros() -> dict[str, Any]:
            found = {}
            for name, reducer in self.statistics:
                of = self.of(reducer.site)
                found[name] = reducer.start((of.layers, *of.shape, *reducer.extra))
            return found

        return jax.jit(zeros, out_shardings=self.places(jax.eval_shape(zeros)))()

    def places(self, state: dict[str, Any]) -> dict[str, Any]:
        """Where states [L, *F, …] lie: their features split as the activations are."""

        def place(features: Features, leaf: Any) -> NamedSharding:
            axes = ("tensor",) * features.is_split
            split = runtime.dividing_axes(self.mesh, axes, leaf.shape[1])
            return NamedSharding(self.mesh, PartitionSpec(*(None, split) if split else ()))

        return {
            name: jax.tree.map(partial(place, self.of(reducer.site)), state[name])
            for name, reducer in self.statistics
        }

    def place_rows(self, features: Features, shape: tuple[int, ...]) -> NamedSharding:
        """Results of a batch, [S, B, …, *F], its rows and features split as the activations are."""
        axes = ("tensor",) * features.is_split
        rows = runtime.dividing_axes(self.mesh, runtime.BATCH_AXES, shape[1])
        split = runtime.dividing_axes(self.mesh, axes, shape[3])
        return NamedSharding(self.mesh, PartitionSpec(None, rows, None, split))


def _plan(
    model: Model, reducers: Mapping[str, Reducer], mesh: Mesh, dtype: str
) -> tuple[_Plan, dict[str, Int[Array, "L C"]]]:
    """The plan, and for every layer of the model the neurons to read, by reducer."""
    if jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16, jnp.float16):
        raise ValueError(f"dtype is {dtype!r}, not float32, bfloat16 or float16")
    statistics, examples, chosen = [], [], {}
    sites = sorted({reducer.site for reducer in reducers.values()})
    features = {site: site_features(model.config, site) for site in sites}
    for name, reducer in reducers.items():
        if not isinstance(reducer, ExampleReducer):
            statistics.append((name, reducer))
            continue
        layers = kept_layers(reducer, features[reducer.site])
        if reducer.neurons is not None:
            of = features[reducer.site]
            if len(of.shape) > 1:
                raise ValueError(f"{reducer.site} has no single axis to choose from")
            indices = padded_neurons(reducer.neurons, len(layers), of.shape[0])
            rows = np.zeros((of.layers, indices.shape[1]), np.int32)
            rows[list(layers)] = indices
            chosen[name] = runtime.put(rows, runtime.replicated(mesh))
        examples.append((name, reducer.without_neurons()))
    return _Plan(tuple(statistics), tuple(examples), tuple(features.items()), mesh, dtype), chosen


def kept_layers(reducer: ExampleReducer, features: Features) -> tuple[int, ...]:
    """The layers that a reducer keeps. ValueError for one that the model does not have."""
    layers = tuple(range(features.layers)) if reducer.layers is None else reducer.layers
    if features.is_global and reducer.layers is not None:
        raise ValueError(f"{reducer.site} has no layers to choose")
    if any(not 0 <= layer < features.layers for layer in layers):
        raise ValueError(f"layers {layers}: the model has {features.layers}")
    return layers


def _put(batch: Batch | TreeBatch, mesh: Mesh) -> PlainRows | TreeRows:
    place = runtime.over_data(mesh, len(batch.tokens))
    if isinstance(batch, TreeBatch):
        return TreeRows(*runtime.put(batch.arrays(), place))
    return PlainRows(*runtime.put((batch.tokens, batch.mask, batch.scope[:, None]), place))


@partial(jax.jit, static_argnames=("plan",), donate_argnames=("state",))
def _step(
    model: Model,
    rows: PlainRows | TreeRows,
    state: dict[str, Any],
    chosen: dict[str, Int[Array, "L C"]],
    plan: _Plan,
) -> tuple[dict[str, Any], dict[str, Array]]:
    """The renewed statistics, and what the examples of this batch gave."""
    weight = jnp.sum(rows.scope, axis=1, dtype=jnp.int32).reshape(-1)
    # Mutable buffers (jax.Ref): XLA writes one layer's slice in place, as with a KV cache.
    running = jax.tree.map(jax.new_ref, state)
    kept = _new_buffers(model, rows, chosen, plan)
    update = partial(_update, plan, running, kept, weight, rows.scope)

    def reduce(taps: Taps, layer: Any, context: Any) -> dict[str, Any]:
        update(taps, *layer)
        return {}

    attend = rows.mask if isinstance(rows, PlainRows) else _attend(model, rows)
    layers = jnp.arange(model.config.n_layers, dtype=jnp.int32)
    in_layers = {name: c for name, c in chosen.items() if c.shape[0] == len(layers)}
    output: Output = run_decoder(
        model.config,
        model.params,
        rows.tokens,
        attend,
        reduce=reduce,
        layer_inputs=(layers, in_layers),
        layout=model.layout,
    )
    whole = {"embeddings": output.embeddings, "final_norm": output.hidden}
    update(whole, jnp.zeros((), jnp.int32), {name: c[0] for name, c in chosen.items()})
    state, found = jax.tree.map(jax.freeze, (running, kept))
    # The same place as before: another would mean another program for the next batch.
    return jax.lax.with_sharding_constraint(state, plan.places(state)), found


def _attend(model: Model, rows: TreeRows):
    return tree_attend(model.config, rows.positions, rows.ancestors)


def _new_buffers(
    model: Model, rows: PlainRows | TreeRows, chosen: Mapping[str, Array], plan: _Plan
) -> dict[str, Any]:
    """Room for what this batch's examples will give: [S, B, Q or T, *F]."""
    buffers = {}
    for name, reducer in plan.examples:
        features = plan.of(reducer.site)
        slots = rows.scope.shape[2] if reducer.by_token else rows.scope.shape[1]
        shape = (chosen[name].shape[1],) if name in chosen else features.shape
        n_layers = len(kept_layers(reducer, features))
        zeros = jnp.zeros(
            (n_layers, len(rows.tokens), slots, *shape), _result_dtype(model, reducer, plan.dtype)
        )
        place = plan.place_rows(features, zeros.shape)
        buffers[name] = jax.new_ref(jax.lax.with_sharding_constraint(zeros, place))
    return buffers


def _result_dtype(model: Model, reducer: ExampleReducer, dtype: str) -> Any:
    """What goes over the bus: the narrower of what there is and what is asked for."""
    there = jnp.dtype(jnp.float32)
    if not isinstance(reducer, TokenMean):
        there = jnp.dtype(jax.tree.leaves(model.params)[0].dtype)
    return min(there, jnp.dtype(dtype), key=lambda kind: kind.itemsize)


def _update(
    plan: _Plan,
    running: dict[str, Any],
    kept: dict[str, Any],
    weight: Int[Array, " BT"],
    scope: Bool[Array, "B Q T"],
    taps: Taps,
    layer: Int[Array, ""],
    chosen: Mapping[str, Int[Array, " C"]],
) -> None:
    """Every reducer whose site is among the taps renews its slice for this layer."""
    for name, reducer in plan.statistics:
        if reducer.site in taps:
            value = taps[reducer.site]
            value = value.reshape(-1, *value.shape[2:])
            old = jax.tree.map(lambda ref: ref[layer], running[name])
            new = reducer.add(old, value, weight)
            jax.tree.map(partial(_write, layer), running[name], new)
    for name, reader in plan.examples:
        if reader.site not in taps:
            continue
        value = taps[reader.site]
        if name in chosen:
            value = jnp.take(value, chosen[name], axis=2)
        found = reader.read(value, scope).astype(kept[name].dtype)
        if reader.layers is None:
            kept[name][layer] = found
            continue
        # A layer that is not kept writes back what is there: no branch, no room for other layers.
        slots = np.searchsorted(reader.layers, np.arange(plan.of(reader.site).layers))
        at = jnp.asarray(np.minimum(slots, len(reader.layers) - 1), jnp.int32)[layer]
        is_kept = jnp.asarray(reader.layers, jnp.int32)[at] == layer
        kept[name][at] = jnp.where(is_kept, found, kept[name][at])


def _write(layer: Int[Array, ""], ref: Any, value: Array) -> None:
    ref[layer] = value


def _deliver(
    batch: Batch | TreeBatch,
    found: dict[str, Array],
    plan: _Plan,
    sink: Callable[[Block], object] | None,
    slots: slice,
    progress: Progress,
) -> None:
    """Takes what the examples of a batch gave out of its rows."""
    index, scope = _as_rows(batch)
    real = index >= 0
    examples = index[real]
    if sink is not None and plan.examples:
        on_host = runtime.fetch_slots(found, slots)
        in_scope = scope & real[:, :, None]
        row, _, slot = np.nonzero(in_scope)
        counts = in_scope.sum(axis=2)[real]
        for name, reducer in plan.examples:
            values = on_host[name]
            values = values[:, row, slot] if reducer.by_token else values[:, real]
            values = values.astype(jnp.dtype(plan.dtype), copy=False)
            sink(Block(name, examples, values, counts if reducer.by_token else None))
    progress(len(examples))


def _as_rows(
    batch: Batch | TreeBatch,
) -> tuple[Int[np.ndarray, "B Q"], Bool[np.ndarray, "B Q T"]]:
    if isinstance(batch, TreeBatch):
        return batch.index, batch.scope
    return batch.index[:, None], batch.scope[:, None]


class InMemory:
    """A sink that puts the results of all examples in the order of their indices.

    n_examples: how many there are. token_counts: tokens in scope of each, where tokens are kept.
    """

    def __init__(self, n_examples: int, token_counts: Int[np.ndarray, " E"] | None = None) -> None:
        self.n_examples = n_examples
        self._counts = np.ones(n_examples, np.int64) if token_counts is None else token_counts
        self.values: dict[str, Num[np.ndarray, "S E *F"]] = {}

    @property
    def offsets(self) -> Int[np.ndarray, " E+1"]:
        """Where the tokens of every example begin, and where the last one's end."""
        return np.concatenate([[0], np.cumsum(self._counts)]).astype(np.int64)

    def __call__(self, block: Block) -> None:
        where, n = block.examples.astype(np.int64), self.n_examples
        if block.token_counts is not None:
            where, n = token_places(self.offsets, block.examples), int(self.offsets[-1])
        if block.name not in self.values:
            shape = (block.values.shape[0], n, *block.values.shape[2:])
            self.values[block.name] = np.zeros(shape, block.values.dtype)
        self.values[block.name][:, where] = block.values
