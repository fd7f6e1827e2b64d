"""Compiles the sharded spectrum and the fused kernels for devices that this machine does not have.

    make aot

Needs libtpu and the CUDA plugin (the `aot` extra), no TPU and no GPU. For four devices of a host,
of every kind, the spectrum of an 8B-shaped batch is compiled by XLA (pairs x words), in the
default and in the released regime, and with the fused kernel (pairs). Prints one line each: how
long it took, and what a device holds.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app
from bridgex_jax.kernels.hsic.batch import SetPairs, pair_axes, score_set_pairs
from bridgex_jax.kernels.hsic.plan import Plan
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bridgex_jax import runtime
from bridgex_jax.models import budget
from bridgex_jax.pipelines.plan import chips

PAIRS, SHARED, UNION, GROUP, WORDS = 32, 144, 864, 144, 1024  # one pair of an 8B model, 6 bridges
# What XLA would ask an H100 about itself; an H200 differs in its memory only.
HOPPER = """
    gpu_device_info {
        cuda_compute_capability { major: 9 } core_count: 132 clock_rate_ghz: 1.98
        fpus_per_core: 128 threads_per_warp: 32
        threads_per_block_limit: 1024 threads_per_core_limit: 2048
        registers_per_block_limit: 65536 registers_per_core_limit: 65536
        shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
        shared_memory_per_core: 233472 l2_cache_size: 52428800
        device_memory_size: 84929347584 memory_bandwidth: 3352320000000
        block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
    }
"""


class Target(NamedTuple):
    """Four devices of a kind, and their fused kernel."""

    name: str
    devices: Callable[[], Any]
    fused: str


class Regime(NamedTuple):
    """Static fields of a plan, and how scores are made of its values."""

    plan: Plan
    with_sigma: bool
    matched: bool


def _tpus(name: str) -> Any:
    return chips.tpu_devices(chips.parse_topology(name))


def _gpus() -> Any:
    return topologies.get_topology_desc(
        platform="cuda", target_config=HOPPER, topology="1x1x4"
    ).devices


TARGETS = (
    Target("v5e:2x2", partial(_tpus, "v5e:2x2"), "pallas_tpu"),
    Target("v6e:2x2", partial(_tpus, "v6e:2x2"), "pallas_tpu"),
    Target("sm_90 x 4", _gpus, "pallas_mosaic_gpu"),
)
EXACT = Plan(None, None, None, "cka_debiased", "exact", tile=128, cancels=False)
RELEASED = Plan(None, None, None, "trace_khl", "features", rank=4, tile=128, epsilon=1e-6)


def arguments(regime: Regime, mesh: Mesh) -> SetPairs:
    """Shapes of a batch, sharded as score_set_pairs shards it."""
    sharding = NamedSharding(mesh, P(pair_axes(mesh)))

    def shape(*axes: int, dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((PAIRS, *axes), dtype, sharding=sharding)

    return SetPairs(
        x=shape(SHARED, WORDS),
        y=shape(UNION, WORDS),
        plan=dataclasses.replace(
            regime.plan,
            sigma_x=shape(SHARED) if regime.with_sigma else None,
            sigma_y=shape(UNION) if regime.with_sigma else None,
            words=shape(WORDS),
        ),
        n_rows=shape(dtype=np.int32),
        columns=shape(6, GROUP, dtype=np.int32),
        weights=shape(6, GROUP),
    )


def compile_spectrum(regime: Regime, mesh: Mesh) -> float:
    """Bytes that a device holds while the compiled spectrum runs."""
    lowered = score_set_pairs.lower(arguments(regime, mesh), mesh, matched=regime.matched)
    return float(budget.device_bytes(lowered.compile()))


def report(what: str, work: Callable[[], float]) -> None:
    """Runs one compilation and prints its line."""
    start = time.perf_counter()
    held = work()
    print(f"{what}: {time.perf_counter() - start:.1f} s, {held / 1e6:,.0f} MB a device", flush=True)


def main(argv: list[str]) -> None:
    del argv
    runtime.compile_only()
    for target in TARGETS:
        devices: np.ndarray = np.array(target.devices())
        both = Mesh(devices.reshape(2, 2), ("pairs", "words"), axis_types=(AxisType.Auto,) * 2)
        pairs = Mesh(devices, ("pairs",), axis_types=(AxisType.Auto,))
        fused = dataclasses.replace(EXACT, implementation=target.fused)
        for regime, mesh in (
            (Regime(EXACT, with_sigma=True, matched=True), both),
            (Regime(RELEASED, with_sigma=False, matched=False), both),
            (Regime(fused, with_sigma=True, matched=True), pairs),
        ):
            what = f"{regime.plan.estimator} by {regime.plan.implementation}"
            report(f"{target.name}, {what}", partial(compile_spectrum, regime, mesh))


if __name__ == "__main__":
    app.run(main)
