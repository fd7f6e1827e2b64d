"""`bridgex bench`: the benchmarks by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bridgex_jax.pipelines.bench_capture import bench_capture
from bridgex_jax.pipelines.bench_evaluate import bench_evaluate
from bridgex_jax.pipelines.bench_generate import bench_generate
from bridgex_jax.pipelines.bench_hsic import bench_hsic, bench_spectrum
from bridgex_jax.pipelines.bench_memory import bench_memory
from bridgex_jax.pipelines.bench_rows import Row, format_table, write_bench
from bridgex_jax.pipelines.console import Console

__all__ = ["BENCHMARKS", "format_table", "run", "write_bench"]

BENCHMARKS: dict[str, Callable[[int, Console], list[Row]]] = {
    "capture": bench_capture,
    "generate": bench_generate,
    "evaluate": bench_evaluate,
    "hsic": bench_hsic,
    "spectrum": bench_spectrum,
    "memory": bench_memory,
}


def run(names: Sequence[str], *, repeats: int = 5, quiet: bool = False) -> list[Row]:
    """The rows of the named BENCHMARKS, JSON-able, in order.

    A row: benchmark, what, ratio (None where the alternative cannot run), target (None: a remark),
    ours, other, unit, note. Raises KeyError for an unknown name.
    """
    console = Console(quiet)
    return [row for name in names for row in BENCHMARKS[name](repeats, console)]
