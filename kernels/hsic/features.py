"""All pairs of two sets through a few features a variable, with a proven bound on the error.

A Gram matrix is close to F^T F for a few features F of each word: Taylor features of the Gaussian
kernel for large bandwidths (here), pivoted Cholesky factors otherwise (cholesky.py). Features are
*graded*, each much smaller than the one before. Then tr(KHLH) = sum_pq <a_p, b_q>^2 needs the pairs
of low grade only, p + q < rank: half of the square. What is left out, tail and pairs, is bounded by
the norms of the features (spec hsic-core, Three regimes). Axes: r features, n variables, N words.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .estimators import DEBIASED, NORMALISED, SetSums, own_values
from .exact import Split

MAX_RANK = 12
GRADES_AT_ONCE = 4
CHUNK = 4096  # words whose features are in memory at once


class Source(NamedTuple):
    """Features of one set, made for a chunk of words when they are needed.

    make(parts, words) gives r features [n, w] of the words in a slice of parts [..., n, w] (0
    where words [w] is 0), each less a constant [r], which centring removes. left [n] is the trace
    of what all the features together leave out of the Gram matrix. The features are apart, since
    XLA would make the exponentials anew for every row of a stack.
    """

    parts: Any
    make: Callable[[Any, jax.Array], list[jax.Array]]
    constant: np.ndarray
    left: jax.Array


@functools.lru_cache
def grading(count: int) -> np.ndarray:
    """How Taylor features 0…count-1 combine into graded ones: [count, count], orthogonal.

    Once phi_0 is less 1 and centred, all even features begin with z^2 and are nearly parallel; the
    rotation makes them begin with z^2, z^4, … Rows are in rising order of that power.
    """
    even, odd = np.arange(0, count, 2), np.arange(1, count, 2)
    # Coefficients of u, u^2, … (u = z^2 / 2 sigma^2) in phi_2m = (2u)^m e^-u / sqrt((2m)!).
    series = np.zeros((len(even), len(even)))
    for row in range(len(even)):
        for power in range(max(row, 1), len(even) + 1):
            term = (-1) ** (power - row) / math.factorial(power - row)
            series[row, power - 1] = 2**row / math.sqrt(math.factorial(2 * row)) * term
    rotation = np.zeros((count, count))
    rotation[np.ix_(even, even)] = np.linalg.qr(series)[0].T
    rotation[odd, odd] = 1.0
    powers = np.zeros(count, int)
    powers[even], powers[odd] = even + 2, odd
    return rotation[np.argsort(powers)]


def taylor_features(
    scaled: jax.Array, weight: jax.Array, first: jax.Array, count: int
) -> list[jax.Array]:
    """Graded features of z/sigma [n, N]: `count` of them, each less a constant.

    Combinations of phi_k = weight (z/sigma)^k / sqrt(k!) with weight = exp(-z^2/2 sigma^2), and of
    first = phi_0 - 1, by expm1.
    """
    square = scaled * scaled
    features = []
    for row in grading(count) / np.sqrt([float(math.factorial(k)) for k in range(count)]):
        odd = bool(row[1::2].any())
        series = jnp.zeros_like(square)
        for share in (row[1::2] if odd else row[2::2])[::-1]:
            series = series * square + np.float32(share)
        feature = weight * (scaled if odd else square) * series
        features.append(feature if odd else feature + np.float32(row[0]) * first)
    return features


def taylor(z: jax.Array, sigma: jax.Array, words: jax.Array, rank: int) -> Source:
    """rank + 1 graded Taylor features of standardised z [n, N] (padding is 0).

    What they leave out is positive semidefinite, of trace at most sum_w
    (z_w^2/sigma^2)^r / r! for r = rank + 1.
    """
    count = rank + 1
    scaled = z / sigma[:, None]
    square = scaled * scaled
    term = square
    for order in range(2, count + 1):
        term = term * (square * np.float32(1.0 / order))

    def make(parts: tuple[jax.Array, jax.Array, jax.Array], words: jax.Array) -> list[jax.Array]:
        return [feature * words[None, :] for feature in taylor_features(*parts, count)]

    parts = (scaled, jnp.exp(-0.5 * square), jnp.expm1(-0.5 * square))
    return Source(parts, make, grading(count)[:, 0], term @ words)


class Remainder(NamedTuple):
    """Per variable, what bounds the error of what is left out; `shares` [n, r + 1], others [n]."""

    shares: jax.Array  # squared norms of the centred features, then the trace that they leave
    spectrum: jax.Array  # at least the largest eigenvalue of the centred features' Gram matrix
    diagonal: jax.Array  # its largest diagonal entry
    row_norm: jax.Array  # the norm of H K 1

    @property
    def trace(self) -> jax.Array:
        """Trace of what all features leave out."""
        return self.shares[:, -1]


def _chunked(
    body: Callable[[Any, tuple[Any, jax.Array]], tuple[Any, Any]],
    start: Any,
    parts: Any,
    words: jax.Array,
) -> tuple[Any, Any]:
    """`lax.scan` of body over chunks of the last axis (words) of parts; outputs are rejoined."""
    size = words.shape[0]
    if size <= CHUNK:
        return body(start, (parts, words))
    missing = -size % CHUNK
    arrays = jax.tree.map(
        lambda array: jnp.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, missing)]), (parts, words)
    )

    def slices(first: jax.Array) -> Any:
        return jax.tree.map(
            lambda array: lax.dynamic_slice_in_dim(array, first, CHUNK, axis=-1), arrays
        )

    def step(state: tuple[Any, Any], first: jax.Array) -> tuple[tuple[Any, Any], None]:
        total, written = state
        total, out = body(total, slices(first))
        written = jax.tree.map(
            lambda whole, part: lax.dynamic_update_slice_in_dim(whole, part, first, axis=-1),
            written,
            out,
        )
        return (total, written), None

    shapes = jax.eval_shape(lambda: body(start, slices(jnp.int32(0)))[1])
    empty = jax.tree.map(
        lambda out: jnp.zeros((*out.shape[:-1], size + missing), out.dtype), shapes
    )
    firsts = jnp.arange(0, size, CHUNK, dtype=jnp.int32)
    (total, written), _ = lax.scan(jax.checkpoint(step), (start, empty), firsts)
    return total, jax.tree.map(lambda whole: whole[..., :size], written)


def _means(source: Source, words: jax.Array) -> list[jax.Array]:
    """Means of the features over the words, each [n]."""

    def add(totals: list[jax.Array], at: tuple[Any, jax.Array]) -> tuple[list[jax.Array], None]:
        part, some = at
        features = source.make(part, some)
        return [total + f @ some for total, f in zip(totals, features, strict=True)], None

    start = [jnp.zeros_like(source.left) for _ in source.constant]
    totals, _ = _chunked(add, start, source.parts, words)
    return [total / jnp.sum(words) for total in totals]


def _centred(
    source: Source, means: list[jax.Array], part: Any, words: jax.Array
) -> list[jax.Array]:
    features = source.make(part, words)
    return [(f - m[:, None]) * words[None, :] for f, m in zip(features, means, strict=True)]


def _set_sums(
    source: Source, means: list[jax.Array], words: jax.Array, *, own: bool, precision: str
) -> tuple[SetSums, Remainder]:
    """`SetSums` of the Gram matrices A^T A of centred features A, and the bound's ingredients.

    own: whether the sum of squared entries is wanted, which the normalised estimators need.
    """
    n_words = jnp.sum(words)
    totals = [n_words * (m + np.float32(c)) for m, c in zip(means, source.constant, strict=True)]

    def add(inner: Any, at: tuple[Any, jax.Array]) -> tuple[Any, Any]:
        a = _centred(source, means, *at)
        if own:
            stack = jnp.stack(a)
            inner = inner + jnp.einsum("rnw,snw->nrs", stack, stack, precision=precision)
        else:
            inner = [norm + jnp.sum(f * f, axis=1) for norm, f in zip(inner, a, strict=True)]
        raw = _added(f * total[:, None] for f, total in zip(a, totals, strict=True))
        return inner, (_added(f * f for f in a), raw)

    zeros = jnp.zeros_like(source.left)
    count, n = len(means), len(zeros)
    start = jnp.zeros((n, count, count), jnp.float32) if own else [zeros] * count
    inner, (diagonal, raw) = _chunked(add, start, source.parts, words)
    norms = jnp.diagonal(inner, axis1=1, axis2=2) if own else jnp.stack(inner, axis=1)
    remainder = Remainder(
        jnp.concatenate([norms, source.left[:, None]], axis=1),
        jnp.sum(norms, axis=1),
        jnp.max(diagonal, axis=1),
        jnp.sqrt((raw * raw) @ words),
    )
    squares = jnp.sum(inner * inner, axis=(1, 2)) if own else zeros
    return SetSums(None, diagonal, squares, raw), remainder


def feature_sums(
    x: Source,
    y: Source,
    words: jax.Array,
    rank: int,
    *,
    estimator: str,
    precision: str,
    split: Split | None = None,
) -> tuple[jax.Array, tuple[SetSums, SetSums], tuple[Remainder, Remainder]]:
    """Sums over the Gram matrices of two sets of n1 and n2 variables, for `combine`.

    n1 n2 r (r + 1) N FLOPs for rank r, and memory O(r (n1 + n2) CHUNK + r^2 n1 n2). Returns cross
    [n1, n2], the sums and the bound's ingredients of x and of y. Inside `shard_map` the words of
    the products can be split over a mesh axis.
    """
    own = estimator in NORMALISED
    n1, n2 = x.left.shape[0], y.left.shape[0]
    means_x, means_y = _means(x, words), _means(y, words)
    sums_x, left_x = _set_sums(x, means_x, words, own=own, precision=precision)
    sums_y, left_y = _set_sums(y, means_y, words, own=own, precision=precision)

    def add(
        products: dict[tuple[int, int], jax.Array], at: tuple[Any, jax.Array]
    ) -> tuple[dict[tuple[int, int], jax.Array], None]:
        (part_x, part_y), some = at
        a, b = _centred(x, means_x, part_x, some), _centred(y, means_y, part_y, some)
        return {
            (p, q): total
            + jnp.einsum("pw,qw->pq", _flat(a, p, rank), _flat(b, q, rank), precision=precision)
            for (p, q), total in products.items()
        }, None

    parts, own_words = (x.parts, y.parts), words
    if split is not None:
        parts, own_words = jax.tree.map(lambda array: _own_words(array, split), (parts, words))
    start = {
        (p, q): jnp.zeros((n1 * _width(p, rank), n2 * _width(q, rank)), jnp.float32)
        for p, q in _group_pairs(rank)
    }
    products, _ = _chunked(add, start, parts, own_words)
    if split is not None:
        products = lax.psum(products, split.axis)
    cross = _added(
        square
        for product in products.values()
        for row in jnp.split(product * product, product.shape[0] // n1)
        for square in jnp.split(row, product.shape[1] // n2, axis=1)
    )
    return cross, (sums_x, sums_y), (left_x, left_y)


def _added(parts: Iterable[jax.Array]) -> jax.Array:
    """The sum, term by term: on a CPU XLA takes ten times as long for one over a leading axis."""
    return functools.reduce(operator.add, parts)


def _group(rank: int) -> int:
    """How many grades are multiplied at once: few compiled products for high ranks."""
    return 1 if rank <= MAX_RANK else GRADES_AT_ONCE


def _group_pairs(rank: int) -> list[tuple[int, int]]:
    """The pairs of groups of grades that are multiplied: those that hold any p + q < rank."""
    groups = -(-rank // _group(rank))
    return [(p, q) for p in range(groups) for q in range(groups - p)]


def _width(group: int, rank: int) -> int:
    """Grades of a group."""
    return min(_group(rank), rank - group * _group(rank))


def _flat(features: list[jax.Array], group: int, rank: int) -> jax.Array:
    """The features of a group [g n, w]."""
    first = group * _group(rank)
    return jnp.concatenate(features[first : first + _width(group, rank)])


def _is_kept(count_x: int, count_y: int, rank: int) -> np.ndarray:
    """Which pairs of features enter the products: [count_x, count_y] bool."""
    p, q = np.arange(count_x)[:, None] // _group(rank), np.arange(count_y)[None, :] // _group(rank)
    inside = (np.arange(count_x)[:, None] < rank) & (np.arange(count_y)[None, :] < rank)
    return inside & (p + q < -(-rank // _group(rank)))


def _own_words(array: jax.Array, split: Split) -> jax.Array:
    """This device's share of the words, the last axis."""
    share = -(-array.shape[-1] // split.size)
    missing = share * split.size - array.shape[-1]
    padded = jnp.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, missing)])
    return lax.dynamic_slice_in_dim(padded, lax.axis_index(split.axis) * share, share, axis=-1)


def _outer(left: jax.Array, right: jax.Array) -> jax.Array:
    return left[:, None] * right[None, :]


def _symmetric(
    trace_x: jax.Array, other_x: jax.Array, trace_y: jax.Array, other_y: jax.Array
) -> jax.Array:
    """eps_x (b_y + eps_y) + b_x eps_y for every pair: the error of a bilinear form."""
    return _outer(trace_x, other_y + trace_y) + _outer(other_x, trace_y)


def _dropped(x: Remainder, y: Remainder, rank: int) -> jax.Array:
    """sum of |a_p|^2 |b_q|^2 over the pairs that are left out, the tails included: [n1, n2].

    By Cauchy-Schwarz at least <a_p, b_q>^2; a tail counts as one more feature.
    """
    left_out = np.ones((x.shares.shape[1], y.shares.shape[1]), np.float32)
    count_x, count_y = left_out.shape[0] - 1, left_out.shape[1] - 1
    left_out[:count_x, :count_y] = ~_is_kept(count_x, count_y, rank)
    return jnp.einsum("ip,pq,jq->ij", x.shares, left_out, y.shares, precision="highest")


def _base_bound(
    estimator: str, product: jax.Array, x: Remainder, y: Remainder, n: jax.Array
) -> jax.Array:
    """Bound on the error of the (un)biased form of the estimator for every pair: [n1, n2].

    product bounds the error of tr(KHLH) itself.
    """
    if estimator in DEBIASED:
        product = product + _symmetric(x.trace, x.spectrum, y.trace, y.spectrum) / (
            (n - 1) * (n - 2)
        )
        diagonal = n / (n - 2) * _symmetric(x.trace, x.diagonal, y.trace, y.diagonal)
        return (product + diagonal) / (n * (n - 3))
    if estimator == "trace_khl":
        root = jnp.sqrt(n)
        rows = _symmetric(root * x.trace, x.row_norm, root * y.trace, y.row_norm)
        return product + rows / n
    return product / ((n - 1) * (n - 1))


def error_bound(
    estimator: str,
    values: jax.Array,
    sums: tuple[SetSums, SetSums],
    left: tuple[Remainder, Remainder],
    words: jax.Array,
    rank: int,
) -> jax.Array:
    """Certified bound on |values - exact| for every pair, rounding apart: [n1, n2].

    For a ratio the numerator and both denominators move within their own bounds; infinite where
    a denominator may be 0.
    """
    n, (x, y) = jnp.sum(words), left
    bound = _base_bound(estimator, _dropped(x, y, rank), x, y, n)
    if estimator not in NORMALISED:
        return bound

    def share(own: jax.Array, one: Remainder) -> jax.Array:
        product = _symmetric(one.trace, one.spectrum, one.trace, one.spectrum)
        error = jnp.diagonal(_base_bound(estimator, product, one, one, n))
        return jnp.clip(error / jnp.where(own > 0, own, jnp.inf), 0.0, 1.0)

    own_x, own_y = own_values(estimator, sums[0], n), own_values(estimator, sums[1], n)
    kept = jnp.sqrt(_outer(1 - share(own_x, x), 1 - share(own_y, y)))
    scale = jnp.sqrt(jnp.maximum(own_x, 0.0))[:, None] * jnp.sqrt(jnp.maximum(own_y, 0.0))[None, :]
    return jnp.abs(values) * (1 / kept - 1) + bound / (scale * kept)
