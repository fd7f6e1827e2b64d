"""What a layer keeps of its activations: counts and sums over tokens, token means of neurons.

A reducer runs inside the scan over layers, so the activations of one layer are all that is ever in
memory: a count of an 8B model is 1.8 MB where its activations are 3.8 GB a batch. Sites are those
of models/decoder.py; the neuron of the papers is `mlp_gate_act`. Axes: L B T F (axes.py); C =
chosen neurons of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from bridgex_jax.models.decoder import Taps


class TokenStatistics(NamedTuple):
    """Per neuron, over the tokens in scope: how many are positive, and the sum."""

    positive: Int[Array, "*L F"]
    total: Float[Array, "*L F"]


@dataclass(frozen=True)
class CountPositive:
    """Σ_t 1[a > 0] (int32) and Σ_t a (float32) of one site over all tokens in scope.

    bridgex-icl Stage 1. The context is the scope, Bool [B, T].
    """

    site: str = "mlp_gate_act"

    def __call__(self, taps: Taps, inputs: PyTree, scope: Bool[Array, "B T"]) -> TokenStatistics:
        value = taps[self.site].reshape(-1, taps[self.site].shape[-1])
        counted = scope.reshape(-1).astype(jnp.float32)
        # As products, since XLA's CPU backend is five times slower at sums down columns. Counts
        # are exact: ones and zeros in any precision, sums in float32 up to 2^24 tokens.
        positive = counted @ (value > 0).astype(jnp.float32)
        total = jnp.matmul(counted, value.astype(jnp.float32), precision="highest")
        return TokenStatistics(positive.astype(jnp.int32), total)


@dataclass(frozen=True)
class TokenMean:
    """Mean over the tokens in scope of the chosen neurons of one site, per example.

    bridgex-icl Stage 4. The layer's inputs are the chosen neurons' indices, Int [C]; the context
    is the scope, Bool [B, T].
    """

    site: str = "mlp_gate_act"

    def __call__(
        self, taps: Taps, chosen: Int[Array, " C"], scope: Bool[Array, "B T"]
    ) -> Float[Array, "B C"]:
        return jax.vmap(_mean_of_chosen, in_axes=(0, 0, None))(taps[self.site], scope, chosen)


def _mean_of_chosen(
    value: Float[Array, "T F"], scope: Bool[Array, " T"], chosen: Int[Array, " C"]
) -> Float[Array, " C"]:
    """Masked mean of one example; float32 whatever the model's dtype. 0 where nothing counts."""
    kept = jnp.where(scope[:, None], value[:, chosen], 0)
    total = jnp.sum(kept, axis=0, dtype=jnp.float32)
    return total / jnp.maximum(jnp.sum(scope, dtype=jnp.float32), 1.0)


@dataclass(frozen=True)
class TreeMean:
    """`TokenMean` of rows that hold several prompts as a tree (data/trees.py); Q = prompts.

    The context is Bool [B, Q, T]: which tokens of the row are in the scope of which prompt.
    """

    site: str = "mlp_gate_act"

    def __call__(
        self, taps: Taps, chosen: Int[Array, " C"], scope: Bool[Array, "B Q T"]
    ) -> Float[Array, "B Q C"]:
        return jax.vmap(_means_of_chosen, in_axes=(0, 0, None))(taps[self.site], scope, chosen)


def _means_of_chosen(
    value: Float[Array, "T F"], scope: Bool[Array, "Q T"], chosen: Int[Array, " C"]
) -> Float[Array, "Q C"]:
    """Masked means of the prompts of one row, as a product that no device may round off."""
    weights, kept = scope.astype(jnp.float32), value[:, chosen].astype(jnp.float32)
    total = jnp.matmul(weights, kept, precision=jax.lax.Precision.HIGHEST)
    return total / jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), jnp.float32(1))
