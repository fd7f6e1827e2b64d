"""Statistics merged over tokens: counts, sums, sums of squares, histograms of every feature.

The statistics stream of LAPE and its successors (arXiv 2402.16438, 2503.17456): integers are exact
and merge in any order or grouping, sums are float32 within a batch and compensated across batches.
A feature is a neuron, an embedding channel or a channel of a head. Axes: L T F (axes.py); T = all
token slots of a batch, F = the features of a site, on one axis or two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from bridgex_jax.errors import InputError

MOST_TOKENS = 2**31 - 1  # of one pass: what an int32 count can hold
MOST_TOKENS_A_BATCH = 2**24  # up to here sums of ones are exact in float32


class Compensated(NamedTuple):
    """A float32 sum over batches; `rest` is what rounding dropped (Neumaier)."""

    total: Float[Array, "..."]
    rest: Float[Array, "..."]


@dataclass(frozen=True)
class Statistic:
    """A reducer over all tokens: a running state, one layer's part of which `add` renews.

    dtype: of what `finish` gives on the host.
    """

    site: str = "mlp_gate_act"
    dtype: ClassVar[np.dtype]

    @property
    def extra(self) -> tuple[int, ...]:
        """The axes of the state after those of the site."""
        return ()

    def start(self, shape: tuple[int, ...]) -> Any:
        """The state before the first token."""
        return jnp.zeros(shape, jnp.int32)

    def add(self, state: Any, value: Float[Array, "T *F"], weight: Int[Array, " T"]) -> Any:
        """The state of one layer with these tokens, each `weight` times."""
        raise NotImplementedError

    def finish(self, state: Any) -> Num[np.ndarray, "..."]:
        """The state as one array of `dtype`."""
        return state.astype(self.dtype)


@dataclass(frozen=True)
class Count(Statistic):
    """Σ_t 1[a > threshold]; compared in float32 whatever the model's dtype."""

    threshold: float = 0.0
    dtype: ClassVar[np.dtype] = np.dtype(np.int64)

    def add(
        self, state: Int[Array, "*F"], value: Float[Array, "T *F"], weight: Int[Array, " T"]
    ) -> Int[Array, "*F"]:
        above = value.astype(jnp.float32) > jnp.float32(self.threshold)
        # Exact: whole numbers far below 2^8 times zeros and ones, added in float32 up to 2^24.
        return state + _over_tokens(weight, above.astype(jnp.float32), None).astype(jnp.int32)


@dataclass(frozen=True)
class Sum(Statistic):
    """Σ_t a."""

    dtype: ClassVar[np.dtype] = np.dtype(np.float64)

    def start(self, shape: tuple[int, ...]) -> Compensated:
        return Compensated(jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32))

    def add(
        self, state: Compensated, value: Float[Array, "T *F"], weight: Int[Array, " T"]
    ) -> Compensated:
        wide = value.astype(jnp.float32)
        return compensated(state, _over_tokens(weight, wide, jax.lax.Precision.HIGHEST))

    def finish(self, state: Compensated) -> Float[np.ndarray, "..."]:
        return np.asarray(state.total, np.float64) + np.asarray(state.rest, np.float64)


@dataclass(frozen=True)
class SumOfSquares(Sum):
    """Σ_t a²."""

    def add(
        self, state: Compensated, value: Float[Array, "T *F"], weight: Int[Array, " T"]
    ) -> Compensated:
        return super().add(state, jnp.square(value.astype(jnp.float32)), weight)


@dataclass(frozen=True)
class Histogram(Statistic):
    """How many activations fall into each of `bins` equal bins of [low, high).

    The first bin of the result counts what is below `low`, the last what is `high` or more, or not
    a number. Percentiles: `percentile`.
    """

    bins: int = 64
    low: float = -1.0
    high: float = 3.0
    dtype: ClassVar[np.dtype] = np.dtype(np.int64)

    def __post_init__(self) -> None:
        if self.bins < 1 or not self.low < self.high:
            raise InputError(
                f"a histogram of {self.bins} bins from {self.low} to {self.high} has no bins",
                remedy="give at least one bin, and low below high",
            )

    @property
    def extra(self) -> tuple[int, ...]:
        return (self.bins + 2,)

    def edges(self) -> Float[np.ndarray, " bins+1"]:
        """The limits of the bins between the first and the last."""
        return np.linspace(self.low, self.high, self.bins + 1)

    def add(
        self, state: Int[Array, "*F bin"], value: Float[Array, "T *F"], weight: Int[Array, " T"]
    ) -> Int[Array, "*F bin"]:
        place = self._bin(value)
        weight = weight.reshape(-1, *(1,) * (place.ndim - 1))

        # Bin by bin over small integers: no [T, F, bin] array, no scatter (slow on TPUs, and XLA
        # would gather what a mesh has split).
        def count(k: Array) -> Array:
            return jnp.sum(jnp.where(place == k, weight, 0), axis=0, dtype=jnp.int32)

        found = jax.lax.map(count, jnp.arange(self.bins + 2, dtype=place.dtype))
        return state + jnp.moveaxis(found, 0, -1)

    def _bin(self, value: Float[Array, "T *F"]) -> Int[Array, "T *F"]:
        small = jnp.uint8 if self.bins + 2 <= 256 else jnp.int32
        wide = value.astype(jnp.float32)
        low, high = jnp.float32(self.low), jnp.float32(self.high)
        scale = jnp.float32(self.bins / (self.high - self.low))
        inside = jnp.clip(jnp.floor((wide - low) * scale) + 1, 1, self.bins)
        place = jnp.where(wide < low, 0, jnp.where(wide < high, inside, self.bins + 1))
        return place.astype(small)

    def percentile(
        self, counts: Int[np.ndarray, "*any bin"], share: float
    ) -> Float[np.ndarray, "*any"]:
        """The value below which `share` (0 to 1) of the tokens lie, within one bin.

        Linear inside a bin. −inf or inf where the histogram cannot tell, NaN without tokens.
        """
        cumulative = np.cumsum(counts, axis=-1)
        wanted = share * cumulative[..., -1:]
        at = np.minimum(np.sum(cumulative < wanted, axis=-1, keepdims=True), self.bins + 1)
        inside = np.take_along_axis(counts, at, -1)
        before = np.take_along_axis(cumulative, at, -1) - inside
        with np.errstate(divide="ignore", invalid="ignore"):
            part = np.where(inside > 0, (wanted - before) / inside, 0.0)
        limits = np.concatenate([[-np.inf], self.edges(), [np.inf]])
        width = (self.high - self.low) / self.bins
        value = limits[at] + np.where((at > 0) & (at <= self.bins), part * width, 0.0)
        value = np.where(at > self.bins, np.inf, value)
        return np.where(cumulative[..., -1:] > 0, value, np.nan)[..., 0]


def compensated(state: Compensated, found: Float[Array, "..."]) -> Compensated:
    """The running sum with one more term, exact to about twice float32's digits."""
    total = state.total + found
    larger = jnp.abs(state.total) >= jnp.abs(found)
    lost = jnp.where(larger, (state.total - total) + found, (found - total) + state.total)
    return Compensated(total, state.rest + lost)


def _over_tokens(
    weight: Int[Array, " T"], value: Float[Array, "T *F"], precision: jax.lax.Precision | None
) -> Float[Array, "*F"]:
    """Weighted sum over tokens, as a product: XLA's CPU backend is slow at sums down columns."""
    flat = value.reshape(value.shape[0], -1)
    found = jnp.matmul(weight.astype(jnp.float32), flat, precision=precision)
    return found.reshape(value.shape[1:])
