"""Greedy decoding with a preallocated key/value cache, in one compiled call.

The prompts' keys and values are written first: prompt by prompt (`generate`), or as trees in which
prompts that begin alike share these tokens (`prefill`, then `decode`). Then comes one token a row
and step. A batch runs as long as its longest answer, so whenever half of its rows are done, the
others go on in a batch of half the width. Axes: L B T K H D V (axes.py); U = new tokens, P = parts
of a batch, one a device, S = slots of a cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from bridgex_jax.models.decoder import KVCache, new_cache, run_decoder, tree_attend, unembed
from bridgex_jax.models.load import Model

NARROWEST = 128  # rows a part: a batch is not halved below
FIRST_ROOM = 16  # new tokens at full width: slots cost time, and most answers are shorter


class Pool(NamedTuple):
    """Keys, values and last hidden states of prompt tokens, from which `decode` gathers rows."""

    keys: Float[Array, "L P S K H"]
    values: Float[Array, "L P S K H"]
    hidden: Float[Array, "P S D"]


def generate(
    model: Model,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    max_new_tokens: int = 30,
    stop_ids: Sequence[int] | None = None,
) -> Int[Array, "B U"]:
    """The most probable continuation, token by token; U = max_new_tokens.

    A row ends at its first stop token, which is returned; what follows it is that token again.

    Args:
      mask: True at real tokens; rows may be padded on either side.
      stop_ids: token ids that end a row; None for the model's end-of-sequence tokens.
    """
    return _generate(model, tokens, mask, make_stops(model, stop_ids), max_new_tokens)


class Stops(NamedTuple):
    """Where a row ends: with a token of `line`, or of `quote` if it began with one of `opening`."""

    line: Bool[Array, " V"]
    opening: Bool[Array, " V"]
    quote: Bool[Array, " V"]


def make_stops(
    model: Model,
    line: Sequence[int] | None,
    opening: Sequence[int] = (),
    quote: Sequence[int] = (),
) -> Stops:
    """Tables of token ids; for `line` None stands for the model's end-of-sequence tokens."""
    tables = np.zeros((3, model.config.vocab_size), bool)
    line = model.config.eos_token_ids if line is None else line
    for table, ids in zip(tables, (line, opening, quote), strict=True):
        table[list(ids)] = True
    return Stops(*jnp.asarray(tables))


@partial(jax.jit, static_argnames=("max_new_tokens",))
def _generate(model: Model, tokens: Array, mask: Array, stops: Stops, max_new_tokens: int) -> Array:
    config, params = model.config, model.params
    batch, length = tokens.shape
    cache = new_cache(config, batch, length + max_new_tokens, _dtype(model))
    output = run_decoder(config, params, tokens, mask, cache=cache)
    last = length - 1 - jnp.argmax(mask[:, ::-1], axis=1)  # right- or left-padded rows
    hidden = jnp.take_along_axis(output.hidden, last[:, None, None], axis=1)
    empty = ~jnp.any(mask, axis=1)  # rows that only fill up the batch
    opened = jnp.full(batch, -1, jnp.int32)
    start = _start(params, _cache(output.cache), hidden, empty, opened, stops, max_new_tokens)
    produced, count, _ = _run(model, start, stops, parts=1, room=max_new_tokens)
    last_token = jnp.take_along_axis(produced, count[:, None] - 1, axis=1)
    untouched = jnp.arange(max_new_tokens, dtype=jnp.int32)[None, :] >= count[:, None]
    return jnp.where(untouched, last_token, produced)


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
    output = run_decoder(config, model.params, tokens, attend, cache=cache)
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
    opened: Int[Array, "P b"],
    stops: Stops,
    max_new_tokens: int,
) -> tuple[Int[Array, "P b U"], Int[Array, "P b"], Bool[Array, "P b"]]:
    """Greedy continuations of prompts in the pool, how many tokens each has, and which ended.

    A continuation that ended has the token that stopped it last. One that did not may have fewer
    than max_new_tokens where most of the batch is long: ask for it again, with what it has.

    Args:
      paths: for every prompt of a part the slots of its tokens in that part of the pool.
      lengths: tokens of each prompt; 0 for rows that only fill up the batch.
      opened: whether the answer that a prompt ends with opens with a quote (1 or 0); -1 for a
        prompt that is not answered yet.
      stops: `make_stops`.
    """
    config, params = model.config, model.params
    parts, width, slots = paths.shape
    room = min(FIRST_ROOM, max_new_tokens)

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
    state = opened.reshape(-1)
    start = _start(params, cache, hidden, length == 0, state, stops, max_new_tokens)
    produced, *rows = _run(model, start, stops, parts=parts, room=room)
    count, ended = (row.reshape(parts, width) for row in rows)
    return produced.reshape(parts, width, -1), count, ended


class _State(NamedTuple):
    """A batch in the middle of decoding. rows: their places in the whole batch."""

    step: Int[Array, ""]
    produced: Int[Array, "B U"]
    token: Int[Array, "B 1"]
    n_own: Int[Array, " B"]  # tokens that are the row's own
    done: Bool[Array, " B"]
    quoted: Bool[Array, " B"]  # the answer opens with a quote
    rows: Int[Array, " B"]
    cache: KVCache


def _start(
    params: dict,
    cache: KVCache,
    hidden: Float[Array, "B 1 D"],
    empty: Bool[Array, " B"],
    opened: Int[Array, " B"],
    stops: Stops,
    max_new_tokens: int,
) -> _State:
    """The first new token of every row, from the last hidden state of its prompt."""
    token = greedy(params, hidden)
    batch = len(token)
    produced = jnp.zeros((batch, max_new_tokens), jnp.int32)
    produced = jax.lax.dynamic_update_slice(produced, token, (0, 0))
    rows = jnp.arange(batch, dtype=jnp.int32)
    first = token[:, 0]
    quoted = jnp.where(opened < 0, stops.opening[first], opened > 0)
    done = stops.line[first] | empty | ((opened > 0) & stops.quote[first])
    one = jnp.ones((), jnp.int32)
    return _State(one, produced, token, jnp.ones(batch, jnp.int32), done, quoted, rows, cache)


def _run(
    model: Model, state: _State, stops: Stops, *, parts: int, room: int
) -> tuple[Int[Array, "B U"], Int[Array, " B"], Bool[Array, " B"]]:
    """Decodes in ever narrower batches: all tokens, how many each row has, and which rows ended.

    room: how many new tokens the cache has slots for. Rows that do not fit into a narrower batch,
    because the room ended before half of the rows were done, are left as they are.
    """
    config, params = model.config, model.params
    batch, max_new_tokens = state.produced.shape
    everything = jnp.zeros((batch, max_new_tokens), jnp.int32)
    counts, ended = jnp.ones(batch, jnp.int32), state.done
    narrower = True

    while narrower:
        width = len(state.rows) // parts
        narrower = width % 2 == 0 and width // 2 >= NARROWEST
        enough = width // 2 if narrower else 0

        def unfinished(state: _State, enough: int = enough, room: int = room) -> Array:
            left = jnp.sum(~state.done.reshape(parts, -1), axis=1)
            return (state.step < min(max_new_tokens, room + 1)) & (jnp.max(left) > enough)

        def advance(state: _State) -> _State:
            mask = jnp.ones(state.token.shape, bool)
            output = run_decoder(config, params, state.token, mask, cache=state.cache)
            token = jnp.where(state.done[:, None], state.token, greedy(params, output.hidden))
            produced = jax.lax.dynamic_update_slice(state.produced, token, (0, state.step))
            ends = stops.line[token[:, 0]] | (stops.quote[token[:, 0]] & state.quoted)
            n_own = jnp.where(state.done, state.n_own, state.step + 1)
            return _State(
                state.step + 1,
                produced,
                token,
                n_own,
                state.done | ends,
                state.quoted,
                state.rows,
                _cache(output.cache),
            )

        state = jax.lax.while_loop(unfinished, advance, state)
        everything = everything.at[state.rows].set(state.produced)
        counts = counts.at[state.rows].set(state.n_own)
        ended = ended.at[state.rows].set(state.done)
        if narrower:
            state = _halve(state, parts, more_room=max_new_tokens - room)
            room = max_new_tokens
    return everything, counts, ended


def _halve(state: _State, parts: int, more_room: int) -> _State:
    """The unfinished rows of every part (and done ones, to fill up) as a batch of half the width.

    The cache grows by `more_room` slots.
    """
    done = state.done.reshape(parts, -1)
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
        take(state.done),
        take(state.quoted),
        take(state.rows),
        cache,
    )


def _cache(cache: KVCache | None) -> KVCache:
    assert cache is not None
    return cache


def _dtype(model: Model) -> jnp.dtype:
    return model.params["embed"]["embedding"].dtype


def greedy(params: dict, hidden: Array) -> Int[Array, "B 1"]:
    """The most probable next token after the last hidden state of each row."""
    return jnp.argmax(unembed(params, hidden[:, -1:]), axis=-1).astype(jnp.int32)
