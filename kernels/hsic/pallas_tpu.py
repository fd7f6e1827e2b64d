"""All pairs of two sets exactly, fused for TPU: the sums of exact.py in one Pallas kernel.

Words lie on sublanes and variables on lanes. For a few words a at a time, the entries of a
against the t words of a tile are written to VMEM as [words, variables] and multiplied at once,
with (a, b) as the contracted axis. Axes: n1, n2 variables, N words, t words of a tile.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .estimators import SetSums
from .exact import Form
from .pallas_common import (
    PIECES,
    minus_one_of,
    operand_of,
    pad_to,
    pair_sums,
    products,
    round_up,
    split,
    upper_pairs,
)

TILE = 128  # words of a tile
CHUNK = 8  # words of the first tile whose entries are multiplied at once
LANES = 128
MAX_BLOCK = 256  # variables of a block: with 3 pieces the two operands take 3 MiB of VMEM


def _kernel(
    first, second, x_a, x_b, y_a, y_b, mask_a, mask_b, cross, *operands, form: Form, pieces: int
) -> None:
    pair = pl.program_id(2)

    @pl.when(pair == 0)
    def _start() -> None:
        cross[...] = jnp.zeros_like(cross)

    minus_one = minus_one_of(form)
    on_diagonal = first[pair] == second[pair]
    twice = jnp.where(on_diagonal, 1.0, 2.0)
    tile, width = y_b.shape[1:]

    def entries(a_ref, b_ref, at):
        """K - 1 - u_a - u_b of one word `at` and of a tile, for a block of variables."""
        difference = b_ref[0] - a_ref[0, pl.ds(at, 1), :]
        return minus_one(-difference * difference) - a_ref[1, pl.ds(at, 1), :] - b_ref[1]

    @pl.loop(0, tile // CHUNK)
    def _multiply(chunk) -> None:
        for step in range(CHUNK):
            at = chunk * CHUNK + step
            # The mask, and the 2 of the lower triangle, on one side are enough.
            keep = twice * mask_a[pl.ds(at, 1), :] * mask_b[...]
            if form.off_diagonal:
                own = on_diagonal & (lax.broadcasted_iota(jnp.int32, (tile, width), 0) == at)
                keep = jnp.where(own, 0.0, keep)
            entry_x, entry_y = entries(x_a, x_b, at), keep * entries(y_a, y_b, at)
            for entry, kept in ((entry_x, operands[:pieces]), (entry_y, operands[pieces:])):
                for part, ref in zip(split(entry, pieces), kept, strict=True):
                    ref[pl.ds(step * tile, tile), :] = part
        total = jnp.zeros_like(cross)
        for p, q in products(pieces):
            total += lax.dot_general(
                operands[p][...],
                operands[pieces + q][...],
                (((0,), (0,)), ((), ())),
                preferred_element_type=jnp.float32,
            )
        cross[...] += total


def _cross(
    x: jax.Array,
    y: jax.Array,
    words: jax.Array,
    *,
    precision: str,
    form: Form,
    interpret: bool,
) -> jax.Array:
    """sum_ab of the entries of x and y [2, n, N], values and centring stacked: [n1, n2]."""
    pieces = PIECES[precision]
    n1, n2 = x.shape[1], y.shape[1]
    length = round_up(x.shape[2], TILE)
    blocks = [min(MAX_BLOCK, round_up(n, LANES)) for n in (n1, n2)]
    sizes = [round_up(n, block) for n, block in zip((n1, n2), blocks, strict=True)]
    x, y = (
        pad_to(jnp.swapaxes(part, 1, 2), 2, length, size)
        for part, size in zip((x, y), sizes, strict=True)
    )
    mask = jnp.broadcast_to(pad_to(words, length)[:, None], (length, blocks[1]))
    first, second = upper_pairs(length // TILE)

    def operand(axis: int, which: int) -> pl.BlockSpec:
        def index(*at):
            return (0, at[3 + which][at[2]], at[axis])

        return pl.BlockSpec((2, TILE, blocks[axis]), index)

    def mask_of(which: int) -> pl.BlockSpec:
        return pl.BlockSpec((TILE, blocks[1]), lambda *at: (at[3 + which][at[2]], 0))

    cross = pl.pallas_call(
        functools.partial(_kernel, form=form, pieces=pieces),
        out_shape=jax.ShapeDtypeStruct((sizes[0], sizes[1]), jnp.float32),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(sizes[0] // blocks[0], sizes[1] // blocks[1], len(first)),
            in_specs=[operand(axis, which) for axis in (0, 1) for which in (0, 1)]
            + [mask_of(which) for which in (0, 1)],
            out_specs=pl.BlockSpec((blocks[0], blocks[1]), lambda *at: (at[0], at[1])),
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
    return cross[:n1, :n2]


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
    Returns cross [n1, n2] and the sums of x and of y, for `combine`. Not differentiable.
    interpret runs the kernel anywhere, slowly. Raises KeyError for another precision.
    """
    operands = [operand_of(z, sigma, words, form) for z, sigma in ((x, sigma_x), (y, sigma_y))]
    cross = _cross(
        operands[0], operands[1], words, precision=precision, form=form, interpret=interpret
    )
    return cross, pair_sums(x, sigma_x, words, form), pair_sums(y, sigma_y, words, form)
