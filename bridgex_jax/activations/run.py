"""Running a model over batches: activation counts of a corpus, probe values of dictionary prompts.

One compiled step a bucket; batches are split over the data axis of the mesh; statistics stay on the
devices, in donated buffers, until the end. Merging counts is exact: integer addition, in any
order, grouping or resume. Axes: L B T F W (axes.py); C = chosen neurons of a layer, padded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from bridgex_jax import runtime
from bridgex_jax.activations.reducers import CountPositive, TokenMean, TokenStatistics, TreeMean
from bridgex_jax.data.batching import Batch, Encoded
from bridgex_jax.data.trees import tree_batches
from bridgex_jax.models.decoder import run_decoder, tree_attend
from bridgex_jax.models.load import Model

Progress = Callable[[int], object]


def _silent(rows: int) -> None:
    """No progress shown."""


@dataclass(frozen=True)
class Statistics:
    """Counts and sums of one site over a text. tokens: how many were counted."""

    positive: Int[np.ndarray, "L F"]
    total: Float[np.ndarray, "L F"]  # float64
    tokens: int

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(
            self.positive + other.positive, self.total + other.total, self.tokens + other.tokens
        )


@dataclass(frozen=True)
class _Running:
    """Sums on the device; `rest` is what float32 rounding dropped (Neumaier)."""

    positive: Array
    total: Array
    rest: Array


jax.tree_util.register_dataclass(
    _Running, data_fields=["positive", "total", "rest"], meta_fields=[]
)


def put_batch(batch: Batch, mesh: Mesh) -> tuple[Array, Array, Array]:
    """tokens, mask and scope on the devices, rows split over them where they divide evenly."""
    arrays = (batch.tokens, batch.mask, batch.scope)
    return runtime.put(arrays, runtime.over_data(mesh, len(batch.tokens)))


def count_activations(
    model: Model,
    batches: Iterable[Batch],
    mesh: Mesh,
    *,
    site: str = "mlp_gate_act",
    progress: Progress = _silent,
) -> Statistics:
    """Σ 1[a > 0] and Σ a per neuron over all tokens in scope (bridgex-icl, Stage 1).

    Sums are float32 within a batch and compensated across batches.
    """
    shape = (model.config.n_layers, model.config.d_ff)
    zeros = tuple(np.zeros(shape, kind) for kind in (np.int32, np.float32, np.float32))
    running = _Running(*runtime.put(zeros, runtime.over_neurons(mesh, shape[1])))
    tokens = 0
    for batch in batches:
        running = _count_step(model, *put_batch(batch, mesh), running, CountPositive(site))
        tokens += int(batch.scope.sum())
        progress(int((batch.index >= 0).sum()))
    positive, total, rest = runtime.fetch((running.positive, running.total, running.rest))
    return Statistics(positive, total.astype(np.float64) + rest.astype(np.float64), tokens)


@partial(jax.jit, static_argnames=("reducer",), donate_argnames=("running",))
def _count_step(
    model: Model,
    tokens: Array,
    mask: Array,
    scope: Array,
    running: _Running,
    reducer: CountPositive,
) -> _Running:
    output = run_decoder(
        model.config,
        model.params,
        tokens,
        mask,
        reduce=reducer,
        context=scope,
        layout=model.layout,
    )
    found: TokenStatistics = output.taps
    total = running.total + found.total
    larger = jnp.abs(running.total) >= jnp.abs(found.total)
    lost = jnp.where(
        larger, (running.total - total) + found.total, (found.total - total) + running.total
    )
    return _Running(running.positive + found.positive, total, running.rest + lost)


def probe_values(
    model: Model,
    batches: Iterable[Batch],
    n_words: int,
    neurons: Sequence[Int[np.ndarray, " c"]],
    mesh: Mesh,
    *,
    site: str = "mlp_gate_act",
    progress: Progress = _silent,
) -> list[Float[np.ndarray, "c W"]]:
    """Mean over the tokens in scope of the chosen neurons, for every prompt (Stage 4).

    Args:
      n_words: number of prompts; batch.index says which row is which.
      neurons: for every layer the indices to read; layers may differ in number.

    Returns one array a layer, [neurons of the layer, W], float32.
    """
    indices = _put_neurons(neurons, mesh)
    found = (
        (batch.index, _probe_step(model, *put_batch(batch, mesh), indices, TokenMean(site)))
        for batch in batches
    )
    return _collect(found, n_words, neurons, progress)


def probe_prompts(
    model: Model,
    encoded: Sequence[Encoded],
    neurons: Sequence[Int[np.ndarray, " c"]],
    mesh: Mesh,
    *,
    batch_size: int = 64,
    site: str = "mlp_gate_act",
    progress: Progress = _silent,
) -> list[Float[np.ndarray, "c W"]]:
    """`probe_values`, where what several prompts begin with is computed once (data/trees.py).

    The same values within the rounding of the model's dtype, in any order of the prompts.

    Args:
      batch_size: as many tokens at once as this many of the longest prompt have.
    """
    indices = _put_neurons(neurons, mesh)
    batches = tree_batches(encoded, batch_size, runtime.batch_parts(mesh))  # all divide evenly
    on_devices = (
        (b.index, runtime.put(b.arrays(), runtime.over_data(mesh, len(b.tokens)))) for b in batches
    )
    found = (
        (index, tree_step(model, *arrays, indices, TreeMean(site))) for index, arrays in on_devices
    )
    return _collect(found, len(encoded), neurons, progress)


def _put_neurons(neurons: Sequence[Int[np.ndarray, " c"]], mesh: Mesh) -> Int[Array, "L C"]:
    padded = np.zeros((len(neurons), max(1, *(len(chosen) for chosen in neurons))), np.int32)
    for layer, chosen in enumerate(neurons):
        padded[layer, : len(chosen)] = chosen
    return runtime.put(padded, runtime.replicated(mesh))


def _collect(
    found: Iterable[tuple[Int[np.ndarray, "..."], Float[Array, "L ... C"]]],
    n_words: int,
    neurons: Sequence[Int[np.ndarray, " c"]],
    progress: Progress,
) -> list[Float[np.ndarray, "c W"]]:
    values = [np.zeros((len(chosen), n_words), np.float32) for chosen in neurons]

    def store(index: np.ndarray, on_device: Array) -> None:
        real = index >= 0
        for into, means in zip(values, runtime.fetch(on_device), strict=True):
            into[:, index[real]] = means[real, : len(into)].T
        progress(int(real.sum()))

    pending: list[tuple[np.ndarray, Array]] = []
    for item in found:
        pending.append(item)
        if len(pending) > 1:  # the device works on the next batch while this one is fetched
            store(*pending.pop(0))
    for item in pending:
        store(*item)
    return values


@partial(jax.jit, static_argnames=("reducer",))
def _probe_step(
    model: Model, tokens: Array, mask: Array, scope: Array, neurons: Array, reducer: TokenMean
) -> Float[Array, "L B C"]:
    output = run_decoder(
        model.config,
        model.params,
        tokens,
        mask,
        reduce=reducer,
        layer_inputs=neurons,
        context=scope,
        layout=model.layout,
    )
    return output.taps


@partial(jax.jit, static_argnames=("reducer",))
def tree_step(
    model: Model,
    tokens: Array,
    positions: Array,
    ancestors: Array,
    scope: Array,
    neurons: Array,
    reducer: TreeMean,
) -> Float[Array, "L B Q C"]:
    """Means of the chosen neurons for the prompts of a `TreeBatch`: one compiled step."""
    output = run_decoder(
        model.config,
        model.params,
        tokens,
        tree_attend(model.config, positions, ancestors),
        reduce=reducer,
        layer_inputs=neurons,
        context=scope,
        layout=model.layout,
    )
    return output.taps
