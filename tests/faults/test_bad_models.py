"""Models that cannot be loaded faithfully: one line each, with file, line and remedy."""

import contextlib
import json
import os
import resource

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bridgex_jax.errors import InputError
from bridgex_jax.models.config import DecoderConfig, read_config
from bridgex_jax.models.load import load_model
from bridgex_jax.models.weights import save_model, weight_table

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
VALUES = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "max_position_embeddings": 64,
    "initializer_range": 0.02,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "attention_bias": False,
    "mlp_bias": False,
    "rope_theta": 10000.0,
}
QWEN = VALUES | {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "attention_bias": True,
    "use_sliding_window": False,
    "sliding_window": None,
    "layer_types": ["full_attention"] * 2,
}
CONFIG = DecoderConfig.from_hf(VALUES)


def params() -> dict:
    tree: dict = {}
    for leaf in weight_table(CONFIG):
        shape = (CONFIG.n_layers, *leaf.shape) if "{" in leaf.name else leaf.shape
        node = tree
        for key in leaf.path[:-1]:
            node = node.setdefault(key, {})
        node[leaf.path[-1]] = np.ones(shape, np.float32)
    return tree


@pytest.fixture
def directory(tmp_path):
    save_model(tmp_path / "model", CONFIG, params())
    return tmp_path / "model"


def error_of(call, *args, **kwargs) -> str:
    """The one line that `call` is refused with."""
    with pytest.raises(InputError) as raised:
        call(*args, **kwargs)
    message = str(raised.value)
    assert "\n" not in message
    assert raised.value.remedy
    return message


def write_config(directory, values) -> None:
    text = json.dumps(values, indent=2)
    (directory / "config.json").write_text(text, encoding="utf-8")


def rewrite(directory, change) -> None:
    tensors = load_file(directory / SINGLE)
    change(tensors)
    save_file(tensors, directory / SINGLE)


@pytest.mark.parametrize(
    ("change", "attribute", "says"),
    [
        ({"model_type": "gpt_neox"}, "model_type", "unknown architecture"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures", "unknown arch"),
        ({"my_new_norm": 3}, "my_new_norm", "unknown configuration attribute 'my_new_norm'"),
        ({"sliding_window": 16}, "sliding_window", "does not implement"),
        ({"is_causal": False}, "is_causal", "does not implement"),
        ({"pretraining_tp": 2}, "pretraining_tp", "does not implement"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor", "does not implement"),
        ({"quantization_config": {"bits": 4}}, "quantization_config", "does not implement"),
        ({"hidden_act": "gelu_new"}, "hidden_act", "not supported"),
        ({"hidden_size": "8"}, "hidden_size", "integer"),
        ({"num_key_value_heads": 3}, "num_key_value_heads", "cannot share"),
        ({"head_dim": 5}, "head_dim", "even"),
        ({"rms_norm_eps": 0}, "rms_norm_eps", "above 0"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings", "true or false"),
        ({"attention_bias": "no"}, "attention_bias", "true or false"),
        ({"rope_scaling": {"type": "su", "factor": 2.0}}, "rope_scaling", "unknown RoPE"),
        ({"rope_scaling": "linear"}, "rope_scaling", "object"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling", "missing factor"),
        ({"rope_scaling": {"type": "linear", "factor": -2}}, "factor", "above 0"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_quick": 1}},
            "rope_scaling",
            "unknown beta_quick",
        ),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
            "rope_theta",
            "two values of rope_theta",
        ),
        ({"auto_map": {"AutoModelForCausalLM": "own.Model"}}, "auto_map", "never runs"),
        ({"eos_token_id": "</s>"}, "eos_token_id", "token id"),
    ],
)
def test_configuration_names_attribute_file_and_line(directory, change, attribute, says):
    write_config(directory, VALUES | change)
    file = directory / "config.json"
    lines = file.read_text(encoding="utf-8").splitlines()
    line = next(n for n, text in enumerate(lines, 1) if f'"{attribute}":' in text)
    message = error_of(load_model, directory)
    assert message.startswith(f"{file}:{line}: ")
    assert says in message


@pytest.mark.parametrize(
    "change",
    [
        {"layer_types": ["full_attention", "sliding_attention"]},
        {"layer_types": ["full_attention"]},
        {"layer_types": ["full_attention", "chunked_attention"]},
    ],
)
def test_qwen_layer_types_must_fit(directory, change):
    write_config(directory, QWEN | change)
    assert "layer_types" in error_of(read_config, directory / "config.json")


def test_value_that_transformers_refuses_is_one_line(directory):
    values = {k: v for k, v in VALUES.items() if k != "head_dim"}
    write_config(directory, values | {"num_attention_heads": 0})
    assert "config.json" in error_of(load_model, directory)


def test_auto_map_of_a_tokenizer_is_ignored(directory):
    write_config(directory, VALUES | {"auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}})
    assert load_model(directory).config == CONFIG


@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        (POINTER, 1, "git-LFS pointer"),
        ('{\n "a": 1,\n}', 3, "not JSON"),
        ("[1]", 1, "not a JSON object"),
    ],
)
def test_configuration_file_that_is_none(directory, content, line, says):
    (directory / "config.json").write_text(content, encoding="utf-8")
    message = error_of(load_model, directory)
    assert message.startswith(f"{directory / 'config.json'}:{line}: ")
    assert says in message


def test_missing_configuration_and_binary_configuration(directory):
    (directory / "config.json").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in error_of(load_model, directory)
    (directory / "config.json").unlink()
    assert "No such file" in error_of(load_model, directory)


def test_all_tensors_that_do_not_match_are_in_one_line(directory):
    def change(tensors):
        tensors.pop("model.norm.weight")
        tensors["model.layers.0.mlp.extra.weight"] = np.ones(2, np.float32)
        tensors["model.layers.1.mlp.up_proj.weight"] = np.ones((12, 9), np.float32)
        tensors["model.layers.0.mlp.up_proj.weight"] = np.ones((12, 8), np.int8)

    rewrite(directory, change)
    message = error_of(load_model, directory)
    for part in (
        str(directory),
        "1 missing: model.norm.weight",
        "1 unexpected: model.layers.0.mlp.extra.weight",
        "1 wrong shape: model.layers.1.mlp.up_proj.weight [12, 9], expected [12, 8]",
        "model.layers.0.mlp.up_proj.weight I8",
    ):
        assert part in message


def test_a_long_list_of_tensors_is_cut(directory):
    rewrite(directory, lambda tensors: [tensors.pop(name) for name in list(tensors)[1:]])
    message = error_of(load_model, directory)
    assert "more" in message
    assert len(message) < 600


def test_a_tied_head_that_differs_is_refused(directory):
    rewrite(directory, lambda t: t.update({"lm_head.weight": np.zeros((11, 8), np.float32)}))
    assert "lm_head.weight differs" in error_of(load_model, directory)


@pytest.mark.parametrize("kept", [0, 5, 60, -1])
def test_a_truncated_file_is_named_with_its_sizes(directory, kept):
    file = directory / SINGLE
    whole = file.read_bytes()
    file.write_bytes(whole[:kept])
    message = error_of(load_model, directory)
    assert message.startswith(str(file))
    assert "truncated" in message or "empty" in message
    if kept == -1:
        assert f"{len(whole):,}" in message
        assert f"{len(whole) - 1:,}" in message


@pytest.mark.parametrize(
    ("content", "says"),
    [(POINTER.encode(), "git-LFS pointer"), (b"\x80\x02" * 40, "not a safetensors file")],
    ids=["pointer", "pickle"],
)
def test_a_file_that_is_no_safetensors(directory, content, says):
    (directory / SINGLE).write_bytes(content)
    assert says in error_of(load_model, directory)


def shard(directory, **files) -> None:
    tensors = load_file(directory / SINGLE)
    (directory / SINGLE).unlink()
    index = {"weight_map": dict.fromkeys(tensors, "model-2.safetensors")}
    index["weight_map"]["model.norm.weight"] = "model-1.safetensors"
    index["weight_map"] |= files
    (directory / INDEX).write_text(json.dumps(index), encoding="utf-8")
    save_file(
        {k: v for k, v in tensors.items() if k != "model.norm.weight"},
        directory / "model-2.safetensors",
    )


def test_a_missing_shard_is_named(directory):
    shard(directory)
    message = error_of(load_model, directory)
    assert "1 of 2 shards missing: model-1.safetensors" in message
    assert INDEX in message


@pytest.mark.parametrize("name", ["../outside.safetensors", "model.bin"])
def test_an_index_cannot_name_files_elsewhere_or_pickles(directory, name):
    shard(directory, other=name)
    assert name in error_of(load_model, directory)


@pytest.mark.parametrize("content", [POINTER, "{", '{"weight_map": 3}'])
def test_a_damaged_index_is_named(directory, content):
    (directory / SINGLE).unlink()
    (directory / INDEX).write_text(content, encoding="utf-8")
    assert INDEX in error_of(load_model, directory)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickled_weights_are_refused_and_never_opened(directory, name):
    (directory / SINGLE).rename(directory / name)
    (directory / name).chmod(0)
    message = error_of(load_model, directory)
    assert name in message
    assert "pickles" in message
    assert "save_pretrained" in message


def test_a_directory_without_weights_says_what_belongs_there(directory):
    (directory / SINGLE).unlink()
    assert SINGLE in error_of(load_model, directory)


def test_an_unknown_dtype_is_refused(directory):
    assert "bfloat16" in error_of(load_model, directory, dtype="int8")


def test_weights_that_overflow_float16_are_refused(directory):
    rewrite(directory, lambda tensors: tensors["model.norm.weight"].fill(1e6))
    message = error_of(load_model, directory, dtype="float16")
    assert "model.norm.weight" in message
    assert "bfloat16" in message


def test_a_model_without_a_tokenizer_loads_and_says_so_when_asked(directory):
    model = load_model(directory)
    assert "no tokenizer" in error_of(lambda: model.tokenizer)


@pytest.mark.parametrize(
    ("content", "says"), [(POINTER, "git-LFS"), ("{", "not JSON"), ("{}", "tokenizer")]
)
def test_a_damaged_tokenizer_is_one_line(directory, content, says):
    (directory / "tokenizer.json").write_text(content, encoding="utf-8")
    model = load_model(directory)
    assert says in error_of(lambda: model.tokenizer)


@contextlib.contextmanager
def files_no_larger_than(size):
    """The kernel refuses to write more, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_old_model_or_none(directory, tmp_path):
    before = {file: file.read_bytes() for file in directory.iterdir()}
    for place in (directory, tmp_path / "new"):
        with files_no_larger_than(1000):
            message = error_of(save_model, place, CONFIG, params())
        assert "MB free" in message
        assert str(place) in message
    assert {file: file.read_bytes() for file in directory.iterdir()} == before
    assert os.listdir(tmp_path / "new") == []
