"""Benchmarks of the HSIC core: sizes and estimators, long samples, and a whole spectrum.

Times of the CPU are of whole eager calls. The spectrum is that of an 8B-shaped model; a part of it
runs, over sets that are on the device already, and is scaled up. Axes: n1, n2 neurons, N words, G
bridges, M blocks (a pair and a layer each).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from bridgex_jax.kernels.hsic import Plan, hsic
from bridgex_jax.kernels.hsic import bench as hsic_bench
from bridgex_jax.kernels.hsic.batch import SetPairs, score_set_pairs
from bridgex_jax.kernels.hsic.plan import FUSED, tile_size
from bridgex_jax.kernels.hsic.resampling import bootstrap_scores
from bridgex_jax.pipelines.bench_rows import Row, bench_row
from bridgex_jax.pipelines.console import Console

LENGTHS = (20_000, 100_000)  # words
BLOCKS, NEURONS, BRIDGES, WORDS = 32 * 15, 143, 6, 1000  # 32 layers of 15 pairs
PADDED, PADDED_WORDS = 144, 1024
REPLICATES = 1000


def bench_hsic(repeats: int, console: Console) -> list[Row]:
    """HSIC of all pairs of two sets, against the released double loop (kernels/hsic/bench.py)."""
    sizes = (*hsic_bench.SIZES, hsic_bench.LARGE)
    found: list[hsic_bench.Row] = []
    rows = []
    with console.progress("hsic", len(sizes) + len(LENGTHS), "sizes") as progress:
        for size in sizes:
            slow = size == hsic_bench.LARGE
            found += hsic_bench.bench([size], repeats=1 if slow else repeats)
            progress(1)
        large = [row for row in found if row.implementation == "features"][-1]
        for n_words in LENGTHS:
            rows.append(_length_row(n_words, large, repeats))
            progress(1)
    return [*(_size_row(row, found) for row in found), *rows]


def _size_row(row: hsic_bench.Row, rows: Sequence[hsic_bench.Row]) -> Row:
    size = (row.n1, row.n2, row.n_words)
    loop = next(r for r in rows if (r.n1, r.n2, r.n_words) == size)  # comes first
    is_large = size == hsic_bench.LARGE
    targets = {"features": 10_000, "exact": 500} if is_large else {"features": 1_000}
    asked = size in ((64, 64, 256), hsic_bench.LARGE) and row.estimator == "trace_khl"
    rank = "" if row.rank is None else f" of rank {row.rank}"
    return bench_row(
        "hsic",
        f"{row.n1} x {row.n2} x {row.n_words}, {row.estimator}, {row.bandwidth}, "
        f"{row.implementation}{rank} : released double loop",
        row.milliseconds,
        loop.milliseconds,
        unit="ms",
        ratio=row.ratio,
        target=targets.get(row.implementation) if asked else None,
        note=f"{row.gflops:,.0f} GFLOP/s, {row.share:.0%} of the peak; {row.megabytes:,.0f} MB; "
        f"error {row.error:.1e} of the largest entry",
    ) | {"detail": dataclasses.asdict(row)}


def _length_row(n_words: int, large: hsic_bench.Row, repeats: int) -> Row:
    """Time in proportion to the words: the ratio is 1 where it is linear."""
    x, y = hsic_bench.normal_sets(large.n1, large.n2, n_words, seed=0)
    settings: dict[str, Any] = {"estimator": "trace_khl", "bandwidth": "set_median"}
    run = partial(hsic, x, y, **settings)
    np.asarray(run())  # compiles
    seconds = hsic_bench.median_seconds(lambda: np.asarray(run()), repeats)
    linear = 1e-3 * large.milliseconds * n_words / large.n_words
    plan = Plan(None, None, np.ones(n_words, np.float32), estimator="trace_khl", epsilon=1e-6)
    ways = {
        "features": dataclasses.replace(plan, implementation="features", rank=large.rank),
        "exact": plan,
    }
    held = (
        f"{name} {hsic_bench.compiled_megabytes(x, y, way):,.0f} MB" for name, way in ways.items()
    )
    return bench_row(
        "hsic",
        f"{large.n1} x {large.n2} x {n_words}, trace_khl, set_median, features : as many times "
        f"{large.n_words} words",
        1e3 * seconds,
        1e3 * linear,
        unit="ms",
        ratio=linear / seconds,
        note=", ".join(held),
    )


def bench_spectrum(repeats: int, console: Console) -> list[Row]:
    """The spectrum of 15 pairs x 6 bridges x 32 layers, and its bootstrap, against the loop."""
    peak = hsic_bench.peak_gflops()
    loop = BLOCKS * BRIDGES * _loop_seconds()
    on_cpu = jax.default_backend() == "cpu"
    # (what, FLOPs, asked seconds on 2 cores and on one H200, blocks that run, how)
    square = float(NEURONS**2) * WORDS
    ways = [
        ("released regime, features of rank 3", 12 * square * BRIDGES, (10, 0.1), "features", 3),
        ("released regime, features of rank 4", 20 * square * BRIDGES, None, "features", 4),
        ("default, exact", square * WORDS * BRIDGES, (330, 1), "exact", None),
        ("default, cholesky of rank 20, error 2e-5", 420 * square * BRIDGES, (200, 0.1),
         "cholesky", 20),
    ]  # fmt: skip
    for fused in sorted({case[2] for case in hsic_bench.cases_here()} & set(FUSED)):
        ways.append((f"default, {fused}", square * WORDS * BRIDGES, (330, 1), fused, None))
    rows = []
    with console.progress("spectrum", len(ways) + 1, "ways") as progress:
        for what, flops, asked, implementation, rank in ways:
            m = (4 if implementation == "features" else 1) if on_cpu else 32
            run = partial(_score, _random_blocks(m, implementation, rank))
            run()  # compiles
            seconds = hsic_bench.median_seconds(run, repeats) * BLOCKS / m
            rows.append(_spectrum_row(what, seconds, loop, flops * BLOCKS, peak, asked))
            progress(1)
        draw = _bootstrap()
        draw()  # compiles
        seconds = hsic_bench.median_seconds(draw, repeats) * BLOCKS
        flops = 2.0 * BRIDGES * WORDS**2 * (0.5 * NEURONS**2 + REPLICATES / 2) * BLOCKS
        what = f"{REPLICATES} bootstraps, matches fixed, exact"
        rows.append(_spectrum_row(what, seconds, loop, flops, peak, (None, 20)))
        progress(1)
    return rows


def _spectrum_row(
    what: str,
    seconds: float,
    loop: float,
    flops: float,
    peak: float,
    asked: tuple[float | None, float] | None,
) -> Row:
    floor = 1e-9 * flops / peak
    limits = zip(asked or (None, None), ("2 cores", "an H200"), strict=True)
    wanted = [f"{limit:g} s on {machine}" for limit, machine in limits if limit is not None]
    note = f"products at the peak of {peak:,.0f} GFLOP/s: {floor:.3g} s, {floor / seconds:.0%}"
    return bench_row(
        "spectrum",
        f"15 pairs x {BRIDGES} bridges x 32 layers, {NEURONS} neurons, {WORDS} words, {what}"
        " : released loop",
        seconds,
        loop,
        ratio=loop / seconds,
        note=note + (f"; asked: {', '.join(wanted)}" if wanted else ""),
    )


def _loop_seconds(n_pairs: int = 9) -> float:
    """The released double loop for one bridge in one layer, scaled up from a few pairs."""
    side = math.isqrt(n_pairs)
    x, y = hsic_bench.normal_sets(side, side, WORDS, seed=0)
    seconds = hsic_bench.median_seconds(partial(hsic_bench.released, x, y), 1)
    return seconds * NEURONS**2 / side**2


def _score(pairs: SetPairs) -> None:
    score_set_pairs(pairs, matched=True).score.block_until_ready()


def _random_blocks(m: int, implementation: str, rank: int | None) -> SetPairs:
    """Blocks of the shared set against the union of six bridges, on the device."""
    released = implementation == "features"
    random = np.random.default_rng(0)
    union = BRIDGES * PADDED
    words = np.zeros((m, PADDED_WORDS), np.float32)
    words[:, :WORDS] = 1.0
    x, y = (random.standard_normal((m, n, PADDED_WORDS), np.float32) for n in (PADDED, union))
    columns = np.arange(union, dtype=np.int32).reshape(BRIDGES, PADDED)
    columns[:, NEURONS:] = -1
    plan = Plan(
        None if released else np.ones((m, PADDED), np.float32),
        None if released else np.ones((m, union), np.float32),
        words,
        estimator="trace_khl" if released else "cka_debiased",
        implementation=implementation,
        rank=rank,
        tile=tile_size(PADDED, union, WORDS),
        epsilon=1e-6 if released else 0.0,
        cancels=released,
    )
    weights = np.full((m, BRIDGES, PADDED), 1 / NEURONS, np.float32)
    pairs = SetPairs(
        x, y, plan, np.full(m, NEURONS, np.int32), np.tile(columns, (m, 1, 1)), weights
    )
    return jax.device_put(pairs)


def _bootstrap() -> Callable[[], Any]:
    """One block's draws."""
    random = np.random.default_rng(0)
    counts = random.multinomial(WORDS, np.full(WORDS, 1 / WORDS), size=REPLICATES)
    weights = np.zeros((PADDED_WORDS, REPLICATES), np.float32)
    weights[:WORDS] = counts.T
    sets = (PADDED, PADDED_WORDS), (BRIDGES, PADDED, PADDED_WORDS)
    x, y = (random.standard_normal(shape, np.float32) for shape in sets)
    matches = np.zeros((BRIDGES, PADDED, PADDED), np.float32)
    matches[:, :NEURONS, :NEURONS] = 1 / NEURONS**2
    arguments = jax.device_put((
        x, y, np.ones(PADDED, np.float32), np.ones((BRIDGES, PADDED), np.float32),
        (np.arange(PADDED_WORDS) < WORDS).astype(np.float32), matches, matches, weights,
    ))  # fmt: skip

    def run() -> jax.Array:
        return bootstrap_scores(
            *arguments,
            estimator="cka_debiased",
            tile=32,
            precision="highest",
            cancels=False,
            epsilon=0.0,
        ).block_until_ready()

    return run
