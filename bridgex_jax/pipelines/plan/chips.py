"""TPU chips and slices: what they have, what they cost, and devices to compile for without them.

Compute, HBM and interconnect are those of cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e} in 2025.
`usable` is what libtpu 0.0.51 leaves of HBM to programs (its out-of-memory message says so).
Prices are public list prices of a chip-hour on demand in us regions, cloud.google.com/tpu/pricing
in 2025; they differ by region and contract, so `--price` replaces them.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from jax.sharding import Mesh

from bridgex_jax import runtime
from bridgex_jax.errors import InputError

_GIB = 2.0**30


@dataclass(frozen=True)
class Chip:
    """One kind of TPU: rates a chip and second, bytes, dollars an hour, slices that are sold."""

    name: str
    flops: float  # peak in bfloat16
    hbm: float  # bytes
    usable: float  # bytes that are left to programs
    hbm_rate: float  # bytes
    link_rate: float  # bytes over one link of the interconnect, both directions together
    price: float
    slices: tuple[str, ...]
    config: str = ""  # libtpu's name for two cores that work as one device, where it must be told


_PLANE = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
# Links a chip: 4 in the plane, 6 in the cube; their rate is the chip's rate over their number.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, 32 * _GIB, 30.75 * _GIB, 1228e9, 600e9 / 6, 3.22, _CUBE, "megacore"),
        Chip("v5e", 197e12, 16 * _GIB, 15.75 * _GIB, 819e9, 400e9 / 4, 1.20, _PLANE),
        Chip("v5p", 459e12, 95.74 * _GIB, 95.73 * _GIB, 2765e9, 1200e9 / 6, 4.20, _CUBE),
        Chip("v6e", 918e12, 32 * _GIB, 31.24 * _GIB, 1638e9, 800e9 / 4, 2.70, _PLANE),
    )
}


@dataclass(frozen=True)
class Slice:
    """Chips of one kind in a grid."""

    chip: Chip
    shape: str

    @property
    def name(self) -> str:
        return f"{self.chip.name}:{self.shape}"

    @property
    def n_chips(self) -> int:
        return math.prod(int(side) for side in self.shape.split("x"))


def parse_topology(text: str) -> Slice:
    """`v5e:4x4`. Raises InputError for another kind of chip, or a slice that is not sold."""
    kind, _, shape = text.partition(":")
    if kind not in CHIPS:
        raise InputError(
            f"--topology {text!r} names no TPU", remedy=f"write one of {', '.join(CHIPS)}: v5e:4x4"
        )
    if shape not in CHIPS[kind].slices:
        raise InputError(
            f"--topology {text!r} is no slice of {kind}",
            remedy=f"write {kind}: and one of {', '.join(CHIPS[kind].slices)}",
        )
    return Slice(CHIPS[kind], shape)


def slice_mesh(slice_: Slice, shape: str | None) -> Mesh:
    """A mesh of the devices of a slice, for compilation only. Raises InputError without libtpu."""
    return runtime.make_mesh(shape, tpu_devices(slice_))


def tpu_devices(slice_: Slice) -> Any:
    """Descriptions of the devices of a slice. Raises InputError without libtpu."""
    if find_spec("libtpu") is None:
        raise InputError(
            "libtpu, the compiler for TPUs, is not installed",
            remedy="run pip install 'bridgex_jax[plan]' (no TPU is needed)",
        )
    # Without these libtpu asks the metadata server of a cloud machine what it is running on, says
    # so at length, and refuses a second process.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    asked = {"chip_config_name": slice_.chip.config} if slice_.chip.config else {}
    found = topologies.get_topology_desc(platform="tpu", topology_name=slice_.name, **asked)
    return found.devices
