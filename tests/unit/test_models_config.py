"""Configuration files of every family: what is read, what is filled in, what comes back."""

import json

import pytest

from bridgex_jax.models.config import DecoderConfig, read_config

# As released (sizes of meta-llama/Llama-2-7b-hf, Llama-3.1-8B, mistralai/Mistral-7B-v0.1,
# Mistral-Nemo-Base-2407, Qwen/Qwen2-7B, Qwen2.5-7B with its documented YaRN, Qwen3-0.6B).
LLAMA2 = {
    "_name_or_path": "meta-llama/Llama-2-7b-hf",
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.31.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
LLAMA31 = LLAMA2 | {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "eos_token_id": [128001, 128008, 128009],
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_key_value_heads": 8,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "vocab_size": 128256,
}
MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.34.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
NEMO = MISTRAL | {
    "attention_dropout": 0.0,
    "head_dim": 128,
    "hidden_size": 5120,
    "num_hidden_layers": 40,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "vocab_size": 131072,
}
QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 131072,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.37.2",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
QWEN25_YARN = QWEN2 | {
    "use_mrope": False,
    "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"},
}
QWEN3 = {
    **QWEN2,
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_size": 1024,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "rope_scaling": None,
    "sliding_window": None,
    "tie_word_embeddings": True,
}
RELEASED = {
    "llama 2": LLAMA2,
    "llama 3.1": LLAMA31,
    "mistral": MISTRAL,
    "nemo": NEMO,
    "qwen 2": QWEN2,
    "qwen 2.5 yarn": QWEN25_YARN,
    "qwen 3": QWEN3,
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_configurations_survive_the_way_to_hugging_face_and_back(name, tmp_path):
    config = DecoderConfig.from_hf(RELEASED[name])
    (tmp_path / "config.json").write_text(json.dumps(config.to_hf()), encoding="utf-8")
    assert read_config(tmp_path / "config.json") == config
    assert hash(config) == hash(DecoderConfig.from_hf(RELEASED[name]))


def test_head_width_is_read_where_it_is_not_d_over_n():
    config = DecoderConfig.from_hf(NEMO)
    assert (config.head_dim, config.d_model // config.n_heads) == (128, 160)
    assert config.sliding_window == (None,) * 40


def test_absent_attributes_come_from_the_family_s_transformers_class():
    bare = {k: v for k, v in QWEN3.items() if k not in ("head_dim", "rope_theta", "rms_norm_eps")}
    config = DecoderConfig.from_hf(bare)
    assert (config.head_dim, config.rope.theta, config.norm_eps) == (128, 10000.0, 1e-6)
    assert DecoderConfig.from_hf(LLAMA2).head_dim == 128
    no_window = {k: v for k, v in MISTRAL.items() if k != "sliding_window"}
    assert DecoderConfig.from_hf(no_window).sliding_window == (4096,) * 32


def test_biases_are_where_the_family_has_them():
    qwen, llama = DecoderConfig.from_hf(QWEN2), DecoderConfig.from_hf(LLAMA31)
    assert (qwen.qkv_bias, qwen.o_bias, qwen.mlp_bias) == (True, False, False)
    assert (llama.qkv_bias, llama.o_bias, llama.mlp_bias) == (False, False, False)
    both = DecoderConfig.from_hf(LLAMA31 | {"attention_bias": True, "mlp_bias": True})
    assert (both.qkv_bias, both.o_bias, both.mlp_bias) == (True, True, True)


def test_qwen_windows_start_at_max_window_layers():
    values = QWEN2 | {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 26}
    assert DecoderConfig.from_hf(values).sliding_window == (None,) * 26 + (64, 64)
    kinds = ["sliding_attention", "full_attention"] * 14
    explicit = values | {"layer_types": kinds}
    assert DecoderConfig.from_hf(explicit).sliding_window == (64, None) * 14


def test_rope_of_transformers_4_and_5_read_the_same():
    scaling = LLAMA31["rope_scaling"] | {"rope_theta": 500000.0}
    without = {k: v for k, v in LLAMA31.items() if k not in ("rope_scaling", "rope_theta")}
    new = DecoderConfig.from_hf(without | {"rope_parameters": scaling})
    assert new.rope == DecoderConfig.from_hf(LLAMA31).rope
    assert new.rope.theta == 500000.0
    assert new.rope.type == "llama3"


def test_yarn_written_with_the_old_key_keeps_its_parameters():
    rope = DecoderConfig.from_hf(QWEN25_YARN).rope
    assert (rope.type, rope.factor, rope.original_max_position_embeddings) == ("yarn", 4.0, 32768)
    assert (rope.beta_fast, rope.beta_slow, rope.truncate) == (32.0, 1.0, True)


def test_several_end_tokens_are_kept():
    assert DecoderConfig.from_hf(LLAMA31).eos_token_ids == (128001, 128008, 128009)
    assert DecoderConfig.from_hf(LLAMA2).eos_token_ids == (2,)
