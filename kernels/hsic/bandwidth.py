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
EQUAL_ROWS = 1e-6  # squared distance a word of rows that differ by rounding only
SAMPLED_FROM, SAMPLE_EVERY = 256, 8  # words
MAX_WORDS = 65_536  # variable_median counts pairs of words in int32


class Standardised(NamedTuple):
    """Rows z [n, N] with mean 0 and deviation 1 (ddof 1), and which could be made so: ok [n]."""

    z: jax.Array
    ok: jax.Array


def standardise(x: jax.Array, words: jax.Array, epsilon: float = 0.0) -> Standardised:
    """Standardises the rows of x [n, N].

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
    z = jnp.where(ok[:, None], centred / (deviation + 0.5 * epsilon / scale), 0.0)
    return Standardised(z, ok)


class _End(NamedTuple):
    """One end of a bracket: a distance per row, how many pairs lie within it, and which.

    partners [n, N]: for each word a of sorted rows, one past the last b with x_b <= x_a + distance.
    """

    distance: jax.Array
    within: jax.Array
    partners: jax.Array

    def where(self, chosen: jax.Array, other: _End) -> _End:
        """Rows of this end where chosen [n], else of the other."""
        return jax.tree.map(
            lambda own, its: jnp.where(chosen.reshape(-1, *[1] * (own.ndim - 1)), own, its),
            self,
            other,
        )


class _Search(NamedTuple):
    """A bracket of the k-th smallest distance per row: count(low) < k <= count(high)."""

    low: _End
    high: _End
    found: jax.Array  # count(high) == k
    step: jax.Array


def _as_bits(value: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(value, jnp.int32)


def _from_bits(bits: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(bits, jnp.float32)


def _closed(state: _Search) -> jax.Array:
    """No float32 lies between low and high: the k-th smallest is high, one of several equal."""
    return _as_bits(state.high.distance) - _as_bits(state.low.distance) <= 1


def _partners(
    ordered: jax.Array, distance: jax.Array, low: jax.Array, high: jax.Array
) -> jax.Array:
    """`_End.partners` of a distance, known to lie between low and high [n, N].

    By halving: as the bracket closes, so do the partners, and few halvings are left.
    """
    # Padding (inf) has no partners: it would hold the bracket open.
    most = jnp.where(ordered < jnp.inf, ordered + distance[:, None], -jnp.inf)
    last = ordered.shape[1] - 1

    def advance(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        step, partners = state
        at = partners + (step - 1)
        value = jnp.take_along_axis(
            ordered, jnp.minimum(at, last), axis=1, mode="promise_in_bounds"
        )
        return step // 2, jnp.where((at <= last) & (value <= most), at + 1, partners)

    widest = jnp.max(high - low)
    step = jnp.left_shift(1, 31 - lax.clz(jnp.maximum(widest, 1)))  # the power of 2 below
    return lax.while_loop(lambda state: state[0] > 0, advance, (step, low))[1]


def _next_try(state: _Search, k: jax.Array, pairs: jax.Array) -> jax.Array:
    """A distance inside the bracket, by interpolation as if the variable were normal.

    Then count / pairs = erf(distance / 2). Every fourth try halves the bits in between instead,
    which bounds the number of tries whatever the distribution.
    """
    low, high = state.low.distance, state.high.distance
    low_bits, high_bits = _as_bits(low), _as_bits(high)
    level = [
        lax.erf_inv(count.astype(jnp.float32) / (pairs + 1).astype(jnp.float32))
        for count in (state.low.within, jnp.broadcast_to(k, low.shape), state.high.within)
    ]
    share = (level[1] - level[0]) / jnp.maximum(level[2] - level[0], 1e-30)
    guess = _as_bits(low + (high - low) * jnp.clip(share, 0.0, 1.0))
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

    Exact, by counting searches: a few passes of O(N log N), instead of sorting N^2/2 distances.
    They begin around what every eighth word says.
    """
    pairs = n_words * (n_words - 1) // 2
    k = (pairs + 1) // 2
    size = ordered.shape[1]
    near = None
    if size >= SAMPLED_FROM:
        some = size // SAMPLE_EVERY
        at = (2 * jnp.arange(some, dtype=jnp.int32) + 1) * n_words // (2 * some)
        sample = jnp.take(ordered, at, axis=1, mode="clip")
        # A word of the sample stands for eight, whose own distances are the smallest.
        near = _search(sample, jnp.int32(some), jnp.int32(some * (some - 2) // 4)).high.distance
    done = _search(ordered, n_words, k, near, 1.0 / (size // SAMPLE_EVERY + 1))
    is_word = jnp.arange(size)[None, :] < n_words
    below, above = _around(ordered, is_word, done.high.partners)
    middle = jnp.where(pairs % 2 == 0, 0.5 * (below + above), below)
    return jnp.where(done.found, middle, done.high.distance)


def _search(
    ordered: jax.Array,
    n_words: jax.Array,
    k: jax.Array,
    near: jax.Array | None = None,
    margin: float = 0.0,
) -> _Search:
    """Closes in on the k-th smallest distance of sorted rows: `high`, or where `found` after it.

    near [n] is a guess, good to a share `margin`; nothing is lost where it is not.
    """
    n, size = ordered.shape
    itself = jnp.arange(1, size + 1, dtype=jnp.int32)[None, :]
    is_word = itself <= n_words
    pairs = n_words * (n_words - 1) // 2

    def end(distance: jax.Array, low: jax.Array, high: jax.Array) -> _End:
        partners = _partners(ordered, distance, low, high)
        count = jnp.sum(jnp.where(is_word, partners - itself, 0), axis=1, dtype=jnp.int32)
        return _End(distance, count, partners)

    def narrow(state: _Search) -> _Search:
        live = ~(state.found | _closed(state))
        at = jnp.where(live, _next_try(state, k, pairs), state.high.distance)
        # Where the search is over, the upper end stands: nothing is left to halve.
        low = jnp.where(live[:, None], state.low.partners, state.high.partners)
        tried = end(at, low, state.high.partners)
        below = live & (tried.within < k)
        return _Search(
            tried.where(below, state.low),
            tried.where(live & ~below, state.high),
            state.found | (live & (tried.within == k)),
            state.step + 1,
        )

    low = _End(
        jnp.zeros(n, jnp.float32),
        jnp.zeros(n, jnp.int32),
        jnp.broadcast_to(jnp.where(is_word, itself, 0), (n, size)),
    )
    high = _End(
        jnp.take(ordered, n_words - 1, axis=1) - ordered[:, 0],
        jnp.broadcast_to(pairs, n),
        jnp.broadcast_to(jnp.where(is_word, n_words, 0), (n, size)),
    )
    if near is not None:
        upper = end(jnp.minimum(near * (1.0 + margin), high.distance), low.partners, high.partners)
        enough = upper.within >= k
        low, high = low.where(enough, upper), upper.where(enough, high)
        at = jnp.clip(near * (1.0 - margin), low.distance, high.distance)
        lower = end(at, low.partners, high.partners)
        enough = lower.within >= k
        low, high = low.where(enough, lower), lower.where(enough, high)
    return lax.while_loop(
        lambda state: ~jnp.all(state.found | _closed(state)) & (state.step < 160),
        narrow,
        _Search(low, high, high.within == k, jnp.int32(0)),
    )


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


def set_median(x: Standardised, y: Standardised, words: jax.Array) -> jax.Array:
    """The released bandwidth of two standardised sets: a scalar, held fixed by derivatives.

    Lower median over all n1^2 + n2^2 distances between rows, zero diagonals included, plus 1e-6;
    rows that are not ok take no part. Found by halving the float's bits: 31 counting passes, many
    times as fast as sorting.
    """
    n_words = jnp.sum(words)

    def distances(rows: Standardised) -> jax.Array:
        z, ok = lax.stop_gradient(rows)
        product = jnp.einsum("iw,jw->ij", z, z, precision="highest")
        square = jnp.diagonal(product)
        squared = square[:, None] + square[None, :] - 2.0 * product
        # The product rounds: rows that are equal must stay at 0.
        squared = jnp.where(squared > EQUAL_ROWS * n_words, squared, 0.0)
        squared = jnp.where(jnp.eye(len(z), dtype=bool), 0.0, squared)
        return _as_bits(jnp.where(ok[:, None] & ok[None, :], squared, jnp.inf))

    def reached(bits: jax.Array, most: jax.Array) -> jax.Array:
        inside = (bits <= most).astype(jnp.float32)  # a product counts faster than a sum
        rows = jnp.einsum("ij,j->i", inside, jnp.ones(len(bits), jnp.float32))
        return jnp.sum(rows.astype(jnp.int32))

    bits_x, bits_y = distances(x), distances(y)
    count = jnp.sum(x.ok, dtype=jnp.int32) ** 2 + jnp.sum(y.ok, dtype=jnp.int32) ** 2
    before = (count - 1) // 2

    def halve(_: jax.Array, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket
        middle = low + (high - low) // 2
        enough = reached(bits_x, middle) + reached(bits_y, middle) > before
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    bracket = (jnp.int32(0), _as_bits(jnp.float32(jnp.inf)))
    median = _from_bits(lax.fori_loop(0, 31, halve, bracket)[0])
    return jnp.sqrt(median) + RELEASED_EPSILON
