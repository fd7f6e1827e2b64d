"""All pairs of two sets exactly, fused for TPU: the sums of exact.py in Pallas.

Words lie on sublanes and variables on lanes. For a few words a at a time, the entries of a
against the words b of a tile are written to VMEM as [words, variables] and multiplied at once,
with (a, b) as the contracted axis. A second, small kernel makes the row sums of a set. Axes:
n1, n2 variables, N words.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .estimators import SetSums
from .exact import Form
from .pallas_common import (
    PIECES,
    operand_of,
    pad_to,
    products,
    split,
    sums_of,
    upper_pairs,
)
from .plan import round_up

TILE = 128  # words of a tile
CHUNK = 8  # words a whose entries are multiplied at once, or summed without a loop
LANES = 128
MAX_BLOCK = 256  # variables of a block: with 3 pieces the two operands take 3 MiB of VMEM

Ref = Any  # Pallas references have no public type that indexing checks against


def _entries(form: Form, tile: Ref, words: Ref, at: jax.Array) -> jax.Array:
    """K - 1 - u_a - u_b of one word a, row `at` of `words`, and a tile: [words, variables]."""
    difference = tile[0] - words[0, pl.ds(at, 1), :]
    entry = form.minus_one(-difference * difference)
    return entry - words[1, pl.ds(at, 1), :] - tile[1]


def _without_diagonal(keep: jax.Array, at: jax.Array, same_tile: jax.Array) -> jax.Array:
    own = lax.broadcasted_iota(jnp.int32, keep.shape, 0) == at
    return jnp.where(own & same_tile, 0.0, keep)


def _cross_kernel(
    first: Ref,
    second: Ref,
    x_a: Ref,
    x_b: Ref,
    y_a: Ref,
    y_b: Ref,
    mask_a: Ref,
    mask_b: Ref,
    cross: Ref,
    *operands: Ref,
    form: Form,
    pieces: int,
) -> None:
    """Adds the product of a pair of tiles to a block of cross."""
    pair = pl.program_id(2)

    @pl.when(pair == 0)
    def _start() -> None:
        cross[...] = jnp.zeros_like(cross)

    same_tile = first[pair] == second[pair]
    twice = jnp.where(same_tile, 1.0, 2.0)

    @pl.loop(0, TILE // CHUNK)
    def _multiply(chunk: jax.Array) -> None:
        for step in range(CHUNK):
            at = chunk * CHUNK + step
            # The mask, and the 2 of the lower triangle, on one side are enough.
            keep = twice * mask_a[pl.ds(at, 1), :] * mask_b[...]
            if form.off_diagonal:
                keep = _without_diagonal(keep, at, same_tile)
            entry_x, entry_y = _entries(form, x_b, x_a, at), keep * _entries(form, y_b, y_a, at)
            for entry, kept in ((entry_x, operands[:pieces]), (entry_y, operands[pieces:])):
                for piece, operand in zip(split(entry, pieces), kept, strict=True):
                    operand[pl.ds(step * TILE, TILE), :] = piece
        total = jnp.zeros_like(cross)
        for p, q in products(pieces):
            total += lax.dot_general(
                operands[p][...],
                operands[pieces + q][...],
                (((0,), (0,)), ((), ())),
                preferred_element_type=jnp.float32,
            )
        cross[...] += total


def _rows_kernel(tile: Ref, others: Ref, mask: Ref, sums: Ref, *, form: Form) -> None:
    """Adds the entries of a tile and the words of another, and their squares: [2, words, n]."""
    a, b = pl.program_id(1), pl.program_id(2)

    @pl.when(b == 0)
    def _start() -> None:
        sums[...] = jnp.zeros_like(sums)

    @pl.loop(0, TILE // CHUNK)
    def _add(chunk: jax.Array) -> None:
        total, squares = jnp.zeros_like(tile[0]), jnp.zeros_like(tile[0])
        for step in range(CHUNK):
            at = chunk * CHUNK + step
            entry = _entries(form, tile, others, at) * mask[pl.ds(at, 1), :]
            if form.off_diagonal:
                entry = _without_diagonal(entry, at, a == b)
            total, squares = total + entry, squares + entry * entry
        sums[0] += total
        sums[1] += squares


def _block(n: int) -> int:
    return min(MAX_BLOCK, round_up(n, LANES))


def _padded(operand: jax.Array) -> jax.Array:
    """Values and u [2, n, N] as [2, N, n], in whole tiles of words and blocks of variables."""
    n, length = operand.shape[1:]
    sizes = round_up(length, TILE), round_up(n, _block(n))
    return pad_to(jnp.swapaxes(operand, 1, 2), 2, *sizes)


def _cross(
    x: jax.Array,
    y: jax.Array,
    mask: jax.Array,
    blocks: tuple[int, int],
    *,
    pieces: int,
    form: Form,
    interpret: bool,
) -> jax.Array:
    """sum_ab of the products of entries, for padded x and y [2, N, n]: [n1, n2]."""
    first, second = upper_pairs(x.shape[1] // TILE)
    sizes = x.shape[2], y.shape[2]

    def operand(axis: int, which: int) -> pl.BlockSpec:
        return pl.BlockSpec(
            (2, TILE, blocks[axis]), lambda *at: (0, at[3 + which][at[2]], at[axis])
        )

    def mask_of(which: int) -> pl.BlockSpec:
        return pl.BlockSpec((TILE, blocks[1]), lambda *at: (at[3 + which][at[2]], 0))

    return pl.pallas_call(
        functools.partial(_cross_kernel, form=form, pieces=pieces),
        out_shape=jax.ShapeDtypeStruct(sizes, jnp.float32),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(sizes[0] // blocks[0], sizes[1] // blocks[1], len(first)),
            in_specs=[operand(axis, which) for axis in (0, 1) for which in (0, 1)]
            + [mask_of(which) for which in (0, 1)],
            out_specs=pl.BlockSpec(blocks, lambda *at: (at[0], at[1])),
            scratch_shapes=[
                pltpu.VMEM((CHUNK * TILE, block), jnp.bfloat16)
                for block in blocks
                for _ in range(pieces)
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"),
            fuse_transposed_lhs_in_matmul=True,
        ),
        interpret=interpret,
        name="hsic_cross",
    )(jnp.asarray(first), jnp.asarray(second), x, x, y, y, mask, mask)


def _rows(
    operand: jax.Array, mask: jax.Array, block: int, *, form: Form, interpret: bool
) -> jax.Array:
    """Sums over b of the entries and of their squares, for padded [2, N, n]: the same shape."""
    _, length, n = operand.shape
    mask = jnp.broadcast_to(mask[:, :1], (length, block))
    return pl.pallas_call(
        functools.partial(_rows_kernel, form=form),
        out_shape=jax.ShapeDtypeStruct(operand.shape, jnp.float32),
        grid=(n // block, length // TILE, length // TILE),
        in_specs=[
            pl.BlockSpec((2, TILE, block), lambda i, a, b: (0, a, i)),
            pl.BlockSpec((2, TILE, block), lambda i, a, b: (0, b, i)),
            pl.BlockSpec((TILE, block), lambda i, a, b: (b, 0)),
        ],
        out_specs=pl.BlockSpec((2, TILE, block), lambda i, a, b: (0, a, i)),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        interpret=interpret,
        name="hsic_rows",
    )(operand, operand, mask)


def pallas_tpu_sums(
    x: jax.Array,
    y: jax.Array,
    sigma_x: jax.Array,
    sigma_y: jax.Array,
    words: jax.Array,
    *,
    precision: str,
    form: Form,
    interpret: bool = False,
) -> tuple[jax.Array, SetSums, SetSums]:
    """`exact_sums` of standardised float32 x [n1, N] and y [n2, N], fused for TPU.

    sigma_x [n1], sigma_y [n2] in units of a row's deviation, words [N] 1 for a word and 0 for
    padding. precision: `highest` takes 6 products of bfloat16 pieces, `high` 3, `default` 1.
    Returns cross [n1, n2] and the sums of x and of y, for `combine`. Not differentiable by itself.
    interpret runs the kernels anywhere, slowly. Raises KeyError for another precision.
    """
    pieces = PIECES[precision]
    operand_x, operand_y = operand_of(x, sigma_x, words, form), operand_of(y, sigma_y, words, form)
    padded_x, padded_y = _padded(operand_x), _padded(operand_y)
    blocks = _block(len(x)), _block(len(y))
    length = padded_x.shape[1]
    mask = jnp.broadcast_to(pad_to(words, length)[:, None], (length, blocks[1]))
    cross = _cross(padded_x, padded_y, mask, blocks, pieces=pieces, form=form, interpret=interpret)

    def sums(z: jax.Array, operand: jax.Array, padded: jax.Array, block: int) -> SetSums:
        rows = _rows(padded, mask, block, form=form, interpret=interpret)
        return sums_of(z, operand, rows[:, : z.shape[1], : len(z)], words, form)

    return (
        cross[: len(x), : len(y)],
        sums(x, operand_x, padded_x, blocks[0]),
        sums(y, operand_y, padded_y, blocks[1]),
    )
