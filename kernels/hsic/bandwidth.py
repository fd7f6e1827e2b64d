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
    variance = jnp.sum(centred * centred, axis=1, keepdims=True) / (n_words - 1)
    deviation = jnp.sqrt(jnp.where(ok[:, None], variance, 1.0))  # the root of 0 has no derivative
    return jnp.where(ok[:, None], centred / (deviation + 0.5 * epsilon / scale), 0.0), ok


class _Search(NamedTuple):
    """A bracket of the k-th smallest distance per row: count(low) < k <= count(high)."""

    low: jax.Array
    high: jax.Array
    count_low: jax.Array
    count_high: jax.Array
    at: jax.Array  # the distance tried last, or the one that was found:
    found: jax.Array  # count(at) == k
    step: jax.Array


def _as_bits(value: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(value, jnp.int32)


def _from_bits(bits: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(bits, jnp.float32)


def _closed(state: _Search) -> jax.Array:
    """No float32 lies between low and high: the k-th smallest is high, one of several equal."""
    return _as_bits(state.high) - _as_bits(state.low) <= 1


def _partners(ordered: jax.Array, distance: jax.Array) -> jax.Array:
    """For each word a of sorted rows, one past the last b with x_b <= x_a + distance: [n, N]."""
    search = jax.vmap(lambda row, values: jnp.searchsorted(row, values, side="right"))
    return search(ordered, ordered + distance[:, None])


def _next_try(state: _Search, k: jax.Array, pairs: jax.Array) -> jax.Array:
    """A distance inside the bracket, by interpolation as if the variable were normal.

    Then count / pairs = erf(distance / 2). Every fourth try halves the bits in between instead,
    which bounds the number of tries whatever the distribution.
    """
    low_bits, high_bits = _as_bits(state.low), _as_bits(state.high)
    level = [
        lax.erf_inv(count.astype(jnp.float32) / (pairs + 1).astype(jnp.float32))
        for count in (state.count_low, jnp.broadcast_to(k, state.low.shape), state.count_high)
    ]
    share = (level[1] - level[0]) / jnp.maximum(level[2] - level[0], 1e-30)
    guess = _as_bits(state.low + (state.high - state.low) * jnp.clip(share, 0.0, 1.0))
    middle = low_bits + (high_bits - low_bits) // 2
    bits = jnp.where(state.step % 4 == 3, middle, guess)
    return _from_bits(jnp.clip(bits, low_bits + 1, jnp.maximum(high_bits - 1, low_bits + 1)))


def variable_median(z: jax.Array, words: jax.Array) -> jax.Array:
    """Median of |z_a - z_b| over pairs a < b of words, for each row of z [n, N]: [n] float32.

    For an even number of pairs the mean of the two middle values. Rows must be finite and
    standardised; a row with a median of 0 gives less than 1e-30. At most 65,536 words.
    """
    ordered = jnp.sort(jnp.where(words[None, :] > 0, z, jnp.inf), axis=1).astype(jnp.float32)
    return sorted_median(ordered, jnp.sum(words > 0).astype(jnp.int32))


def sorted_median(ordered: jax.Array, n_words: jax.Array) -> jax.Array:
    """`variable_median` of rows [n, N] in rising order, inf from entry n_words on: [n].

    Exact, by counting searches: O(N log N) a pass and about ten passes, instead of sorting
    N^2/2 distances.
    """
    n, size = ordered.shape
    itself = jnp.arange(1, size + 1, dtype=jnp.int32)[None, :]
    is_word = itself <= n_words
    pairs = n_words * (n_words - 1) // 2
    k = (pairs + 1) // 2

    def narrow(state: _Search) -> _Search:
        at = jnp.where(state.found, state.at, _next_try(state, k, pairs))
        partners = jnp.where(is_word, _partners(ordered, at) - itself, 0)
        count = jnp.sum(partners, axis=1, dtype=jnp.int32)
        below, above = count < k, (count >= k) & ~_closed(state)
        return _Search(
            jnp.where(below, at, state.low),
            jnp.where(above, at, state.high),
            jnp.where(below, count, state.count_low),
            jnp.where(above, count, state.count_high),
            at,
            count == k,
            state.step + 1,
        )

    start = _Search(
        jnp.zeros(n, jnp.float32),
        jnp.take(ordered, n_words - 1, axis=1) - ordered[:, 0],
        jnp.zeros(n, jnp.int32),
        jnp.full(n, pairs, jnp.int32),
        jnp.zeros(n, jnp.float32),
        jnp.zeros(n, bool),
        jnp.int32(0),
    )
    done = lax.while_loop(
        lambda state: ~jnp.all(state.found | _closed(state)) & (state.step < 160), narrow, start
    )
    below, above = _around(ordered, is_word, _partners(ordered, done.at))
    middle = jnp.where(pairs % 2 == 0, 0.5 * (below + above), below)
    return jnp.where(done.found, middle, done.high)


def _around(
    ordered: jax.Array, is_word: jax.Array, partners: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The largest distance within reach of `partners` and the smallest beyond, per row: [n]."""
    before = jnp.take_along_axis(ordered, partners - 1, axis=1, mode="clip") - ordered
    after = jnp.take_along_axis(ordered, partners, axis=1, mode="clip") - ordered
    # Beyond the last word lie infinite padding and the end of the row.
    has_next = is_word & (partners < ordered.shape[1])
    return (
        jnp.max(jnp.where(is_word, before, 0.0), axis=1),
        jnp.min(jnp.where(has_next, after, jnp.inf), axis=1),
    )


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
