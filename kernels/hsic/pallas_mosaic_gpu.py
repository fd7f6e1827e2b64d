"""All pairs of two sets exactly, fused for Hopper: the sums of exact.py in one Mosaic GPU kernel.

A block of 64 x 64 variables belongs to one warpgroup. For every word a of a tile it makes the
entries of a against the 64 words of another tile, in registers, leaves them in shared memory as
bfloat16 pieces and multiplies them by wgmma. A product is accumulated by the tensor cores over
one word a only and added up in float32 registers, since the cores round towards zero. The work
on pairs of tiles is split over the grid, and the parts are summed at the end. Axes: n1, n2
variables, N words.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

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

TILE = 64  # words of a tile: 64 bfloat16 fill a swizzled row of 128 bytes
BLOCK = 64  # variables of a block, the height of a wgmma
BLOCKS_ON_DEVICE = 264  # two to each of 132 multiprocessors


def _kernel(
    first,
    second,
    keep,
    words,
    x_rows,
    x_columns,
    y_columns,
    cross,
    x_tile,
    y_tile,
    x_pieces,
    y_pieces,
    arrived,
    *,
    form: Form,
    pieces: int,
    splits: int,
    pairs: int,
    interpret: bool,
) -> None:
    i, j, part = (lax.axis_index(name) for name in ("i", "j", "part"))
    minus_one = minus_one_of(form)

    def vector(reference, *at):
        """64 floats of device memory, for the layout that their use asks for."""
        # The interpreter has no plgpu.load; indexing refuses loads that are not vectorised.
        return reference[at] if interpret else plgpu.load(reference, at, optimized=False)

    own_x, own_y = pl.ds(i * BLOCK, BLOCK), pl.ds(j * BLOCK, BLOCK)

    def entries(tile, columns, word, own, variables: int):
        """K - 1 - u_a - u_b of a word a and a tile, variables along that axis."""

        def spread(vector):
            return lax.broadcast_in_dim(vector, (BLOCK, BLOCK), (variables,))

        difference = tile[0] - spread(vector(columns, 0, word, own))
        return minus_one(-difference * difference) - spread(vector(columns, 1, word, own)) - tile[1]

    def one_pair(step, total):
        pair = part + step * splits
        a, b = first[pair], second[pair]
        own_b = pl.ds(b * TILE, TILE)
        plgpu.copy_gmem_to_smem(x_rows.at[:, own_x, own_b], x_tile, arrived)
        plgpu.copy_gmem_to_smem(y_columns.at[:, own_b, own_y], y_tile, arrived)
        plgpu.barrier_wait(arrived)

        def one_word(at, total):
            word = a * TILE + at
            entry_x = entries(x_tile, x_columns, word, own_x, 0)
            entry_y = entries(y_tile, y_columns, word, own_y, 1)
            # The masks, and the 2 of the lower triangle, on one side are enough.
            kept = vector(keep, (a == b).astype(jnp.int32), at) * vector(words, own_b) * words[word]
            entry_y = entry_y * lax.broadcast_in_dim(kept, (TILE, BLOCK), (0,))
            for p, piece in enumerate(split(entry_x, pieces)):
                x_pieces[p] = piece
            for p, piece in enumerate(split(entry_y, pieces)):
                y_pieces[p] = piece
            plgpu.commit_smem()

            def multiply(accumulator):
                for p, q in products(pieces):
                    plgpu.wgmma(accumulator, x_pieces.at[p], y_pieces.at[q])
                return accumulator[...]  # waits for the products

            return total + pl.run_scoped(multiply, plgpu.ACC((BLOCK, BLOCK), jnp.float32))

        return lax.fori_loop(0, TILE, one_word, total)

    steps = lax.div(pairs - part + splits - 1, splits)
    total = lax.fori_loop(0, steps, one_pair, jnp.zeros((BLOCK, BLOCK), jnp.float32))
    cross[part, own_x, own_y] = total


def _shared(shape: tuple[int, ...], dtype: Any) -> Any:
    """Shared memory in the tiling and swizzle that wgmma and the bulk copies want."""
    row = 128 // np.dtype(dtype).itemsize
    transforms = (plgpu.TilingTransform((8, row)), plgpu.SwizzleTransform(128))
    return plgpu.SMEM(shape, dtype, transforms=transforms)


def _interpreted(interpret: bool) -> Any:
    """The interpreter of Mosaic GPU, which has no public name in JAX 0.10."""
    if not interpret:
        return None
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

    return InterpretGPUParams()


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
    sizes = [round_up(n, BLOCK) for n in (n1, n2)]
    x, y = (pad_to(part, 2, size, length) for part, size in zip((x, y), sizes, strict=True))
    first, second = upper_pairs(length // TILE)
    grid = (sizes[0] // BLOCK, sizes[1] // BLOCK)
    splits = min(len(first), -(-BLOCKS_ON_DEVICE // (grid[0] * grid[1])))
    keep = np.full((2, TILE, TILE), 2.0, np.float32)  # of other tiles, and of the diagonal ones
    keep[1] = 1.0 - np.eye(TILE) if form.off_diagonal else 1.0
    kernel = plgpu.kernel(
        functools.partial(
            _kernel, form=form, pieces=pieces, splits=splits, pairs=len(first), interpret=interpret
        ),
        out_type=jax.ShapeDtypeStruct((splits, *sizes), jnp.float32),
        grid=(*grid, splits),
        grid_names=("i", "j", "part"),
        scratch_types=(
            _shared((2, BLOCK, TILE), jnp.float32),
            _shared((2, TILE, BLOCK), jnp.float32),
            _shared((pieces, BLOCK, TILE), jnp.bfloat16),
            _shared((pieces, TILE, BLOCK), jnp.bfloat16),
            plgpu.Barrier(num_arrivals=2),
        ),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        interpret=_interpreted(interpret),
        kernel_name="hsic_cross",
    )
    parts = kernel(
        jnp.asarray(first),
        jnp.asarray(second),
        jnp.asarray(keep),
        pad_to(words, length),
        x,
        jnp.swapaxes(x, 1, 2),
        jnp.swapaxes(y, 1, 2),
    )
    return jnp.sum(parts, axis=0)[:n1, :n2]


def pallas_mosaic_gpu_sums(
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
    """`exact_sums` of standardised float32 x [n1, N] and y [n2, N], fused for Hopper (sm_90).

    sigma_x [n1], sigma_y [n2] in units of a row's deviation, words [N] 1 for a word and 0 for
    padding. precision: `highest` takes 6 products of bfloat16 pieces, `high` 3, `default` 1.
    Returns cross [n1, n2] and the sums of x and of y, for `combine`. Not differentiable.
    interpret runs the kernel anywhere, very slowly. Raises KeyError for another precision.
    """
    operands = [operand_of(z, sigma, words, form) for z, sigma in ((x, sigma_x), (y, sigma_y))]
    cross = _cross(
        operands[0], operands[1], words, precision=precision, form=form, interpret=interpret
    )
    return cross, pair_sums(x, sigma_x, words, form), pair_sums(y, sigma_y, words, form)
