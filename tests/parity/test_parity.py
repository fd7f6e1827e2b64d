"""Our decoder against the torch implementation, per layer and per tap, on every family.

Tolerances are those of the design: 1e-5 per layer and 1e-4 on logits, of the largest reference
value, float32 and eager attention. They are never relaxed.
"""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_models import CASES, padded_batch, relative_error, torch_generate, torch_taps
from transformers import AutoModelForCausalLM, PreTrainedModel

from bridgex_jax.models import Model, forward, generate, load_model
from bridgex_jax.models.config import DecoderConfig
from bridgex_jax.models.decoder import GLOBAL_SITES, SITES
from bridgex_jax.models.rope import rope_frequencies
from bridgex_jax.models.stopping import stop_at_ids
from bridgex_jax.models.weights import save_model

NEW_TOKENS = 12
PAST_CONTEXT = [name for name in CASES if "past its context" in name]
# Generation adds the cache to what the forward pass shows: one case for every shape of it.
GENERATED = [
    "llama 2 (MHA)",
    "llama 2, linear (MQA)",
    "llama 3.2 (tied)",
    "mistral 0.1 (window)",
    "mistral nemo (head_dim)",
    "qwen 2 (windows)",
    "qwen 2.5, yarn",
    "qwen 3 (tied, head_dim)",
]


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    """(name, torch model, our model) of a case: written by transformers, read by load_model."""
    return request.param, *build_pair(request.param, tmp_path_factory.mktemp("model"))


def build_pair(name: str, directory: Path) -> tuple[PreTrainedModel, Model]:
    reference = CASES[name].build()
    return reference, load_model(CASES[name].save(reference, directory), quiet=True)


@pytest.fixture(scope="module")
def reference_taps(pair):
    tokens, mask = padded_batch()
    return torch_taps(pair[1], tokens, mask)


@pytest.mark.parametrize("form", ["scanned", "unrolled"])
def test_every_layer_of_every_tap_equals_torch(form, pair, reference_taps, parity_errors):
    name, _, model = pair
    tokens, mask = padded_batch()
    logits, taps = forward(
        model, jnp.asarray(tokens), jnp.asarray(mask), taps=SITES, unroll=form == "unrolled"
    )
    expected_logits, expected = reference_taps
    assert set(taps) == set(expected) == set(SITES)
    errors = {}
    for site, reference in expected.items():
        ours = np.asarray(taps[site])
        assert ours.shape == reference.shape, site
        if site in GLOBAL_SITES:
            errors[site] = relative_error(ours, reference, mask)
            continue
        for layer in range(model.config.n_layers):
            errors[f"{site} {layer}"] = relative_error(ours[layer], reference[layer], mask)
    on_logits = relative_error(np.asarray(logits), expected_logits, mask)
    parity_errors[name, form] = {"layers": max(errors.values()), "logits": on_logits}
    assert {site: error for site, error in errors.items() if not error <= 1e-5} == {}
    assert on_logits <= 1e-4


@pytest.mark.parametrize("pair", GENERATED, indirect=True)
def test_greedy_generation_with_a_cache_gives_torch_s_tokens(pair):
    _, reference, model = pair
    tokens, mask = padded_batch()
    tokens, mask = tokens[:2], mask[:2]  # torch generates from left-padded rows only
    expected = torch_generate(reference, tokens, mask, NEW_TOKENS)
    ours = _generate(model, tokens, mask)
    np.testing.assert_array_equal(ours, expected)
    padding = (~mask).sum(1)
    right = [np.roll(rows, -shift, 0) for rows, shift in zip(tokens, padding, strict=True)]
    right_mask = [np.roll(row, -shift) for row, shift in zip(mask, padding, strict=True)]
    np.testing.assert_array_equal(_generate(model, np.stack(right), np.stack(right_mask)), expected)


def _generate(model: Model, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    new = generate(
        model,
        jnp.asarray(tokens),
        jnp.asarray(mask),
        max_new_tokens=NEW_TOKENS,
        stops=stop_at_ids((), model.config.vocab_size),
    )
    return np.asarray(new.tokens)


def test_rope_frequencies_are_torch_s_within_rounding(pair):
    name, reference, model = pair
    seq_len = padded_batch()[0].shape[1] if name in PAST_CONTEXT else None
    ours, factor = rope_frequencies(model.config.rope, model.config.head_dim, seq_len)
    rotary = reference.model.rotary_emb  # holds the frequencies of the longest sequence seen
    if seq_len is not None:
        torch_taps(reference, *padded_batch())
    np.testing.assert_allclose(ours, rotary.inv_freq.numpy(), rtol=2.5e-7)
    assert ours.dtype == np.float32
    assert factor == pytest.approx(rotary.attention_scaling, rel=1e-12)


def test_configuration_object_and_file_say_the_same(pair):
    _, reference, model = pair
    assert DecoderConfig.from_hf(reference.config) == model.config
    assert DecoderConfig.from_hf(model.config.to_hf()) == model.config


def test_saved_model_computes_the_same_in_torch(pair, reference_taps, tmp_path):
    model = pair[2]
    save_model(tmp_path, model.config, model.params)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    logits, _ = torch_taps(again, *padded_batch())
    np.testing.assert_array_equal(logits, reference_taps[0])
    ours = load_model(tmp_path, quiet=True)
    assert ours.config == model.config
    assert jax.tree.all(jax.tree.map(np.array_equal, ours.params, model.params))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama 3 (GQA)", lambda c: replace(c, rope=replace(c.rope, theta=1e6))),
        ("llama 3 (GQA)", lambda c: replace(c, norm_eps=1e-6)),
        ("mistral 0.1 (window)", lambda c: replace(c, sliding_window=(17,) * c.n_layers)),
        ("qwen 2.5, yarn", lambda c: replace(c, rope=replace(c.rope, beta_fast=16.0))),
    ],
    ids=["base", "eps", "window", "yarn"],
)
def test_a_small_mistake_in_the_configuration_is_far_above_the_tolerance(name, change, tmp_path):
    reference, model = build_pair(name, tmp_path)
    tokens, mask = padded_batch()
    _, expected = torch_taps(reference, tokens, mask)
    wrong = replace(model, config=change(model.config))
    _, taps = forward(wrong, jnp.asarray(tokens), jnp.asarray(mask), taps=("resid_post",))
    first = np.asarray(taps["resid_post"])[0], expected["resid_post"][0]
    assert relative_error(*first, mask) > 1e-4


def test_the_two_forms_are_two_programs(tmp_path):
    _, model = build_pair("llama 3 (GQA)", tmp_path)
    tokens, mask = (jnp.asarray(array) for array in padded_batch())
    programs = {
        unroll: str(
            jax.make_jaxpr(lambda m, unroll=unroll: forward(m, tokens, mask, unroll=unroll))(model)
        )
        for unroll in (False, True)
    }
    assert " scan[" in programs[False]
    assert " scan[" not in programs[True]


def test_bfloat16_parameters_give_nearly_the_same_in_float32_logits(tmp_path):
    reference, exact = build_pair("qwen 3 (tied, head_dim)", tmp_path)
    rounded = load_model(tmp_path, dtype="bfloat16", quiet=True)
    tokens, mask = padded_batch()
    logits, taps = forward(rounded, jnp.asarray(tokens), jnp.asarray(mask), taps=("resid_post",))
    assert (logits.dtype, taps["resid_post"].dtype) == (jnp.float32, jnp.bfloat16)
    expected, _ = torch_taps(reference, tokens, mask)
    assert relative_error(np.asarray(logits), expected, mask) < 0.1
    assert exact.params["final_norm"]["scale"].dtype == jnp.float32
