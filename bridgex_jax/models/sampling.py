"""Drawing the next token: temperature, then the k most probable, then the nucleus.

Nucleus: Holtzman et al., arXiv 1904.09751. The key of a token comes from the seed, the number of
its row and its place in the answer, so an answer does not depend on the batch that it is in. Axes:
B V (axes.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from bridgex_jax.errors import InputError

_COLDEST = 1e-10  # a temperature at which no two logits are drawn but the larger


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    temperature: of the softmax; 0 for the most probable token. top_k: draw among so many of the
    most probable; top_p: among as few as have this probability together; None for all. Tokens as
    probable as the last of these are in.

    Raises InputError for values out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"temperature is {self.temperature}", remedy="give 0 or more")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k is {self.top_k}", remedy="give 1 or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}", remedy="give more than 0, at most 1")


def row_keys(seed: int, numbers: Int[Array, " B"]) -> Key[Array, " B"]:
    """The keys of rows with these numbers."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), numbers)


def sample(
    logits: Float[Array, "B V"],
    keys: Key[Array, " B"],
    place: Int[Array, ""],
    temperature: Float[Array, ""],
    top_k: int | None = None,
    top_p: float | None = None,
) -> Int[Array, " B"]:
    """A token for every row; `place` is which token of the answers it is."""
    largest = jnp.max(logits, axis=-1, keepdims=True)
    scores = (logits - largest) / jnp.maximum(temperature, jnp.float32(_COLDEST))
    if top_k is not None and top_k < scores.shape[-1]:
        last = jax.lax.top_k(scores, top_k)[0][:, -1:]
        scores = jnp.where(scores < last, -jnp.inf, scores)
    if top_p is not None and top_p < 1:
        scores = jnp.where(scores < _last_of_nucleus(scores, top_p), -jnp.inf, scores)
    step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, place)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, scores.shape[-1:]))(step_keys)
    return jnp.argmax(scores + noise, axis=-1).astype(jnp.int32)


def most_probable(logits: Float[Array, "B V"]) -> Int[Array, " B"]:
    """The token with the largest logit of every row, the first of equal ones.

    As two plain reductions: `argmax` is a loop over single values in XLA's CPU backend.
    """
    last = logits.shape[-1] - 1  # where a row holds NaN
    places = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    largest = jnp.max(logits, axis=-1, keepdims=True)
    return jnp.min(jnp.where(logits == largest, places, last), axis=-1)


def _last_of_nucleus(scores: Float[Array, "B V"], top_p: float) -> Float[Array, "B 1"]:
    """The least score among the fewest tokens that have the probability together."""
    ordered = -jnp.sort(-scores, axis=-1)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    kept = before < jnp.float32(top_p)
    return jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
