"""Bootstrap and permutation of the words, for whole sets of variables at once.

Both hold standardisation and bandwidths. The bootstrap weights pairs of *distinct* words in
centred Gram matrices, so that copies of a word never meet themselves; the permutation null
recomputes every pair from low-rank factors. Source: spec hsic-core, Resampling. Axes: n1, n2
variables, N words, G groups of columns (bridges), B replicates, r factors.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .bandwidth import standardise
from .estimators import (
    DEBIASED,
    NORMALISED,
    SetSums,
    base_values,
    normalise,
    own_values,
)
from .exact import Blocks, Form, gram_tile, normal_centring, to_blocks, upper_tiles


class CentredSet(NamedTuple):
    """A set whose Gram entries come out centred: for the debiased estimators as Song's."""

    blocks: Blocks
    diagonal: jax.Array  # [n, N] of H K H; zero for the debiased
    raw_rows: jax.Array  # [n, N] H K 1


def _centred_set(
    z: jax.Array, sigma: jax.Array, words: jax.Array, tile: int, form: Form
) -> CentredSet:
    """Blocks of z [n, N] whose u is the exact centring: the row sums of one pass corrected."""
    n_words, size = jnp.sum(words), z.shape[1]
    first = normal_centring(z, sigma, words, form.off_diagonal)
    blocks = to_blocks(z, sigma, first, words, tile)

    def add(rows: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        a, b = at
        entry = gram_tile(blocks, a, b, form)
        rows = rows.at[a].add(jnp.sum(entry, axis=1))
        return rows.at[b].add(jnp.where(a == b, 0.0, 1.0) * jnp.sum(entry, axis=0)), None

    summed, _ = lax.scan(add, jnp.zeros_like(blocks.values), upper_tiles(blocks))
    rows = summed.reshape(-1, len(z)).T[:, :size]
    total = jnp.sum(rows, axis=1, keepdims=True)
    if form.off_diagonal:
        exact = first + rows / (n_words - 2) - 0.5 * total / ((n_words - 1) * (n_words - 2))
    else:
        exact = first + rows / n_words - 0.5 * total / (n_words * n_words)
    exact = exact * words[None, :]
    raw = rows + n_words * first * words[None, :]
    raw = (raw - jnp.sum(raw, axis=1, keepdims=True) / n_words) * words[None, :]
    diagonal = jnp.zeros_like(exact) if form.off_diagonal else -2.0 * exact
    return CentredSet(to_blocks(z, sigma, exact, words, tile), diagonal, raw)


class BootstrapSums(NamedTuple):
    """Weighted sums of a replicate, all scaled so that weights of 1 give the estimator itself."""

    groups: jax.Array  # [G, B] sum_ij C_gij S_ij, its denominators held
    own_x: jax.Array  # [n1, B] HSIC of each variable with itself, over its full-sample value
    own_y: jax.Array  # [n2, B]


@partial(jax.jit, static_argnames=("estimator", "tile", "precision", "minus_one"))
def bootstrap_sums(
    x: jax.Array,
    y: jax.Array,
    sigma_x: jax.Array,
    sigma_y: jax.Array,
    words: jax.Array,
    coefficients: jax.Array,
    weights: jax.Array,
    *,
    estimator: str,
    tile: int,
    precision: str,
    minus_one: object,
) -> BootstrapSums:
    """Reweighted sums of S = HSIC(x [n1, N], y [n2, N]) for weights [N, B] that add up to N.

    coefficients [G, n1, n2] multiply the *unnormalised* values (for cka they carry the two
    roots). One pass over tiles of words: the pair products of a group are summed over all its
    variables before any weight is applied, so a replicate costs (G + n1 + n2) N^2 / 2 products.
    """
    form = Form(minus_one, estimator in DEBIASED)
    z_x, _ = standardise(x, words)
    z_y, _ = standardise(y, words)
    left = _centred_set(z_x, sigma_x, words, tile, form)
    right = _centred_set(z_y, sigma_y, words, tile, form)
    groups, n1, _ = coefficients.shape
    by_column = coefficients.transpose(2, 0, 1).reshape(len(y), groups * n1)
    missing = -len(words) % tile
    blocked = jnp.pad(weights, ((0, missing), (0, 0))).reshape(-1, tile, weights.shape[1])

    def step(total: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        a, b = at
        k = gram_tile(left.blocks, a, b, form).reshape(tile * tile, n1)
        l = gram_tile(right.blocks, a, b, form).reshape(tile * tile, len(y))  # noqa: E741
        mixed = jnp.einsum("pj,jm->pm", l, by_column, precision=precision)
        products = jnp.sum(k[:, None, :] * mixed.reshape(-1, groups, n1), axis=2)
        rows = jnp.concatenate([products, k * k, l * l], axis=1)  # [t*t, G + n1 + n2]
        pair = blocked[a][:, None, :] * blocked[b][None, :, :]
        own = jnp.eye(tile, dtype=bool) & (a == b)
        pair = jnp.where(own[:, :, None], 0.0, pair) * jnp.where(a == b, 1.0, 2.0)
        pair = pair.reshape(tile * tile, -1)
        return total + jnp.einsum("pr,pd->rd", rows, pair, precision=precision), None

    start = jnp.zeros((groups + n1 + len(y), weights.shape[1]), jnp.float32)
    off, _ = lax.scan(step, start, upper_tiles(left.blocks))
    n = jnp.sum(words)
    distinct = n * n - jnp.sum(weights * weights, axis=0)  # sum of w_a w_b over a != b
    off = off * (n * (n - 1) / distinct)[None, :]
    own = _diagonal_part(estimator, left, right, coefficients, words) @ weights
    scale = _scale(estimator, n)
    sums = (off + own) * scale
    return BootstrapSums(sums[:groups], sums[groups : groups + n1], sums[groups + n1 :])


def _scale(estimator: str, n: jax.Array) -> jax.Array:
    if estimator in DEBIASED:
        return 1.0 / (n * (n - 3))
    return jnp.ones_like(n) if estimator == "trace_khl" else 1.0 / ((n - 1) * (n - 1))


def _diagonal_part(
    estimator: str,
    x: CentredSet,
    y: CentredSet,
    coefficients: jax.Array,
    words: jax.Array,
) -> jax.Array:
    """What a word contributes with itself, [G + n1 + n2, N]; a word has it once per copy."""
    mixed = jnp.einsum("gij,jw->giw", coefficients, y.diagonal, precision="highest")
    groups = jnp.sum(x.diagonal[None, :, :] * mixed, axis=1)
    if estimator == "trace_khl":
        rows = jnp.einsum("gij,jw->giw", coefficients, y.raw_rows, precision="highest")
        groups = groups + jnp.sum(x.raw_rows[None, :, :] * rows, axis=1) / jnp.sum(words)
    return jnp.concatenate([groups, x.diagonal * x.diagonal, y.diagonal * y.diagonal])


class FactorSet(NamedTuple):
    """Centred factors of a set, words first, and the rest that the estimators ask for."""

    factors: jax.Array  # [N, r, n]
    diagonal: jax.Array  # [N, n] of the Gram matrices A A^T
    raw_rows: jax.Array  # [N, n] H K 1


def factor_set(centred: np.ndarray, raw_rows: np.ndarray) -> FactorSet:
    """Lay out centred factors [n, r, N] and H K 1 [n, N] for `permuted_values`, in float32."""
    factors = np.ascontiguousarray(centred.transpose(2, 1, 0), np.float32)
    diagonal = np.einsum("nrw,nrw->wn", centred, centred).astype(np.float32)
    return FactorSet(factors, diagonal, np.ascontiguousarray(raw_rows.T, np.float32))


def _as_sums(rows: FactorSet) -> SetSums:
    inner = jnp.einsum("wrn,wsn->nrs", rows.factors, rows.factors, precision="highest")
    diagonal = rows.diagonal.T
    own = jnp.sum(inner * inner, axis=(1, 2))
    return SetSums(jnp.zeros_like(diagonal), diagonal, own, rows.raw_rows.T)


@partial(jax.jit, static_argnames=("estimator", "precision"))
def permuted_values(
    x: FactorSet, y: FactorSet, permutations: jax.Array, *, estimator: str, precision: str
) -> jax.Array:
    """The estimator for every pair with the words of x permuted, for [B, N] permutations.

    Returns [B, n1, n2]. 2 n1 n2 r^2 N FLOPs a permutation; the identity gives the value that the
    permuted ones compare with.
    """
    size, rank_x, n1 = x.factors.shape
    rank_y, n2 = y.factors.shape[1:]
    words = jnp.ones(size, jnp.float32)
    sums_x, sums_y = _as_sums(x), _as_sums(y)
    flat_x = x.factors.reshape(size, rank_x * n1)
    flat_y = y.factors.reshape(size, rank_y * n2)

    def one(order: jax.Array) -> jax.Array:
        product = jnp.einsum("wi,wj->ij", flat_x[order], flat_y, precision=precision)
        cross = jnp.sum((product * product).reshape(rank_x, n1, rank_y, n2), axis=(0, 2))
        moved = sums_x._replace(diagonal=x.diagonal[order].T, raw_rows=x.raw_rows[order].T)
        return base_values(estimator, cross, moved, sums_y, words)

    values = lax.map(one, permutations)
    if estimator not in NORMALISED:
        return values
    n = jnp.sum(words)
    own_x, own_y = own_values(estimator, sums_x, n), own_values(estimator, sums_y, n)
    return jax.vmap(lambda value: normalise(value, own_x, own_y))(values)
