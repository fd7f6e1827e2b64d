"""The forward pass: what padding, neighbouring rows and later tokens may not change."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridgex_jax.models import Model, forward
from bridgex_jax.models.config import DecoderConfig
from bridgex_jax.models.decoder import init_params

CONFIG = DecoderConfig.from_hf(
    {
        "model_type": "mistral",
        "vocab_size": 31,
        "hidden_size": 16,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "rope_theta": 10000.0,
        "sliding_window": 5,
    }
)
MASK = np.array([[True] * 9, [False] * 3 + [True] * 6, [True] * 6 + [False] * 3])


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(CONFIG, jax.jit(partial(init_params, CONFIG))(jax.random.key(0)))


def tokens(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, MASK.shape, np.int32)


def run(model, ids, mask=MASK, taps=("resid_post", "mlp_gate_act")):
    logits, values = forward(model, jnp.asarray(ids), jnp.asarray(mask), taps=taps)
    return {"logits": np.asarray(logits)[None], **jax.tree.map(np.asarray, values)}


def test_what_stands_at_padding_and_in_other_rows_changes_no_bit(model):
    first = run(model, tokens())
    other_padding = run(model, np.where(MASK, tokens(), tokens(1)))
    other_rows = run(model, np.where(np.arange(3)[:, None] == 1, tokens(), tokens(1)))
    for site, value in first.items():
        np.testing.assert_array_equal(value[:, MASK], other_padding[site][:, MASK])
        np.testing.assert_array_equal(value[:, 1, 3:], other_rows[site][:, 1, 3:])


def test_padding_on_either_side_gives_the_same_numbers(model):
    left, right = tokens(), tokens()
    right[2, :6] = left[1, 3:]
    first = run(model, np.stack([left[0], left[1], right[2]]))
    for value in first.values():
        np.testing.assert_allclose(value[:, 1, 3:], value[:, 2, :6], rtol=1e-5, atol=1e-5)


def test_a_later_token_changes_nothing_before_it(model):
    changed = tokens()
    changed[0, 5] = (changed[0, 5] + 1) % CONFIG.vocab_size
    before, after = run(model, tokens()), run(model, changed)
    for site, value in before.items():
        np.testing.assert_array_equal(value[:, 0, :5], after[site][:, 0, :5])
        assert np.any(value[:, 0, 5:] != after[site][:, 0, 5:])


def test_taps_are_those_asked_for_in_their_shapes(model):
    taps = ("embeddings", "z", "mlp_gate_act", "final_norm")
    _, values = forward(model, jnp.asarray(tokens()), jnp.asarray(MASK), taps=taps)
    assert {site: value.shape for site, value in values.items()} == {
        "embeddings": (3, 9, 16),
        "z": (2, 3, 9, 4, 6),
        "mlp_gate_act": (2, 3, 9, 20),
        "final_norm": (3, 9, 16),
    }


def test_an_unknown_site_is_refused_by_name(model):
    with pytest.raises(ValueError, match="mlp_gate_akt"):
        run(model, tokens(), taps=("mlp_gate_akt",))
