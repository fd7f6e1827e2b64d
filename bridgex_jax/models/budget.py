"""Batch sizes from the memory that compiled functions say they take.

What a device holds grows linearly with the batch, so two sizes tell where the largest one lies;
that one is compiled as well and checked, since padding and fusion bend the line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

BytesFor = Callable[[int], float]
MOST = 1 << 16  # rows; beyond them nothing is gained
MARGIN = 0.01  # of the limit: the line aims below it
WORTHWHILE = 0.05  # a batch that is larger by less is not looked for
BACK = 0.25  # of the way, from a size that did not fit to one that did
RESERVE = 0.05  # of a device's memory, for what else lies on it


def device_bytes(compiled: jax.stages.Compiled) -> int:
    """What a device holds while a compiled function runs: arguments, results, temporaries."""
    memory: Any = compiled.memory_analysis()
    return int(
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )


def bytes_to_run(lowered: jax.stages.Lowered) -> float:
    """`device_bytes` once compiled; infinite where the compiler itself says that it cannot fit."""
    try:
        return float(device_bytes(lowered.compile()))
    except jax.errors.JaxRuntimeError as error:
        if is_out_of_memory(error):
            return math.inf
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """Whether XLA failed for lack of memory, at compilation or later."""
    return "RESOURCE_EXHAUSTED" in str(error)


def held_bytes(tree: Any) -> int:
    """Bytes of a tree of arrays, or of shapes with shardings, on each device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def unused_bytes(params: Mapping[str, Any]) -> int:
    """On each device: the output matrix, which capture does not take but which lies there."""
    return held_bytes(params.get("lm_head", {}))


def memory_limit(mesh: Mesh) -> int | None:
    """Bytes that every device of a mesh has for programs; None where devices do not say (CPUs).

    The limit, not what is free now: all processes of a job must come to the same batch.
    """
    stats = [device.memory_stats() for device in mesh.local_devices]
    limits = [one["bytes_limit"] for one in stats if one and one.get("bytes_limit")]
    return min(limits) if len(limits) == len(stats) else None


def largest_batch(
    bytes_for: BytesFor, limit: float, *, step: int = 1, start: int | None = None, most: int = MOST
) -> int:
    """The largest multiple of `step`, at most `most`, whose program fits; 0 if not even one does.

    Args:
      bytes_for: of a batch, what a device holds; infinite where it cannot be compiled. Each call
        compiles: three are usual, and none is made twice.
      start: a size to measure first; `step` where it does not fit.
    """
    known: dict[int, float] = {}
    fits, over = 0, _down(most, step) + step
    batch = min(_down(start or step, step), over - step)
    while fits < batch < over:
        known[batch] = bytes_for(batch)
        if known[batch] <= limit:
            fits = batch
        else:
            over = batch
        batch = _next(known, fits, over, limit, step)
    return fits


def fitting_batch(bytes_for: BytesFor, limit: float, wanted: int, *, step: int = 1) -> int:
    """`wanted`, a multiple of `step`, if its program fits, else `largest_batch` below it.

    One compilation where there is room enough.
    """
    return largest_batch(bytes_for, limit, step=step, start=wanted, most=wanted)


def _next(known: Mapping[int, float], fits: int, over: int, limit: float, step: int) -> int:
    """The next size to measure, between `fits` and `over`; `fits` when there is none."""
    if not fits:
        return step
    finite = sorted(batch for batch, size in known.items() if math.isfinite(size))[-2:]
    if len(finite) < 2:
        return min(2 * fits, over - step)
    low, high = finite
    slope = max((known[high] - known[low]) / (high - low), 1e-9)
    full = low + ((1 - MARGIN) * limit - known[low]) / slope
    if full >= over and over in known:  # the line was wrong there
        full = fits + (over - fits) * (1 - BACK)
    if full < fits * (1 + WORTHWHILE):
        return fits
    return min(max(fits, int(full) // step * step), over - step)


def _down(size: int, step: int) -> int:
    """The multiple of `step` at or below, at least one."""
    return max(step, size // step * step)
