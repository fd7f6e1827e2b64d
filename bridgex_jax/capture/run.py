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
from bridgex_jax.capture.reducers import CountPositive, TokenMean, TokenStatistics
from bridgex_jax.capture.sharing import share
from bridgex_jax.data.batching import Batch, Encoded, bucket_length, bucketed
from bridgex_jax.models.decoder import KVCache, new_cache, run_decoder
from bridgex_jax.models.load import Model
from bridgex_jax.models.rope import LENGTH_DEPENDENT

PROBE_MULTIPLE = 4  # of padded lengths: probes are short, so finer than BUCKET_MULTIPLE
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
    even = batch.tokens.shape[0] % mesh.devices.size == 0
    sharding = runtime.over_data(mesh) if even else runtime.replicated(mesh)
    return jax.device_put((batch.tokens, batch.mask, batch.scope), sharding)


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
    zeros = _Running(
        jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32)
    )
    running = jax.device_put(zeros, runtime.replicated(mesh))
    tokens = 0
    for batch in batches:
        running = _count_step(model, *put_batch(batch, mesh), running, CountPositive(site))
        tokens += int(batch.scope.sum())
        progress(int((batch.index >= 0).sum()))
    positive, total, rest = jax.device_get((running.positive, running.total, running.rest))
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
    output, _ = run_decoder(model.config, model.params, tokens, mask, reduce=reducer, context=scope)
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
    prefix: Sequence[int] = (),
    progress: Progress = _silent,
) -> list[Float[np.ndarray, "c W"]]:
    """Mean over the tokens in scope of the chosen neurons, for every prompt (Stage 4).

    Args:
      n_words: number of prompts; batch.index says which row is which.
      neurons: for every layer the indices to read; layers may differ in number.
      prefix: tokens that stand before every row; computed once.

    Returns one array a layer, [neurons of the layer, W], float32.
    """
    widest = max(1, *(len(chosen) for chosen in neurons))
    padded = np.zeros((len(neurons), widest), np.int32)
    for layer, chosen in enumerate(neurons):
        padded[layer, : len(chosen)] = chosen
    indices = jax.device_put(padded, runtime.replicated(mesh))
    values = np.zeros((len(neurons), widest, n_words), np.float32)
    before = prefix_cache(model, prefix, mesh) if prefix else None
    pending: list[tuple[Batch, Array]] = []
    for batch in batches:
        rows = put_batch(batch, mesh)
        pending.append((batch, _probe_step(model, *rows, indices, before, TokenMean(site))))
        if len(pending) > 1:  # the device works on the next batch while this one is fetched
            progress(_store(values, *pending.pop(0)))
    for item in pending:
        progress(_store(values, *item))
    return [values[layer, : len(chosen)] for layer, chosen in enumerate(neurons)]


def _store(values: np.ndarray, batch: Batch, found: Array) -> int:
    rows = batch.index >= 0
    values[:, :, batch.index[rows]] = np.asarray(found)[:, rows].transpose(0, 2, 1)
    return int(rows.sum())


@partial(jax.jit, static_argnames=("reducer",))
def _probe_step(
    model: Model,
    tokens: Array,
    mask: Array,
    scope: Array,
    neurons: Array,
    prefix: KVCache | None,
    reducer: TokenMean,
) -> Float[Array, "L B C"]:
    output, _ = run_decoder(
        model.config,
        model.params,
        tokens,
        mask,
        reduce=reducer,
        layer_inputs=neurons,
        context=scope,
        prefix=prefix,
    )
    return output.taps


def probe_prompts(
    model: Model,
    encoded: Sequence[Encoded],
    neurons: Sequence[Int[np.ndarray, " c"]],
    mesh: Mesh,
    *,
    batch_size: int = 128,
    multiple: int = PROBE_MULTIPLE,
    site: str = "mlp_gate_act",
    progress: Progress = _silent,
) -> list[Float[np.ndarray, "c W"]]:
    """`probe_values` of prompts that begin alike or repeat: each thing is computed once.

    The same values within the rounding of the model's dtype. Prompts of one language pair share a
    third of their tokens (BOS and `{S}:"`), and dictionaries give a word once a translation.
    """
    shared = share(encoded)
    # Its angles depend on the length of the whole sequence, so a beginning does not stand alone.
    whole = model.config.rope.type in LENGTH_DEPENDENT
    prefix, rows = ((), shared.distinct) if whole else (shared.prefix, shared.remainders)
    progress(len(encoded) - len(rows))
    batches = bucketed(rows, batch_size, multiple=multiple)
    values = probe_values(
        model, batches, len(rows), neurons, mesh, site=site, prefix=prefix, progress=progress
    )
    return [of_layer[:, shared.row_of] for of_layer in values]


def prefix_cache(model: Model, prefix: Sequence[int], mesh: Mesh) -> KVCache:
    """Keys and values of `prefix`, batch 1, padded to a bucket: few lengths, few compilations."""
    tokens = np.zeros((1, bucket_length(len(prefix))), np.int32)
    tokens[0, : len(prefix)] = prefix
    mask = np.arange(tokens.shape[1])[None] < len(prefix)
    return _prefix_step(model, *jax.device_put((tokens, mask), runtime.replicated(mesh)))


@jax.jit
def _prefix_step(model: Model, tokens: Array, mask: Array) -> KVCache:
    dtype = model.params["embed"]["embedding"].dtype
    empty = new_cache(model.config, 1, tokens.shape[1], dtype)
    output, _ = run_decoder(model.config, model.params, tokens, mask, cache=empty)
    assert output.cache is not None
    return output.cache
