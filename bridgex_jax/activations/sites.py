"""Which axes the features of a site have, by the words that arrays on disk carry."""

from __future__ import annotations

from dataclasses import dataclass

from bridgex_jax.models.config import DecoderConfig
from bridgex_jax.models.decoder import GLOBAL_SITES, SITES

NEURON_SITES = ("mlp_pre", "mlp_pre_linear", "mlp_gate_act", "mlp_act")


@dataclass(frozen=True)
class Features:
    """The feature axes of one site: their names and sizes; layers: 1 for a site of the whole model.

    The first axis is what a mesh may split along `tensor`, where `is_split`.
    """

    axes: tuple[str, ...]
    shape: tuple[int, ...]
    layers: int
    is_global: bool
    is_split: bool


def site_features(config: DecoderConfig, site: str) -> Features:
    """Raises ValueError for an unknown site."""
    if site not in SITES:
        raise ValueError(f"unknown site {site!r}; the sites are {', '.join(SITES)}")
    if site in GLOBAL_SITES:
        return Features(("embed",), (config.d_model,), 1, True, False)
    if site in NEURON_SITES:
        return Features(("neuron",), (config.d_ff,), config.n_layers, False, True)
    if site == "z":
        shape = (config.n_heads, config.head_dim)
        return Features(("head", "head_dim"), shape, config.n_layers, False, True)
    return Features(("embed",), (config.d_model,), config.n_layers, False, False)
