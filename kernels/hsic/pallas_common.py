"""What the fused kernels for TPU and GPU share: the numbers, not the memory.

A Gram entry is made where it is used, K - 1 - u_a - u_b as in exact.py, split into bfloat16
pieces, and fed to the matrix unit, which takes 16 bits; nothing of size N^2 reaches device
memory. Axes: n variables, N words.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .estimators import SetSums
from .exact import Form, normal_centring, set_sums

# Products of pieces p and q with p + q below the number of pieces: 1, 3 or 6 of them.
PIECES = {"default": 1, "high": 2, "highest": 3}


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


def operand_of(z: jax.Array, sigma: jax.Array, words: jax.Array, form: Form) -> jax.Array:
    """What entries are made of: z [n, N] in units of sqrt(2) sigma, and its u: [2, n, N]."""
    scaled = z * (np.float32(np.sqrt(0.5)) / sigma)[:, None]
    return jnp.stack([scaled, normal_centring(z, sigma, words, form.off_diagonal)])


def sums_of(
    z: jax.Array, operand: jax.Array, rows: jax.Array, words: jax.Array, form: Form
) -> SetSums:
    """`SetSums` of z [n, N] from the sums over b of entries and of their squares [2, N, n]."""
    own = jnp.sum(rows[1] * words[:, None], axis=0)
    return set_sums(z, operand[1], rows[:1] * words[None, :, None], own, words, form)


def pad_to(array: jax.Array, *sizes: int) -> jax.Array:
    """Zeros after the end of every axis, up to these sizes."""
    return jnp.pad(array, [(0, to - size) for to, size in zip(sizes, array.shape, strict=True)])
