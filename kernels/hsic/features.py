"""All pairs of two sets through a few features a variable, with a proven bound on the error.

The Gaussian kernel is sum_k phi_k(a) phi_k(b) with phi_k(z) = exp(-z^2/2 sigma^2) (z/sigma)^k /
sqrt(k!); for large sigma a few orders do. What is left out is positive semidefinite with a trace
of at most eps = sum_w (z_w^2/sigma^2)^r / r!, which bounds every estimator (spec hsic-core, Three
regimes). Axes: r features, n variables, N words.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .estimators import DEBIASED, NORMALISED, SetSums, own_values
from .exact import Split

MAX_RANK = 12


class Remainder(NamedTuple):
    """Per variable, what bounds the error of leaving out the orders from r on; all [n]."""

    trace: jax.Array  # eps
    spectrum: jax.Array  # at least the largest eigenvalue of the centred Gram matrix
    diagonal: jax.Array  # at least its largest diagonal entry
    row_norm: jax.Array  # at least the norm of H K 1


def taylor_features(z: jax.Array, sigma: jax.Array, rank: int) -> jax.Array:
    """phi_k, k < rank, of standardised z [n, N]: [rank, n, N]; phi_0 is less 1, by expm1."""
    scaled = z / sigma[:, None]
    half_square = 0.5 * scaled * scaled
    term = jnp.exp(-half_square)
    features = [jnp.expm1(-half_square)]
    for order in range(1, rank):
        term = term * scaled * np.float32(1.0 / math.sqrt(order))
        features.append(term)
    return jnp.stack(features)


def remainder(z: jax.Array, sigma: jax.Array, words: jax.Array, rank: int) -> Remainder:
    """The certificate's ingredients in closed form, from standardised z [n, N] (padding is 0)."""
    n_words = jnp.sum(words)
    square = z * z
    relative = square / (sigma * sigma)[:, None]
    term = relative
    for order in range(2, rank + 1):
        term = term * relative / order
    # The Gram matrix H K H has the trace N - 1^T K 1 / N, and 1 - K <= (z_a - z_b)^2 / 2 sigma^2.
    spectrum = jnp.sum(relative, axis=1)
    distances = (n_words * relative + spectrum[:, None]) * words[
        None, :
    ]  # sum_b (z_a - z_b)^2 / sigma^2
    return Remainder(
        jnp.sum(term, axis=1),
        spectrum,
        jnp.max(relative, axis=1) + spectrum / n_words,
        0.5 * jnp.sqrt(jnp.sum(distances * distances, axis=1)),
    )


class LowRank(NamedTuple):
    """Gram matrices as F^T F: features [r, n, N], 0 at padding, and their totals [r, n].

    A feature may come less a constant, which centring removes; the totals are of the feature
    itself.
    """

    features: jax.Array
    totals: jax.Array


def taylor(z: jax.Array, sigma: jax.Array, words: jax.Array, rank: int) -> LowRank:
    """The first `rank` Taylor features of standardised z [n, N]."""
    features = taylor_features(z, sigma, rank) * words[None, None, :]
    totals = jnp.sum(features, axis=2)
    return LowRank(features, totals.at[0].add(jnp.sum(words)))  # phi_0 comes less 1


def _set_sums(centred: jax.Array, totals: jax.Array, precision: str) -> SetSums:
    """`SetSums` of the Gram matrices A^T A of centred features A [r, n, N]."""
    diagonal = jnp.sum(centred * centred, axis=0)
    inner = jnp.einsum("rnw,snw->nrs", centred, centred, precision=precision)
    raw = jnp.sum(centred * totals[:, :, None], axis=0)
    return SetSums(None, diagonal, jnp.sum(inner * inner, axis=(1, 2)), raw)


def feature_sums(
    x: LowRank, y: LowRank, words: jax.Array, *, precision: str, split: Split | None = None
) -> tuple[jax.Array, SetSums, SetSums]:
    """Sums over the Gram matrices of two sets of n1 and n2 variables, for `combine`.

    2 n1 n2 r^2 N FLOPs and memory O(r (n1 + n2) N + r^2 n1 n2). Returns cross [n1, n2] and the
    sums of x and of y. Inside `shard_map` the words of the product can be split over a mesh axis.
    """
    centred_x, centred_y = _centre(x.features, words), _centre(y.features, words)
    (rank_x, n1, size), (rank_y, n2, _) = centred_x.shape, centred_y.shape
    flat = (centred_x.reshape(rank_x * n1, size), centred_y.reshape(rank_y * n2, size))
    if split is None:
        product = jnp.einsum("iw,jw->ij", *flat, precision=precision)
    else:
        mine = (_own_words(part, split) for part in flat)
        product = jax.lax.psum(jnp.einsum("iw,jw->ij", *mine, precision=precision), split.axis)
    cross = jnp.sum((product * product).reshape(rank_x, n1, rank_y, n2), axis=(0, 2))
    sums_x = _set_sums(centred_x, x.totals, precision)
    return cross, sums_x, _set_sums(centred_y, y.totals, precision)


def _own_words(flat: jax.Array, split: Split) -> jax.Array:
    """This device's share of the words of [rows, N]."""
    share = -(-flat.shape[1] // split.size)
    padded = jnp.pad(flat, ((0, 0), (0, share * split.size - flat.shape[1])))
    first = jax.lax.axis_index(split.axis) * share
    return jax.lax.dynamic_slice_in_dim(padded, first, share, axis=1)


def _centre(features: jax.Array, words: jax.Array) -> jax.Array:
    mean = jnp.sum(features, axis=2, keepdims=True) / jnp.sum(words)
    return (features - mean) * words[None, None, :]


def _outer(left: jax.Array, right: jax.Array) -> jax.Array:
    return left[:, None] * right[None, :]


def _symmetric(
    trace_x: jax.Array, other_x: jax.Array, trace_y: jax.Array, other_y: jax.Array
) -> jax.Array:
    """eps_x (b_y + eps_y) + b_x eps_y for every pair: the error of a bilinear form."""
    return _outer(trace_x, other_y + trace_y) + _outer(other_x, trace_y)


def _base_bound(estimator: str, x: Remainder, y: Remainder, n: jax.Array) -> jax.Array:
    """Bound on the error of the (un)biased form of the estimator for every pair: [n1, n2]."""
    product = _symmetric(x.trace, x.spectrum, y.trace, y.spectrum)
    if estimator in DEBIASED:
        diagonal = n / (n - 2) * _symmetric(x.trace, x.diagonal, y.trace, y.diagonal)
        return (product * (1 + 1 / ((n - 1) * (n - 2))) + diagonal) / (n * (n - 3))
    if estimator == "trace_khl":
        root = jnp.sqrt(n)
        rows = _symmetric(root * x.trace, x.row_norm, root * y.trace, y.row_norm)
        return product + rows / n
    return product / ((n - 1) * (n - 1))


def error_bound(
    estimator: str,
    values: jax.Array,
    x: Remainder,
    y: Remainder,
    sums: tuple[SetSums, SetSums],
    words: jax.Array,
) -> jax.Array:
    """Certified bound on |values - exact| for every pair, rounding apart: [n1, n2].

    For a ratio the numerator and both denominators move within their own bounds; infinite where
    a denominator may be 0.
    """
    n = jnp.sum(words)
    bound = _base_bound(estimator, x, y, n)
    if estimator not in NORMALISED:
        return bound

    def share(own: jax.Array, left: Remainder) -> jax.Array:
        error = jnp.diagonal(_base_bound(estimator, left, left, n))
        return jnp.clip(error / jnp.where(own > 0, own, jnp.inf), 0.0, 1.0)

    own_x, own_y = own_values(estimator, sums[0], n), own_values(estimator, sums[1], n)
    kept = jnp.sqrt(_outer(1 - share(own_x, x), 1 - share(own_y, y)))
    scale = jnp.sqrt(jnp.maximum(own_x, 0.0))[:, None] * jnp.sqrt(jnp.maximum(own_y, 0.0))[None, :]
    return jnp.abs(values) * (1 / kept - 1) + bound / (scale * kept)
