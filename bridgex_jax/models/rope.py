"""Rotary position embedding: frequencies under every scaling in use, and the rotation.

After transformers' modeling_rope_utils (RoFormer, arXiv 2104.09864; YaRN, 2309.00071; LongRoPE,
2402.13753; Llama 3.1's own), rounding where it rounds, so that angles agree at long positions too.
Axis letters: B batch, T token, N head, H head_dim.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bridgex_jax.models.config import RopeConfig

LENGTH_DEPENDENT = ("dynamic", "longrope")  # frequencies change with the length of the sequence


def rope_frequencies(
    rope: RopeConfig, head_dim: int, seq_len: int | None = None
) -> tuple[Float[np.ndarray, " H2"], float]:
    """Inverse frequencies in radians a token (float32, H/2 of them) and the factor on cos and sin.

    `seq_len` is the number of positions in use. It matters only for the kinds in LENGTH_DEPENDENT;
    None means within the context of pretraining.
    """
    inverse = 1 / _periods(rope.theta, head_dim)
    factor = np.float32(rope.factor or 1.0)
    if rope.type == "default":
        return inverse, 1.0
    if rope.type == "linear":
        return inverse / factor, 1.0
    if rope.type == "dynamic":
        return _dynamic(rope, head_dim, seq_len), 1.0
    if rope.type == "llama3":
        return _llama3(rope, inverse), 1.0
    if rope.type == "yarn":
        return _yarn(rope, head_dim), _yarn_attention_factor(rope)
    if rope.type == "longrope":
        return _longrope(rope, head_dim, seq_len)
    raise ValueError(f"unknown RoPE scaling {rope.type!r}")


def rope_tables(
    positions: Int[Array, "B T"], inv_freq: Float[np.ndarray, " H2"], attention_factor: float
) -> tuple[Float[Array, "B T 1 H2"], Float[Array, "B T 1 H2"]]:
    """Cosine and sine of every position, float32; the same for all layers."""
    frequencies = jnp.asarray(inv_freq, jnp.float32)[None, None, None, :]
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
    scale = jnp.float32(attention_factor)
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def rotate(
    x: Float[Array, "B T N H"], tables: tuple[Float[Array, "B T 1 H2"], Float[Array, "B T 1 H2"]]
) -> Float[Array, "B T N H"]:
    """Rotates dimension i with i + H/2, as Hugging Face does: in float32, back to x's dtype."""
    cos, sin = tables
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def apply_rope(
    x: Float[Array, "B T N H"],
    positions: Int[Array, "B T"],
    inv_freq: Float[np.ndarray, " H2"],
    attention_factor: float,
) -> Float[Array, "B T N H"]:
    """`rotate` with the tables of `positions`."""
    return rotate(x, rope_tables(positions, inv_freq, attention_factor))


def _exponents(head_dim: int) -> Float[np.ndarray, " H2"]:
    return np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)


def _periods(theta: float, head_dim: int) -> Float[np.ndarray, " H2"]:
    """theta^(2i/H), rounded once to float32 as torch's pow is."""
    return np.power(np.float64(theta), _exponents(head_dim).astype(np.float64)).astype(np.float32)


def _dynamic(rope: RopeConfig, head_dim: int, seq_len: int | None) -> Float[np.ndarray, " H2"]:
    """NTK-aware: the base grows once the sequence is longer than the context."""
    assert rope.factor is not None
    length = max(seq_len or 0, rope.max_position_embeddings)
    growth = rope.factor * length / rope.max_position_embeddings - (rope.factor - 1)
    return 1 / _periods(rope.theta * growth ** (head_dim / (head_dim - 2)), head_dim)


def _llama3(rope: RopeConfig, inverse: Float[np.ndarray, " H2"]) -> Float[np.ndarray, " H2"]:
    """Llama 3.1: long wavelengths divided by `factor`, short ones kept, linear in between."""
    assert rope.factor and rope.low_freq_factor and rope.high_freq_factor
    context = rope.original_max_position_embeddings
    assert context is not None
    low, high = np.float32(rope.low_freq_factor), np.float32(rope.high_freq_factor)
    factor = np.float32(rope.factor)
    wavelength = np.float32(2 * math.pi) / inverse
    smooth = (np.float32(context) / wavelength - low) / np.float32(
        rope.high_freq_factor - rope.low_freq_factor
    )
    between = (1 - smooth) * inverse / factor + smooth * inverse
    scaled = np.where(
        wavelength > np.float32(context / rope.low_freq_factor), inverse / factor, between
    )
    return np.where(wavelength < np.float32(context / high), inverse, scaled).astype(np.float32)


def _yarn(rope: RopeConfig, head_dim: int) -> Float[np.ndarray, " H2"]:
    """YaRN, section 3.2 (NTK by parts): slow dimensions interpolated, fast ones kept."""
    assert rope.factor and rope.beta_fast and rope.beta_slow
    context = rope.original_max_position_embeddings
    assert context is not None

    def dimension(rotations: float) -> float:
        return head_dim * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low if high != low else 0.001
    ramp = (np.arange(head_dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(width)
    extrapolated = 1 - np.clip(ramp, 0, 1)
    periods = _periods(rope.theta, head_dim)
    return 1 / (np.float32(rope.factor) * periods) * (1 - extrapolated) + 1 / periods * extrapolated


def _yarn_attention_factor(rope: RopeConfig) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor

    def mscale(weight: float) -> float:
        return (
            1.0
            if rope.factor is None or rope.factor <= 1
            else 0.1 * weight * math.log(rope.factor) + 1
        )

    if rope.mscale and rope.mscale_all_dim:
        return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    return mscale(1.0)


def _longrope(
    rope: RopeConfig, head_dim: int, seq_len: int | None
) -> tuple[Float[np.ndarray, " H2"], float]:
    """One set of factors within the context of pretraining, another beyond it."""
    assert rope.factor is not None and rope.original_max_position_embeddings is not None
    context = rope.original_max_position_embeddings
    factors = rope.long_factor if (seq_len or 0) > context else rope.short_factor
    attention_factor = rope.attention_factor
    if attention_factor is None:
        growth = math.log(rope.factor) / math.log(context)
        attention_factor = 1.0 if rope.factor <= 1 else math.sqrt(1 + growth)
    return 1 / (np.asarray(factors, np.float32) * _periods(rope.theta, head_dim)), attention_factor
