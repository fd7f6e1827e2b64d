"""What the fused kernels for TPU and GPU share: the numbers, not the memory.

A Gram entry is made where it is used, K - 1 - u_a - u_b as in exact.py, split into bfloat16
pieces, and fed to the matrix unit; nothing of size N^2 reaches device memory. Neither back end
has expm1, and their matrix units take 16 bits. Axes: n variables, N words, t words of a tile.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .estimators import SetSums
from .exact import Form, exp_minus_one, normal_centring

# Products of pieces p and q with p + q below the number of pieces: 1, 3 or 6 of them.
PIECES = {"default": 1, "high": 2, "highest": 3}
SERIES_FROM = -0.5  # exponents from here to 0 take the polynomial
ROWS = 32  # words whose sums are taken at once

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
    """exp - 1 of float32 exponents <= 0, to 3e-7 of the value, with no expm1."""
    total = jnp.full_like(exponent, _SERIES[-1])
    for coefficient in _SERIES[-2::-1]:
        total = total * exponent + coefficient
    return jnp.where(exponent > SERIES_FROM, total * exponent, jnp.exp(exponent) - 1.0)


def minus_one_of(form: Form) -> Callable[[jax.Array], jax.Array]:
    """The exp - 1 that a kernel uses for `form`."""
    return exp_minus_one if form.minus_one is exp_minus_one else series_minus_one


def split(entry: jax.Array, pieces: int) -> list[jax.Array]:
    """float32 as a sum of bfloat16 pieces, 8 bits each, the largest first.

    Rounded by hand: a compiler may drop the way to bfloat16 and back, and with it the pieces.
    """
    parts = []
    for _ in range(pieces - 1):
        bits = lax.bitcast_convert_type(entry, jnp.int32)
        bits = (bits + 0x8000) & ~0xFFFF
        head = lax.bitcast_convert_type(bits, jnp.float32)
        parts.append(head.astype(jnp.bfloat16))
        entry = entry - head
    return [*parts, entry.astype(jnp.bfloat16)]


def products(pieces: int) -> list[tuple[int, int]]:
    """Pairs of pieces to multiply, the smallest products first so that they are not lost."""
    pairs = [(p, q) for p in range(pieces) for q in range(pieces) if p + q < pieces]
    return sorted(pairs, key=sum, reverse=True)


def upper_pairs(tiles: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers (a, b) of the tiles of words of the upper triangle, diagonal included."""
    first, second = np.triu_indices(tiles)
    return first.astype(np.int32), second.astype(np.int32)


def scaled(z: jax.Array, sigma: jax.Array) -> jax.Array:
    """z [n, N] in units of sqrt(2) sigma, so that K = exp(-(a - b)^2)."""
    return z * (np.float32(np.sqrt(0.5)) / sigma)[:, None]


def operand_of(z: jax.Array, sigma: jax.Array, words: jax.Array, form: Form) -> jax.Array:
    """What a kernel makes entries of, the scaled values of z [n, N] over their u: [2, n, N]."""
    return jnp.stack([scaled(z, sigma), normal_centring(z, sigma, words, form.off_diagonal)])


def pad_to(array: jax.Array, *sizes: int) -> jax.Array:
    """Zeros after the end of every axis, up to these sizes."""
    return jnp.pad(array, [(0, to - size) for to, size in zip(sizes, array.shape, strict=True)])


def round_up(size: int, multiple: int) -> int:
    """The next multiple."""
    return -(-size // multiple) * multiple


def pair_sums(z: jax.Array, sigma: jax.Array, words: jax.Array, form: Form) -> SetSums:
    """`SetSums` of one set of standardised z [n, N], by reductions that hold [n, 32, N] at most.

    A compiler for accelerators makes the entries inside the reduction: no [n, 32, N] is stored.
    All pairs of words are visited, not only the upper triangle, so that no tile has to be kept
    for its columns.
    """
    n, size = z.shape
    blocks = -(-size // ROWS)
    minus_one = minus_one_of(form)  # with expm1, XLA stores the entries on a GPU
    values, centring = operand_of(z, sigma, words, form)
    rows = [pad_to(part, n, blocks * ROWS) for part in (values, centring)]
    row_mask = pad_to(words, blocks * ROWS)

    def some(block: jax.Array) -> tuple[jax.Array, jax.Array]:
        at = block * ROWS
        value, u = (lax.dynamic_slice_in_dim(part, at, ROWS, axis=1) for part in rows)
        difference = value[:, :, None] - values[:, None, :]
        entry = minus_one(-difference * difference) - u[:, :, None] - centring[:, None, :]
        keep = lax.dynamic_slice_in_dim(row_mask, at, ROWS)[:, None] * words[None, :]
        if form.off_diagonal:
            own = (at + jnp.arange(ROWS))[:, None] == jnp.arange(size)[None, :]
            keep = jnp.where(own, 0.0, keep)
        entry = entry * keep[None, :, :]
        return jnp.sum(entry, axis=2), jnp.sum(entry * entry, axis=2)

    sums, squares = lax.map(some, jnp.arange(blocks, dtype=jnp.int32))  # [blocks, n, ROWS]
    flat = jnp.moveaxis(sums, 0, 1).reshape(n, -1)[:, :size]
    masked = centring * words[None, :]
    diagonal = None if form.off_diagonal else -2.0 * masked
    own = jnp.sum(squares, axis=(0, 2))
    # Undoing u: sum_b (u_a + u_b) = N u_a + a constant.
    return SetSums(flat, diagonal, own, flat + jnp.sum(words) * masked)
