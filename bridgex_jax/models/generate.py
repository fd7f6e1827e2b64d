"""Greedy decoding with a preallocated key/value cache, in one compiled loop.

The prompt is written to the cache once; then one token a row and step, until every row has met a
stop token or the limit. Axes: B T V (axes.py); U = new tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from bridgex_jax.models.decoder import KVCache, new_cache, run_decoder, unembed
from bridgex_jax.models.load import Model


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
    stops = np.zeros(model.config.vocab_size, bool)
    stops[list(model.config.eos_token_ids if stop_ids is None else stop_ids)] = True
    return _generate(model, tokens, mask, jnp.asarray(stops), max_new_tokens)


@partial(jax.jit, static_argnames=("max_new_tokens",))
def _generate(
    model: Model, tokens: Array, mask: Array, stops: Bool[Array, " V"], max_new_tokens: int
) -> Array:
    config, params = model.config, model.params
    batch, length = tokens.shape
    dtype = params["embed"]["embedding"].dtype
    cache = new_cache(config, batch, length + max_new_tokens, dtype)
    output = run_decoder(config, params, tokens, mask, cache=cache)
    last = length - 1 - jnp.argmax(mask[:, ::-1], axis=1)  # right- or left-padded rows
    hidden = jnp.take_along_axis(output.hidden, last[:, None, None], axis=1)
    token = greedy(params, hidden)
    produced = jnp.zeros((batch, max_new_tokens), jnp.int32)
    produced = jax.lax.dynamic_update_slice(produced, token, (0, 0))

    def unfinished(state: tuple) -> Array:
        step, _, _, _, done = state
        return (step < max_new_tokens) & ~jnp.all(done)

    def advance(state: tuple) -> tuple:
        step, produced, token, cache, done = state
        everyone = jnp.ones((batch, 1), bool)
        output = run_decoder(config, params, token, everyone, cache=cache)
        token = jnp.where(done[:, None], token, greedy(params, output.hidden))
        produced = jax.lax.dynamic_update_slice(produced, token, (0, step))
        return step + 1, produced, token, output.cache, done | stops[token[:, 0]]

    done = stops[token[:, 0]] | ~jnp.any(mask, axis=1)  # rows that only fill up the batch
    state = (jnp.ones((), jnp.int32), produced, token, _cache(output.cache), done)
    step, produced, token, _, _ = jax.lax.while_loop(unfinished, advance, state)
    untouched = jnp.arange(max_new_tokens, dtype=jnp.int32)[None, :] >= step
    return jnp.where(untouched, token, produced)


def _cache(cache: KVCache | None) -> KVCache:
    assert cache is not None
    return cache


def greedy(params: dict, hidden: Array) -> Int[Array, "B 1"]:
    """The most probable next token after the last hidden state of each row."""
    return jnp.argmax(unembed(params, hidden[:, -1:]), axis=-1).astype(jnp.int32)
