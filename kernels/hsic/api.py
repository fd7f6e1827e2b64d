"""HSIC between every variable of one set and every variable of another: the dispatcher.

`hsic` checks and plans on the host, then runs `hsic_planned`, which is pure. A plan says which
implementation runs, and why: `exact` costs n1 n2 N^2 FLOPs and an exponential for every pair of
words of every variable, `features` 2 n1 n2 r^2 N; the cheaper one is taken, `features` only while
its certified error stays under the tolerance. Axes: n1, n2 variables (neurons), N words.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import bandwidth as bandwidths
from .cholesky import cholesky_factors, cholesky_remainder
from .estimators import DEBIASED, ESTIMATORS, NORMALISED, SetSums, combine
from .exact import Form, Split, exact_sums, exp_minus_one
from .features import MAX_RANK, LowRank, Remainder, error_bound, feature_sums, remainder, taylor

LOW_RANK = ("features", "cholesky")
FUSED = {"pallas_tpu": "a TPU", "pallas_mosaic_gpu": "a GPU of compute capability 9.0 (Hopper)"}
IMPLEMENTATIONS = ("exact", *LOW_RANK, *FUSED)
PRECISIONS = ("highest", "high", "default")
BANDWIDTHS = ("variable_median", "set_median")
SIGMA_RANGE = (1e-8, 1e8)  # beyond it products of two Gram entries leave float32
CANCELLATION_SIGMA = 2.0  # from here on K - 1 is small enough to need expm1
TOLERANCE = 5e-7  # certified error, relative to the largest entry
MAX_CHOLESKY_RANK = 128
CHOLESKY_RANKS = (8, 12, 16, 24, 32, 48, 64)  # few compilations
MANY_WORDS = 2048  # below, activations need more factors than pay, so they are not even tried
EXPONENTIAL_FLOPS = 150  # one Gram entry against one FLOP of a matrix product, on a CPU


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `hsic_planned` needs to know; a pytree, whose static part selects the compilation.

    sigma_x [n1] and sigma_y [n2] are bandwidths in units of a variable's standard deviation;
    words [N] is 1 for a word and 0 for padding. rank is that of `features` and `cholesky`.
    """

    sigma_x: jax.Array | np.ndarray
    sigma_y: jax.Array | np.ndarray
    words: jax.Array | np.ndarray
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


class HsicResult(NamedTuple):
    """values [n1, n2]; bound [], the certified truncation error of the worst entry (0 for exact,
    rounding apart); ok_x [n1] and ok_y [n2], False where a row could not be used: NaN there."""

    values: jax.Array
    bound: jax.Array
    ok_x: jax.Array
    ok_y: jax.Array


class HostResult(NamedTuple):
    """`HsicResult` on the host."""

    values: np.ndarray
    bound: float
    ok_x: np.ndarray
    ok_y: np.ndarray


@partial(jax.jit, static_argnames=("split",))
def hsic_planned(x: jax.Array, y: jax.Array, plan: Plan, split: Split | None = None) -> HsicResult:
    """HSIC of raw x [n1, N] and y [n2, N] as planned: pure, jit-able, vmappable, differentiable.

    Float32. Rows that are constant, not finite or have a bandwidth outside 1e-8…1e8 give NaN in
    their row or column and False in `ok`. Derivatives hold the bandwidths fixed. Inside `shard_map`
    the words can be split over a mesh axis, with x and y whole on each of its devices.
    """
    _check_shapes(x.shape, y.shape, plan.estimator)
    words = jnp.asarray(plan.words)
    z_x, ok_x = bandwidths.standardise(x.astype(jnp.float32), words, plan.epsilon)
    z_y, ok_y = bandwidths.standardise(y.astype(jnp.float32), words, plan.epsilon)
    ok_x, sigma_x = _usable(ok_x, jnp.asarray(plan.sigma_x))
    ok_y, sigma_y = _usable(ok_y, jnp.asarray(plan.sigma_y))
    arguments = (z_x, z_y, sigma_x, sigma_y, words)
    both = ok_x[:, None] & ok_y[None, :]
    bound = jnp.zeros((), jnp.float32)
    if plan.implementation in LOW_RANK:
        low_x, left = _low_rank(plan, z_x, sigma_x, words)
        low_y, right = _low_rank(plan, z_y, sigma_y, words)
        sums = feature_sums(low_x, low_y, words, precision=plan.precision, split=split)
        values = combine(plan.estimator, *sums, words)
        bounds = error_bound(plan.estimator, values, left, right, sums[1:], words)
        bound = jnp.max(jnp.where(both & jnp.isfinite(values), bounds, 0.0))
    else:
        minus_one = jnp.expm1 if plan.cancels else exp_minus_one
        form = Form(minus_one, plan.estimator in DEBIASED)
        if plan.implementation in FUSED:
            if split is not None:
                raise ValueError(f"split: {plan.implementation} takes all words of a pair")
            sums = _fused(plan.implementation)(*arguments, precision=plan.precision, form=form)
        else:
            sums = exact_sums(
                *arguments, tile=plan.tile, precision=plan.precision, form=form, split=split
            )
        values = combine(plan.estimator, *sums, words)
    return HsicResult(jnp.where(both, values, jnp.nan), bound, ok_x, ok_y)


def _fused(name: str) -> Callable[..., tuple[jax.Array, SetSums, SetSums]]:
    """The fused kernel; Pallas is imported where it is used, since that takes a while."""
    if name == "pallas_tpu":
        from .pallas_tpu import pallas_tpu_sums

        return pallas_tpu_sums
    from .pallas_mosaic_gpu import pallas_mosaic_gpu_sums

    return pallas_mosaic_gpu_sums


def check_platform(implementation: str | None) -> None:
    """Raises ValueError for a fused kernel that the default device cannot run."""
    if implementation not in FUSED:
        return
    device = jax.devices()[0]
    is_hopper = str(getattr(device, "compute_capability", "")) == "9.0"
    if device.platform == "tpu" if implementation == "pallas_tpu" else is_hopper:
        return
    raise ValueError(
        f"implementation: {implementation} needs {FUSED[implementation]}, "
        f"here is {device.device_kind}"
    )


def _low_rank(
    plan: Plan, z: jax.Array, sigma: jax.Array, words: jax.Array
) -> tuple[LowRank, Remainder]:
    """Features of one set and what bounds their error."""
    if plan.rank is None:
        raise ValueError(f"rank: a plan by {plan.implementation} must have one")
    if plan.implementation == "features":
        return taylor(z, sigma, words, plan.rank), remainder(z, sigma, words, plan.rank)
    factors, traces = cholesky_factors(z, sigma, words, plan.rank)
    return factors, cholesky_remainder(factors, traces[-1], words)


def _usable(ok: jax.Array, sigma: jax.Array) -> tuple[jax.Array, jax.Array]:
    low, high = SIGMA_RANGE
    inside = (sigma >= low) & (sigma <= high)
    return ok & inside, jnp.where(inside, sigma, 1.0)


def _check_shapes(x: tuple[int, ...], y: tuple[int, ...], estimator: str) -> None:
    if len(x) != 2 or len(y) != 2:
        raise ValueError(f"x, y: expected two axes [variables, words], got {x} and {y}")
    if x[1] != y[1]:
        raise ValueError(f"x, y: the numbers of words differ, {x[1]} and {y[1]}")
    if 0 in (x[0], y[0]):
        raise ValueError(f"x, y: no variables, got shapes {x} and {y}")
    least = 4 if estimator in DEBIASED else 2
    if x[1] < least:
        raise ValueError(f"x, y: {estimator} needs at least {least} words, got {x[1]}")


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name}: {value!r} is not one of {', '.join(known)}")


def _as_array(name: str, value: Any) -> jax.Array | np.ndarray:
    """JAX, NumPy and DLPack arrays as they are; lists through NumPy. Floating point only."""
    if not isinstance(value, jax.Array | np.ndarray):
        value = jnp.from_dlpack(value) if hasattr(value, "__dlpack__") else np.asarray(value)
    if not jnp.issubdtype(value.dtype, jnp.number) or jnp.iscomplexobj(value):
        raise ValueError(f"{name}: expected real numbers, got dtype {value.dtype}")
    return value


def _host_rows(name: str, value: jax.Array | np.ndarray) -> np.ndarray:
    """The values on the host in float64, checked: every row finite and not constant."""
    rows = np.asarray(value, np.float64)
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        bad = np.flatnonzero(~finite).tolist()
        raise ValueError(f"{name}: values that are not finite in rows {bad[:8]}")
    constant = rows.max(axis=1) == rows.min(axis=1)
    if constant.any():
        bad = np.flatnonzero(constant).tolist()
        raise ValueError(f"{name}: rows {bad[:8]} are constant; leave them out")
    return rows


def host_standardise(rows: np.ndarray, epsilon: float = 0.0) -> np.ndarray:
    """Rows [n, N] less their mean, over their deviation (ddof 1) + epsilon, in float64."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    return centred / (rows.std(axis=1, ddof=1, keepdims=True) + epsilon)


def host_set_median(x: np.ndarray, y: np.ndarray) -> float:
    """The released bandwidth of standardised float64 x [n1, N], y [n2, N], by products."""
    squared = []
    for z in (x, y):
        square = np.einsum("iw,iw->i", z, z)
        distance = square[:, None] + square[None, :] - 2.0 * (z @ z.T)
        np.fill_diagonal(distance, 0.0)
        squared.append(distance.ravel())
    pooled = np.concatenate(squared)
    middle = (pooled.size - 1) // 2
    # Rows that are equal leave 1e-13 of rounding where the distance is 0.
    value = np.partition(pooled, middle)[middle]
    return float(np.sqrt(value if value > 1e-12 * x.shape[1] else 0.0)) + (
        bandwidths.RELEASED_EPSILON
    )


_sorted_median = jax.jit(bandwidths.sorted_median)


def host_variable_median(z: np.ndarray) -> np.ndarray:
    """`bandwidth.variable_median` of host rows z [n, N], in batches of one shape: [n]."""
    batch, missing = 64, -z.shape[1] % 32
    ordered = np.sort(np.asarray(z, np.float32), axis=1)  # many times as fast as XLA's
    padded = np.pad(ordered, ((0, -len(z) % batch), (0, missing)), constant_values=np.inf)
    padded[len(z) :, : z.shape[1]] = 0.0
    n_words = np.int32(z.shape[1])
    medians = [
        _sorted_median(padded[at : at + batch], n_words) for at in range(0, len(padded), batch)
    ]
    return np.concatenate([np.asarray(median) for median in medians])[: len(z)]


def _given_sigma(name: str, sigma: Any, n: int) -> np.ndarray:
    values = np.asarray(sigma, np.float64)
    if values.ndim > 1 or (values.ndim == 1 and values.shape[0] != n):
        raise ValueError(f"bandwidth: {name} has {n} variables, got shape {values.shape}")
    values = np.broadcast_to(values, (n,))
    low, high = SIGMA_RANGE
    outside = ~((values >= low) & (values <= high))
    if outside.any():
        first = values[outside][0]
        raise ValueError(f"bandwidth: {first} for {name} is outside {low:g}…{high:g}")
    return values


def _host_sigma(bandwidth: Any, z_x: np.ndarray, z_y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bandwidths [n1] and [n2] of standardised rows, checked."""
    if isinstance(bandwidth, str) and bandwidth == "set_median":
        released = host_set_median(z_x, z_y)
        return np.full(len(z_x), released), np.full(len(z_y), released)
    if isinstance(bandwidth, str):
        sigmas = []
        for name, z in (("x", z_x), ("y", z_y)):
            sigma = host_variable_median(z)
            if not (sigma >= SIGMA_RANGE[0]).all():
                bad = np.flatnonzero(~(sigma >= SIGMA_RANGE[0])).tolist()
                raise ValueError(f"{name}: rows {bad[:8]} have a median distance of 0")
            sigmas.append(sigma)
        return sigmas[0], sigmas[1]
    left, right = bandwidth if isinstance(bandwidth, tuple) else (bandwidth, bandwidth)
    return _given_sigma("x", left, len(z_x)), _given_sigma("y", right, len(z_y))


def bucket(n: int) -> int:
    """The next of 16, 32, …, 128, 160, …, 256, 320, …: few shapes, so few compilations.

    Steps of 16, from 128 on of an eighth to a quarter of n.
    """
    return round_up(n, max(16, 1 << max(0, (n - 1).bit_length() - 3)))


def round_up(size: int, multiple: int) -> int:
    """The next multiple."""
    return -(-size // multiple) * multiple


def pad_rows(rows: Any, n: int, words: int = 0) -> np.ndarray:
    """Rows in float32, less their mean while still in float64, with zeros up to n rows."""
    values = np.asarray(rows, np.float64)
    padded = np.zeros((n, values.shape[1] + words), np.float32)  # np.pad takes many times as long
    padded[: len(values), : values.shape[1]] = values - values.mean(axis=1, keepdims=True)
    return padded


def pad_sigma(sigma: Any, n: int) -> np.ndarray:
    """Bandwidths [n] in float32, 1 for rows of padding."""
    padded = np.ones(n, np.float32)
    padded[: len(sigma)] = sigma
    return padded


def tile_size(n1: int, n2: int, n_words: int) -> int:
    """Words in a tile, so that its entries for all variables stay in a cache (by `bucket`)."""
    entries = 1 << 17 if jax.default_backend() == "cpu" else 1 << 24
    variables = bucket(n1) + bucket(n2)
    fitting = (t for t in (256, 128, 64, 32) if t <= n_words and variables * t * t < entries)
    return next(fitting, 16)


def exact_cost(n1: int, n2: int, n_words: int) -> float:
    """FLOPs of `exact`: the products, and the exponentials in units of FLOPs."""
    return n_words**2 * (n1 * n2 + 0.5 * (n1 + n2) * EXPONENTIAL_FLOPS)


def features_cost(n1: int, n2: int, n_words: int, rank: int) -> float:
    """FLOPs of `features` at a rank: the products, and making the features."""
    return 2.0 * n1 * n2 * rank**2 * n_words + 10.0 * (n1 + n2) * rank * n_words


def cholesky_cost(n1: int, n2: int, n_words: int, rank: int) -> float:
    """FLOPs of `cholesky` at a rank: the products, and making the factors (bound by memory)."""
    return 2.0 * n1 * n2 * rank**2 * n_words + (n1 + n2) * n_words * (20.0 * rank + 4.0 * rank**2)


_traces = jax.jit(
    lambda z, sigma, words, rank: cholesky_factors(z, sigma, words, rank)[1], static_argnums=3
)


def _cholesky_rank(
    z_x: np.ndarray,
    z_y: np.ndarray,
    sigma_x: np.ndarray,
    sigma_y: np.ndarray,
    tolerance: float,
    *,
    any_cost: bool,
) -> int | None:
    """The smallest rank that can be certified, by the traces that the factors leave.

    An entry of tr(KHLH) is at most N^2/4, so eps (lambda + eps) below tolerance N^2/4 is
    necessary; whether it is enough, the bound of the result tells. None if there is no such rank,
    or none that costs less than `exact` (unless any_cost).
    """
    sizes = (len(z_x), len(z_y), z_x.shape[1])
    n_words = sizes[2]
    paying = [
        r for r in CHOLESKY_RANKS if any_cost or cholesky_cost(*sizes, r) < exact_cost(*sizes)
    ]
    paying = [r for r in paying if r <= n_words]
    # Float32 cannot tell a trace below its own rounding from 0.
    if not paying or tolerance < np.finfo(np.float32).eps:
        return None
    missing = -n_words % 32
    words = np.pad(np.ones(n_words, np.float32), (0, missing))
    left = np.zeros(paying[-1])
    for z, sigma in ((z_x, sigma_x), (z_y, sigma_y)):
        size = bucket(len(z))  # rows of padding leave nothing
        rows = pad_rows(z, size, missing), pad_sigma(sigma, size)
        left = np.maximum(left, np.asarray(_traces(*rows, words, paying[-1])).max(axis=1))
    enough = left * (n_words / 2 + left) <= tolerance * n_words**2 / 4
    return next((rank for rank in paying if enough[rank - 1]), None)


def _certified_rank(
    z_x: np.ndarray, z_y: np.ndarray, sigma_x: np.ndarray, sigma_y: np.ndarray, tolerance: float
) -> int | None:
    """The smallest rank whose bound on tr(KHLH) is under tolerance times the largest entry.

    The largest entry is bounded from below by its first-order term. None if there is no such
    rank up to MAX_RANK.
    """
    scaled = [np.asarray(z / s[:, None], np.float32) for z, s in ((z_x, sigma_x), (z_y, sigma_y))]
    relative = [part * part for part in scaled]
    if max(part.max() for part in relative) > MAX_RANK:
        return None  # the terms t^r / r! do not even fall yet, and may overflow
    first_x, first_y = (
        (first := part * np.exp(-0.5 * square)) - first.mean(axis=1, keepdims=True)
        for part, square in zip(scaled, relative, strict=True)
    )
    largest = np.max((first_x @ first_y.T) ** 2)
    spectrum = [part.sum(axis=1) for part in relative]
    term = [part.copy() for part in relative]
    for rank in range(2, MAX_RANK + 1):
        for part, factor in zip(term, relative, strict=True):
            part *= factor * np.float32(1 / rank)
        eps = [part.sum(axis=1) for part in term]
        bound = eps[0].max() * (spectrum[1] + eps[1]).max() + spectrum[0].max() * eps[1].max()
        if bound <= tolerance * largest:
            return rank
    return None


def _traced_plan(x: jax.Array, y: jax.Array, bandwidth: Any, choices: dict[str, Any]) -> Plan:
    """A plan under tracing: nothing is checked but shapes, and the rank must have been given."""
    words = jnp.ones(x.shape[1], jnp.float32)
    epsilon = _epsilon(bandwidth)
    if isinstance(bandwidth, str):
        z_x, _ = bandwidths.standardise(x.astype(jnp.float32), words, epsilon)
        z_y, _ = bandwidths.standardise(y.astype(jnp.float32), words, epsilon)
        if bandwidth == "set_median":
            sigma = bandwidths.set_median(z_x, z_y, words)
            pair: tuple[Any, Any] = (sigma, sigma)
        else:
            medians = bandwidths.variable_median
            pair = (medians(z_x, words), medians(z_y, words))
    else:
        pair = bandwidth if isinstance(bandwidth, tuple) else (bandwidth, bandwidth)
    sigma_x, sigma_y = (
        jnp.broadcast_to(jax.lax.stop_gradient(jnp.asarray(s, jnp.float32)), (n,))
        for s, n in zip(pair, (x.shape[0], y.shape[0]), strict=True)
    )
    tile = tile_size(x.shape[0], y.shape[0], x.shape[1])
    return Plan(sigma_x, sigma_y, words, tile=tile, epsilon=epsilon, **choices)


def _epsilon(bandwidth: Any) -> float:
    released = isinstance(bandwidth, str) and bandwidth == "set_median"
    return bandwidths.RELEASED_EPSILON if released else 0.0


def make_plan(
    x: Any,
    y: Any,
    *,
    estimator: str = "cka_debiased",
    bandwidth: Any = "variable_median",
    precision: str = "highest",
    implementation: str | None = None,
    rank: int | None = None,
    tolerance: float = TOLERANCE,
) -> Plan:
    """Decide how `hsic` of x [n1, N] and y [n2, N] runs; arguments as for `hsic`.

    The plan names the implementation and its rank. Bandwidths come out as arrays.
    """
    _check_choice("estimator", estimator, ESTIMATORS)
    _check_choice("precision", precision, PRECISIONS)
    if implementation is not None:
        _check_choice("implementation", implementation, IMPLEMENTATIONS)
        check_platform(implementation)
    if isinstance(bandwidth, str):
        _check_choice("bandwidth", bandwidth, BANDWIDTHS)
    most = MAX_CHOLESKY_RANK if implementation == "cholesky" else MAX_RANK
    if rank is not None and not 2 <= rank <= most:
        raise ValueError(f"rank: expected 2…{most}, got {rank}")
    x, y = _as_array("x", x), _as_array("y", y)
    _check_shapes(x.shape, y.shape, estimator)
    medians = isinstance(bandwidth, str) and bandwidth == "variable_median"
    if medians and x.shape[1] > bandwidths.MAX_WORDS:
        raise ValueError(
            f"bandwidth: variable_median takes {bandwidths.MAX_WORDS} words, got {x.shape[1]}"
        )
    choices: dict[str, Any] = {"estimator": estimator, "precision": precision}
    if isinstance(x, jax.core.Tracer) or isinstance(y, jax.core.Tracer):
        if implementation in LOW_RANK and rank is None:
            raise ValueError(f"rank: must be given for {implementation} under jit, vmap or grad")
        by_default = "exact" if rank is None else "features"
        choices["implementation"] = implementation or by_default
        choices["rank"] = rank if choices["implementation"] in LOW_RANK else None
        return _traced_plan(x, y, bandwidth, choices)
    epsilon = _epsilon(bandwidth)
    z_x = host_standardise(_host_rows("x", x), epsilon)
    z_y = host_standardise(_host_rows("y", y), epsilon)
    sigma_x, sigma_y = _host_sigma(bandwidth, z_x, z_y)
    chosen = choose_implementation(
        z_x, z_y, sigma_x, sigma_y, implementation=implementation, rank=rank, tolerance=tolerance
    )
    return Plan(
        np.asarray(sigma_x, np.float32),
        np.asarray(sigma_y, np.float32),
        np.ones(z_x.shape[1], np.float32),
        epsilon=epsilon,
        **choices,
        **chosen,
    )


def choose_implementation(
    z_x: np.ndarray,
    z_y: np.ndarray,
    sigma_x: np.ndarray,
    sigma_y: np.ndarray,
    *,
    implementation: str | None = None,
    rank: int | None = None,
    tolerance: float = TOLERANCE,
) -> dict[str, Any]:
    """The fields of a `Plan` that say how standardised rows are computed.

    The cheapest implementation of those that meet the tolerance, or the one asked for. Raises
    ValueError where a low rank is asked for and none meets it.
    """
    sizes = (len(z_x), len(z_y), z_x.shape[1])
    rows = (z_x, z_y, sigma_x, sigma_y)
    ranks: dict[str, int | None] = {"exact": None}
    if implementation in FUSED or (implementation in LOW_RANK and rank is not None):
        ranks = {implementation: None if implementation in FUSED else rank}
    elif implementation != "exact":
        if implementation in (None, "features"):
            found = _certified_rank(*rows, tolerance) if rank is None else rank
            ranks |= {"features": found} if found else {}
        untried = implementation is None and "features" not in ranks and sizes[2] >= MANY_WORDS
        if implementation == "cholesky" or untried:
            found = _cholesky_rank(*rows, tolerance, any_cost=implementation is not None)
            ranks |= {"cholesky": found} if found else {}
    if implementation is not None:
        if implementation not in ranks:
            most = MAX_RANK if implementation == "features" else CHOLESKY_RANKS[-1]
            raise ValueError(
                f"implementation: no rank up to {most} certifies {implementation} to {tolerance:g}"
            )
        chosen = implementation
    else:
        chosen = min(ranks, key=lambda name: _cost(name, sizes, ranks[name]))
    return {
        "implementation": chosen,
        "rank": ranks[chosen],
        "tile": tile_size(*sizes),
        "cancels": bool(max(sigma_x.max(), sigma_y.max()) > CANCELLATION_SIGMA),
    }


def _cost(name: str, sizes: tuple[int, int, int], rank: int | None) -> float:
    if rank is None:
        return exact_cost(*sizes)
    return (features_cost if name == "features" else cholesky_cost)(*sizes, rank)


def is_certified(bound: np.ndarray, values: np.ndarray, tolerance: float = TOLERANCE) -> bool:
    """Whether a result's error bound is below tolerance times its largest entry."""
    return bool(bound <= tolerance * np.nanmax(np.abs(values), initial=0.0))


def hsic(
    x: Any,
    y: Any,
    *,
    estimator: str = "cka_debiased",
    bandwidth: Any = "variable_median",
    precision: str = "highest",
    implementation: str | None = None,
    rank: int | None = None,
    tolerance: float = TOLERANCE,
) -> jax.Array:
    """HSIC of every row of x [n1, N] with every row of y [n2, N]: [n1, n2] float32.

    x and y are raw values (JAX, NumPy or DLPack), N samples of n1 and n2 variables; each row is
    standardised (ddof 1).

    estimator: `biased` (Gretton et al. 2005), `unbiased` (Song et al. 2012), `cka`,
        `cka_debiased`, or `trace_khl`, which the released BridgeX-ICL code computes.
    bandwidth: `variable_median`, `set_median` (released), a number, an array [n] for x and y
        alike, or a pair (for x, for y); in units of a row's standard deviation.
    precision: of the float32 matrix products: `highest`, `high` or `default`.
    implementation: `exact`, `features`, `cholesky`, or None for the cheapest of them (`make_plan`
        tells which); `pallas_tpu` and `pallas_mosaic_gpu` are `exact` fused for these devices.
    rank, tolerance: `features` and `cholesky` use this rank, or the smallest one whose certified
        truncation error is below tolerance times the largest entry.

    Raises ValueError for shapes that do not match, fewer than 2 words (4 for the debiased
    estimators), values that are not finite, constant rows, rows whose median distance is 0, and
    bandwidths outside 1e-8…1e8. Under jit, vmap and grad only shapes are checked: such rows give
    NaN, and `exact` runs unless a rank is given.
    """
    x, y = _as_array("x", x), _as_array("y", y)
    settings: dict[str, Any] = {
        "estimator": estimator,
        "bandwidth": bandwidth,
        "precision": precision,
        "tolerance": tolerance,
    }
    plan = make_plan(x, y, implementation=implementation, rank=rank, **settings)
    if isinstance(x, jax.core.Tracer) or isinstance(y, jax.core.Tracer):
        return hsic_planned(x, y, plan).values
    x, y = np.asarray(x), np.asarray(y)
    result = run_padded(x, y, plan)
    asked = rank is not None or implementation in LOW_RANK
    if not asked and not is_certified(np.asarray(result.bound), result.values, tolerance):
        # The rank was chosen by tr(KHLH); where the estimator's own bound is wider, be exact.
        result = run_padded(x, y, dataclasses.replace(plan, implementation="exact", rank=None))
    if not np.isfinite(result.values).all():
        raise ValueError(_not_finite(estimator))
    return jnp.asarray(result.values)


def _not_finite(estimator: str) -> str:
    if estimator in NORMALISED:
        return f"x, y: {estimator} is undefined, the HSIC of a row with itself is not positive"
    return f"x, y: {estimator} is not finite in float32"


def run_padded(
    x: np.ndarray, y: np.ndarray, plan: Plan, sizes: tuple[int, int] | None = None
) -> HostResult:
    """`hsic_planned` on sets padded to `sizes` (default: `bucket`), to share compilations.

    Takes host arrays, and a plan whose arrays have the sizes of x [n1, N] and y [n2, N].
    """
    n1, n2 = len(x), len(y)
    to_x, to_y = sizes or (bucket(n1), bucket(n2))
    missing = -x.shape[1] % 32
    padded = dataclasses.replace(
        plan,
        sigma_x=pad_sigma(plan.sigma_x, to_x),
        sigma_y=pad_sigma(plan.sigma_y, to_y),
        words=np.concatenate([plan.words, np.zeros(missing, np.float32)]),
    )
    result = hsic_planned(pad_rows(x, to_x, missing), pad_rows(y, to_y, missing), padded)
    # Cut on the host: a slice on the device compiles for every ragged size.
    values, bound, ok_x, ok_y = (np.asarray(part) for part in result)
    return HostResult(values[:n1, :n2], float(bound), ok_x[:n1], ok_y[:n2])
