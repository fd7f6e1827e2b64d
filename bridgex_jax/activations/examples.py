"""Reducers that keep something of every example: the mean, the last token, or all tokens.

An example is a prompt or a line; several of them may lie in one row (data/trees.py). What is kept
is that of the tokens in scope. Axes: L B T F (axes.py); Q = examples of a row, F = the features of
a site, on one axis or two, or C chosen neurons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

Neurons = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ExampleReducer:
    """A reducer of every example on its own.

    layers: which are kept, ascending; None for all. neurons: those to read, a tuple for every layer
    that is kept; None for all. by_token: `read` gives the row's token slots instead of its
    examples.
    """

    site: str = "mlp_gate_act"
    layers: tuple[int, ...] | None = None
    neurons: Neurons | None = None
    by_token: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.layers is not None and list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"layers {self.layers} are not ascending")

    def without_neurons(self) -> Self:
        """The same reducer for any neurons: what a compiled step depends on."""
        return replace(self, neurons=None)

    def read(
        self, value: Float[Array, "B T *F"], scope: Bool[Array, "B Q T"]
    ) -> Float[Array, "B S *F"]:
        """What is kept of a layer's rows: S = Q, or T where `by_token`."""
        raise NotImplementedError


@dataclass(frozen=True)
class TokenMean(ExampleReducer):
    """Mean over the tokens in scope, float32; 0 where none is."""

    def read(
        self, value: Float[Array, "B T *F"], scope: Bool[Array, "B Q T"]
    ) -> Float[Array, "B Q *F"]:
        flat = value.astype(jnp.float32).reshape(*value.shape[:2], -1)
        weights = scope.astype(jnp.float32)
        # As a product that no device may round off.
        total = jnp.matmul(weights, flat, precision=jax.lax.Precision.HIGHEST)
        mean = total / jnp.maximum(jnp.sum(weights, axis=2, keepdims=True), jnp.float32(1))
        return mean.reshape(*scope.shape[:2], *value.shape[2:])


@dataclass(frozen=True)
class LastToken(ExampleReducer):
    """The last token in scope, in the model's dtype."""

    def read(
        self, value: Float[Array, "B T *F"], scope: Bool[Array, "B Q T"]
    ) -> Float[Array, "B Q *F"]:
        slots = jnp.arange(scope.shape[2], dtype=jnp.int32)
        last = jnp.max(jnp.where(scope, slots, 0), axis=2)
        return jax.vmap(lambda row, at: row[at])(value, last)


@dataclass(frozen=True)
class Full(ExampleReducer):
    """Every token in scope, in the model's dtype."""

    by_token: ClassVar[bool] = True

    def read(
        self, value: Float[Array, "B T *F"], scope: Bool[Array, "B Q T"]
    ) -> Float[Array, "B T *F"]:
        return value


def padded_neurons(neurons: Neurons, n_layers: int, width: int) -> Int[np.ndarray, "L C"]:
    """Indices in one array, shorter layers filled up with 0.

    Raises ValueError for another number of layers, and for an index that is not below `width`.
    """
    if len(neurons) != n_layers:
        raise ValueError(f"neurons of {len(neurons)} layers, {n_layers} are kept")
    padded = np.zeros((n_layers, max(1, *map(len, neurons))), np.int32)
    for layer, chosen in enumerate(neurons):
        padded[layer, : len(chosen)] = chosen
    if padded.min() < 0 or padded.max() >= width:
        raise ValueError(f"neurons from {padded.min()} to {padded.max()}: a layer has {width}")
    return padded


def neuron_sets(sets: Sequence[Int[np.ndarray, " c"]]) -> Neurons:
    """Index arrays in the form that the reducers take."""
    return tuple(tuple(int(i) for i in chosen) for chosen in sets)
