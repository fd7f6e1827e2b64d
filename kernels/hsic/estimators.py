"""The estimators of HSIC as short combinations of a few sums over Gram matrices.

`exact` and `features` both reduce a pair of sets to `Sums`; what they may add to a Gram matrix on
the way, u_a + u_b, drops out here. Sources: Gretton et al. 2005 (biased), Song et al. 2012
(unbiased), Kornblith et al. 2019 (cka). Axes: n1, n2 variables, N words.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

ESTIMATORS = ("biased", "unbiased", "cka", "cka_debiased", "trace_khl")
DEBIASED = ("unbiased", "cka_debiased")
NORMALISED = ("cka", "cka_debiased")


class SetSums(NamedTuple):
    """What one set of n variables contributes; M is its Gram matrix up to a term u_a + u_b.

    For the debiased estimators M may come without its diagonal. None stands for zeros: the CPU
    compiler of jaxlib 0.10.2 reads stale memory in a product with a constant.
    """

    rows: jax.Array | None  # [n, N] row sums of M
    diagonal: jax.Array | None  # [n, N]
    own: jax.Array  # [n] sum of M_ab^2
    raw_rows: jax.Array  # [n, N] row sums of K itself, up to a constant per variable


def _dot(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum("iw,jw->ij", left, right, precision="highest")


class _Products(NamedTuple):
    """Pairs of variables, or each with itself: sum M M', and the products of the other sums."""

    entries: jax.Array
    rows: jax.Array | float
    diagonals: jax.Array | float
    totals: jax.Array | float


def _centred_product(estimator: str, products: _Products, n: jax.Array) -> jax.Array:
    """HSIC from its products. Of the debiased estimators rows and totals leave the diagonal out."""
    entries, rows, diagonals, totals = products
    if estimator in DEBIASED:
        off = entries - diagonals
        value = off + totals / ((n - 1) * (n - 2)) - 2.0 / (n - 2) * rows
        return value / (n * (n - 3))
    value = entries - 2.0 / n * rows + totals / (n * n)
    return value if estimator == "trace_khl" else value / ((n - 1) * (n - 1))


def _rows(estimator: str, sums: SetSums) -> jax.Array | None:
    if estimator not in DEBIASED or sums.diagonal is None:
        return sums.rows
    return -sums.diagonal if sums.rows is None else sums.rows - sums.diagonal


def own_values(estimator: str, sums: SetSums, n: jax.Array) -> jax.Array:
    """HSIC of every variable with itself, in the (un)biased form of the estimator: [n]."""
    rows, diagonal = _rows(estimator, sums), sums.diagonal
    squares = _Products(
        sums.own,
        0.0 if rows is None else jnp.sum(rows * rows, axis=1),
        0.0 if diagonal is None else jnp.sum(diagonal * diagonal, axis=1),
        0.0 if rows is None else jnp.sum(rows, axis=1) ** 2,
    )
    return _centred_product(estimator, squares, n)


def base_values(
    estimator: str, cross: jax.Array, x: SetSums, y: SetSums, words: jax.Array
) -> jax.Array:
    """The estimator before normalisation, for every pair, from cross = sum M M': [n1, n2]."""
    n = jnp.sum(words)
    rows_x, rows_y = _rows(estimator, x), _rows(estimator, y)
    products = _Products(cross, 0.0, 0.0, 0.0)
    if rows_x is not None and rows_y is not None:
        totals = jnp.sum(rows_x, axis=1)[:, None] * jnp.sum(rows_y, axis=1)[None, :]
        products = products._replace(rows=_dot(rows_x, rows_y), totals=totals)
    if estimator in DEBIASED and x.diagonal is not None and y.diagonal is not None:
        products = products._replace(diagonals=_dot(x.diagonal, y.diagonal))
    value = _centred_product(estimator, products, n)
    if estimator == "trace_khl":
        mean = jnp.sum(x.raw_rows * words[None, :], axis=1, keepdims=True) / n
        return value + _dot((x.raw_rows - mean) * words[None, :], y.raw_rows) / n
    return value


def normalise(values: jax.Array, own_x: jax.Array, own_y: jax.Array) -> jax.Array:
    """values [n1, n2] over the roots of own_x [n1] and own_y [n2]; NaN unless both are positive."""
    positive = (own_x > 0)[:, None] & (own_y > 0)[None, :]
    # Each root by itself: the product of two tiny values would underflow.
    root_x = jnp.sqrt(jnp.where(own_x > 0, own_x, 1.0))[:, None]
    root_y = jnp.sqrt(jnp.where(own_y > 0, own_y, 1.0))[None, :]
    return jnp.where(positive, values / root_x / root_y, jnp.nan)


def combine(
    estimator: str, cross: jax.Array, x: SetSums, y: SetSums, words: jax.Array
) -> jax.Array:
    """The estimator for every pair, from cross [n1, n2] = sum M M' and both sets' sums: [n1, n2].

    words [N] is 1 for a word, 0 for padding. Normalised estimators are NaN where a denominator
    is not positive.
    """
    values = base_values(estimator, cross, x, y, words)
    if estimator not in NORMALISED:
        return values
    n = jnp.sum(words)
    return normalise(values, own_values(estimator, x, n), own_values(estimator, y, n))
