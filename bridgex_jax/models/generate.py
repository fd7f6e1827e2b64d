"""Decoding with a preallocated key/value cache, in one compiled call: greedy, or sampled.

The prompts' keys and values are written first: prompt by prompt (`generate`), or as trees in which
prompts that begin alike share these tokens (`prefill`, then `decode`). Then comes one token a row
and step. A batch runs as long as its longest answer, so whenever half of its rows are done, the
others go on in a batch of half the width. Where rows end: stopping.py. Axes: L B T K H D V
(axes.py); U = new tokens, P = parts of a batch, one a device, S = slots of a cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from bridgex_jax.errors import InputError
from bridgex_jax.models.config import DecoderConfig
from bridgex_jax.models.decoder import (
    Edit,
    KVCache,
    Output,
    Reduce,
    Taps,
    layers_apart,
    new_cache,
    run_decoder,
    tree_attend,
    unembed,
)
from bridgex_jax.models.load import Model
from bridgex_jax.models.sampling import Sampling, most_probable, row_keys, sample
from bridgex_jax.models.stopping import DONE, START, Stops, stop_at_ids

NARROWEST = 128  # rows a part: a batch is not halved below
FIRST_ROOM = 16  # new tokens at full width: slots cost time, and most answers are shorter
# On a CPU, up to so many rows and bytes of parameters, `layers_apart`: it saves time with few rows.
APART_ROWS, APART_BYTES = 64, 2**30

Merge = Callable[[PyTree, PyTree], PyTree]


class Generated(NamedTuple):
    """Continuations. A row has `n_tokens` of its own; what follows is the last of them again.

    taps: what `reduce` made of all tokens, prompts and continuations; {} without.
    """

    tokens: Int[Array, "B U"]
    n_tokens: Int[Array, " B"]
    taps: PyTree


class Pool(NamedTuple):
    """Keys, values and last hidden states of prompt tokens, from which `decode` gathers rows."""

    keys: Float[Array, "L P S K H"]
    values: Float[Array, "L P S K H"]
    hidden: Float[Array, "P S D"]


def add(first: PyTree, second: PyTree) -> PyTree:
    """The merge of counts and sums."""
    return jax.tree.map(jnp.add, first, second)


def generate(
    model: Model,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    max_new_tokens: int = 30,
    stops: Stops | None = None,
    sampling: Sampling | None = None,
    numbers: Sequence[int] | None = None,
    reduce: Reduce | None = None,
    merge: Merge = add,
    layer_inputs: PyTree = None,
    context: PyTree = None,
    edit: Edit | None = None,
) -> Generated:
    """The continuation of every row, token by token; U = max_new_tokens.

    A row ends with the token that stops it. Every token of the prompts and continuations passes
    through `reduce` and `edit` once, the last of a row included.

    Args:
      mask: True at real tokens; rows may be padded on either side.
      stops: where rows end; None for the model's end-of-sequence tokens.
      sampling: how tokens are drawn; None for the most probable one.
      numbers: of the rows, for sampling: the same number and prompt give the same answer in any
        batch; None for 0, 1, ….
      reduce: as of `run_decoder`. Its context is `context` for the prompts, then, at every step,
        Bool [B, 1]: the rows that have a token of their own there.
      merge: of what `reduce` returned for some tokens with that for those after them; associative.
      context: of the prompts; None for `mask`.
      edit: as of `run_decoder`, with the contexts of `reduce`.

    Functions are told apart by identity: another `reduce`, `merge` or `edit` compiles again.

    Raises InputError where a prompt and its continuation exceed the model's context.
    """
    check_room(model.config, int(jax.device_get(mask).sum(axis=1).max(initial=0)), max_new_tokens)
    if stops is None:
        stops = stop_at_ids(model.config.eos_token_ids, model.config.vocab_size)
    plan, draw = _Plan(max_new_tokens, reduce, merge, edit), None
    if sampling is not None:
        plan = _Plan(max_new_tokens, reduce, merge, edit, sampling.top_k, sampling.top_p)
        rows = jnp.asarray(range(len(tokens)) if numbers is None else numbers, jnp.int32)
        draw = _Draw(row_keys(sampling.seed, rows), jnp.asarray(sampling.temperature, jnp.float32))
    context = mask if context is None else context
    return _generate(model, tokens, mask, stops.table, draw, layer_inputs, context, plan)


def check_room(config: DecoderConfig, n_tokens: int, max_new_tokens: int) -> None:
    """Raises InputError where so many tokens and new ones exceed the model's context."""
    rope = config.rope
    trained = rope.original_max_position_embeddings or rope.max_position_embeddings
    limit = max(config.max_position_embeddings, int(trained * (rope.factor or 1)))
    if n_tokens + max_new_tokens > limit:
        raise InputError(
            f"a prompt of {n_tokens} tokens and {max_new_tokens} new ones exceed the model's "
            f"context of {limit}",
            remedy="shorten the prompt or ask for fewer new tokens",
        )


@dataclass(frozen=True)
class _Plan:
    """What is compiled into the loop."""

    max_new_tokens: int
    reduce: Reduce | None = None
    merge: Merge = add
    edit: Edit | None = None
    top_k: int | None = None
    top_p: float | None = None


class _Draw(NamedTuple):
    """The keys of rows, and the temperature."""

    keys: Key[Array, " B"]
    temperature: Float[Array, ""]


class _State(NamedTuple):
    """A batch in the middle of decoding. rows: their places in the whole batch."""

    step: Int[Array, ""]
    produced: Int[Array, "B U"]
    token: Int[Array, "B 1"]
    n_own: Int[Array, " B"]  # tokens that are the row's own
    stop: Int[Array, " B"]  # state of stopping.py's automaton
    rows: Int[Array, " B"]
    cache: KVCache
    taps: PyTree


@dataclass(frozen=True)
class _Decoder:
    """One model under one plan: the steps of the loop."""

    model: Model
    table: Int[Array, "S V"]
    plan: _Plan
    draw: _Draw | None = None
    layer_inputs: PyTree = None

    def for_steps(self, n_rows: int) -> _Decoder:
        """The same for the loop: with its layers apart where that pays, and a copy is not large."""
        model = self.model
        n_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(model.params))
        devices = model.mesh.devices.reshape(-1)
        on_cpu = len(devices) == 1 and devices[0].platform == "cpu"
        if not on_cpu or n_rows > APART_ROWS or n_bytes > APART_BYTES:
            return self
        apart = layers_apart(model.params["layers"], model.config.n_layers)
        return replace(self, model=replace(model, params={**model.params, "layers": apart}))

    def run(self, tokens: Array, attend: PyTree, cache: KVCache, context: PyTree) -> Output:
        """The decoder over the next tokens, with what the plan reads and changes in it."""
        return run_decoder(
            self.model.config,
            self.model.params,
            tokens,
            attend,
            reduce=self.plan.reduce or _nothing,
            layer_inputs=self.layer_inputs,
            context=context,
            cache=cache,
            layout=self.model.layout,
            edit=self.plan.edit,
        )

    def choose(
        self, hidden: Float[Array, "B 1 D"], rows: Int[Array, " B"], step: Int[Array, ""]
    ) -> Int[Array, "B 1"]:
        """The next token after the last hidden state of each row."""
        logits = unembed(self.model.params, hidden[:, -1], self.model.layout)
        if self.draw is None:
            return most_probable(logits)[:, None]
        keys, temperature = self.draw.keys[rows], self.draw.temperature
        plan = self.plan
        return sample(logits, keys, step, temperature, plan.top_k, plan.top_p)[:, None]

    def next_stop(self, stop: Int[Array, " B"], token: Int[Array, "B 1"]) -> Int[Array, " B"]:
        return self.table[stop, token[:, 0]].astype(jnp.int32)

    def start(
        self,
        cache: KVCache,
        taps: PyTree,
        hidden: Float[Array, "B 1 D"],
        stop: Int[Array, " B"],
    ) -> _State:
        """The first new token of every row, from the last hidden state of its prompt.

        stop: where its automaton stands; DONE for rows that only fill up the batch.
        """
        batch, zero = len(stop), jnp.zeros((), jnp.int32)
        rows = jnp.arange(batch, dtype=jnp.int32)
        token = self.choose(hidden, rows, zero)
        produced = jnp.zeros((batch, self.plan.max_new_tokens), jnp.int32)
        produced = jax.lax.dynamic_update_slice(produced, token, (0, 0))
        n_own = (stop != DONE).astype(jnp.int32)
        stop = self.next_stop(stop, token)
        return _State(zero + 1, produced, token, n_own, stop, rows, cache, taps)

    def forward(self, state: _State) -> tuple[Float[Array, "B 1 D"], KVCache, PyTree]:
        """The last token of every row: its hidden state, its keys and values, all taps so far."""
        fresh = (state.n_own == state.step)[:, None]  # not a token that was repeated
        output = self.run(state.token, jnp.ones(fresh.shape, bool), state.cache, fresh)
        return output.hidden, _cache(output.cache), self.plan.merge(state.taps, output.taps)

    def advance(self, state: _State) -> _State:
        hidden, cache, taps = self.forward(state)
        ended = state.stop == DONE
        chosen = self.choose(hidden, state.rows, state.step)
        token = jnp.where(ended[:, None], state.token, chosen)
        produced = jax.lax.dynamic_update_slice(state.produced, token, (0, state.step))
        n_own = jnp.where(ended, state.n_own, state.step + 1)
        stop = self.next_stop(state.stop, token)
        return _State(state.step + 1, produced, token, n_own, stop, state.rows, cache, taps)

    def all_taps(self, state: _State) -> PyTree:
        """The taps with those of tokens that the loop chose last and did not feed."""
        return state.taps if self.plan.reduce is None else self.forward(state)[2]


def _nothing(taps: Taps, inputs: PyTree, context: PyTree) -> PyTree:
    return {}


@partial(jax.jit, static_argnames=("plan",))
def _generate(
    model: Model,
    tokens: Array,
    mask: Array,
    table: Array,
    draw: _Draw | None,
    layer_inputs: PyTree,
    context: PyTree,
    plan: _Plan,
) -> Generated:
    decoder = _Decoder(model, table, plan, draw, layer_inputs)
    batch, length = tokens.shape
    cache = new_cache(model.config, batch, length + plan.max_new_tokens, _dtype(model))
    output = decoder.run(tokens, mask, cache, context)
    last = length - 1 - jnp.argmax(mask[:, ::-1], axis=1)  # right- or left-padded rows
    hidden = jnp.take_along_axis(output.hidden, last[:, None, None], axis=1)
    stop = jnp.where(jnp.any(mask, axis=1), START, DONE)  # rows that only fill up the batch end
    start = decoder.start(_cache(output.cache), output.taps, hidden, stop)
    produced, count, _, taps = _run(
        decoder.for_steps(batch), start, parts=1, room=plan.max_new_tokens
    )
    last_token = jnp.take_along_axis(produced, jnp.maximum(count - 1, 0)[:, None], axis=1)
    untouched = jnp.arange(plan.max_new_tokens, dtype=jnp.int32)[None, :] >= count[:, None]
    return Generated(jnp.where(untouched, last_token, produced), count, taps)


def new_pool(model: Model, parts: int, slots: int) -> Pool:
    """An empty pool of `slots` tokens a part."""
    config, dtype = model.config, _dtype(model)
    shape = (config.n_layers, parts, slots, config.n_kv_heads, config.head_dim)
    hidden = jnp.zeros((parts, slots, config.d_model), dtype)
    return Pool(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), hidden)


@partial(jax.jit, static_argnames=("context",), donate_argnames=("pool",))
def prefill(
    model: Model,
    pool: Pool,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    ancestors: Bool[Array, "B T T"],
    row: Int[Array, ""],
    context: int | None,
) -> Pool:
    """Runs rows of a `TreeBatch` and puts their tokens into the pool, part by part.

    Args:
      row: how many rows of a part the pool holds already; B / P rows are added to each part.
      context: the longest row that `decode` will make of them, where `rope.LENGTH_DEPENDENT` has
        the model's scaling; None elsewhere, since each length compiles.
    """
    config, parts = model.config, pool.hidden.shape[0]
    batch, length = tokens.shape
    cache = new_cache(config, batch, length, _dtype(model))
    first = jnp.zeros((), jnp.int32)
    attend = tree_attend(config, positions, ancestors, first, context)
    output = run_decoder(config, model.params, tokens, attend, cache=cache, layout=model.layout)
    filled = _cache(output.cache)
    at = (first, first, row * length, first, first)

    def put(pooled: Array, new: Array) -> Array:
        new = jnp.swapaxes(new, 2, 3)  # slots before heads
        new = new.reshape(new.shape[0], parts, -1, *pooled.shape[3:])
        return jax.lax.dynamic_update_slice(pooled, new, at)

    hidden = output.hidden.reshape(parts, -1, config.d_model)
    return Pool(
        put(pool.keys, filled.keys),
        put(pool.values, filled.values),
        jax.lax.dynamic_update_slice(pool.hidden, hidden, at[1:4]),
    )


@partial(jax.jit, static_argnames=("max_new_tokens",))
def decode(
    model: Model,
    pool: Pool,
    paths: Int[Array, "P b S"],
    lengths: Int[Array, "P b"],
    stop: Int[Array, "P b"],
    table: Int[Array, "S V"],
    max_new_tokens: int,
) -> tuple[Int[Array, "P b U"], Int[Array, "P b"], Int[Array, "P b"]]:
    """Greedy continuations of prompts in the pool, how many tokens each has, and their states.

    A continuation that ended (DONE) has the token that stopped it last. One that did not may have
    fewer than max_new_tokens where most of the batch is long: ask for it again, with what it has
    and its state.

    Args:
      paths: for every prompt of a part the slots of its tokens in that part of the pool.
      lengths: tokens of each prompt; 0 for rows that only fill up the batch.
      stop: the states at which the automaton stands: START for a prompt not answered yet, DONE for
        rows that only fill up the batch.
      table: of `Stops`.
    """
    config = model.config
    parts, width, slots = paths.shape
    room = min(FIRST_ROOM, max_new_tokens) if _halves(width) else max_new_tokens

    def gather(pooled: Float[Array, "L P S K H"]) -> Float[Array, "L B K S H"]:
        rows = jax.vmap(lambda part, path: part[:, path], in_axes=(1, 0), out_axes=1)(pooled, paths)
        rows = jnp.swapaxes(rows.reshape(config.n_layers, parts * width, *rows.shape[3:]), 2, 3)
        return jnp.pad(rows, ((0, 0), (0, 0), (0, 0), (0, room), (0, 0)))

    length = lengths.reshape(-1)
    at = jnp.broadcast_to(jnp.arange(slots + room, dtype=jnp.int32), (len(length), slots + room))
    cache = KVCache(
        gather(pool.keys),
        gather(pool.values),
        at,
        at < length[:, None],
        jnp.asarray(slots, jnp.int32),
    )
    end = jnp.take_along_axis(paths, jnp.maximum(lengths - 1, 0)[:, :, None], axis=2)
    hidden = jnp.take_along_axis(pool.hidden, end, axis=1).reshape(len(length), 1, -1)
    decoder = _Decoder(model, table, _Plan(max_new_tokens))
    start = decoder.start(cache, {}, hidden, stop.reshape(-1))
    produced, *rows, _ = _run(decoder.for_steps(parts * width), start, parts=parts, room=room)
    count, state = (row.reshape(parts, width) for row in rows)
    return produced.reshape(parts, width, -1), count, state


def _run(
    decoder: _Decoder, state: _State, *, parts: int, room: int
) -> tuple[Int[Array, "B U"], Int[Array, " B"], Int[Array, " B"], PyTree]:
    """Decodes in ever narrower batches: all tokens, how many each row has, its state, the taps.

    room: how many new tokens the cache has slots for. Rows that do not fit into a narrower batch,
    because the room ended before half of the rows were done, are left as they are.
    """
    batch, max_new_tokens = state.produced.shape
    everything = jnp.zeros((batch, max_new_tokens), jnp.int32)
    counts, stops = state.n_own, state.stop
    narrower = True

    while narrower:
        width = len(state.rows) // parts
        narrower = _halves(width) and decoder.plan.reduce is None  # taps may be of rows
        enough = width // 2 if narrower else 0

        def unfinished(state: _State, enough: int = enough, room: int = room) -> Array:
            left = jnp.sum((state.stop != DONE).reshape(parts, -1), axis=1)
            return (state.step < min(max_new_tokens, room + 1)) & (jnp.max(left) > enough)

        state = jax.lax.while_loop(unfinished, decoder.advance, state)
        everything = everything.at[state.rows].set(state.produced)
        counts = counts.at[state.rows].set(state.n_own)
        stops = stops.at[state.rows].set(state.stop)
        if narrower:
            state = _halve(state, parts, more_room=max_new_tokens - room)
            room = max_new_tokens
    return everything, counts, stops, decoder.all_taps(state)


def _halves(width: int) -> bool:
    """Whether a batch of so many rows a part goes on in half of them."""
    return width % 2 == 0 and width // 2 >= NARROWEST


def _halve(state: _State, parts: int, more_room: int) -> _State:
    """The unfinished rows of every part (and done ones, to fill up) as a batch of half the width.

    The cache grows by `more_room` slots.
    """
    done = (state.stop == DONE).reshape(parts, -1)
    kept = jnp.argsort(done, axis=1, stable=True)[:, : done.shape[1] // 2]

    def take(x: Array, axis: int = 0, slots: int | None = None) -> Array:
        whole = x.reshape(*x.shape[:axis], parts, -1, *x.shape[axis + 1 :])
        pick = jax.vmap(partial(jnp.take, axis=axis), in_axes=(axis, 0), out_axes=axis)
        rows = pick(whole, kept).reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])
        if slots is None:
            return rows
        return jnp.pad(rows, [(0, more_room if i == slots else 0) for i in range(rows.ndim)])

    cache = KVCache(
        take(state.cache.keys, 1, slots=3),
        take(state.cache.values, 1, slots=3),
        take(state.cache.positions, slots=1),
        take(state.cache.filled, slots=1),
        state.cache.length,
    )
    return _State(
        state.step,
        take(state.produced),
        take(state.token),
        take(state.n_own),
        take(state.stop),
        take(state.rows),
        cache,
        state.taps,
    )


def _cache(cache: KVCache | None) -> KVCache:
    assert cache is not None
    return cache


def _dtype(model: Model) -> jnp.dtype:
    return model.params["embed"]["embedding"].dtype
