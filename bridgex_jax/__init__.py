"""Choose a bridge language for multilingual prompting by the neurons of the model itself.

The names below load what they need when they are first used: `hsic` loads neither flax nor
transformers.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Model": "bridgex_jax.models.load",
    "bootstrap": "bridgex_jax.bridge.significance",
    "capture": "bridgex_jax.activations.api",
    "forward": "bridgex_jax.models.forward",
    "generate": "bridgex_jax.models.generate",
    "hsic": "bridgex_jax.kernels.hsic",
    "load_model": "bridgex_jax.models.load",
    "observe": "bridgex_jax.activations.observe",
    "open_activations": "bridgex_jax.store.activations",
    "permutation_test": "bridgex_jax.bridge.significance",
    "score_continuations": "bridgex_jax.icl.likelihood",
    "score_pairs": "bridgex_jax.bridge.spectrum",
    "select_bridge": "bridgex_jax.pipelines.select",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
