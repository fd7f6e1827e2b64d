"""The compiled steps of the jobs for shapes alone: what `plan` looks at, and what picks a batch.

Each function lowers the very step that a job runs, with arguments that lie where the job puts them.
Models may be shapes too (`abstract_model`). Axes: L B T F K H V (axes.py); Q = prompts of a row, P
= parts of a batch, S = slots, M = blocks of the spectrum, N = words.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from bridgex_jax import runtime
from bridgex_jax.activations.reducers import CountPositive, TreeMean
from bridgex_jax.activations.run import _count_step, _Running, tree_step
from bridgex_jax.data.trees import PROMPTS_PER_ROW, ROW_LENGTH
from bridgex_jax.errors import InputError
from bridgex_jax.kernels.hsic.batch import SetPairs, pair_axes, score_set_pairs
from bridgex_jax.kernels.hsic.plan import Plan
from bridgex_jax.models import budget
from bridgex_jax.models.config import DecoderConfig
from bridgex_jax.models.generate import Pool, decode
from bridgex_jax.models.load import Model
from bridgex_jax.models.sharding import make_layout
from bridgex_jax.models.stopping import stop_at_ids
from bridgex_jax.models.weights import weight_table


def abstract_model(config: DecoderConfig, mesh: Mesh, dtype: str) -> Model:
    """A model whose parameters are shapes with their places on the mesh.

    Raises InputError where a mesh axis does not divide the model.
    """
    layout = make_layout(config, mesh)
    params: dict[str, Any] = {}
    for leaf in weight_table(config):
        sharding, shape = leaf.sharding(layout), leaf.shape
        assert isinstance(sharding, NamedSharding)
        if leaf.stacked:
            shape = (config.n_layers, *shape)
            sharding = NamedSharding(mesh, PartitionSpec(None, *sharding.spec))
        tree = params
        for part in leaf.path[:-1]:
            tree = tree.setdefault(part, {})
        tree[leaf.path[-1]] = _shape(shape, jnp.dtype(dtype), sharding)
    return Model(config, params, None, layout)


def lower_count(model: Model, mesh: Mesh, rows: int, length: int) -> jax.stages.Lowered:
    """The step of `count_activations` for so many rows of text."""
    config = model.config
    place, over = runtime.over_data(mesh, rows), runtime.over_neurons(mesh, config.d_ff)
    tokens = _shape((rows, length), np.int32, place)
    mask = _shape((rows, length), bool, place)
    kept = (config.n_layers, config.d_ff)
    running = _Running(*(_shape(kept, t, over) for t in (np.int32, np.float32, np.float32)))
    return _count_step.lower(model, tokens, mask, mask, running, CountPositive())


def lower_probe(model: Model, mesh: Mesh, rows: int, n_neurons: int) -> jax.stages.Lowered:
    """The step of `probe_prompts` for so many rows of prompts; n_neurons: read in each layer."""
    place = runtime.over_data(mesh, rows)
    tokens = _shape((rows, ROW_LENGTH), np.int32, place)
    ancestors = _shape((rows, ROW_LENGTH, ROW_LENGTH), bool, place)
    scope = _shape((rows, PROMPTS_PER_ROW, ROW_LENGTH), bool, place)
    chosen = _shape((model.config.n_layers, n_neurons), np.int32, runtime.replicated(mesh))
    return tree_step.lower(model, tokens, tokens, ancestors, scope, chosen, TreeMean())


def abstract_pool(model: Model, mesh: Mesh, prompts: int) -> Pool:
    """The pool of so many prompts, as icl/completion.py makes it: room for 16 new tokens each."""
    config, parts = model.config, runtime.batch_parts(mesh)
    slots = max(1, 16 * (prompts // parts) // ROW_LENGTH) * ROW_LENGTH
    dtype = model.params["embed"]["embedding"].dtype
    rows = runtime.over_data(mesh, parts)
    heads = runtime.dividing_axes(mesh, ("tensor",), config.n_kv_heads)
    kv = _shape(
        (config.n_layers, parts, slots, config.n_kv_heads, config.head_dim),
        dtype,
        NamedSharding(mesh, PartitionSpec(None, *rows.spec, None, heads)),
    )
    return Pool(kv, kv, _shape((parts, slots, config.d_model), dtype, rows))


def lower_decode(
    model: Model, mesh: Mesh, prompts: int, prompt_slots: int, max_new_tokens: int
) -> jax.stages.Lowered:
    """Decoding of so many prompts, a multiple of the parts of a batch, after their prefill."""
    config, parts = model.config, runtime.batch_parts(mesh)
    place, width = runtime.over_data(mesh, parts), prompts // parts
    pool = abstract_pool(model, mesh, prompts)
    paths = _shape((parts, width, prompt_slots), np.int32, place)
    one_each = _shape((parts, width), np.int32, place)
    stops = stop_at_ids(config.eos_token_ids, config.vocab_size).table
    table = _shape(stops.shape, stops.dtype, runtime.replicated(mesh))
    return decode.lower(model, pool, paths, one_each, one_each, table, max_new_tokens)


def lower_spectrum(
    mesh: Mesh, blocks: int, sizes: tuple[int, int, int], groups: int
) -> jax.stages.Lowered:
    """Scores of so many blocks of (shared neurons, bridge neurons, words) with `groups` bridges.

    blocks: a multiple of the devices. Exact, which every low rank falls back on.
    """
    n1, n2, n_words = sizes
    place = NamedSharding(mesh, PartitionSpec(pair_axes(mesh)))

    def shape(*axes: int, dtype: Any = np.float32) -> Any:
        return _shape((blocks, *axes), dtype, place)

    plan = Plan(shape(n1), shape(n2), shape(n_words), tile=_tile(n1, n2), cancels=False)
    pairs = SetPairs(
        x=shape(n1, n_words),
        y=shape(n2, n_words),
        plan=plan,
        n_rows=shape(dtype=np.int32),
        columns=shape(groups, n2 // groups, dtype=np.int32),
        weights=shape(groups, n2 // groups),
    )
    return score_set_pairs.lower(pairs, mesh, matched=True, with_values=True)


def _tile(n1: int, n2: int) -> int:
    """`tile_size` of an accelerator, whatever this process runs on."""
    fitting = (t for t in (256, 128, 64, 32) if (n1 + n2) * t * t < 1 << 24)
    return next(fitting, 16)


def rows_that_fit(model: Model, mesh: Mesh, length: int) -> int:
    """Rows of text a batch for counting: what keeps the devices busy, less where memory is short.

    Devices that name no limit (CPUs) take the first alone, and nothing is compiled. Raises
    InputError where not even one row a device fits.
    """
    parts = runtime.batch_parts(mesh)
    wanted = max(1, runtime.tokens_a_batch(mesh) // length)
    limit = budget.memory_limit(mesh)
    if limit is None:
        return wanted
    wanted = math.ceil(wanted / parts) * parts
    room = (1 - budget.RESERVE) * limit - budget.unused_bytes(model.params)

    def bytes_for(rows: int) -> float:
        return budget.bytes_to_run(lower_count(model, mesh, rows, length))

    if rows := budget.fitting_batch(bytes_for, room, wanted, step=parts):
        return rows
    raise InputError(
        f"the model and {parts} rows of {length} tokens do not fit into {limit / 2**30:.1f} GiB "
        "a device",
        remedy="give a smaller --row-length, or more devices along tensor (bridgex plan)",
    )


def _shape(shape: tuple[int, ...], dtype: Any, sharding: Sharding) -> Any:
    """Stands for an array: typed as one, so that pytrees of arrays can be made of it."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
