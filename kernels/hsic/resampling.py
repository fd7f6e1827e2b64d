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
from .exact import (
    Blocks,
    Form,
    add_rows,
    gram_tile,
    normal_centring,
    set_sums,
    to_blocks,
    upper_tiles,
)


class _Centred(NamedTuple):
    """Variables whose Gram entries come out centred: for the debiased estimators as Song's."""

    blocks: Blocks
    diagonal: jax.Array | None  # [n, N] of H K H; None for the debiased, which leave it out
    raw_rows: jax.Array  # [n, N] H K 1
    own: jax.Array  # [n] HSIC of each variable with itself


def _centre(
    estimator: str, z: jax.Array, sigma: jax.Array, words: jax.Array, tile: int, form: Form
) -> _Centred:
    """Blocks of z [n, N] whose u is the exact centring: the row sums of one pass corrected."""
    n_words = jnp.sum(words)
    first = normal_centring(z, sigma, words, form.off_diagonal)
    blocks = to_blocks(z, sigma, first, words, tile)

    def add(
        total: tuple[jax.Array, jax.Array], at: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        a, b = at
        entry = gram_tile(blocks, a, b, form)
        squares = jnp.where(a == b, 1.0, 2.0) * jnp.sum(entry * entry, axis=(0, 1))
        return (add_rows(total[0], entry, a, b), total[1] + squares), None

    start = (jnp.zeros_like(blocks.values), jnp.zeros(len(z), jnp.float32))
    (blocked_rows, own), _ = lax.scan(add, start, upper_tiles(blocks))
    sums = set_sums(z, first, blocked_rows, own, words, form)
    rows = blocked_rows.reshape(-1, len(z)).T[:, : z.shape[1]]
    total = jnp.sum(rows, axis=1, keepdims=True)
    if form.off_diagonal:
        exact = first + rows / (n_words - 2) - 0.5 * total / ((n_words - 1) * (n_words - 2))
    else:
        exact = first + rows / n_words - 0.5 * total / (n_words * n_words)
    exact = exact * words[None, :]
    raw = sums.raw_rows - jnp.sum(sums.raw_rows, axis=1, keepdims=True) / n_words
    return _Centred(
        to_blocks(z, sigma, exact, words, tile),
        None if form.off_diagonal else -2.0 * exact,
        raw * words[None, :],
        own_values(estimator, sums, n_words),
    )


def _scale(estimator: str, n: jax.Array) -> jax.Array:
    if estimator in DEBIASED:
        return 1.0 / (n * (n - 3))
    return jnp.ones_like(n) if estimator == "trace_khl" else 1.0 / ((n - 1) * (n - 1))


class _Mixture(NamedTuple):
    """How Gram entries k of n1 variables and l of G n2 combine into one value a group."""

    pairs: jax.Array  # [n1, G n2] C, over the roots of both variables' own HSIC
    own: tuple[jax.Array, jax.Array] | None  # [n1, G], [G n2]: taken for a variable's own HSIC
    constant: jax.Array  # [G] what `own` takes at weights of 1
    precision: str


def _mix(mixture: _Mixture, k: jax.Array, l: jax.Array) -> jax.Array:  # noqa: E741
    """sum_ij C_gij k_i l_j - sum_i own_gi k_i^2 - sum_j own_gj l_j^2 of k [p, n1], l [p, G n2].

    Returns [p, G].
    """
    groups = len(mixture.constant)
    spread = jnp.einsum("pi,ij->pj", k, mixture.pairs, precision=mixture.precision)
    if mixture.own is None:
        return jnp.sum((l * spread).reshape(len(k), groups, -1), axis=2)
    own_x, own_y = mixture.own
    columns = (l * (spread - l * own_y[None, :])).reshape(len(k), groups, -1)
    rows = jnp.einsum("pi,ig->pg", k * k, own_x, precision=mixture.precision)
    return jnp.sum(columns, axis=2) - rows


@partial(jax.jit, static_argnames=("estimator", "tile", "precision", "cancels", "epsilon"))
def bootstrap_scores(
    x: jax.Array,
    y: jax.Array,
    sigma_x: jax.Array,
    sigma_y: jax.Array,
    words: jax.Array,
    coefficients: jax.Array,
    values: jax.Array,
    weights: jax.Array,
    *,
    estimator: str,
    tile: int,
    precision: str,
    cancels: bool,
    epsilon: float,
) -> jax.Array:
    """sum_ij C_gij S_gij of reweighted words, for B replicates: [G, B].

    x [n1, N], y [G, n2, N] and their bandwidths; coefficients [G, n1, n2] are C, and values
    [G, n1, n2] the full-sample S; weights [N, B] add up to N. Pairs of distinct words are
    weighted by w_a w_b, a word with itself by w_a. Numerators are exact; the denominators of the
    normalised estimators follow to first order (delta method), so that all pairs of variables
    add up to one N x N matrix before any weight is applied: a replicate costs G N^2 FLOPs.
    """
    form = Form(cancels, estimator in DEBIASED)
    groups, n1, n2 = coefficients.shape
    z, _ = standardise(jnp.concatenate([x, y.reshape(groups * n2, x.shape[1])]), words, epsilon)
    sigma = jnp.concatenate([sigma_x, sigma_y.reshape(-1)])
    both = _centre(estimator, z, sigma, words, tile, form)
    n = jnp.sum(words)
    mixture = _mixture(estimator, coefficients, values, both.own, n, precision)
    missing = -len(words) % tile
    blocked = jnp.pad(weights, ((0, missing), (0, 0))).reshape(-1, tile, weights.shape[1])

    def step(total: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        a, b = at
        entry = gram_tile(both.blocks, a, b, form).reshape(tile * tile, -1)
        mixed = _mix(mixture, entry[:, :n1], entry[:, n1:]).reshape(tile, tile, groups)
        own = jnp.eye(tile, dtype=bool)[:, :, None] & (a == b)
        mixed = jnp.where(own, 0.0, mixed) * jnp.where(a == b, 1.0, 2.0)
        partner = jnp.einsum("abg,bd->agd", mixed, blocked[b], precision=precision)
        return total + jnp.sum(partner * blocked[a][:, None, :], axis=0), None

    start = jnp.zeros((groups, weights.shape[1]), jnp.float32)
    off, _ = lax.scan(step, start, upper_tiles(both.blocks))
    distinct = n * n - jnp.sum(weights * weights, axis=0)  # sum of w_a w_b over a != b
    off = off * (n * (n - 1) / distinct)[None, :]
    if both.diagonal is not None:
        with_itself = _mix(mixture, both.diagonal[:n1].T, both.diagonal[n1:].T)  # [N, G]
        if estimator == "trace_khl":
            raw = both.raw_rows
            with_itself = with_itself + _mix(mixture, raw[:n1].T, raw[n1:].T) / n
        off = off + jnp.einsum("wg,wd->gd", with_itself, weights, precision="highest")
    return off + mixture.constant[:, None]


def _mixture(
    estimator: str,
    coefficients: jax.Array,
    values: jax.Array,
    own: jax.Array,
    n: jax.Array,
    precision: str,
) -> _Mixture:
    """The mixture of a score, for the HSIC [n1 + G n2] of every variable with itself.

    To first order C S / root(own'/own) is C S - C S (own'/own - 1)/2: a variable's own HSIC takes
    half of what it contributes to the score, and the constant gives it back at weights of 1.
    """
    groups, n1, n2 = coefficients.shape
    scale = _scale(estimator, n)
    if estimator not in NORMALISED:
        pairs = (coefficients * scale).transpose(1, 0, 2).reshape(n1, groups * n2)
        return _Mixture(pairs, None, jnp.zeros(groups, jnp.float32), precision)
    own = jnp.where(own > 0, own, 1.0) / scale  # as a sum over pairs of words
    own_x, own_y = own[:n1], own[n1:].reshape(groups, n2)
    roots = jnp.sqrt(own_x)[None, :, None] * jnp.sqrt(own_y)[:, None, :]
    share = 0.5 * coefficients * values
    return _Mixture(
        (coefficients / roots).transpose(1, 0, 2).reshape(n1, groups * n2),
        (jnp.sum(share, axis=2).T / own_x[:, None], (jnp.sum(share, axis=1) / own_y).reshape(-1)),
        2.0 * jnp.sum(share, axis=(1, 2)),
        precision,
    )


class FactorSet(NamedTuple):
    """Centred factors of a set, words first, and the rest that the estimators ask for."""

    factors: jax.Array  # [N, r, n]
    diagonal: jax.Array  # [N, n] of the Gram matrices A A^T
    raw_rows: jax.Array  # [N, n] H K 1


def factor_set(centred: np.ndarray, raw_rows: np.ndarray) -> FactorSet:
    """Lay out centred factors [n, r, N] and H K 1 [n, N] for `permuted_values`, in float32."""
    diagonal = np.einsum("nrw,nrw->wn", centred, centred)
    parts = (centred.transpose(2, 1, 0), diagonal, raw_rows.T)
    return FactorSet(*(jnp.asarray(np.ascontiguousarray(part, np.float32)) for part in parts))


def _as_sums(rows: FactorSet) -> SetSums:
    inner = jnp.einsum("wrn,wsn->nrs", rows.factors, rows.factors, precision="highest")
    diagonal = rows.diagonal.T
    own = jnp.sum(inner * inner, axis=(1, 2))
    return SetSums(None, diagonal, own, rows.raw_rows.T)


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
