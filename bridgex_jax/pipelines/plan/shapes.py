"""Which model is planned for: its config.json, or a well-known shape by name; never weights.

The named shapes are the public config.json of meta-llama/Meta-Llama-3-8B and -70B,
mistralai/Mistral-7B-Instruct-v0.3, Qwen/Qwen2.5-7B and Qwen/Qwen3-8B on the Hugging Face hub.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bridgex_jax.errors import InputError
from bridgex_jax.models.config import DecoderConfig, read_config
from bridgex_jax.pipelines.inputs import BUILTIN, builtin_directory


def _shape(
    family: str,
    n_layers: int,
    d_model: int,
    d_ff: int,
    heads: tuple[int, int],
    vocab_size: int,
    *,
    theta: float,
    context: int,
    eps: float,
    **own: Any,
) -> dict[str, Any]:
    return {
        "model_type": family,
        "num_hidden_layers": n_layers,
        "hidden_size": d_model,
        "intermediate_size": d_ff,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": 128,
        "vocab_size": vocab_size,
        "rope_theta": theta,
        "max_position_embeddings": context,
        "rms_norm_eps": eps,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "initializer_range": 0.02,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **own,
    }


_LLAMA: dict[str, Any] = {
    "theta": 5e5,
    "context": 8192,
    "eps": 1e-5,
    "attention_bias": False,
    "mlp_bias": False,
}


def _qwen(n_layers: int) -> dict[str, Any]:
    return {
        "theta": 1e6,
        "eps": 1e-6,
        "sliding_window": None,
        "use_sliding_window": False,
        "layer_types": ["full_attention"] * n_layers,
    }


SHAPES = {
    "llama-3-8b": _shape("llama", 32, 4096, 14336, (32, 8), 128256, **_LLAMA),
    "llama-3-70b": _shape("llama", 80, 8192, 28672, (64, 8), 128256, **_LLAMA),
    "mistral-7b": _shape(
        "mistral", 32, 4096, 14336, (32, 8), 32768,
        theta=1e6, context=32768, eps=1e-5, sliding_window=None,
    ),
    "qwen2.5-7b": _shape(
        "qwen2", 28, 3584, 18944, (28, 4), 152064, context=131072, **_qwen(28)
    ),
    "qwen3-8b": _shape(
        "qwen3", 36, 4096, 12288, (32, 8), 151936,
        context=40960, attention_bias=False, **_qwen(36),
    ),
}  # fmt: skip


def find_config(name: str, revision: str | None = None) -> DecoderConfig:
    """A named shape, `builtin`, a directory, or a hub id of which only config.json is fetched.

    Raises InputError where there is none of them.
    """
    if name in SHAPES:
        return DecoderConfig.from_hf(SHAPES[name])
    directory = builtin_directory() if name == BUILTIN else Path(name).expanduser()
    if directory.is_dir():
        return read_config(directory / "config.json")
    if name.count("/") != 1 or name[0] in "./~":
        raise InputError(
            "no such model",
            file=name,
            remedy=f"give a directory, a hub id or one of {', '.join([BUILTIN, *SHAPES])}",
        )
    return read_config(_fetch(name, revision))


def _fetch(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(hub_id, "config.json", revision=revision))
    except LocalEntryNotFoundError as error:
        what = "config.json is not in the hub's cache, and the hub cannot be reached"
        remedy = f"connect, or give a directory or one of {', '.join(SHAPES)}"
        raise InputError(what, file=hub_id, remedy=remedy) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise InputError(
            f"config.json cannot be fetched from the hub: {str(error).splitlines()[0]}",
            file=hub_id,
            remedy="check the name; for a gated model run `hf auth login`",
        ) from error
