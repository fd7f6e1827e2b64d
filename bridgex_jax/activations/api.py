"""`capture`: the activations of chosen neurons on prompts, averaged over a token scope.

The front door for one's own analyses; the pipelines use the same functions. Axes: L F W (axes.py);
C = chosen neurons of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from bridgex_jax.activations.run import probe_prompts
from bridgex_jax.data.batching import Scope, encode_prompts
from bridgex_jax.data.prompts import Prompt
from bridgex_jax.models.load import Model


def capture(
    model: Model,
    prompts: Sequence[Prompt | str],
    neurons: Sequence[Int[np.ndarray, " C"]],
    *,
    scope: Scope = "from_word_mean",
    site: str = "mlp_gate_act",
    batch_size: int = 64,
    mesh: Mesh | None = None,
) -> list[Float[np.ndarray, "C W"]]:
    """Mean activation over the tokens in scope, for every prompt: one [C, W] float32 a layer.

    Args:
      prompts: of `data.prompts.word_prompt`; a plain string counts as one word from end to end.
      neurons: for every layer the indices to read; layers may differ in number.
      scope: which tokens are averaged (bridgex-icl, Stage 4).
      mesh: devices with an axis `data`; None for all local ones.

    Raises InputError for a prompt whose word gives no tokens, ValueError for an unknown scope,
    a site that has no neurons, and a number of layers that is not the model's.
    """
    if scope == "prompt_and_generated_mean":
        raise ValueError("capture does not generate; append the answers to the prompts")
    if len(neurons) != model.config.n_layers:
        raise ValueError(f"neurons of {len(neurons)} layers, the model has {model.config.n_layers}")
    whole = [p if isinstance(p, Prompt) else Prompt(p, 0, len(p)) for p in prompts]
    encoded = encode_prompts(model.tokenizer, whole, scope)
    mesh = mesh or model.mesh
    return probe_prompts(model, encoded, neurons, mesh, batch_size=batch_size, site=site)
