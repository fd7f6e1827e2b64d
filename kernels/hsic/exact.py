"""All pairs of two sets exactly: Gram matrices in tiles of words, never [n, N, N].

Every tile of the upper triangle is made once and feeds one matrix product. Entries are
K - 1 - u_a - u_b: a series keeps K - 1 exact for large bandwidths, and u is the centring that a
normal variable would have, in closed form, so that what is left to centre afterwards is small
(spec hsic-core, Numerics). Axes: n variables, N words.
"""

from __future__ import annotations

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .estimators import SetSums

UNROLLED = 32  # words of a tile
SERIES_FROM = -0.5  # exponents from here to 0 take the polynomial

# (exp(t) - 1) / t on [-0.5, 0] by Chebyshev interpolation: relative error 2e-9 before rounding.
_SERIES = [
    float(coefficient)
    for coefficient in np.polynomial.Chebyshev.interpolate(
        lambda t: np.expm1(t) / t, 5, domain=[SERIES_FROM, 0.0]
    )
    .convert(kind=np.polynomial.Polynomial)
    .coef
]


def series_minus_one(exponent: jax.Array) -> jax.Array:
    """exp - 1 of float32 exponents <= 0, to 3e-7: faster than expm1, which Pallas lacks."""
    near = jnp.maximum(exponent, SERIES_FROM)  # or the polynomial overflows, and its derivative
    total = jnp.full_like(near, _SERIES[-1])
    for coefficient in _SERIES[-2::-1]:
        total = total * near + coefficient
    return jnp.where(exponent > SERIES_FROM, total * near, jnp.exp(exponent) - 1.0)


class Form(NamedTuple):
    """How Gram entries are made.

    cancels: entries may be so small that exp(t) - 1 would cancel; off_diagonal: the diagonal is
    left out (Song et al.).
    """

    cancels: bool
    off_diagonal: bool

    def minus_one(self, exponent: jax.Array) -> jax.Array:
        """exp - 1 of exponents <= 0, by the series only where it is needed."""
        return series_minus_one(exponent) if self.cancels else jnp.exp(exponent) - 1.0


class Blocks(NamedTuple):
    """A set of n variables cut into blocks of t words, variables last: the layout of a GEMM."""

    values: jax.Array  # [N/t, t, n]
    rate: jax.Array  # [n] -1 / 2 sigma^2, so that K = exp(rate (a - b)^2)
    centring: jax.Array  # [N/t, t, n] u
    words: jax.Array  # [N/t, t] 1 for a word, 0 for padding


def normal_centring(
    z: jax.Array, sigma: jax.Array, words: jax.Array, off_diagonal: bool
) -> jax.Array:
    """u of standardised z [n, N], so that K - 1 - u_a - u_b is centred for normal z: [n, N].

    To second order in 1/sigma it is so for any distribution of mean 0 and variance 1. Without
    the diagonal the centring is Song's (divisors N - 2), which all but removes a lone outlier.
    """
    n = jnp.sum(words)
    precision = 1.0 / (sigma * sigma)
    shrunk = precision / (1.0 + precision)  # 1 / (sigma^2 + 1) without overflow
    mean = jnp.expm1(-0.5 * jnp.log1p(precision)[:, None] - 0.5 * z * z * shrunk[:, None])
    grand = jnp.expm1(-0.5 * jnp.log1p(2.0 * precision))[:, None]
    if off_diagonal:
        return n / (n - 2) * mean - 0.5 * n * n / ((n - 1) * (n - 2)) * grand
    return mean - 0.5 * grand


def to_blocks(
    z: jax.Array, sigma: jax.Array, centring: jax.Array, words: jax.Array, tile: int
) -> Blocks:
    """Pad the words of z, centring [n, N] to whole tiles and move the variables last."""
    missing = -z.shape[1] % tile

    def cut(values: jax.Array) -> jax.Array:
        padded = jnp.pad(values, ((0, 0), (0, missing)))
        return padded.T.reshape(-1, tile, values.shape[0])  # [N/t, t, n]

    masks = jnp.pad(words, (0, missing)).reshape(-1, tile)
    return Blocks(cut(z), -0.5 / (sigma * sigma), cut(centring), masks)


def gram_tile(blocks: Blocks, a: jax.Array, b: jax.Array, form: Form) -> jax.Array:
    """Entries K - 1 - u_a - u_b of word blocks a and b for all variables: [t, t, n]."""
    difference = blocks.values[a][:, None, :] - blocks.values[b][None, :, :]
    mask = blocks.words[a][:, None] * blocks.words[b][None, :]
    own = jnp.eye(len(mask), dtype=bool) & (a == b)
    if form.off_diagonal:
        mask = jnp.where(own, 0.0, mask)
    else:
        # Contracted with the standardisation, a word may end at a distance from itself, which a
        # tiny bandwidth shows.
        difference = jnp.where(own[:, :, None], 0.0, difference)
    entry = form.minus_one(difference * difference * blocks.rate[None, None, :])
    entry = entry - blocks.centring[a][:, None, :] - blocks.centring[b][None, :, :]
    return entry * mask[:, :, None]


class Split(NamedTuple):
    """A mesh axis, of `size` devices, over which the work on the words of a pair is split."""

    axis: str
    size: int


def upper_tiles(blocks: Blocks) -> tuple[jax.Array, jax.Array]:
    """Block numbers (a, b) of the upper triangle, the diagonal included."""
    a, b = np.triu_indices(blocks.values.shape[0])
    return jnp.asarray(a, jnp.int32), jnp.asarray(b, jnp.int32)


def own_tiles(blocks: Blocks, split: Split) -> tuple[jax.Array, jax.Array, jax.Array]:
    """This device's share of the upper triangle, and 1 for a tile, 0 for what evens shares out."""
    first, second = np.triu_indices(blocks.values.shape[0])
    missing = -len(first) % split.size
    live = np.pad(np.ones(len(first), np.float32), (0, missing))
    mine = lax.axis_index(split.axis)

    def share(part: np.ndarray) -> jax.Array:
        return jnp.take(jnp.asarray(part.reshape(-1, split.size)), mine, axis=1)

    a, b = (share(np.pad(part, (0, missing)).astype(np.int32)) for part in (first, second))
    return a, b, share(live)


class _Accumulated(NamedTuple):
    cross: jax.Array  # [n1, n2]
    rows_x: jax.Array  # [N/t, t, n1]
    rows_y: jax.Array
    own_x: jax.Array  # [n1]
    own_y: jax.Array


def add_rows(rows: jax.Array, entry: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """Row sums of block a and, by symmetry, of block b, once where they are the same block."""
    rows = rows.at[a].add(jnp.sum(entry, axis=1))
    # XLA's CPU back end takes a far stride for a sum over the first axis: up to 20 times as long.
    few = len(entry) <= UNROLLED
    first = functools.reduce(operator.add, entry) if few else jnp.sum(entry, axis=0)
    return rows.at[b].add(jnp.where(a == b, 0.0, 1.0) * first)


def set_sums(
    z: jax.Array,
    centring: jax.Array,
    rows: jax.Array,
    own: jax.Array,
    words: jax.Array,
    form: Form,
) -> SetSums:
    """`SetSums` of one set from its blocked row sums [N/t, t, n]."""
    n, size = z.shape
    flat = rows.reshape(-1, n).T[:, :size]
    masked = centring * words[None, :]
    diagonal = None if form.off_diagonal else -2.0 * masked
    # Undoing u: sum_b (u_a + u_b) = N u_a + a constant.
    return SetSums(flat, diagonal, own, flat + jnp.sum(words) * masked)


def exact_sums(
    x: jax.Array,
    y: jax.Array,
    sigma_x: jax.Array,
    sigma_y: jax.Array,
    words: jax.Array,
    *,
    tile: int,
    precision: str,
    form: Form,
    split: Split | None = None,
) -> tuple[jax.Array, SetSums, SetSums]:
    """Sums over the Gram matrices of standardised x [n1, N] and y [n2, N], for `combine`.

    Memory O((n1 + n2) tile^2) beyond the input, n1 n2 N^2 FLOPs and (n1 + n2) N^2 / 2
    exponentials. Returns cross [n1, n2] and the sums of x and of y. Inside `shard_map` the tiles
    can be split over a mesh axis.
    """
    centring_x = normal_centring(x, sigma_x, words, form.off_diagonal)
    centring_y = normal_centring(y, sigma_y, words, form.off_diagonal)
    blocks_x = to_blocks(x, sigma_x, centring_x, words, tile)
    blocks_y = to_blocks(y, sigma_y, centring_y, words, tile)

    @jax.checkpoint
    def step(total: _Accumulated, at: tuple[jax.Array, ...]) -> tuple[_Accumulated, None]:
        a, b, *live = at
        twice = jnp.where(a == b, 1.0, 2.0)
        tile_x = gram_tile(blocks_x, a, b, form)
        tile_y = gram_tile(blocks_y, a, b, form)
        if live:
            tile_x, tile_y = tile_x * live[0], tile_y * live[0]
        product = jnp.einsum("abi,abj->ij", tile_x, tile_y, precision=precision)
        return _Accumulated(
            total.cross + twice * product,
            add_rows(total.rows_x, tile_x, a, b),
            add_rows(total.rows_y, tile_y, a, b),
            total.own_x + twice * jnp.sum(tile_x * tile_x, axis=(0, 1)),
            total.own_y + twice * jnp.sum(tile_y * tile_y, axis=(0, 1)),
        ), None

    start = _Accumulated(
        jnp.zeros((len(x), len(y)), jnp.float32),
        jnp.zeros(blocks_x.values.shape, jnp.float32),
        jnp.zeros(blocks_y.values.shape, jnp.float32),
        jnp.zeros(len(x), jnp.float32),
        jnp.zeros(len(y), jnp.float32),
    )
    if split is None:
        total, _ = lax.scan(step, start, upper_tiles(blocks_x))
    else:
        total, _ = lax.scan(step, start, own_tiles(blocks_x, split))
        total = lax.psum(total, split.axis)
    sums_x = set_sums(x, centring_x, total.rows_x, total.own_x, words, form)
    sums_y = set_sums(y, centring_y, total.rows_y, total.own_y, words, form)
    return total.cross, sums_x, sums_y
