"""The decoder of the Llama, Mistral and Qwen families, as a Linen shell over free functions.

Every block returns its taps as values (no ``sow``) and the scan over layers stacks them to
``[L, …]``. A ``reduce`` function may shrink the taps inside the layer, so that no
``[L, B, T, F]`` array is ever made. Site names follow the field (TransformerLens, nnsight);
``mlp_gate_act`` = act(gate_proj(x)), before the product with up_proj, is the neuron of the
papers that this project serves. Axes: L B T D F N K H V (axes.py); S = key positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int, PyTree

from bridgex_jax.models.config import DecoderConfig
from bridgex_jax.models.rope import rope_frequencies, rope_tables, rotate
from bridgex_jax.models.sharding import KERNEL_ROLES, Layout

LAYER_SITES = (
    "resid_pre", "attn_in", "z", "attn_out", "resid_mid", "mlp_in", "mlp_pre", "mlp_pre_linear",
    "mlp_gate_act", "mlp_act", "mlp_out", "resid_post",
)  # fmt: skip
GLOBAL_SITES = ("embeddings", "final_norm")
SITES = LAYER_SITES + GLOBAL_SITES

Taps = dict[str, Any]
# (taps of one layer, that layer's slice of `layer_inputs`, `context`) -> what the scan stacks.
Reduce = Callable[[Taps, PyTree, PyTree], PyTree]
# (name of a site, its value, that layer's slice of `layer_inputs`, `context`) -> its new value.
Edit = Callable[[str, Array, PyTree, PyTree], Array]

ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {"silu": jax.nn.silu}  # config.ACTIVATIONS


class KVCache(NamedTuple):
    """Keys and values of the slots written so far; S slots a row, filled from slot 0 on."""

    keys: Float[Array, "L B K S H"]
    values: Float[Array, "L B K S H"]
    positions: Int[Array, "B S"]
    filled: Bool[Array, "B S"]
    length: Int[Array, ""]


class Attend(NamedTuple):
    """What attention needs beside the residual stream; the same for all layers."""

    positions: Int[Array, "B T"]
    key_positions: Int[Array, "B S"]
    filled: Bool[Array, "B S"]
    mask: Bool[Array, "B 1 T S"]
    rotation: tuple[Array, Array]  # cosines and sines of the positions, [B, T, 1, H/2]
    slot: Int[Array, ""] | None  # where this call's keys go; None without a cache


class Output(NamedTuple):
    """Hidden states after the final norm, the stacked taps (or reductions), the cache."""

    embeddings: Float[Array, "B T D"]
    hidden: Float[Array, "B T D"]
    taps: PyTree
    cache: KVCache | None


def rms_norm(x: Float[Array, "... D"], scale: Float[Array, " D"], eps: float) -> Array:
    """Root-mean-square norm in float32, scaled in the dtype of x (as Llama does)."""
    wide = x.astype(jnp.float32)
    variance = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    normed = (wide * jax.lax.rsqrt(variance + eps)).astype(x.dtype)
    return normed * jnp.expand_dims(scale, tuple(range(x.ndim - 1)))


class RMSNorm(nn.Module):
    """Holds the scale of `rms_norm`."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), x.dtype)
        return rms_norm(x, scale, self.eps)


class Projection(nn.Module):
    """A linear map over the last `n_in` axes to `shape`, with an optional bias."""

    shape: tuple[int, ...]
    use_bias: bool
    stddev: float
    n_in: int = 1
    layout: Layout | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = x.shape[x.ndim - self.n_in :] + self.shape
        kernel = self.param("kernel", nn.initializers.normal(self.stddev), shape, x.dtype)
        if self.layout:
            kernel = self.layout.gathered(kernel, KERNEL_ROLES[str(self.name)])
        # One plain matrix product over flattened tokens: XLA's CPU backend is slower on more axes.
        rows = x.reshape(-1, math.prod(shape[: self.n_in]))
        y = rows @ kernel.reshape(rows.shape[1], -1)
        y = y.reshape(x.shape[: x.ndim - self.n_in] + self.shape)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, self.shape, x.dtype)
            y = y + jnp.expand_dims(bias, tuple(range(y.ndim - len(self.shape))))
        return y


class Block(nn.Module):
    """One decoder layer: (x, cache), inputs of the layer -> (x, cache), its reduced taps."""

    config: DecoderConfig
    reduce: Reduce
    layout: Layout | None = None
    edit: Edit | None = None

    @nn.compact
    def __call__(self, carry: tuple, layer: dict, attend: Attend, context: PyTree) -> tuple:
        cfg = self.config
        linear = partial(Projection, stddev=cfg.initializer_range, layout=self.layout)
        split = self.layout.constrain if self.layout else _as_it_is
        x, cache = carry
        taps: Taps = {"resid_pre": x}

        taps["attn_in"] = h = RMSNorm(cfg.norm_eps, name="attn_norm")(x)
        q = linear((cfg.n_heads, cfg.head_dim), cfg.qkv_bias, name="q")(h)
        k = linear((cfg.n_kv_heads, cfg.head_dim), cfg.qkv_bias, name="k")(h)
        v = linear((cfg.n_kv_heads, cfg.head_dim), cfg.qkv_bias, name="v")(h)
        if cfg.qk_norm:
            q = RMSNorm(cfg.norm_eps, name="q_norm")(q)
            k = RMSNorm(cfg.norm_eps, name="k_norm")(k)
        q, k = rotate(q, attend.rotation), rotate(k, attend.rotation)
        q = split(q, "batch", None, "heads", None)
        k, v = (split(rearrange(x, "b t k h -> b k t h"), "batch", "kv_heads", None, None)
                for x in (k, v))  # fmt: skip
        keys, values, cache = read_and_write(cache, layer["index"], attend.slot, k, v)
        if cache:
            cache = tuple(split(whole, None, "batch", "kv_heads", None, None) for whole in cache)
        mask = layer_mask(attend, layer.get("window"))
        taps["z"] = z = attention(q, keys, values, mask, self.layout)
        taps["attn_out"] = h = linear((cfg.d_model,), cfg.o_bias, n_in=2, name="o")(z)
        taps["resid_mid"] = x = split(x + h, "batch", None, None)

        taps["mlp_in"] = h = RMSNorm(cfg.norm_eps, name="mlp_norm")(x)
        gate = linear((cfg.d_ff,), cfg.mlp_bias, name="gate")(h)
        up = linear((cfg.d_ff,), cfg.mlp_bias, name="up")(h)
        taps["mlp_pre"] = gate = split(gate, "batch", None, "neuron")
        taps["mlp_pre_linear"] = up = split(up, "batch", None, "neuron")
        act = ACTIVATIONS[cfg.activation](gate)
        if self.edit:
            act = self.edit("mlp_gate_act", act, layer["inputs"], context)
        taps["mlp_gate_act"] = act
        taps["mlp_act"] = product = act * up
        taps["mlp_out"] = h = linear((cfg.d_model,), cfg.mlp_bias, name="down")(product)
        taps["resid_post"] = x = split(x + h, "batch", None, None)
        return (x, cache), self.reduce(taps, layer["inputs"], context)


class Decoder(nn.Module):
    """Embedding, the stack of blocks and the final norm; `unembed` gives the logits.

    `unroll` runs the layers one by one in a Python loop: same numbers and taps, larger programs.
    Their parameters may be stacked (for debugging and for parity) or apart (`layers_apart`).
    """

    config: DecoderConfig
    reduce: Reduce
    unroll: bool = False
    layout: Layout | None = None
    edit: Edit | None = None

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        attend: Attend,
        cache: tuple[Array, Array] | None,
        layer_inputs: PyTree,
        context: PyTree,
    ) -> tuple[Array, Array, PyTree, PyTree]:
        cfg = self.config
        normal = nn.initializers.normal(cfg.initializer_range)
        embed = nn.Embed(cfg.vocab_size, cfg.d_model, embedding_init=normal, name="embed")
        embeddings = _look_up(embed.embedding, tokens, self.layout)
        layers: dict[str, PyTree] = {
            "index": jnp.arange(cfg.n_layers, dtype=jnp.int32),
            "inputs": layer_inputs,
        }
        if any(cfg.sliding_window):
            everything = jnp.iinfo(jnp.int32).max
            layers["window"] = jnp.asarray([w or everything for w in cfg.sliding_window], jnp.int32)

        carry = (embeddings, cache)
        if self.unroll and not self.is_initializing():
            carry, taps = self._unrolled(carry, layers, attend, context)
        else:
            scan = nn.scan(
                Block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(0, nn.broadcast, nn.broadcast),
                length=cfg.n_layers,
            )
            blocks = scan(cfg, self.reduce, self.layout, self.edit, name="layers")
            carry, taps = blocks(carry, layers, attend, context)
        x, cache = carry
        hidden = RMSNorm(cfg.norm_eps, name="final_norm")(x)
        if not cfg.tie_embeddings and self.is_initializing():
            Projection((cfg.vocab_size,), False, cfg.initializer_range, name="lm_head")(hidden)
        return hidden, embeddings, taps, cache

    def _unrolled(self, carry: tuple, layers: dict, attend: Attend, context: PyTree) -> tuple:
        parameters = self.variables["params"]["layers"]
        if not isinstance(parameters, tuple):
            parameters = layers_apart(parameters, self.config.n_layers)
        block = Block(self.config, self.reduce, self.layout, self.edit, parent=None)
        taps = []
        for index, params in enumerate(parameters):
            layer = jax.tree.map(lambda leaf, i=index: leaf[i], layers)
            carry, out = block.apply({"params": params}, carry, layer, attend, context)
            taps.append(out)
        return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *taps)


def layers_apart(stacked: PyTree, n_layers: int) -> tuple[PyTree, ...]:
    """The parameters of every layer as arrays of their own: a copy, which XLA makes once.

    In a scan XLA's CPU backend copies a layer's weights out of the stack at every turn, a third of
    the time of a decoding step of few rows; GPUs and TPUs read them where they lie.
    """
    return tuple(jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(n_layers))


def _as_it_is(x: Array, *roles: str | None) -> Array:
    return x


def _look_up(
    table: Float[Array, "V D"], tokens: Int[Array, "B T"], layout: Layout | None
) -> Float[Array, "B T D"]:
    if layout is None:
        return jnp.take(table, tokens, axis=0)
    if layout.splits_tables:  # each device looks up its part of D, for the rows of all
        found = jnp.take(table, layout.constrain(tokens, "rows", None), axis=0)
        found = layout.constrain(found, "rows", None, "embed")
    else:
        found = jnp.take(table, tokens, axis=0)
    return layout.constrain(found, "batch", None, None)


def read_and_write(
    cache: tuple[Array, Array] | None,
    layer: Int[Array, ""],
    slot: Int[Array, ""] | None,
    k: Float[Array, "B K T H"],
    v: Float[Array, "B K T H"],
) -> tuple[Array, Array, tuple[Array, Array] | None]:
    """Puts new keys and values at `slot` of this layer's cache; returns all of the layer's."""
    if cache is None or slot is None:
        return k, v, None
    zero = jnp.zeros((), jnp.int32)
    at = (layer, zero, zero, slot, zero)
    written = tuple(
        jax.lax.dynamic_update_slice(whole, new[None].astype(whole.dtype), at)
        for whole, new in zip(cache, (k, v), strict=True)
    )
    keys, values = (jax.lax.dynamic_index_in_dim(w, layer, keepdims=False) for w in written)
    return keys, values, (written[0], written[1])


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    mask: Bool[Array, "B 1 T S"],
    layout: Layout | None = None,
) -> Float[Array, "B T N H"]:
    """Scaled dot products with softmax in float32; N / K query heads share a key head."""
    if layout is None or layout.attention == "products":
        return _attention_products(q, k, v, mask)
    if k.shape[1] % layout.mesh.shape.get("tensor", 1):  # then each device repeats the few it needs
        k, v = (jnp.repeat(x, q.shape[2] // x.shape[1], axis=1) for x in (k, v))
    k, v = (rearrange(x, "b k s h -> b s k h") for x in (k, v))
    z = jax.nn.dot_product_attention(q, k, v, mask=mask, implementation=layout.attention)
    return layout.constrain(z, "batch", None, "heads", None)


def _attention_products(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    mask: Bool[Array, "B 1 T S"],
) -> Float[Array, "B T N H"]:
    """Example and head as one axis, so that XLA's CPU backend sees plain batched products."""
    b, kv_heads = k.shape[:2]
    q = rearrange(q, "b t (k g) h -> (b k) (g t) h", k=kv_heads)
    k, v = (rearrange(x, "b k s h -> (b k) s h") for x in (k, v))
    scores = jnp.einsum("xth,xsh->xts", q, k, preferred_element_type=jnp.float32)
    scores = scores * jnp.float32(q.shape[-1] ** -0.5)
    scores = rearrange(scores, "(b k) (g t) s -> b (k g) t s", b=b, t=mask.shape[2])
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    weights = rearrange(weights, "b (k g) t s -> (b k) (g t) s", k=kv_heads)
    z = jnp.einsum("xts,xsh->xth", weights, v)
    return rearrange(z, "(b k) (g t) h -> b t (k g) h", b=b, t=mask.shape[2])


def layer_mask(attend: Attend, window: Int[Array, ""] | None) -> Bool[Array, "B 1 T S"]:
    """The causal mask, cut to the layer's sliding window where the model has one."""
    if window is None:
        return attend.mask
    distance = attend.positions[:, :, None] - attend.key_positions[:, None, :]
    return attend.mask & (distance < window)[:, None]


def token_positions(mask: Bool[Array, "B T"]) -> Int[Array, "B T"]:
    """Positions that count real tokens only: the same for left- and right-padded rows."""
    return jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)


def make_attend(config: DecoderConfig, mask: Bool[Array, "B T"], cache: KVCache | None) -> Attend:
    """Positions, rotation and the causal mask of a call, made once for all layers."""
    if cache is None:
        positions = key_positions = token_positions(mask)
        filled, slot = mask, None
    else:
        start = jnp.sum(cache.filled, axis=1, dtype=jnp.int32)
        positions = token_positions(mask) + start[:, None]
        slot, zero = cache.length, jnp.zeros((), jnp.int32)
        key_positions = jax.lax.dynamic_update_slice(cache.positions, positions, (zero, slot))
        filled = jax.lax.dynamic_update_slice(cache.filled, mask, (zero, slot))
    causal = key_positions[:, None, :] <= positions[:, :, None]
    frequencies, factor = rope_frequencies(config.rope, config.head_dim, key_positions.shape[1])
    return Attend(
        positions=positions,
        key_positions=key_positions,
        filled=filled,
        mask=(causal & filled[:, None, :])[:, None],
        rotation=rope_tables(positions, frequencies, factor),
        slot=slot,
    )


def tree_attend(
    config: DecoderConfig,
    positions: Int[Array, "B T"],
    ancestors: Bool[Array, "B T T"],
    slot: Int[Array, ""] | None = None,
    context: int | None = None,
) -> Attend:
    """Attention in rows that hold several texts as a tree: a token sees its ancestors and itself.

    `positions` are depths in the tree: a text gives the same values as in a row of its own, as
    long as it is within the context that the model was trained on. slot: where a cache that is
    given with it takes this call's keys; context: see `rope_frequencies`.
    """
    frequencies, factor = rope_frequencies(config.rope, config.head_dim, context)
    return Attend(
        positions=positions,
        key_positions=positions,
        filled=jnp.ones(positions.shape, bool),
        mask=ancestors[:, None],
        rotation=rope_tables(positions, frequencies, factor),
        slot=slot,
    )


def new_cache(config: DecoderConfig, batch: int, slots: int, dtype: jnp.dtype) -> KVCache:
    """An empty cache of `slots` positions for `batch` rows."""
    shape = (config.n_layers, batch, config.n_kv_heads, slots, config.head_dim)
    return KVCache(
        keys=jnp.zeros(shape, dtype),
        values=jnp.zeros(shape, dtype),
        positions=jnp.zeros((batch, slots), jnp.int32),
        filled=jnp.zeros((batch, slots), bool),
        length=jnp.zeros((), jnp.int32),
    )


def _keep(taps: Taps, inputs: PyTree, context: PyTree) -> PyTree:
    return {}


def keep_sites(sites: tuple[str, ...]) -> Reduce:
    """A reduction that returns the named sites whole. Raises ValueError for an unknown name."""
    if unknown := [site for site in sites if site not in SITES]:
        raise ValueError(f"unknown site {unknown[0]!r}; the sites are {', '.join(SITES)}")
    wanted = tuple(site for site in sites if site in LAYER_SITES)
    if not wanted:
        return _keep

    def reduce(taps: Taps, inputs: PyTree, context: PyTree) -> PyTree:
        return {site: taps[site] for site in wanted}

    return reduce


def run_decoder(
    config: DecoderConfig,
    params: PyTree,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"] | Attend,
    *,
    reduce: Reduce = _keep,
    layer_inputs: PyTree = None,
    context: PyTree = None,
    cache: KVCache | None = None,
    unroll: bool = False,
    layout: Layout | None = None,
    edit: Edit | None = None,
) -> Output:
    """The pure core under `forward`, capture, generation and training; jit it where it is used.

    Args:
      mask: True at real tokens, padding on the left or on the right; or who sees whom.
      reduce: what each layer returns; sees that layer's slice of `layer_inputs` and `context`.
      cache: filled slots of earlier tokens; this call's tokens are appended.
      layout: of a model whose parameters lie on a mesh.
      edit: replaces the value of `mlp_gate_act` in every layer.
    """
    attend = mask if isinstance(mask, Attend) else make_attend(config, mask, cache)
    kv = None if cache is None else (cache.keys, cache.values)
    unroll = unroll or isinstance(params["layers"], tuple)
    module = Decoder(config, reduce, unroll, layout, edit)
    values: Any = module.apply({"params": params}, tokens, attend, kv, layer_inputs, context)
    hidden, embeddings, taps, kv = values
    if cache is not None:
        grown = cache.length + jnp.asarray(tokens.shape[1], jnp.int32)
        cache = KVCache(kv[0], kv[1], attend.key_positions, attend.filled, grown)
    return Output(embeddings, hidden, taps, cache)


def unembed(
    params: PyTree, hidden: Float[Array, "B *T D"], layout: Layout | None = None
) -> Float[Array, "B *T V"]:
    """Logits in float32 from hidden states after the final norm; tied or own output matrix."""
    kernel = params["lm_head"]["kernel"] if "lm_head" in params else params["embed"]["embedding"].T
    if layout is None or not layout.splits_tables:
        return (hidden @ kernel).astype(jnp.float32)
    between = (None,) * (hidden.ndim - 2)
    hidden = layout.constrain(hidden, "rows", *between, "embed")
    logits = jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)  # summed over devices
    logits = layout.constrain(logits, "rows", *between, "vocab")
    return layout.constrain(logits, "batch", *between, None)


def init_params(config: DecoderConfig, key: Array, dtype: jnp.dtype = jnp.float32) -> PyTree:
    """Random parameters (normal, `initializer_range`), stacked over layers."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    attend = make_attend(config, jnp.ones((1, 2), bool), None)
    params = Decoder(config, _keep).init(key, tokens, attend, None, None, None)["params"]
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)
