from bridgex_jax.activations.api import capture as capture
from bridgex_jax.activations.observe import observe as observe
from bridgex_jax.bridge.significance import bootstrap as bootstrap
from bridgex_jax.bridge.significance import permutation_test as permutation_test
from bridgex_jax.bridge.spectrum import score_pairs as score_pairs
from bridgex_jax.icl.likelihood import score_continuations as score_continuations
from bridgex_jax.kernels.hsic import hsic as hsic
from bridgex_jax.models.forward import forward as forward
from bridgex_jax.models.generate import generate as generate
from bridgex_jax.models.load import Model as Model
from bridgex_jax.models.load import load_model as load_model
from bridgex_jax.pipelines.select import select_bridge as select_bridge
from bridgex_jax.store.activations import open_activations as open_activations

__all__ = [
    "Model",
    "bootstrap",
    "capture",
    "forward",
    "generate",
    "hsic",
    "load_model",
    "observe",
    "open_activations",
    "permutation_test",
    "score_continuations",
    "score_pairs",
    "select_bridge",
]
