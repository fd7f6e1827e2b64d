"""Decoders: configuration, weights, the forward pass with taps, greedy generation."""

from bridgex_jax.models.decoder import GLOBAL_SITES, LAYER_SITES, SITES
from bridgex_jax.models.forward import forward
from bridgex_jax.models.generate import generate
from bridgex_jax.models.load import Model, load_model

__all__ = ["GLOBAL_SITES", "LAYER_SITES", "SITES", "Model", "forward", "generate", "load_model"]
