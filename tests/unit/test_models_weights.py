"""Weights: both directions of the table, shards, dtypes, hash, and where the arrays end up."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bridgex_jax.models.config import DecoderConfig
from bridgex_jax.models.load import load_model
from bridgex_jax.models.sharding import make_layout
from bridgex_jax.models.weights import model_hash, read_weights, save_model, weight_table

TINY = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 13,
    "hidden_size": 8,
    "intermediate_size": 10,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "max_position_embeddings": 64,
    "initializer_range": 0.02,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "rope_theta": 10000.0,
    "attention_bias": True,
    "use_sliding_window": False,
    "sliding_window": None,
    "layer_types": ["full_attention"] * 3,
}
CONFIG = DecoderConfig.from_hf(TINY)


def random_params(config: DecoderConfig = CONFIG) -> dict:
    """A tree of random arrays with the shapes that the table says."""
    rng, params = np.random.default_rng(0), {}
    for leaf in weight_table(config):
        stacked = (config.n_layers, *leaf.shape) if "{" in leaf.name else leaf.shape
        node = params
        for key in leaf.path[:-1]:
            node = node.setdefault(key, {})
        node[leaf.path[-1]] = rng.normal(size=stacked).astype(np.float32)
    return params


@pytest.fixture
def directory(tmp_path):
    save_model(tmp_path / "model", CONFIG, random_params())
    return tmp_path / "model"


def equal(a, b) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def test_saved_parameters_come_back_bit_for_bit(directory):
    assert equal(read_weights(directory, CONFIG), random_params())


def test_kernels_are_torch_s_transposed_with_heads_unfolded(directory):
    stored, params = load_file(directory / "model.safetensors"), random_params()
    q, x = params["layers"]["q"]["kernel"][1], np.arange(8, dtype=np.float32)
    torch_q = stored["model.layers.1.self_attn.q_proj.weight"]
    np.testing.assert_allclose(
        np.einsum("d,dnh->nh", x, q), (torch_q @ x).reshape(4, 6), rtol=1e-5, atol=1e-5
    )
    o, z = params["layers"]["o"]["kernel"][2], np.arange(24, dtype=np.float32)
    torch_o = stored["model.layers.2.self_attn.o_proj.weight"]
    np.testing.assert_allclose(
        np.einsum("nh,nhd->d", z.reshape(4, 6), o), torch_o @ z, rtol=1e-5, atol=1e-5
    )


def test_shards_read_the_same_as_one_file(directory):
    tensors = load_file(directory / "model.safetensors")
    whole = read_weights(directory, CONFIG)
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, some in files.items():
        save_file({name: tensors[name] for name in some}, directory / file)
    index = {"weight_map": {name: file for file, some in files.items() for name in some}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert equal(read_weights(directory, CONFIG), whole)


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("wanted", ["float32", "float16", "bfloat16"])
def test_every_dtype_is_read_as_every_dtype(tmp_path, stored, wanted):
    save_model(tmp_path, CONFIG, random_params(), dtype=stored)
    dtypes = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
    expected = jax.tree.map(lambda a: a.astype(dtypes[stored]).astype(dtypes[wanted]),
                            random_params())  # fmt: skip
    params = read_weights(tmp_path, CONFIG, dtype=wanted)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {wanted}
    assert equal(params, expected)


def test_stored_rotary_frequencies_and_an_equal_tied_head_are_tolerated(tmp_path):
    config = dataclasses.replace(CONFIG, tie_embeddings=True)
    save_model(tmp_path, config, random_params(config))
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(3, np.float32)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    save_file(tensors, tmp_path / "model.safetensors")
    assert "lm_head" not in read_weights(tmp_path, config)


def test_hash_changes_with_weights_and_with_configuration(directory):
    before = model_hash(directory)
    assert len(before) == 64
    assert model_hash(directory) == before
    text = (directory / "config.json").read_text(encoding="utf-8")
    (directory / "config.json").write_text(text.replace("1e-06", "1e-05"), encoding="utf-8")
    with_config = model_hash(directory)
    save_model(directory, CONFIG, jax.tree.map(lambda a: a + 1, random_params()))
    assert len({before, with_config, model_hash(directory)}) == 3


def test_hash_changes_with_the_tokenizer(directory):
    before = model_hash(directory)
    (directory / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert model_hash(directory) != before


def test_a_mesh_gets_the_parameters_replicated(directory):
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    layout = make_layout(CONFIG, mesh)
    for leaf in jax.tree.leaves(read_weights(directory, CONFIG, layout=layout)):
        assert leaf.sharding.mesh == mesh
        assert leaf.is_fully_replicated


def test_a_model_is_a_pytree_with_static_configuration(directory):
    model = load_model(directory)
    assert len(jax.tree.leaves(model)) == len(weight_table(CONFIG))
    doubled = jax.jit(lambda m: jax.tree.map(lambda a: a * 2, m))(model)
    assert doubled.config == model.config
    assert doubled.source == model.source
    np.testing.assert_array_equal(
        doubled.params["final_norm"]["scale"], 2 * model.params["final_norm"]["scale"]
    )


def test_parameters_that_do_not_fit_are_not_written(tmp_path):
    params = random_params()
    with pytest.raises(ValueError, match="do not fit"):
        save_model(tmp_path / "model", CONFIG, {k: v for k, v in params.items() if k != "lm_head"})
    params["final_norm"]["scale"] = np.ones(7, np.float32)
    with pytest.raises(ValueError, match="final_norm/scale"):
        save_model(tmp_path / "model", CONFIG, params)
    assert not (tmp_path / "model").exists()
