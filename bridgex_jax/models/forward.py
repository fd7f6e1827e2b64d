"""`forward`: tokens in, logits and named activations out, in one jitted call.

For looking at whole activations and for parity; counts, means and chosen neurons of many prompts
go through `bridgex_jax.activations`, which reduces inside the layer. Axes: L B T V (axes.py).
"""

from __future__ import annotations

from functools import partial

import jax
from jaxtyping import Array, Bool, Float, Int

from bridgex_jax.models.decoder import keep_sites, run_decoder, unembed
from bridgex_jax.models.load import Model


def forward(
    model: Model,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    taps: tuple[str, ...] = (),
    *,
    unroll: bool = False,
) -> tuple[Float[Array, "B T V"], dict[str, Array]]:
    """Logits in float32, and the named taps.

    Args:
      tokens: token ids; what stands at padding does not matter.
      mask: True at real tokens; rows may be padded on either side.
      taps: names of `SITES`. A layer's site comes as [L, B, T, …], `embeddings` and
        `final_norm` as [B, T, D].
      unroll: a Python loop over layers instead of a scan: same numbers, larger program.

    Raises ValueError for an unknown site.
    """
    return _forward(model, tokens, mask, tuple(taps), unroll)


@partial(jax.jit, static_argnames=("taps", "unroll"))
def _forward(model: Model, tokens: Array, mask: Array, taps: tuple[str, ...], unroll: bool):
    output = run_decoder(
        model.config,
        model.params,
        tokens,
        mask,
        reduce=keep_sites(taps),
        unroll=unroll,
        layout=model.layout,
    )
    whole = {"embeddings": output.embeddings, "final_norm": output.hidden}
    values = {site: whole[site] if site in whole else output.taps[site] for site in taps}
    return unembed(model.params, output.hidden, model.layout), values
