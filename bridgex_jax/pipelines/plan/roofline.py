"""The written roofline: work of a step on one chip, and the time that it takes at least.

time = max(compute, HBM, interconnect), each at a share of its peak (`EFFICIENCY`). XLA's own count
(`cost_analysis`) takes a loop's body once, so work is counted by the formulas below; the terms:

* products: 2 FLOPs a weight of the layers and token, 4·N·H·S a token for attention over S keys
  (masked ones too, as XLA computes them), the vocabulary product where logits are needed;
* HBM: every weight once a step; `PASSES` over the residual stream and the neurons of a layer; 16
  bytes an attention score (float32 written and read, the softmax, its bfloat16); the KV cache once
  a new token;
* interconnect: the collectives of the compiled program, as rings over one link in each direction.

For one layer of Llama-3-8B and 70B on seven meshes of v5e, v5p and v6e these FLOPs are 0.99 to 1.03
of XLA's count, these bytes 0.7 to 0.97 (0.44 at tensor=16), of which XLA's hold the look-up too.

Axes: L B T F N K H D V (axes.py); S = keys, n1, n2 neurons of a block of the spectrum.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from jax.sharding import Mesh

from bridgex_jax import runtime
from bridgex_jax.models.config import DecoderConfig
from bridgex_jax.pipelines.plan.chips import Chip
from bridgex_jax.pipelines.plan.collectives import Collective

EFFICIENCY = {"compute": 0.6, "hbm": 0.8, "ici": 0.8}  # of peak rates; assumed, not measured
PASSES = {"residual": 16, "neurons": 6}  # values written or read a layer and token
SCORE_BYTES = 16
HOP_SECONDS = 1e-6
FLOAT32_PASSES = 6  # bfloat16 products that make one of float32 (precision "highest")
EXPONENTIAL_FLOPS = 100  # a Gram entry of HSIC; kernels/hsic/plan.py


@dataclass(frozen=True)
class Work:
    """Of one step on one chip: bfloat16 FLOPs, bytes over HBM."""

    flops: float
    hbm: float

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.hbm + other.hbm)

    def __mul__(self, times: float) -> Work:
        return Work(self.flops * times, self.hbm * times)


@dataclass(frozen=True)
class Times:
    """Seconds of one step by each of the three limits."""

    compute: float
    hbm: float
    ici: float

    @property
    def step(self) -> float:
        return max(self.compute, self.hbm, self.ici)

    @property
    def bound(self) -> str:
        """Which of them decides."""
        return max(("compute", "hbm", "ici"), key=lambda name: getattr(self, name))


@dataclass(frozen=True)
class Parts:
    """A model on a mesh: into how many parts rows, heads and neurons, key heads, weights go."""

    config: DecoderConfig
    rows: int
    tensor: int
    kv: int
    vocab: int
    fsdp: int
    item: int  # bytes of a number

    @classmethod
    def of(cls, config: DecoderConfig, mesh: Mesh, item: int) -> Parts:
        tensor = mesh.shape.get("tensor", 1)

        def where_it_divides(size: int) -> int:
            return tensor if size % tensor == 0 else 1

        return cls(
            config,
            runtime.batch_parts(mesh),
            tensor,
            where_it_divides(config.n_kv_heads),
            where_it_divides(config.vocab_size),
            mesh.shape.get("fsdp", 1),
            item,
        )

    @property
    def layer_weights(self) -> float:
        """Weights of one layer's products on a chip, gathered along fsdp."""
        cfg = self.config
        heads = 2 * cfg.d_model * cfg.n_heads * cfg.head_dim / self.tensor
        keys = 2 * cfg.d_model * cfg.n_kv_heads * cfg.head_dim / self.kv
        return heads + keys + 3 * cfg.d_model * cfg.d_ff / self.tensor

    @property
    def vocabulary(self) -> float:
        """Weights of the vocabulary product on a chip."""
        return self.config.vocab_size * self.config.d_model / self.vocab


def forward(parts: Parts, rows: int, length: int, keys: int | None = None) -> Work:
    """Tokens [rows, length] through all layers, each attending to `keys` (None: those of a row)."""
    cfg, keys = parts.config, keys or length
    rows_here = max(1.0, rows / parts.rows)
    tokens = rows_here * length
    scores = tokens * keys * cfg.n_heads / parts.tensor
    weights = parts.layer_weights * parts.item
    # A gathered weight is written as well, and was read where it lay.
    moved = weights * (2 + 1 / parts.fsdp) if parts.fsdp > 1 else weights
    values = PASSES["residual"] * cfg.d_model + PASSES["neurons"] * cfg.d_ff / parts.tensor
    one = Work(
        2 * parts.layer_weights * tokens + 4 * scores * cfg.head_dim,
        moved + tokens * values * parts.item + scores * SCORE_BYTES,
    )
    return one * cfg.n_layers


def decoding(parts: Parts, rows: int, keys: int) -> Work:
    """One new token for each of `rows`, over caches of `keys` slots, with its logits."""
    cfg = parts.config
    rows_here = max(1.0, rows / parts.rows)
    cache = 2 * cfg.n_layers * rows_here * keys * cfg.n_kv_heads / parts.kv * cfg.head_dim
    logits = rows_here * cfg.vocab_size / parts.vocab
    head = Work(2 * parts.vocabulary * rows_here, parts.vocabulary * parts.item + 3 * 4 * logits)
    return forward(parts, rows, 1, keys) + head + Work(0.0, cache * parts.item)


def spectrum(blocks: float, sizes: tuple[int, int, int]) -> Work:
    """HSIC of so many blocks on one chip: n1·n2·N² FLOPs of float32 each, and the Gram entries."""
    n1, n2, n_words = sizes
    products = FLOAT32_PASSES * n1 * n2 * n_words**2
    entries = 0.5 * (n1 + n2) * EXPONENTIAL_FLOPS * n_words**2
    return Work(products + entries, 4.0 * ((n1 + n2) * n_words + n1 * n2)) * blocks


def collective_seconds(found: Iterable[Collective], chip: Chip) -> float:
    """Rings over one axis of the interconnect, one after the other: bytes, and hops."""
    return sum(
        one.times * (_moved(one) / chip.link_rate / EFFICIENCY["ici"] + _hops(one) * HOP_SECONDS)
        for one in found
    )


def _moved(one: Collective) -> float:
    """Bytes that leave a chip."""
    if one.kind == "collective-permute":
        return one.bytes
    twice = 2 if one.kind == "all-reduce" else 1  # reduced, then gathered
    return twice * one.bytes * (one.group - 1) / one.group


def _hops(one: Collective) -> float:
    if one.kind == "collective-permute":
        return 1.0
    return (2 if one.kind == "all-reduce" else 1) * one.group / 2


def times(work: Work, ici_seconds: float, chip: Chip) -> Times:
    """Seconds of a step with this work and these collectives."""
    return Times(
        work.flops / (chip.flops * EFFICIENCY["compute"]),
        work.hbm / (chip.hbm_rate * EFFICIENCY["hbm"]),
        ici_seconds,
    )
