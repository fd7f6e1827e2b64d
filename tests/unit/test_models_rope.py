"""Rotary embedding: invariants that hold without a reference implementation."""

import jax.numpy as jnp
import numpy as np
import pytest

from bridgex_jax.models.config import RopeConfig
from bridgex_jax.models.rope import apply_rope, rope_frequencies

DEFAULT = RopeConfig(theta=10000.0, type="default", max_position_embeddings=64)
HEAD = 16


def _random(shape: tuple[int, ...]) -> jnp.ndarray:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def test_frequencies_are_the_powers_of_the_base_in_float64():
    ours, factor = rope_frequencies(DEFAULT, HEAD)
    expected = 10000.0 ** -(np.arange(0, HEAD, 2) / HEAD)
    np.testing.assert_allclose(ours, expected, rtol=2e-7)
    assert factor == 1.0


def test_scores_depend_on_the_distance_only():
    inverse, factor = rope_frequencies(DEFAULT, HEAD)
    q, k = _random((1, 8, 2, HEAD)), _random((1, 8, 2, HEAD))
    near, far = (
        jnp.einsum(
            "btnh,bsnh->bnts",
            *(apply_rope(x, jnp.arange(8, dtype=jnp.int32)[None] + start, inverse, factor)
              for x in (q, k)),
        )
        for start in (0, 37)
    )  # fmt: skip
    np.testing.assert_allclose(near, far, atol=1e-4)


def test_rotation_keeps_lengths_and_position_zero_unchanged():
    inverse, factor = rope_frequencies(DEFAULT, HEAD)
    x = _random((2, 5, 3, HEAD))
    positions = jnp.tile(jnp.arange(5, dtype=jnp.int32), (2, 1))
    rotated = apply_rope(x, positions, inverse, factor)
    np.testing.assert_array_equal(rotated[:, 0], x[:, 0])
    np.testing.assert_allclose(
        np.linalg.norm(rotated, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5
    )


def test_rotation_returns_the_dtype_it_was_given():
    inverse, factor = rope_frequencies(DEFAULT, HEAD)
    x = _random((1, 2, 1, HEAD)).astype(jnp.bfloat16)
    assert apply_rope(x, jnp.zeros((1, 2), jnp.int32), inverse, factor).dtype == jnp.bfloat16


def test_linear_scaling_divides_every_frequency():
    linear = RopeConfig(10000.0, "linear", 64, factor=4.0)
    ours, _ = rope_frequencies(linear, HEAD)
    np.testing.assert_array_equal(ours, rope_frequencies(DEFAULT, HEAD)[0] / np.float32(4.0))


def test_dynamic_scaling_starts_past_the_context():
    dynamic = RopeConfig(10000.0, "dynamic", 64, factor=2.0)
    within, _ = rope_frequencies(dynamic, HEAD, 64)
    past, _ = rope_frequencies(dynamic, HEAD, 128)
    np.testing.assert_array_equal(within, rope_frequencies(DEFAULT, HEAD)[0])
    assert np.all(past[1:] < within[1:])


@pytest.mark.parametrize("kind", ["llama3", "yarn"])
def test_fast_frequencies_are_kept_and_slow_ones_divided(kind):
    own = {
        "llama3": {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
        "yarn": {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True},
    }
    rope = RopeConfig(
        500000.0, kind, 131072, factor=8.0, original_max_position_embeddings=8192, **own[kind]
    )
    base, _ = rope_frequencies(RopeConfig(500000.0, "default", 131072), 128)
    ours, _ = rope_frequencies(rope, 128)
    assert ours[0] == base[0]
    np.testing.assert_allclose(ours[-1], base[-1] / 8, rtol=1e-6)
    assert np.all(ours <= base)
    assert np.all(ours >= base / 8 * (1 - 1e-6))
