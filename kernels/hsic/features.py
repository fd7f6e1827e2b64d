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

    make(parts, words) gives features [r, n, w] of the words in a slice of parts [..., n, w] (0
    where words [w] is 0), each less a constant [r], which centring removes. left [n] is the trace
    of what all the features together leave out of the Gram matrix.
    """

    parts: Any
    make: Callable[[Any, jax.Array], jax.Array]
    constant: np.ndarray
    left: jax.Array


@functools.lru_cache
def grading(count: int) -> tuple[np.ndarray, np.ndarray]:
    """How Taylor features 0…count-1 combine into graded ones: [count, count], orthogonal.

    Once phi_0 is less 1 and centred, all even features begin with z^2 and are nearly parallel; the
    rotation makes them begin with z^2, z^4, … Rows are in rising order, whose powers of z come too.
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
    order = np.argsort(powers)
    return rotation[order], powers[order]


def taylor_features(z: jax.Array, sigma: jax.Array, count: int) -> jax.Array:
    """Graded features of standardised z [n, N]: [count, n, N], less a constant.

    Combinations of phi_k(z) = exp(-z^2/2 sigma^2) (z/sigma)^k / sqrt(k!), phi_0 by expm1.
    """
    scaled = z / sigma[:, None]
    half_square = 0.5 * scaled * scaled
    term = jnp.exp(-half_square)
    features = [jnp.expm1(-half_square)]
    for order in range(1, count):
        term = term * scaled * np.float32(1.0 / math.sqrt(order))
        features.append(term)
    rows = (
        sum(np.float32(share) * features[k] for k, share in enumerate(row) if share)
        for row in grading(count)[0]
    )
    return jnp.stack(list(rows))


def taylor(z: jax.Array, sigma: jax.Array, words: jax.Array, rank: int) -> Source:
    """rank + 1 graded Taylor features of standardised z [n, N] (padding is 0).

    What they leave out is positive semidefinite, of trace at most sum_w (z_w^2/sigma^2)^r / r!.
    """
    count = rank + 1
    relative = (z / sigma[:, None]) ** 2
    term = relative
    for order in range(2, count + 1):
        term = term * (relative * np.float32(1.0 / order))

    def make(part: jax.Array, words: jax.Array) -> jax.Array:
        return taylor_features(part, sigma, count) * words[None, None, :]

    return Source(z, make, grading(count)[0][:, 0], term @ words)


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

    def cut(array: jax.Array) -> jax.Array:
        padded = jnp.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, missing)])
        return jnp.moveaxis(padded.reshape(*array.shape[:-1], -1, CHUNK), -2, 0)

    def join(array: jax.Array) -> jax.Array:
        moved = jnp.moveaxis(array, 0, -2)
        return moved.reshape(*moved.shape[:-2], size + missing)[..., :size]

    total, out = lax.scan(jax.checkpoint(body), start, (jax.tree.map(cut, parts), cut(words)))
    return total, jax.tree.map(join, out)


def _means(source: Source, words: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Means of the features over the words: [r, n]."""

    def add(total: jax.Array, at: tuple[Any, jax.Array]) -> tuple[jax.Array, None]:
        part, some = at
        return total + jnp.einsum("rnw,w->rn", source.make(part, some), some), None

    total, _ = _chunked(add, jnp.zeros(shape, jnp.float32), source.parts, words)
    return total / jnp.sum(words)


def _centred(source: Source, means: jax.Array, part: Any, words: jax.Array) -> jax.Array:
    return (source.make(part, words) - means[:, :, None]) * words[None, None, :]


def _set_sums(
    source: Source, means: jax.Array, words: jax.Array, *, own: bool, precision: str
) -> tuple[SetSums, Remainder]:
    """`SetSums` of the Gram matrices A^T A of centred features A, and the bound's ingredients.

    own: whether the sum of squared entries is wanted, which the normalised estimators need.
    """
    count, n = means.shape
    totals = jnp.sum(words) * (means + source.constant.astype(np.float32)[:, None])

    def add(inner: jax.Array, at: tuple[Any, jax.Array]) -> tuple[jax.Array, Any]:
        part, some = at
        a = _centred(source, means, part, some)
        if own:
            inner = inner + jnp.einsum("rnw,snw->nrs", a, a, precision=precision)
        else:
            inner = inner + jnp.sum(a * a, axis=2).T
        raw = _added(part * total[:, None] for part, total in zip(a, totals, strict=True))
        return inner, (_added(part * part for part in a), raw)

    start = jnp.zeros((n, count, count) if own else (n, count), jnp.float32)
    inner, (diagonal, raw) = _chunked(add, start, source.parts, words)
    norms = jnp.diagonal(inner, axis1=1, axis2=2) if own else inner
    remainder = Remainder(
        jnp.concatenate([norms, source.left[:, None]], axis=1),
        jnp.sum(norms, axis=1),
        jnp.max(diagonal, axis=1),
        jnp.sqrt((raw * raw) @ words),
    )
    squares = jnp.sum(inner * inner, axis=(1, 2)) if own else jnp.zeros(n, jnp.float32)
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
    means_x = _means(x, words, (len(x.constant), n1))
    means_y = _means(y, words, (len(y.constant), n2))
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


def _flat(features: jax.Array, group: int, rank: int) -> jax.Array:
    """The features of a group [g n, w]."""
    first = group * _group(rank)
    return features[first : first + _width(group, rank)].reshape(-1, features.shape[2])


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
