"""How HSIC of two sets is to run: the plan, and the written cost model that picks one.

`exact` costs n1 n2 N^2 FLOPs and an exponential for every pair of words of every variable, a low
rank r n1 n2 r (r + 1) N. `rungs` lists what could run, the cheapest first; a low rank counts only
once its result certifies its own error, so rungs are tried in turn. Axes: n1, n2 variables, N
words.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from .cholesky import cholesky_factors
from .features import MAX_RANK

LOW_RANK = ("features", "cholesky")
FUSED = {"pallas_tpu": "a TPU", "pallas_mosaic_gpu": "a GPU of compute capability 9.0 (Hopper)"}
IMPLEMENTATIONS = ("exact", *LOW_RANK, *FUSED)
PRECISIONS = ("highest", "high", "default")
CANCELLATION_SIGMA = 2.0  # from here on K - 1 is small enough to cancel
TOLERANCE = 5e-7  # certified error, relative to the largest entry
FEATURE_RANKS = (3, 4, 6, 8, MAX_RANK)  # few compilations
CHOLESKY_RANKS = (8, 12, 16, 20, 24, 32, 48, 64)
MAX_CHOLESKY_RANK = 128
CHOLESKY_TOLERANCE = 2e-5  # what the traces of float32 factors can certify
CHOLESKY_SAMPLE = 32  # variables, of the heaviest tails, that say which rank to begin with
MANY_WORDS = 512  # below, `exact` is done before factors are
FACTOR_BYTES = 1 << 28  # `cholesky` keeps its factors, so that is where it stops
EXPONENTIAL_FLOPS = 100  # one Gram entry against one FLOP of a matrix product, on a CPU


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `hsic_planned` needs to know; a pytree, whose static part selects the compilation.

    sigma_x [n1] and sigma_y [n2] are bandwidths in units of a variable's standard deviation, or
    both None for the released set-wide median of the very rows that come; words [N] is 1 for a
    word and 0 for padding. rank is that of `features` and `cholesky`; cancels, whether Gram
    entries may be so near to 1 that they are made by a series.
    """

    sigma_x: Any
    sigma_y: Any
    words: Any
    estimator: str = "cka_debiased"
    implementation: str = "exact"
    precision: str = "highest"
    rank: int | None = None
    tile: int = 32
    epsilon: float = 0.0
    cancels: bool = True


jax.tree_util.register_dataclass(
    Plan,
    data_fields=["sigma_x", "sigma_y", "words"],
    meta_fields=[
        "estimator",
        "implementation",
        "precision",
        "rank",
        "tile",
        "epsilon",
        "cancels",
    ],
)


class Rung(NamedTuple):
    """An implementation, and the rank of a low one."""

    implementation: str
    rank: int | None = None


def tile_size(n1: int, n2: int, n_words: int) -> int:
    """Words in a tile, so that its entries for all variables stay in a cache."""
    entries = 1 << 19 if jax.default_backend() == "cpu" else 1 << 24
    fitting = (t for t in (256, 128, 64, 32) if t <= n_words and (n1 + n2) * t * t < entries)
    return next(fitting, 16)


def exact_cost(n1: int, n2: int, n_words: int) -> float:
    """FLOPs of `exact`: the products, and the exponentials in units of FLOPs."""
    return n_words**2 * (n1 * n2 + 0.5 * (n1 + n2) * EXPONENTIAL_FLOPS)


def low_rank_cost(n1: int, n2: int, n_words: int, rung: Rung) -> float:
    """FLOPs of a low rank: the products, and making the features (bound by memory)."""
    assert rung.rank is not None
    making = 20.0 * rung.rank + (4.0 * rung.rank**2 if rung.implementation == "cholesky" else 0.0)
    return n_words * (n1 * n2 * rung.rank * (rung.rank + 1.0) + (n1 + n2) * making)


def _left_out(rank: int, sigma: float) -> float:
    """What this rank leaves out for normal variables of bandwidth sigma, roughly, as a logarithm.

    The largest pairs that are left out are (0, r), …, (r, 0), of norm E z^2(r+1) / (r+1)! sigma^2r
    of the first pair's.
    """
    odds = sum(math.log((2 * order - 1) / order) for order in range(2, rank + 2))
    return math.log(rank + 1) + odds - 2 * rank * math.log(sigma)


def rungs(
    sizes: tuple[int, int, int],
    sigma: float | None,
    *,
    implementation: str | None = None,
    rank: int | None = None,
    tolerance: float = TOLERANCE,
    cholesky_from: int | None = None,
) -> list[Rung]:
    """What to try for sets of `sizes` (n1, n2, N), the cheapest first; `exact` ends the list.

    sigma is the smallest bandwidth, None for the set-wide median, which is large. cholesky_from:
    the lowest rank that may do (`cholesky_start`). With an implementation named, only that.
    """
    if implementation is not None and (implementation not in LOW_RANK or rank is not None):
        return [Rung(implementation, rank if implementation in LOW_RANK else None)]
    found = []
    if implementation in (None, "features"):
        # Given bandwidths may be small: then none is worth a trial. The set-wide median is about
        # the distance of independent rows, and a trial that fails costs as much as one that holds.
        wide, slack = (math.sqrt(2 * sizes[2]), 0.1) if sigma is None else (sigma, 100.0)
        most = math.log(slack * tolerance)
        likely = [r for r in FEATURE_RANKS if _left_out(r, wide) <= most]
        ranks = FEATURE_RANKS if implementation and not likely else likely
        found = [Rung("features", r) for r in ranks]
    if implementation in (None, "cholesky") and cholesky_from is not None:
        found += [Rung("cholesky", r) for r in CHOLESKY_RANKS if cholesky_from <= r <= sizes[2]]
    found.sort(key=lambda rung: low_rank_cost(*sizes, rung))
    if implementation is not None:
        return found
    return [*(rung for rung in found if _pays(sizes, rung)), Rung("exact")]


def _pays(sizes: tuple[int, int, int], rung: Rung) -> bool:
    """Whether a low rank costs less than `exact` and its factors fit."""
    n1, n2, n_words = sizes
    held = 4 * (n1 + n2) * n_words * (rung.rank or 0) if rung.implementation == "cholesky" else 0
    return held <= FACTOR_BYTES and low_rank_cost(*sizes, rung) < exact_cost(*sizes)


def cholesky_pays(sizes: tuple[int, int, int]) -> int:
    """The largest rank of `cholesky` that is worth a trial; 0 if none is."""
    paying = (r for r in CHOLESKY_RANKS if _pays(sizes, Rung("cholesky", r)))
    return max(paying, default=0) if sizes[2] >= MANY_WORDS else 0


_traces = jax.jit(
    lambda z, sigma, words, rank: cholesky_factors(z, sigma, words, rank)[1], static_argnums=3
)


def cholesky_start(
    z: np.ndarray, sigma: np.ndarray, tolerance: float, largest: int | None = None
) -> int | None:
    """The smallest rank that may be certified for variables z [n, N], judged by a sample of them.

    The heaviest tails need the most factors. An entry of tr(KHLH) is at most N^2/4, so eps (lambda
    + eps) below tolerance N^2/4 is necessary; whether it is enough, the bound of the result tells.
    None if there is no such rank up to `largest`.
    """
    n_words = z.shape[1]
    most = min(largest or CHOLESKY_RANKS[-1], n_words)
    ranks = [r for r in CHOLESKY_RANKS if r <= most]
    if not ranks:
        return None
    reach = np.abs(z).max(axis=1) / sigma
    heaviest = np.argsort(-reach, kind="stable")[:CHOLESKY_SAMPLE]
    missing = -n_words % 32
    rows = pad_rows(z[heaviest], CHOLESKY_SAMPLE, missing)
    words = np.pad(np.ones(n_words, np.float32), (0, missing))
    left = np.asarray(_traces(rows, pad_sigma(sigma[heaviest], CHOLESKY_SAMPLE), words, ranks[-1]))
    worst = left[:, : len(heaviest)].max(axis=1)
    enough = worst * (n_words / 2 + worst) <= tolerance * n_words**2 / 4
    return next((rank for rank in ranks if enough[rank - 1]), None)


def relative_bound(bound: Any, values: np.ndarray) -> float:
    """A result's error bound over its largest entry; infinite where there is none."""
    largest = np.nanmax(np.abs(values), initial=0.0)
    return float(bound) / float(largest) if largest > 0 and np.isfinite(bound) else math.inf


def worth_trying(
    left: list[Rung], tried: Rung, relative: float, tolerance: float = TOLERANCE
) -> list[Rung]:
    """Which of the rungs that are left may do, where `tried` has left a relative error bound.

    Bounds fall about geometrically with the rank; a wrong guess costs time, no accuracy.
    """
    if tried.rank is None:
        return left
    steps = math.log(tolerance) / math.log(relative) if 0 < relative < 1 else math.inf
    needed = 0.8 * tried.rank * steps
    return [
        rung
        for rung in left
        if rung.implementation != tried.implementation or (rung.rank or 0) >= needed
    ]


def bucket(n: int) -> int:
    """The next of 16, 32, …, 256, 288, …, 512, 576, …: few shapes, so few compilations.

    Steps of 16, from 256 on of a sixteenth to an eighth of n.
    """
    return round_up(n, max(16, 1 << max(0, (n - 1).bit_length() - 4)))


def round_up(size: int, multiple: int) -> int:
    """The next multiple."""
    return -(-size // multiple) * multiple


def pad_rows(rows: Any, n: int, words: int = 0) -> np.ndarray:
    """Rows in float32, less their mean while still in float64, with zeros up to n rows."""
    values = np.asarray(rows)
    padded = np.zeros((n, values.shape[1] + words), np.float32)  # np.pad takes many times as long
    put_rows(values, padded)
    return padded


def put_rows(rows: np.ndarray, padded: np.ndarray) -> None:
    """`pad_rows` into the first rows and words of an array of zeros."""
    with np.errstate(invalid="ignore", over="ignore"):  # such rows come back as not ok
        mean = rows.mean(axis=1, keepdims=True, dtype=np.float64)
        place = padded[: len(rows), : rows.shape[1]]
        np.subtract(rows, mean, out=place, casting="same_kind")


def pad_sigma(sigma: Any, n: int) -> np.ndarray:
    """Bandwidths [n] in float32, 1 for rows of padding."""
    padded = np.ones(n, np.float32)
    padded[: len(sigma)] = sigma
    return padded


def host_standardise(rows: np.ndarray, epsilon: float = 0.0) -> np.ndarray:
    """Rows [n, N] less their mean, over their deviation (ddof 1) + epsilon, in float64."""
    rows = np.asarray(rows, np.float64)
    centred = rows - rows.mean(axis=1, keepdims=True)
    return centred / (rows.std(axis=1, ddof=1, keepdims=True) + epsilon)
