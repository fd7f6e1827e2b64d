"""Compiles the sharded spectrum and the fused kernels for devices that this machine does not have.

    make aot

Needs libtpu (the `aot` extra), no TPU and no GPU. For every TPU generation the spectrum of an
8B-shaped batch is compiled for four chips, by XLA (pairs x words) and by the fused kernel (pairs);
the fused kernel for Hopper is lowered. Prints one line each: how long it took, and what a device
holds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

# Without these libtpu asks the metadata server of a cloud machine what it is running on.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from absl import app
from bridgex_jax.kernels.hsic.batch import How, SetPairs, pair_axes, score_set_pairs
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

TPU_TOPOLOGIES = ("v5e:2x2", "v6e:2x2")
PAIRS, SHARED, UNION, GROUP, WORDS = 32, 144, 864, 144, 1024  # one pair of an 8B model, 6 bridges
HOWS = (
    How("cka_debiased", "exact", None, 128, 0.0, False, True),
    How("trace_khl", "features", 6, 128, 1e-6, True, False),
)
FUSED = How("cka_debiased", "pallas_tpu", None, 128, 0.0, False, True)


def spectrum_arguments(mesh: Mesh) -> SetPairs:
    """Shapes of a batch, sharded as bridge/spectrum.py shards it."""
    sharding = NamedSharding(mesh, P(pair_axes(mesh)))

    def shape(*axes: int, dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((PAIRS, *axes), dtype, sharding=sharding)

    return SetPairs(
        x=shape(SHARED, WORDS),
        y=shape(UNION, WORDS),
        sigma_x=shape(SHARED),
        sigma_y=shape(UNION),
        words=shape(WORDS),
        n_rows=shape(dtype=np.int32),
        columns=shape(6, GROUP, dtype=np.int32),
        weights=shape(6, GROUP),
    )


def report(what: str, work: Callable[[], Any]) -> None:
    """Runs one compilation and prints its line."""
    start = time.perf_counter()
    memory = work()
    held = f", {memory / 1e6:,.0f} MB a device" if memory else ""
    print(f"{what}: {time.perf_counter() - start:.1f} s{held}", flush=True)


def compile_spectrum(mesh: Mesh, how: How) -> float:
    """Bytes that a device holds while the compiled spectrum runs."""
    lowered = score_set_pairs.lower(spectrum_arguments(mesh), how, mesh)
    memory = lowered.compile().memory_analysis()
    return float(memory.argument_size_in_bytes + memory.temp_size_in_bytes)


def lower_for_hopper() -> float:
    """Lowers the fused kernel for GPUs; compiling it needs the CUDA plugin and ptxas."""
    how = FUSED._replace(implementation="pallas_mosaic_gpu")
    call = jax.jit(lambda pairs: score_set_pairs(pairs, how).score)
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
        spectrum_arguments(Mesh(np.array(jax.devices()), ("pairs",))),
    )
    jax.export.export(call, platforms=["cuda"])(shapes)
    return 0.0


def main(argv: list[str]) -> None:
    del argv
    for name in TPU_TOPOLOGIES:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=name)
        devices: np.ndarray = np.array(topology.devices).reshape(2, 2)
        mesh = Mesh(devices, ("pairs", "words"), axis_types=(AxisType.Auto,) * 2)
        for how in HOWS:
            what = f"{name}, spectrum, {how.estimator} by {how.implementation}"
            report(what, partial(compile_spectrum, mesh, how))
        pairs = Mesh(devices.reshape(4), ("pairs",), axis_types=(AxisType.Auto,))
        what = f"{name}, spectrum, {FUSED.estimator} by {FUSED.implementation}"
        report(what, partial(compile_spectrum, pairs, FUSED))
    report("sm_90, spectrum by pallas_mosaic_gpu, lowered only", lower_for_hopper)


if __name__ == "__main__":
    app.run(main)
