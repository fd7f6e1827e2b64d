"""Standardisation of variables and the bandwidths of their Gaussian kernels, pure and jit-able.

`variable_median` is the median distance between two words, one number per variable;
`set_median` is the one number of the released BridgeX-ICL code. Source: spec hsic-core,
Bandwidth. Axes: n variables, N words; `words` [N] is 1 for a word and 0 for padding.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

RELEASED_EPSILON = 1e-6
MAX_WORDS = 65_536  # variable_median counts pairs of words in int32


def standardise(
    x: jax.Array, words: jax.Array, epsilon: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Rows of x [n, N] with mean 0 and deviation 1 (ddof 1), and which rows could be: [n] bool.

    A row that is constant or not finite comes back as zeros. epsilon is added to the deviation,
    as the released code does (1e-6). Scaled by the largest entry first, so that neither 1e30 nor
    1e-30 leaves float32.
    """
    word = words[None, :] > 0
    n_words = jnp.sum(words)
    finite = jnp.all(jnp.isfinite(x) | ~word, axis=1)
    safe = jnp.where(finite[:, None] & word, x, jnp.zeros_like(x))
    high = jnp.max(jnp.where(word, safe, -jnp.inf), axis=1)
    low = jnp.min(jnp.where(word, safe, jnp.inf), axis=1)
    scale = 0.5 * high - 0.5 * low  # halves: high - low itself may overflow
    ok = finite & (scale >= jnp.finfo(jnp.float32).tiny)
    scale = jnp.where(ok, scale, 1.0)[:, None]
    # From the lowest value, where the difference of near values is exact; in units of 2 scale.
    scaled = jnp.where(ok[:, None] & word, (0.5 * safe - 0.5 * low[:, None]) / scale, 0.0)
    centred = (scaled - jnp.sum(scaled, axis=1, keepdims=True) / n_words) * words[None, :]
    centred = centred - jnp.sum(centred, axis=1, keepdims=True) / n_words * words[None, :]
    deviation = jnp.sqrt(jnp.sum(centred * centred, axis=1, keepdims=True) / (n_words - 1))
    divisor = jnp.where(ok[:, None], deviation + 0.5 * epsilon / scale, 1.0)
    return jnp.where(ok[:, None], centred / divisor, 0.0), ok


class _Search(NamedTuple):
    """A bracket of the k-th smallest distance per row: count(low) < k <= count(high)."""

    low: jax.Array
    high: jax.Array
    count_low: jax.Array
    count_high: jax.Array
    at: jax.Array  # a distance with count(at) == k, once `done`
    done: jax.Array
    step: jax.Array


def _as_bits(value: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(value, jnp.int32)


def _from_bits(bits: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(bits, jnp.float32)


def _partners(ordered: jax.Array, distance: jax.Array) -> jax.Array:
    """For each word a of sorted rows, one past the last b with x_b <= x_a + distance: [n, N]."""
    search = jax.vmap(lambda row, values: jnp.searchsorted(row, values, side="right"))
    return search(ordered, ordered + distance[:, None])


def _count(ordered: jax.Array, words_left: jax.Array, distance: jax.Array) -> jax.Array:
    """How many pairs a < b lie within `distance` of each other: [n] int32."""
    partners = _partners(ordered, distance) - 1 - jnp.arange(ordered.shape[1])[None, :]
    return jnp.sum(jnp.where(words_left, partners, 0), axis=1, dtype=jnp.int32)


def _narrow(ordered: jax.Array, words_left: jax.Array, k: jax.Array, state: _Search) -> _Search:
    """One counting pass: by interpolation, every third time by halving the bits in between."""
    low_bits, high_bits = _as_bits(state.low), _as_bits(state.high)
    span = jnp.maximum(state.count_high - state.count_low, 1).astype(jnp.float32)
    share = (k - state.count_low).astype(jnp.float32) / span
    guess = _as_bits(state.low + (state.high - state.low) * share)
    middle = low_bits + (high_bits - low_bits) // 2
    bits = jnp.where(state.step % 3 == 2, middle, guess)
    at = _from_bits(jnp.clip(bits, low_bits + 1, jnp.maximum(high_bits - 1, low_bits + 1)))
    count = _count(ordered, words_left, at)
    below = ~state.done & (count < k)
    above = ~state.done & (count >= k)
    low = jnp.where(below, at, state.low)
    high = jnp.where(above, at, state.high)
    found = state.done | (count == k)
    return _Search(
        low,
        high,
        jnp.where(below, count, state.count_low),
        jnp.where(above, count, state.count_high),
        jnp.where(state.done, state.at, at),
        found | (_as_bits(high) - _as_bits(low) <= 1),
        state.step + 1,
    )


def variable_median(z: jax.Array, words: jax.Array) -> jax.Array:
    """Median of |z_a - z_b| over pairs a < b of words, for each row of z [n, N]: [n] float32.

    For an even number of pairs the mean of the two middle values. Exact, by counting searches on
    sorted rows: O(N log N) a pass and about ten passes, instead of sorting N^2/2 distances. Rows
    must be finite and standardised; a constant row gives 0. At most 65,536 words.
    """
    n, size = z.shape
    n_words = jnp.sum(words > 0).astype(jnp.int32)
    ordered = jnp.sort(jnp.where(words[None, :] > 0, z, jnp.inf), axis=1).astype(jnp.float32)
    words_left = jnp.arange(size)[None, :] < n_words
    pairs = n_words * (n_words - 1) // 2
    k = (pairs + 1) // 2
    zeros = jnp.zeros(n, jnp.float32)
    last = jnp.take(ordered, n_words - 1, axis=1)
    count_zero = _count(ordered, words_left, zeros)
    start = _Search(
        zeros,
        jnp.where(count_zero >= k, 0.0, last - ordered[:, 0]),
        jnp.minimum(count_zero, k - 1),
        jnp.full(n, pairs, jnp.int32),
        zeros,
        count_zero >= k,
        jnp.int32(0),
    )
    found = lax.while_loop(
        lambda state: ~jnp.all(state.done) & (state.step < 120),
        lambda state: _narrow(ordered, words_left, k, state),
        start,
    )
    return _middle(ordered, words_left, found, k, pairs % 2 == 0)


def _middle(
    ordered: jax.Array, words_left: jax.Array, found: _Search, k: jax.Array, even: jax.Array
) -> jax.Array:
    """The k-th distance, or its mean with the next one, from the two that enclose `found.at`."""
    size = ordered.shape[1]
    own = jnp.arange(size)[None, :]
    partners = _partners(ordered, found.at)
    before = jnp.take_along_axis(ordered, jnp.clip(partners - 1, 0, size - 1), axis=1) - ordered
    after = jnp.take_along_axis(ordered, jnp.clip(partners, 0, size - 1), axis=1) - ordered
    has_before = words_left & (partners - 1 > own)
    # The entry after the last word is infinite padding or out of range: no pair there.
    has_after = words_left & (partners < size)
    kth = jnp.max(jnp.where(has_before, before, 0.0), axis=1)
    following = jnp.min(jnp.where(has_after, after, jnp.inf), axis=1)
    split = jnp.where(even, 0.5 * (kth + following), kth)
    exact = _count(ordered, words_left, found.at) == k
    return jnp.where(exact, split, found.high)


def set_median(x: jax.Array, y: jax.Array, words: jax.Array) -> jax.Array:
    """The released bandwidth of two standardised sets x [n1, N], y [n2, N]: a scalar.

    Lower median over all n1^2 + n2^2 distances between rows, zero diagonals included, plus 1e-6.
    """

    def distances(z: jax.Array) -> jax.Array:
        z = z * words[None, :]
        product = jnp.einsum("iw,jw->ij", z, z, precision="highest")
        square = jnp.diagonal(product)
        squared = square[:, None] + square[None, :] - 2.0 * product
        # The product rounds: a row's distance to itself must stay 0.
        squared = jnp.where(jnp.eye(len(z), dtype=bool), 0.0, jnp.maximum(squared, 0.0))
        return jnp.sqrt(squared).reshape(-1)

    pooled = jnp.sort(jnp.concatenate([distances(x), distances(y)]))
    return pooled[(pooled.shape[0] - 1) // 2] + RELEASED_EPSILON
