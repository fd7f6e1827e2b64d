"""Times the implementations against the released double loop, in one process.

The released BridgeX-ICL code makes the products K H and H L of every variable once and then, for
every pair of variables, multiplies two N x N matrices and takes the trace. `released` does the
same in NumPy, so that both sides use one machine's best matrix product. Axes: n1, n2 variables,
N words.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np

from . import reference
from .api import hsic, make_plan

SIZES = ((32, 32, 256), (64, 64, 256))
CASES = (
    ("trace_khl", "set_median", "features"),
    ("trace_khl", "set_median", "exact"),
    ("cka_debiased", "variable_median", "exact"),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One implementation at one size: medians over the repeats, errors of the worst entry.

    ratio is the median of released time over own time, each pair of times taken back to back;
    error is relative to the largest entry of the float64 reference, and released_error that of
    the released float32 code (NaN where it does not compute that estimator).
    """

    n1: int
    n2: int
    n_words: int
    estimator: str
    bandwidth: str
    implementation: str
    rank: int | None
    milliseconds: float
    released_milliseconds: float
    ratio: float
    error: float
    released_error: float


def released(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """tr(K_i H H L_j) for every pair by the released double loop, in float32: [n1, n2].

    x [n1, N], y [n2, N] raw; set_median bandwidth.
    """
    x, y = (reference.standardise(z, reference.RELEASED_EPSILON) for z in (x, y))
    scale = np.float32(2 * reference.set_median(x, y) ** 2)
    x, y = x.astype(np.float32), y.astype(np.float32)
    centring = np.eye(x.shape[1], dtype=np.float32) - np.float32(1 / x.shape[1])

    def gram(row: np.ndarray) -> np.ndarray:
        return np.exp(-((row[:, None] - row[None, :]) ** 2) / scale)

    left = [gram(row) @ centring for row in x]
    right = [centring @ gram(row) for row in y]
    return np.array([[np.trace(k @ l) for l in right] for k in left])  # noqa: E741


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def bench(
    sizes: Sequence[tuple[int, int, int]] = SIZES,
    cases: Sequence[tuple[str, str, str]] = CASES,
    *,
    repeats: int = 3,
    seed: int = 0,
) -> list[Row]:
    """Time every case (estimator, bandwidth, implementation) at every size (n1, n2, N).

    Own times are of the whole eager call, planning included, with compilation done before. The
    data are normal, half of y depending on x. Nothing is printed or written.
    """
    rows = []
    for n1, n2, n_words in sizes:
        generator = np.random.default_rng(seed)
        x = generator.standard_normal((n1, n_words))
        y = generator.standard_normal((n2, n_words))
        y[: n2 // 2] += x[np.arange(n2 // 2) % n1]
        exact_khl = reference.hsic(x, y, estimator="trace_khl", bandwidth="set_median")
        loop_error = np.abs(released(x, y) - exact_khl).max() / np.abs(exact_khl).max()
        for case in cases:
            rows.append(_row(x, y, case, float(loop_error), repeats))
    return rows


def _row(
    x: np.ndarray, y: np.ndarray, case: tuple[str, str, str], loop_error: float, repeats: int
) -> Row:
    estimator, bandwidth, implementation = case

    def run() -> np.ndarray:
        values = hsic(x, y, estimator=estimator, bandwidth=bandwidth, implementation=implementation)
        return np.asarray(values)

    values = run()
    exact = reference.hsic(x, y, estimator=estimator, bandwidth=bandwidth)
    pairs = []
    for _ in range(repeats):
        theirs = _seconds(lambda: released(x, y))
        pairs.append((theirs, float(np.median([_seconds(run) for _ in range(5)]))))
    theirs, own = np.array(pairs).T
    plan = make_plan(x, y, estimator=estimator, bandwidth=bandwidth, implementation=implementation)
    return Row(
        n1=len(x),
        n2=len(y),
        n_words=x.shape[1],
        estimator=estimator,
        bandwidth=bandwidth,
        implementation=implementation,
        rank=plan.rank,
        milliseconds=1e3 * float(np.median(own)),
        released_milliseconds=1e3 * float(np.median(theirs)),
        ratio=float(np.median(theirs / own)),
        error=float(np.abs(values - exact).max() / np.abs(exact).max()),
        released_error=loop_error if estimator == "trace_khl" else float("nan"),
    )
