"""All pairs of two sets exactly, fused for Hopper: the sums of exact.py in Mosaic GPU.

A block of 64 x 64 variables belongs to one warpgroup. For every word a of a tile it makes the
entries of a against the 64 words of another tile, in registers, leaves them in shared memory as
bfloat16 pieces and multiplies them by wgmma. A product is accumulated by the tensor cores over
one word a only and added up in float32 registers, since the cores round towards zero. The work
on pairs of tiles is split over the grid, and the parts are summed at the end. A second, small
kernel makes the row sums of a set. Axes: n1, n2 variables, N words.
"""

from __future__ import annotations

import functools
import inspect
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
    operand_of,
    pad_to,
    products,
    split,
    sums_of,
    upper_pairs,
)
from .plan import round_up

TILE = 64  # words of a tile: 64 bfloat16 fill a swizzled row of 128 bytes
BLOCK = TILE  # variables of a block, the height of a wgmma
BLOCKS_ON_DEVICE = 264  # two to each of 132 multiprocessors

# JAX 0.10 takes the index of a load as an argument of its own, 0.12 as a part of the reference.
INDEX_APART = "idx" in inspect.signature(plgpu.load).parameters

Ref = Any  # Pallas references have no public type that indexing checks against
Pair = tuple[jax.Array, jax.Array]


def _load(reference: Ref, *at: Any, interpret: bool) -> jax.Array:
    """From device memory, in the layout that the use asks for."""
    # The interpreter has no plgpu.load; indexing refuses loads that are not vectorised.
    if interpret:
        return reference[at]
    load: Any = plgpu.load
    return load(*((reference, at) if INDEX_APART else (reference.at[at],)), optimized=False)


def _spread(vector: jax.Array, axis: int) -> jax.Array:
    """A vector along one axis of a tile [64, 64]."""
    return lax.broadcast_in_dim(vector, (TILE, BLOCK), (axis,))


def _entries(form: Form, tile: Any, word: Pair, variables: int) -> jax.Array:
    """K - 1 - u_a - u_b of a word a and of a tile, both (values, u), variables on that axis."""
    difference = tile[0] - _spread(word[0], variables)
    entry = form.minus_one(-difference * difference)
    return entry - _spread(word[1], variables) - tile[1]


def _cross_kernel(
    first: Ref,
    second: Ref,
    keep: Ref,
    words: Ref,
    x_rows: Ref,
    x_columns: Ref,
    y_columns: Ref,
    cross: Ref,
    x_tile: Ref,
    y_tile: Ref,
    x_pieces: Ref,
    y_pieces: Ref,
    arrived: Ref,
    *,
    form: Form,
    pieces: int,
    splits: int,
    pairs: int,
    interpret: bool,
) -> None:
    """One part of a block of cross: every splits-th pair of tiles."""
    i, j, part = (lax.axis_index(name) for name in ("i", "j", "part"))
    own_x, own_y = pl.ds(i * BLOCK, BLOCK), pl.ds(j * BLOCK, BLOCK)
    load = functools.partial(_load, interpret=interpret)

    def one_pair(step: jax.Array, total: jax.Array) -> jax.Array:
        pair = part + step * splits
        a, b = first[pair], second[pair]
        own_b = pl.ds(b * TILE, TILE)
        plgpu.copy_gmem_to_smem(x_rows.at[:, own_x, own_b], x_tile, arrived)
        plgpu.copy_gmem_to_smem(y_columns.at[:, own_b, own_y], y_tile, arrived)
        plgpu.barrier_wait(arrived)
        twice = jnp.where(a == b, 1.0, 2.0)

        def one_word(at: jax.Array, total: jax.Array) -> jax.Array:
            word = a * TILE + at
            word_x = load(x_columns, 0, word, own_x), load(x_columns, 1, word, own_x)
            word_y = load(y_columns, 0, word, own_y), load(y_columns, 1, word, own_y)
            entry_x = _entries(form, x_tile, word_x, 0)
            entry_y = _entries(form, y_tile, word_y, 1)
            # The masks, and the 2 of the lower triangle, on one side are enough.
            kept = load(keep, (a == b).astype(jnp.int32), at) * load(words, own_b)
            entry_y = entry_y * _spread(kept * (twice * words[word]), 0)
            for p, piece in enumerate(split(entry_x, pieces)):
                x_pieces[p] = piece
            for p, piece in enumerate(split(entry_y, pieces)):
                y_pieces[p] = piece
            plgpu.commit_smem()

            def multiply(accumulator: Ref) -> jax.Array:
                for p, q in products(pieces):
                    plgpu.wgmma(accumulator, x_pieces.at[p], y_pieces.at[q])
                return accumulator[...]  # waits for the products

            return total + pl.run_scoped(multiply, plgpu.ACC((BLOCK, BLOCK), jnp.float32))

        return lax.fori_loop(0, TILE, one_word, total)

    steps = lax.div(pairs - part + splits - 1, splits)
    start = jnp.zeros((BLOCK, BLOCK), jnp.float32)
    cross[part, own_x, own_y] = lax.fori_loop(0, steps, one_pair, start)


def _rows_kernel(
    keep: Ref, words: Ref, columns: Ref, sums: Ref, *, form: Form, splits: int, interpret: bool
) -> None:
    """One part of the sums of a tile: over the words b of every splits-th tile."""
    a, i, part = (lax.axis_index(name) for name in ("a", "i", "part"))
    own_a, own = pl.ds(a * TILE, TILE), pl.ds(i * BLOCK, BLOCK)
    load = functools.partial(_load, interpret=interpret)
    tile = load(columns, 0, own_a, own), load(columns, 1, own_a, own)
    if not interpret:  # with no wgmma to go by, the layouts must start somewhere
        tile = tuple(plgpu.layout_cast(part, plgpu.Layout.WGMMA) for part in tile)

    def one_tile(step: jax.Array, total: Pair) -> Pair:
        b = part + step * splits

        def one_word(at: jax.Array, total: Pair) -> Pair:
            at_b = b * TILE + at
            word = load(columns, 0, at_b, own), load(columns, 1, at_b, own)
            kept = load(keep, (a == b).astype(jnp.int32), at) * words[at_b]
            entry = _entries(form, tile, word, 1) * _spread(kept, 0)
            return total[0] + entry, total[1] + entry * entry

        return lax.fori_loop(0, TILE, one_word, total)

    steps = lax.div(words.shape[0] // TILE - part + splits - 1, splits)
    zeros = jnp.zeros((TILE, BLOCK), jnp.float32)
    total, squares = lax.fori_loop(0, steps, one_tile, (zeros, zeros))
    sums[part, 0, own_a, own] = total
    sums[part, 1, own_a, own] = squares


def _shared(shape: tuple[int, ...], dtype: Any) -> Any:
    """Shared memory in the tiling and swizzle that wgmma and the bulk copies want."""
    row = 128 // np.dtype(dtype).itemsize
    transforms = (plgpu.TilingTransform((8, row)), plgpu.SwizzleTransform(128))
    return plgpu.SMEM(shape, dtype, transforms=transforms)


def _settings(interpret: bool) -> dict[str, Any]:
    """How to compile, or to interpret; the interpreter has no public name in JAX 0.10."""
    if interpret:
        from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

        return {"interpret": InterpretGPUParams()}
    warpgroup = plgpu.LoweringSemantics.Warpgroup
    # No sum crosses warps: without its scratch two blocks fit on a multiprocessor.
    params = plgpu.CompilerParams(lowering_semantics=warpgroup, reduction_scratch_bytes=0)
    return {"compiler_params": params}


def _splits(blocks: int, work: int) -> int:
    """Parts to cut each block's work into, so that the device is full."""
    return min(work, -(-BLOCKS_ON_DEVICE // blocks))


def _keep(form: Form) -> np.ndarray:
    """1 for the entries that count, [2, 64, 64]: of a tile with others, and with itself."""
    diagonal = 0.0 if form.off_diagonal else 1.0
    ones = np.ones((TILE, TILE), np.float32)
    return np.stack([ones, np.where(np.eye(TILE, dtype=bool), np.float32(diagonal), ones)])


def _cross(
    x: jax.Array, y: jax.Array, words: jax.Array, *, pieces: int, form: Form, interpret: bool
) -> jax.Array:
    """sum_ab of the products of entries, for padded x and y [2, n, N]: [n1, n2]."""
    first, second = upper_pairs(x.shape[2] // TILE)
    sizes = x.shape[1], y.shape[1]
    grid = (sizes[0] // BLOCK, sizes[1] // BLOCK)
    splits = _splits(grid[0] * grid[1], len(first))
    kernel = plgpu.kernel(
        functools.partial(
            _cross_kernel,
            form=form,
            pieces=pieces,
            splits=splits,
            pairs=len(first),
            interpret=interpret,
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
        kernel_name="hsic_cross",
        **_settings(interpret),
    )
    x_columns, y_columns = jnp.swapaxes(x, 1, 2), jnp.swapaxes(y, 1, 2)
    numbers = jnp.asarray(first), jnp.asarray(second), jnp.asarray(_keep(form))
    return jnp.sum(kernel(*numbers, words, x, x_columns, y_columns), axis=0)


def _rows(operand: jax.Array, words: jax.Array, *, form: Form, interpret: bool) -> jax.Array:
    """Sums over b of the entries and of their squares, for padded [2, n, N]: [2, N, n]."""
    _, n, length = operand.shape
    grid = (length // TILE, n // BLOCK)
    splits = _splits(grid[0] * grid[1], length // TILE)
    kernel = plgpu.kernel(
        functools.partial(_rows_kernel, form=form, splits=splits, interpret=interpret),
        out_type=jax.ShapeDtypeStruct((splits, 2, length, n), jnp.float32),
        grid=(*grid, splits),
        grid_names=("a", "i", "part"),
        kernel_name="hsic_rows",
        **_settings(interpret),
    )
    return jnp.sum(kernel(jnp.asarray(_keep(form)), words, jnp.swapaxes(operand, 1, 2)), axis=0)


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
    Returns cross [n1, n2] and the sums of x and of y, for `combine`. For `lax.map`, not for vmap
    or grad.
    interpret runs the kernels anywhere, very slowly. Raises KeyError for another precision.
    """
    pieces, length = PIECES[precision], round_up(x.shape[1], TILE)
    operand_x, operand_y = operand_of(x, sigma_x, words, form), operand_of(y, sigma_y, words, form)
    padded_x, padded_y = (
        pad_to(operand, 2, round_up(operand.shape[1], BLOCK), length)
        for operand in (operand_x, operand_y)
    )
    mask = pad_to(words, length)
    cross = _cross(padded_x, padded_y, mask, pieces=pieces, form=form, interpret=interpret)

    def sums(z: jax.Array, operand: jax.Array, padded: jax.Array) -> SetSums:
        rows = _rows(padded, mask, form=form, interpret=interpret)
        return sums_of(z, operand, rows[:, : z.shape[1], : len(z)], words, form)

    return (
        cross[: len(x), : len(y)],
        sums(x, operand_x, padded_x),
        sums(y, operand_y, padded_y),
    )
