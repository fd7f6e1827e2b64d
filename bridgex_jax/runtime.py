"""The one place that touches global state: devices, the compilation cache, logging.

Everything else takes its mesh and its settings as arguments.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bridgex_jax.errors import InputError

MESH_AXES = ("data", "fsdp", "tensor")
MOST_MAPS = 30_000
BATCH_AXES = ("data", "fsdp")  # what splits the rows of a batch


def keep_interrupts() -> None:
    """Lets Ctrl-C through that falls into a callback of the garbage collector.

    Python cannot raise there: it prints the traceback and goes on, and the interrupt is lost. Here
    it comes again, a moment later.
    """
    report = sys.unraisablehook

    def raise_later(info: sys.UnraisableHookArgs) -> None:
        if issubclass(info.exc_type, KeyboardInterrupt):
            again = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
            again.daemon = True
            again.start()
        else:
            report(info)

    sys.unraisablehook = raise_later


def quiet_libraries() -> None:
    """Keeps the libraries' own notices off the screen; errors still come through."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    noisy = ("jax", "transformers", "huggingface_hub", "absl", "orbax", "matplotlib", "torch")
    for name in noisy:
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # tracebacks before our one line


def use_compilation_cache() -> Path | None:
    """Keeps compiled programs between runs, in the user's cache directory (mode 0700).

    BRIDGEX_CACHE names another directory; an empty value switches the cache off. Must come before
    the first compilation. Returns the directory, None where it is off or cannot be written.
    """
    place = os.environ.get("BRIDGEX_CACHE")
    if place == "":
        return None
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = Path(place) if place else base / "bridgex_jax" / "xla"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
    except OSError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    return directory


def drop_programs(at_most: int = MOST_MAPS) -> bool:
    """Frees all compiled programs where this process is near Linux's limit of 65,530 memory maps.

    XLA's CPU backend takes six maps and more for each program, and a process that has no more of
    them is killed. For those who compile without end: sweeps, test suites. Returns whether it did.
    """
    try:
        with open("/proc/self/maps", "rb") as file:
            maps = sum(1 for _ in file)
    except OSError:  # no Linux
        return False
    if maps <= at_most:
        return False
    jax.clear_caches()
    return True


def compile_only() -> None:
    """This process compiles for chips that are not here: it looks for none, and caches nothing.

    To be called before the first use of a device. JAX cannot read such programs back.
    """
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)


def make_mesh(shape: str | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh from `data=4,tensor=2`; None: all devices along `data`.

    Axes: `data` splits batches, `fsdp` batches and parameters, `tensor` heads and neurons. An axis
    that is not named has size 1, `data` then what is left.

    Args:
      devices: None for those of all processes.

    Raises InputError for another axis, a size that is no number, and sizes whose product is not the
    number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = _parse_mesh(shape or "")
    rest = math.prod(size for axis, size in sizes.items() if axis != "data")
    sizes.setdefault("data", max(1, len(devices) // rest))
    if math.prod(sizes.values()) != len(devices):
        text = " x ".join(f"{axis}={size}" for axis, size in sizes.items())
        raise InputError(
            f"--mesh {text} needs {math.prod(sizes.values())} devices, there are {len(devices)}",
            remedy="give sizes whose product is the number of devices",
        )
    whole = tuple(sizes.get(axis, 1) for axis in MESH_AXES)
    # A TPU's grid may be cut anywhere: 8 x 2 of 4 x 4 is a mesh, too.
    grid = create_device_mesh(whole, devices, allow_split_physical_axes=True)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def one_device() -> Mesh:
    """The default device alone."""
    return make_mesh(devices=jax.local_devices()[:1])


def _parse_mesh(text: str) -> dict[str, int]:
    remedy = "write it as data=4,tensor=2; the axes are data, fsdp and tensor"
    sizes: dict[str, int] = {}
    for item in filter(None, text.split(",")):
        axis, _, size = item.strip().partition("=")
        if axis not in MESH_AXES or axis in sizes or not size.isdigit() or int(size) < 1:
            raise InputError(f"--mesh {text!r}: {item.strip()!r} is no axis=size", remedy=remedy)
        sizes[axis] = int(size)
    return sizes


def dividing_axes(mesh: Mesh, axes: Sequence[str] | None, size: int) -> tuple[str, ...] | None:
    """Those of `axes` that the mesh has, if together they divide `size`; None for a copy."""
    there = tuple(axis for axis in axes or () if mesh.shape.get(axis, 1) > 1)
    return there if there and size % math.prod(mesh.shape[axis] for axis in there) == 0 else None


def batch_parts(mesh: Mesh) -> int:
    """Into how many parts the mesh splits the rows of a batch."""
    return math.prod(mesh.shape.get(axis, 1) for axis in BATCH_AXES)


def over_data(mesh: Mesh, n_rows: int) -> NamedSharding:
    """Rows of a batch split over the mesh; a copy on every device where they do not divide."""
    return NamedSharding(mesh, PartitionSpec(dividing_axes(mesh, BATCH_AXES, n_rows)))


def over_neurons(mesh: Mesh, n_neurons: int) -> NamedSharding:
    """Arrays [L, F] split along their neurons, as the activations are; a copy where not."""
    return NamedSharding(mesh, PartitionSpec(None, dividing_axes(mesh, ("tensor",), n_neurons)))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def put(tree: Any, sharding: NamedSharding) -> Any:
    """Arrays of the host on the devices; every process has all of them and keeps its part."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]),
        jax.tree.map(np.asarray, tree),
    )


def fetch(tree: Any) -> Any:
    """Whole arrays on the host of every process; all processes must call it, in the same order."""
    leaves = jax.tree.leaves(tree)
    if all(leaf.is_fully_addressable for leaf in leaves):
        return jax.device_get(tree)
    if all(leaf.is_fully_replicated for leaf in leaves):
        return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0)), tree)
    from jax.experimental.multihost_utils import process_allgather

    return process_allgather(tree, tiled=True)


def fetch_slots(tree: Any, slots: slice) -> Any:
    """These slots of the first axis of every array on the host; all processes must call it.

    Each may ask for others: the devices exchange the arrays, and no more goes to a host than asked.
    """

    def part(leaf: jax.Array) -> jax.Array:
        if not leaf.is_fully_addressable:
            if not leaf.is_fully_replicated:
                assert isinstance(leaf.sharding, NamedSharding)
                leaf = _gather(NamedSharding(leaf.sharding.mesh, PartitionSpec()), leaf)
            leaf = leaf.addressable_data(0)
        return leaf if slots == slice(None) else leaf[slots]

    return jax.device_get(jax.tree.map(part, tree))


@functools.partial(jax.jit, static_argnums=0)
def _gather(place: NamedSharding, array: jax.Array) -> jax.Array:
    return jax.lax.with_sharding_constraint(array, place)


def tokens_a_batch(mesh: Mesh) -> int:
    """Tokens that keep the devices busy: on a CPU what its caches hold, elsewhere what fills it."""
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return mesh.devices.size * (1_024 if on_cpu else 32_768)


def describe_devices(mesh: Mesh) -> dict[str, Any]:
    """Platform, kinds and number of devices and the mesh, for the manifest."""
    devices = list(mesh.devices.flat)
    return {
        "platform": devices[0].platform,
        "kinds": sorted({device.device_kind for device in devices}),
        "count": len(devices),
        "mesh": dict(mesh.shape),
        "processes": jax.process_count(),
    }
