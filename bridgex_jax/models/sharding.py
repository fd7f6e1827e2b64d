"""Where parameters and activations lie on a mesh: one table from roles to mesh axes.

Three axes: `data` splits the batch, `fsdp` the batch and the parameters (gathered layer by layer,
ZeRO-3), `tensor` heads, neurons and vocabulary (Megatron-LM, arXiv 1909.08053). XLA inserts the
collectives; the constraints below fix the few arrays from which all others follow. Axes: B T D F N
K H V (axes.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from bridgex_jax import runtime
from bridgex_jax.errors import InputError
from bridgex_jax.models.config import DecoderConfig

Attention = Literal["products", "xla", "cudnn"]

PARAMETER_AXES = {
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "neuron": "tensor",
    "vocab": "tensor",
}
ACTIVATION_AXES = {
    "batch": runtime.BATCH_AXES,
    "heads": "tensor",
    "kv_heads": "tensor",
    "neuron": "tensor",
    "vocab": "tensor",
    # Beside the two large tables, which are never gathered: rows stay whole along `fsdp`, and the
    # hidden states are split there instead.
    "rows": ("data",),
    "embed": "fsdp",
}
# Roles that are copied to every device where their size does not divide: models have few key heads,
# and vocabularies of any size.
COPIED = ("kv_heads", "vocab")
# Roles of every kernel's axes, by the module that holds it; a bias has those of the outputs.
KERNEL_ROLES: dict[str, tuple[str, ...]] = {
    "embed": ("vocab", "embed"),
    "lm_head": ("embed", "vocab"),
    "q": ("embed", "heads", "head_dim"),
    "k": ("embed", "kv_heads", "head_dim"),
    "v": ("embed", "kv_heads", "head_dim"),
    "o": ("heads", "head_dim", "embed"),
    "gate": ("embed", "neuron"),
    "up": ("embed", "neuron"),
    "down": ("neuron", "embed"),
}


@dataclass(frozen=True)
class Layout:
    """A mesh, and what computes attention on it.

    attention: `products` is ours and the fastest on CPUs; the others are those of
    `jax.nn.dot_product_attention`, of which `cudnn` is fused and needs a GPU and a 16-bit dtype.
    """

    mesh: Mesh
    attention: Attention

    def parameter_spec(
        self, roles: tuple[str | None, ...], shape: tuple[int, ...]
    ) -> PartitionSpec:
        """How a parameter is split; `roles` names its axes."""
        axes = (PARAMETER_AXES.get(role or "") for role in roles)
        return self._spec(axes, shape)

    def constrain(self, x: Array, *roles: str | None) -> Array:
        """An activation with its axes split by their roles; nothing on one device."""
        if self.mesh.size == 1:
            return x
        spec = self._spec((ACTIVATION_AXES.get(role or "") for role in roles), x.shape)
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

    def gathered(self, kernel: Array, roles: tuple[str, ...]) -> Array:
        """A parameter as the products need it: whole along `fsdp`, still split along `tensor`."""
        if not self.splits_tables:
            return kernel
        axes = (None if role == "embed" else PARAMETER_AXES.get(role) for role in roles)
        spec = self._spec(axes, kernel.shape)
        return jax.lax.with_sharding_constraint(kernel, NamedSharding(self.mesh, spec))

    @property
    def splits_tables(self) -> bool:
        """Whether embedding and output matrix are split along the hidden size."""
        return self.mesh.shape.get("fsdp", 1) > 1

    def _spec(self, axes, shape: tuple[int, ...]) -> PartitionSpec:
        """Mesh axes that exist and divide; the others copy."""
        return PartitionSpec(
            *(
                runtime.dividing_axes(self.mesh, (axis,) if isinstance(axis, str) else axis, size)
                for axis, size in zip(axes, shape, strict=True)
            )
        )


def make_layout(config: DecoderConfig, mesh: Mesh, attention: Attention | None = None) -> Layout:
    """How a model lies on a mesh. Raises InputError where a mesh axis does not divide the model.

    attention: None for our products on a CPU whose heads are not split, `xla` elsewhere.
    """
    sizes = {"heads": config.n_heads, "neuron": config.d_ff, "embed": config.d_model}
    names = {"heads": "attention heads", "neuron": "neurons a layer", "embed": "hidden size"}
    for role, size in sizes.items():
        axis = PARAMETER_AXES[role]
        parts = mesh.shape.get(axis, 1)
        if size % parts:
            fits = [n for n in range(1, parts) if math.gcd(*sizes.values()) % n == 0]
            raise InputError(
                f"--mesh {axis}={parts} does not divide the model's {names[role]} ({size})",
                remedy=f"use {axis}={fits[-1]}",
            )
    if attention is None:
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        attention = "products" if on_cpu and mesh.shape.get("tensor", 1) == 1 else "xla"
    return Layout(mesh, attention)
