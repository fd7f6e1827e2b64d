"""HSIC between every variable of one set and every variable of another: the public functions.

`hsic` checks its input, and tries the rungs of the plan in turn through `hsic_planned`, which is
pure. Axes: n1, n2 variables (neurons), N words.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import bandwidth as bandwidths
from .bandwidth import Standardised
from .cholesky import cholesky
from .estimators import DEBIASED, ESTIMATORS, NORMALISED, SetSums, combine
from .exact import Form, Split, exact_sums
from .features import MAX_RANK, Source, error_bound, feature_sums, taylor
from .plan import (
    CANCELLATION_SIGMA,
    CHOLESKY_RANKS,
    CHOLESKY_TOLERANCE,
    FUSED,
    IMPLEMENTATIONS,
    LOW_RANK,
    MAX_CHOLESKY_RANK,
    PRECISIONS,
    TOLERANCE,
    Plan,
    Rung,
    bucket,
    cholesky_pays,
    cholesky_start,
    host_standardise,
    pad_rows,
    pad_sigma,
    relative_bound,
    rungs,
    tile_size,
    worth_trying,
)

BANDWIDTHS = ("variable_median", "set_median")
SIGMA_RANGE = (1e-8, 1e8)  # beyond it products of two Gram entries leave float32


class HsicResult(NamedTuple):
    """What `hsic_planned` returns.

    values [n1, n2]; bound [], the certified truncation error of the worst entry (0 for exact,
    rounding apart; infinite where a low rank gives no finite value); ok_x [n1] and ok_y [n2],
    False where a row could not be used: NaN there; the bandwidths sigma_x [n1] and sigma_y [n2].
    """

    values: jax.Array
    bound: jax.Array
    ok_x: jax.Array
    ok_y: jax.Array
    sigma_x: jax.Array
    sigma_y: jax.Array


@partial(jax.jit, static_argnames=("split",))
def hsic_planned(x: jax.Array, y: jax.Array, plan: Plan, split: Split | None = None) -> HsicResult:
    """HSIC of raw x [n1, N] and y [n2, N] as planned: pure, jit-able, vmappable, differentiable.

    Float32. Rows that are constant, not finite or have a bandwidth outside 1e-8…1e8 give NaN in
    their row or column and False in `ok`. Derivatives hold the bandwidths fixed. Inside `shard_map`
    the words can be split over a mesh axis, with x and y whole on each of its devices.
    """
    _check_shapes(x.shape, y.shape, plan.estimator)
    words = jnp.asarray(plan.words)
    left = bandwidths.standardise(x.astype(jnp.float32), words, plan.epsilon)
    right = bandwidths.standardise(y.astype(jnp.float32), words, plan.epsilon)
    if plan.sigma_x is None:
        sigma = bandwidths.set_median(left, right, words)
        plan = dataclasses.replace(plan, sigma_x=sigma, sigma_y=sigma)
    return hsic_standardised(left, right, plan, split)


def hsic_standardised(
    left: Standardised, right: Standardised, plan: Plan, split: Split | None = None
) -> HsicResult:
    """`hsic_planned` of rows that are standardised already, under given bandwidths."""
    words = jnp.asarray(plan.words)
    given_x = jnp.broadcast_to(jnp.asarray(plan.sigma_x), left.ok.shape)
    given_y = jnp.broadcast_to(jnp.asarray(plan.sigma_y), right.ok.shape)
    ok_x, sigma_x = _usable(left.ok, given_x)
    ok_y, sigma_y = _usable(right.ok, given_y)
    both = ok_x[:, None] & ok_y[None, :]
    if plan.implementation in LOW_RANK:
        if plan.rank is None:
            raise ValueError(f"rank: a plan by {plan.implementation} must have one")
        cross, sums, remainders = feature_sums(
            _source(plan, left.z, sigma_x, words),
            _source(plan, right.z, sigma_y, words),
            words,
            plan.rank,
            estimator=plan.estimator,
            precision=plan.precision,
            split=split,
        )
        values = combine(plan.estimator, cross, *sums, words)
        bounds = error_bound(plan.estimator, values, sums, remainders, words, plan.rank)
        bounds = jnp.where(jnp.isfinite(values) & jnp.isfinite(bounds), bounds, jnp.inf)
        bound = jnp.max(jnp.where(both, bounds, 0.0))
    else:
        arguments = (left.z, right.z, sigma_x, sigma_y, words)
        values = combine(plan.estimator, *_exact_sums(arguments, plan, split), words)
        bound = jnp.zeros((), jnp.float32)
    values = jnp.where(both, values, jnp.nan)
    return HsicResult(values, bound, ok_x, ok_y, given_x, given_y)


def _source(plan: Plan, z: jax.Array, sigma: jax.Array, words: jax.Array) -> Source:
    assert plan.rank is not None
    make = taylor if plan.implementation == "features" else cholesky
    return make(z, sigma, words, plan.rank)


def _exact_sums(
    arguments: tuple[jax.Array, ...], plan: Plan, split: Split | None
) -> tuple[jax.Array, SetSums, SetSums]:
    """The sums over whole Gram matrices, fused where the plan says so."""
    form = Form(plan.cancels, plan.estimator in DEBIASED)

    def tiled(*arguments: jax.Array) -> tuple[jax.Array, SetSums, SetSums]:
        return exact_sums(
            *arguments, tile=plan.tile, precision=plan.precision, form=form, split=split
        )

    if plan.implementation not in FUSED:
        return tiled(*arguments)
    if split is not None:
        raise ValueError(f"split: {plan.implementation} takes all words of a pair")
    # Pallas is imported where it is used, since that takes a while.
    if plan.implementation == "pallas_tpu":
        from .pallas_tpu import pallas_tpu_sums as fused_sums
    else:
        from .pallas_mosaic_gpu import pallas_mosaic_gpu_sums as fused_sums
    fused = jax.custom_vjp(partial(fused_sums, precision=plan.precision, form=form))
    # The kernels have no derivative of their own; that of the tiles is the same.
    fused.defvjp(
        lambda *arguments: (fused(*arguments), arguments),
        lambda arguments, cotangents: jax.vjp(tiled, *arguments)[1](cotangents),
    )
    return fused(*arguments)


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


def _as_array(name: str, value: Any) -> jax.Array | np.ndarray:
    """JAX, NumPy and DLPack arrays as they are; lists through NumPy. Real numbers only."""
    if not isinstance(value, jax.Array | np.ndarray):
        value = jnp.from_dlpack(value) if hasattr(value, "__dlpack__") else np.asarray(value)
    if not jnp.issubdtype(value.dtype, jnp.number) or jnp.iscomplexobj(value):
        raise ValueError(f"{name}: expected real numbers, got dtype {value.dtype}")
    return value


def _check_rows(name: str, value: np.ndarray, used: np.ndarray | None = None) -> None:
    """Raises ValueError for rows that are not finite or constant."""
    if used is not None and used.all():
        return
    rows = np.asarray(value, np.float64)
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        bad = np.flatnonzero(~finite).tolist()
        raise ValueError(f"{name}: values that are not finite in rows {bad[:8]}")
    constant = rows.max(axis=1) == rows.min(axis=1)
    if constant.any():
        bad = np.flatnonzero(constant).tolist()
        raise ValueError(f"{name}: rows {bad[:8]} are constant; leave them out")
    if used is not None:
        bad = np.flatnonzero(~used).tolist()
        raise ValueError(f"{name}: rows {bad[:8]} cannot be standardised in float32")


_sorted_median = jax.jit(bandwidths.sorted_median)


def host_variable_median(z: np.ndarray) -> np.ndarray:
    """`bandwidth.variable_median` of host rows z [n, N], in batches of one of two shapes: [n]."""
    batch, missing = 64 if len(z) <= 128 else 256, -z.shape[1] % 32
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


def _traced_plan(x: jax.Array, y: jax.Array, bandwidth: Any, choices: dict[str, Any]) -> Plan:
    """A plan under tracing: nothing is checked but shapes, and the rank must have been given."""
    words = jnp.ones(x.shape[1], jnp.float32)
    epsilon, tile = _epsilon(bandwidth), tile_size(x.shape[0], y.shape[0], x.shape[1])
    if _is(bandwidth, "set_median"):
        return Plan(None, None, words, tile=tile, epsilon=epsilon, **choices)
    if isinstance(bandwidth, str):
        rows = (bandwidths.standardise(part.astype(jnp.float32), words).z for part in (x, y))
        pair: tuple[Any, ...] = tuple(bandwidths.variable_median(z, words) for z in rows)
    else:
        pair = bandwidth if isinstance(bandwidth, tuple) else (bandwidth, bandwidth)
    sigma_x, sigma_y = (
        jnp.broadcast_to(jax.lax.stop_gradient(jnp.asarray(s, jnp.float32)), (n,))
        for s, n in zip(pair, (x.shape[0], y.shape[0]), strict=True)
    )
    return Plan(sigma_x, sigma_y, words, tile=tile, epsilon=epsilon, **choices)


def _is(bandwidth: Any, name: str) -> bool:
    return isinstance(bandwidth, str) and bandwidth == name


def _epsilon(bandwidth: Any) -> float:
    return bandwidths.RELEASED_EPSILON if _is(bandwidth, "set_median") else 0.0


@dataclasses.dataclass(frozen=True)
class _Request:
    """Checked arguments of `hsic`."""

    estimator: str
    bandwidth: Any
    precision: str
    implementation: str | None
    rank: int | None
    tolerance: float

    def __post_init__(self) -> None:
        _check_choice("estimator", self.estimator, ESTIMATORS)
        _check_choice("precision", self.precision, PRECISIONS)
        if self.implementation is not None:
            _check_choice("implementation", self.implementation, IMPLEMENTATIONS)
            check_platform(self.implementation)
        if isinstance(self.bandwidth, str):
            _check_choice("bandwidth", self.bandwidth, BANDWIDTHS)
        most = MAX_CHOLESKY_RANK if self.implementation == "cholesky" else MAX_RANK
        if self.rank is not None and not 2 <= self.rank <= most:
            raise ValueError(f"rank: expected 2…{most}, got {self.rank}")

    def checked(self, x: Any, y: Any) -> tuple[jax.Array | np.ndarray, jax.Array | np.ndarray]:
        """x and y as arrays of shapes that fit."""
        x, y = _as_array("x", x), _as_array("y", y)
        _check_shapes(x.shape, y.shape, self.estimator)
        if _is(self.bandwidth, "variable_median") and x.shape[1] > bandwidths.MAX_WORDS:
            raise ValueError(
                f"bandwidth: variable_median takes {bandwidths.MAX_WORDS} words, got {x.shape[1]}"
            )
        return x, y

    def traced(self, x: jax.Array, y: jax.Array) -> Plan:
        """The plan under jit, vmap or grad."""
        if self.implementation in LOW_RANK and self.rank is None:
            raise ValueError(
                f"rank: must be given for {self.implementation} under jit, vmap or grad"
            )
        by_default = "exact" if self.rank is None else "features"
        chosen = self.implementation or by_default
        rank = self.rank if chosen in LOW_RANK else None
        choices = {
            "estimator": self.estimator,
            "precision": self.precision,
            "implementation": chosen,
            "rank": rank,
        }
        return _traced_plan(x, y, self.bandwidth, choices)

    def sigma(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Bandwidths [n1] and [n2] of host rows, checked; None for the set-wide median."""
        if _is(self.bandwidth, "set_median"):
            return None
        if isinstance(self.bandwidth, str):
            found = []
            for name, rows in (("x", x), ("y", y)):
                _check_rows(name, rows)
                sigma = host_variable_median(host_standardise(rows))
                if not (sigma >= SIGMA_RANGE[0]).all():
                    bad = np.flatnonzero(~(sigma >= SIGMA_RANGE[0])).tolist()
                    raise ValueError(f"{name}: rows {bad[:8]} have a median distance of 0")
                found.append(sigma)
            return found[0], found[1]
        pair = self.bandwidth if isinstance(self.bandwidth, tuple) else (self.bandwidth,) * 2
        return _given_sigma("x", pair[0], len(x)), _given_sigma("y", pair[1], len(y))

    def rungs(
        self, x: np.ndarray, y: np.ndarray, sigma: tuple[np.ndarray, np.ndarray] | None
    ) -> list[Rung]:
        """What to try for host rows x and y."""
        sizes = (len(x), len(y), x.shape[1])
        start = None
        if self.rank is None and self.tolerance >= CHOLESKY_TOLERANCE:
            asked = self.implementation == "cholesky"
            start = CHOLESKY_RANKS[0] if asked else None
            largest = cholesky_pays(sizes) if self.implementation is None else None
            if sigma is not None and (asked or largest):
                _check_rows("x", x)
                _check_rows("y", y)
                z = host_standardise(np.concatenate([x, y]))
                start = cholesky_start(z, np.concatenate(sigma), self.tolerance, largest)
        return rungs(
            sizes,
            min(part.min() for part in sigma) if sigma else None,
            implementation=self.implementation,
            rank=self.rank,
            tolerance=self.tolerance,
            cholesky_from=start,
        )


def _solve(
    x: np.ndarray, y: np.ndarray, request: _Request, *, whole: bool
) -> tuple[Plan, np.ndarray | None]:
    """Tries the rungs in turn until one is certified: its plan and values [n1, n2].

    Without `whole` what needs no trial is not run, and there are no values.
    """
    n1, n2 = len(x), len(y)
    to_x, to_y, missing = bucket(n1), bucket(n2), -x.shape[1] % 32
    sigma = request.sigma(x, y)
    words = np.ones(x.shape[1], np.float32)
    plan = Plan(
        sigma and sigma[0],
        sigma and sigma[1],
        words,
        estimator=request.estimator,
        precision=request.precision,
        tile=tile_size(to_x, to_y, x.shape[1]),
        epsilon=_epsilon(request.bandwidth),
        cancels=sigma is None or max(part.max() for part in sigma) > CANCELLATION_SIGMA,
    )
    padded_words = np.pad(words, (0, missing))
    rows = pad_rows(x, to_x, missing), pad_rows(y, to_y, missing)
    padded_sigma = sigma and (pad_sigma(sigma[0], to_x), pad_sigma(sigma[1], to_y))
    left = request.rungs(x, y, sigma)
    while left:
        rung, *left = left
        plan = dataclasses.replace(plan, implementation=rung.implementation, rank=rung.rank)
        certain = request.rank is not None or rung.implementation not in LOW_RANK
        if certain and not whole:
            _check_rows("x", x)
            _check_rows("y", y)
            return plan, None
        run = dataclasses.replace(
            plan,
            words=padded_words,
            sigma_x=padded_sigma and padded_sigma[0],
            sigma_y=padded_sigma and padded_sigma[1],
        )
        # Cut on the host: a slice on the device compiles for every ragged size.
        values, bound, ok_x, ok_y = jax.device_get(hsic_planned(*rows, run)[:4])
        values = values[:n1, :n2]
        _check_rows("x", x, ok_x[:n1])
        _check_rows("y", y, ok_y[:n2])
        relative = relative_bound(bound, values)
        if certain or relative <= request.tolerance:
            return plan, values
        left = worth_trying(left, rung, relative, request.tolerance)
    raise ValueError(
        f"implementation: no rank certifies {request.implementation} to {request.tolerance:g}; "
        "take exact, or raise the tolerance"
    )


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

    The plan names the implementation and its rank, which is tried out. Bandwidths come out as
    arrays, except for the set-wide median, which the plan takes of whatever rows it is given.
    """
    request = _Request(estimator, bandwidth, precision, implementation, rank, tolerance)
    x, y = request.checked(x, y)
    if isinstance(x, jax.core.Tracer) or isinstance(y, jax.core.Tracer):
        return request.traced(x, y)
    return _solve(np.asarray(x), np.asarray(y), request, whole=False)[0]


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
    request = _Request(estimator, bandwidth, precision, implementation, rank, tolerance)
    x, y = request.checked(x, y)
    if isinstance(x, jax.core.Tracer) or isinstance(y, jax.core.Tracer):
        return hsic_planned(x, y, request.traced(x, y)).values
    _, values = _solve(np.asarray(x), np.asarray(y), request, whole=True)
    assert values is not None
    if not np.isfinite(values).all():
        if estimator in NORMALISED:
            raise ValueError(
                f"x, y: {estimator} is undefined, the HSIC of a row with itself is not positive"
            )
        raise ValueError(f"x, y: {estimator} is not finite in float32")
    return jnp.asarray(values)
