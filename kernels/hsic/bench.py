"""Times every implementation against the alternatives, in one process.

The alternatives: the released double loop, which makes K H and H L of every variable once and then
multiplies two N x N matrices for every pair; the same in NumPy written well, and in torch where it
is installed: all Gram matrices at once, centred, and one matrix product. Axes: n1, n2 variables,
N words.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import reference
from .api import check_platform, hsic, hsic_planned, make_plan
from .plan import FUSED, Plan

SIZES = ((32, 32, 256), (64, 64, 256))
LARGE = (143, 143, 512)  # where the released loop takes half a minute
CASES = (
    ("trace_khl", "set_median", "features"),
    ("trace_khl", "set_median", "exact"),
    ("cka_debiased", "variable_median", "exact"),
)


def cases_here() -> tuple[tuple[str, str, str], ...]:
    """CASES, and the fused kernel that this machine's first device can run."""
    fused = []
    for implementation in FUSED:
        try:
            check_platform(implementation)
        except ValueError:
            continue
        fused += [(*kind, implementation) for kind in (CASES[0][:2], CASES[2][:2])]
    return (*CASES, *fused)


@dataclasses.dataclass(frozen=True)
class Row:
    """One way to compute one size: medians over the repeats, errors of the worst entry.

    ratio: the released loop's time over the own one. gflops: of the products alone; share: of the
    measured peak of one matrix product. megabytes: what the call holds at its peak, in and output
    included (XLA's own account; of the others the arrays that they make). error is relative to the
    largest entry of the float64 reference. intensity: FLOPs a byte of memory traffic, had every
    array to be moved once.
    """

    n1: int
    n2: int
    n_words: int
    estimator: str
    bandwidth: str
    implementation: str
    rank: int | None
    milliseconds: float
    ratio: float
    gflops: float
    share: float
    megabytes: float
    error: float
    intensity: float


@dataclasses.dataclass(frozen=True)
class Way:
    """How to run something, its FLOPs in products, the megabytes it holds."""

    name: str
    run: Callable[[], np.ndarray]
    flops: float
    megabytes: float
    rank: int | None = None


def released(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """tr(K_i H H L_j) for every pair by the released double loop, in float32: [n1, n2].

    x [n1, N], y [n2, N] raw; set_median bandwidth.
    """
    x, y, scale = _released_input(x, y)
    centring = np.eye(x.shape[1], dtype=np.float32) - np.float32(1 / x.shape[1])

    def gram(row: np.ndarray) -> np.ndarray:
        return np.exp(-((row[:, None] - row[None, :]) ** 2) / scale)

    left = [gram(row) @ centring for row in x]
    right = [centring @ gram(row) for row in y]
    return np.array([[np.trace(k @ l) for l in right] for k in left])  # noqa: E741


def _released_input(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.float32]:
    x, y = (reference.standardise(z, reference.RELEASED_EPSILON) for z in (x, y))
    scale = np.float32(2 * reference.set_median(x, y) ** 2)
    return x.astype(np.float32), y.astype(np.float32), scale


def numpy_product(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`released` as one matrix product of centred Gram matrices in float32."""
    x, y, scale = _released_input(x, y)

    def grams(z: np.ndarray) -> np.ndarray:
        difference = z[:, :, None] - z[:, None, :]
        difference *= difference
        difference /= -scale
        return np.expm1(difference, out=difference)

    left = grams(x)
    left -= left.mean(axis=1, keepdims=True)
    return left.reshape(len(x), -1) @ grams(y).reshape(len(y), -1).T


def torch_product(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`numpy_product` in torch, as one einsum."""
    torch = importlib.import_module("torch")  # by name: no dependency
    x, y, scale = _released_input(x, y)

    def grams(rows: np.ndarray) -> Any:
        z = torch.from_numpy(rows)
        return torch.expm1(-((z[:, :, None] - z[:, None, :]) ** 2) / float(scale))

    left = grams(x)
    left = left - left.mean(dim=1, keepdim=True)
    return torch.einsum("iab,jab->ij", left, grams(y)).numpy()


def peak_gflops(size: int = 2048, repeats: int = 5) -> float:
    """GFLOP/s of one float32 matrix product of JAX here: what there is to reach."""
    matrix = jnp.ones((size, size), jnp.float32)
    product = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
    product(matrix).block_until_ready()
    seconds = min(_seconds(lambda: product(matrix).block_until_ready()) for _ in range(repeats))
    return 2e-9 * size**3 / seconds


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def median_seconds(run: Callable[[], object], repeats: int) -> float:
    """Median of `repeats` runs at least, and of as many as a third of a second takes.

    What was compiled before, and one more run, do not count.
    """
    first = _seconds(run)
    times = [_seconds(run) for _ in range(max(repeats, min(200, int(0.3 / first))))]
    return float(np.median(times))


def bench(
    sizes: Sequence[tuple[int, int, int]] = SIZES,
    cases: Sequence[tuple[str, str, str]] | None = None,
    *,
    repeats: int = 3,
    seed: int = 0,
    progress: Callable[[int], object] = lambda rows: None,
) -> list[Row]:
    """Time every case (estimator, bandwidth, implementation) and alternative at every size.

    cases: by default all that run here, see `cases_here`.

    Own times are of the whole eager call, planning included, with compilation done before. The
    data are normal, half of y depending on x. Nothing is printed or written.
    """
    peak = peak_gflops()
    rows = []
    for n1, n2, n_words in sizes:
        x, y = normal_sets(n1, n2, n_words, seed)
        exact_khl = reference.hsic(x, y, estimator="trace_khl", bandwidth="set_median")
        loop = [_seconds(partial(released, x, y)) for _ in range(repeats)]
        seconds = float(np.median(loop))
        for way in _alternatives(x, y):
            own = seconds if way.name == "released loop" else None
            case = ("trace_khl", "set_median", way, exact_khl)
            rows.append(_row(x, y, *case, seconds, own, peak, repeats))
            progress(1)
        for estimator, bandwidth, implementation in cases_here() if cases is None else cases:
            exact = reference.hsic(x, y, estimator=estimator, bandwidth=bandwidth)
            way = _ours(x, y, estimator, bandwidth, implementation)
            case = (estimator, bandwidth, way, exact)
            rows.append(_row(x, y, *case, seconds, None, peak, repeats))
            progress(1)
    return rows


def normal_sets(n1: int, n2: int, n_words: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """x [n1, N] and y [n2, N] of normal variables; half of y depend on variables of x."""
    generator = np.random.default_rng(seed)
    x, y = (generator.standard_normal((n, n_words)) for n in (n1, n2))
    y[: n2 // 2] += x[np.arange(n2 // 2) % n1]
    return x, y


def _alternatives(x: np.ndarray, y: np.ndarray) -> list[Way]:
    n1, n2, n_words = len(x), len(y), x.shape[1]
    grams = 4e-6 * (n1 + n2) * n_words**2
    product = 2.0 * n1 * n2 * n_words**2
    ways = [
        Way("released loop", lambda: released(x, y), 2.0 * n1 * n2 * n_words**3, grams),
        Way("NumPy, one product", lambda: numpy_product(x, y), product, grams),
    ]
    if importlib.util.find_spec("torch"):
        ways.append(Way("torch, one einsum", lambda: torch_product(x, y), product, 2 * grams))
    return ways


def _ours(x: np.ndarray, y: np.ndarray, estimator: str, bandwidth: str, implementation: str) -> Way:
    settings: dict[str, Any] = {
        "estimator": estimator,
        "bandwidth": bandwidth,
        "implementation": implementation,
    }
    plan = make_plan(x, y, **settings)
    sizes = (len(x), len(y), x.shape[1])
    if plan.rank is None:
        flops = float(sizes[0] * sizes[1] * sizes[2] ** 2)
    else:
        flops = sizes[0] * sizes[1] * plan.rank * (plan.rank + 1.0) * sizes[2]
    return Way(
        implementation,
        lambda: np.asarray(hsic(x, y, **settings)),
        flops,
        compiled_megabytes(x, y, plan),
        plan.rank,
    )


def compiled_megabytes(x: np.ndarray, y: np.ndarray, plan: Plan) -> float:
    """What a planned call holds at its peak, in and output included, by XLA's own account."""
    rows = (jnp.asarray(part, jnp.float32) for part in (x, y))
    memory = hsic_planned.lower(*rows, plan).compile().memory_analysis()
    parts = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    return sum(getattr(memory, part) for part in parts) / 1e6


def _row(
    x: np.ndarray,
    y: np.ndarray,
    estimator: str,
    bandwidth: str,
    way: Way,
    exact: np.ndarray,
    loop: float,
    own: float | None,
    peak: float,
    repeats: int,
) -> Row:
    values = way.run()  # compiles
    seconds = own or median_seconds(way.run, max(3, repeats))
    return Row(
        n1=len(x),
        n2=len(y),
        n_words=x.shape[1],
        estimator=estimator,
        bandwidth=bandwidth,
        implementation=way.name,
        rank=way.rank,
        milliseconds=1e3 * seconds,
        ratio=loop / seconds,
        gflops=1e-9 * way.flops / seconds,
        share=1e-9 * way.flops / seconds / peak,
        megabytes=way.megabytes,
        error=float(np.abs(values - exact).max() / np.abs(exact).max()),
        intensity=1e-6 * way.flops / way.megabytes,
    )
