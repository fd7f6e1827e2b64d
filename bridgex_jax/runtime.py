"""The one place that touches global state: devices, the compilation cache, logging.

Everything else takes its mesh and its settings as arguments.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


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
    for name in ("jax", "transformers", "huggingface_hub", "absl", "orbax", "matplotlib"):
        logging.getLogger(name).setLevel(logging.ERROR)


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


def data_mesh() -> Mesh:
    """All local devices along one axis, `data`: batches are split over it."""
    devices = jax.local_devices()
    return jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)


def over_data(mesh: Mesh, n_rows: int) -> NamedSharding:
    """Rows of a batch split over the mesh; a copy on every device where they do not divide."""
    even = n_rows % mesh.devices.size == 0
    return NamedSharding(mesh, PartitionSpec("data")) if even else replicated(mesh)


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def tokens_a_batch(mesh: Mesh) -> int:
    """Tokens that keep the devices busy: on a CPU what its caches hold, elsewhere what fills it."""
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return mesh.devices.size * (1_024 if on_cpu else 32_768)


def describe_devices() -> dict[str, Any]:
    """Platform, kinds and number of devices, for the manifest."""
    devices = jax.devices()
    return {
        "platform": devices[0].platform,
        "kinds": sorted({device.device_kind for device in devices}),
        "count": len(devices),
        "processes": jax.process_count(),
    }
