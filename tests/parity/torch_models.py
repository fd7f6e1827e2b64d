"""Tiny random torch models of every family, and what passes through them: the reference of parity.

Each case takes the options of a released configuration and shrinks the sizes. All parameters are
random, norms and biases too, and larger than usual, so that a wrong base, eps or window shows.
Axis letters: L layer, B batch, T token, D embed, N head, H head_dim, V vocab.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

TOKENS = 80
torch.set_num_threads(1)  # the models are tiny
_SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
    "attn_implementation": "eager",
}


@dataclass(frozen=True)
class Case:
    """A family with the options of one release; `shard` limits the size of a weight file."""

    model_type: str
    options: dict[str, Any]
    shard: str = "5GB"

    def build(self) -> PreTrainedModel:
        """The random model, float32, in evaluation mode."""
        torch.manual_seed(0)
        config = AutoConfig.for_model(self.model_type, **(_SIZES | self.options))
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name:
                    parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
                elif name.endswith("bias"):
                    parameter.copy_(0.3 * torch.randn_like(parameter))
        return model

    def save(self, model: PreTrainedModel, directory: Path) -> Path:
        """Writes the model as its authors would."""
        model.save_pretrained(directory, max_shard_size=self.shard)
        return directory


def _rope(rope_type: str, rope_theta: float = 10000.0, **parameters: Any) -> dict[str, Any]:
    return {
        "rope_parameters": {"rope_type": rope_type, "rope_theta": rope_theta, **parameters},
    }


_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LONG = {"max_position_embeddings": 131072}
_LONGROPE = {
    "factor": 8.0,
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [1.0 + 2.0 * i for i in range(8)],
    "original_max_position_embeddings": 64,
}
_YARN = {"factor": 4.0, "original_max_position_embeddings": 32768}
_YARN_ALL = {"factor": 40.0, "original_max_position_embeddings": 4096, "beta_fast": 16.0}
_YARN_ALL |= {"beta_slow": 2.0, "mscale": 1.0, "mscale_all_dim": 0.7, "truncate": False}
_WINDOW = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
_TIED = {"tie_word_embeddings": True}

CASES = {
    "llama 2 (MHA)": Case("llama", {"num_key_value_heads": 4, "rms_norm_eps": 1e-5}),
    "llama 2, linear (MQA)": Case(
        "llama", {"num_key_value_heads": 1, **_rope("linear", factor=4.0)}, shard="60KB"
    ),
    "llama 2, dynamic past its context": Case(
        "llama", {"max_position_embeddings": 48, **_rope("dynamic", factor=2.0)}
    ),
    "llama, yarn with mscale": Case(
        "llama", _rope("yarn", **_YARN_ALL) | {"max_position_embeddings": 163840}
    ),
    "llama, longrope past its context": Case("llama", _rope("longrope", **_LONGROPE)),
    "llama, all biases": Case("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama 3 (GQA)": Case("llama", {"rms_norm_eps": 1e-5, **_rope("default", 500000.0)}),
    "llama 3.1, shrunk context": Case(
        "llama",
        _rope("llama3", 500000.0, factor=8.0, original_max_position_embeddings=64, **_LLAMA3),
        shard="60KB",
    ),
    "llama 3.2 (tied)": Case(
        "llama",
        _TIED
        | _LONG
        | _rope("llama3", 500000.0, factor=32.0, original_max_position_embeddings=8192, **_LLAMA3),
    ),
    "mistral 0.1 (window)": Case("mistral", {"sliding_window": 16}),
    "mistral 0.3": Case("mistral", {"sliding_window": None, **_rope("default", 1e6)}),
    "mistral nemo (head_dim)": Case(
        "mistral", {"sliding_window": None, "head_dim": 24, **_rope("default", 1e6)}
    ),
    "qwen 2 (tied)": Case("qwen2", _TIED | _rope("default", 1e6)),
    "qwen 2 (windows)": Case("qwen2", _WINDOW),
    "qwen 2.5, yarn": Case("qwen2", _LONG | _rope("yarn", 1e6, **_YARN), shard="60KB"),
    "qwen 3 (tied, head_dim)": Case("qwen3", {"head_dim": 32, **_TIED, **_rope("default", 1e6)}),
    "qwen 3, yarn (windows, biases)": Case(
        "qwen3",
        {"head_dim": 16, "attention_bias": True, **_WINDOW, **_LONG, **_rope("yarn", 1e6, **_YARN)},
    ),
}


def padded_batch(tokens: int = TOKENS) -> tuple[np.ndarray, np.ndarray]:
    """Token ids [B, T] and mask [B, T] of three rows: full, padded left, padded right."""
    ids = np.random.default_rng(0).integers(2, _SIZES["vocab_size"], (3, tokens), np.int32)
    mask = np.ones((3, tokens), bool)
    mask[1, : tokens // 5], mask[2, -(tokens // 5) :] = False, False
    return np.where(mask, ids, _SIZES["pad_token_id"]), mask


def torch_taps(
    model: PreTrainedModel, tokens: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits [B, T, V] and what hooks see at every site, stacked to [L, B, T, …]."""
    seen: dict[str, list[torch.Tensor]] = {}
    handles = []

    def tap(module: torch.nn.Module, at_input: str | None, at_output: str | None) -> None:
        def hook(_module: Any, inputs: tuple, output: torch.Tensor) -> None:
            for site, value in ((at_input, inputs[0]), (at_output, output)):
                if site is not None:
                    seen.setdefault(site, []).append(value.clone())

        handles.append(module.register_forward_hook(hook))

    tap(model.model.embed_tokens, None, "embeddings")
    tap(model.model.norm, None, "final_norm")
    for layer in model.model.layers:
        tap(layer, "resid_pre", "resid_post")
        tap(layer.input_layernorm, None, "attn_in")
        tap(layer.self_attn.o_proj, "z", "attn_out")
        tap(layer.post_attention_layernorm, "resid_mid", "mlp_in")
        tap(layer.mlp.gate_proj, None, "mlp_pre")
        tap(layer.mlp.up_proj, None, "mlp_pre_linear")
        tap(layer.mlp.act_fn, None, "mlp_gate_act")
        tap(layer.mlp.down_proj, "mlp_act", "mlp_out")
    positions = np.maximum(np.cumsum(mask, 1) - 1, 0)
    with torch.no_grad():
        logits = model(
            input_ids=torch.tensor(tokens, dtype=torch.long),
            attention_mask=torch.tensor(mask, dtype=torch.long),
            position_ids=torch.tensor(positions, dtype=torch.long),
            use_cache=False,
        ).logits
    for handle in handles:
        handle.remove()
    taps = {site: np.stack([value.numpy() for value in values]) for site, values in seen.items()}
    heads = model.config.num_attention_heads
    taps["z"] = taps["z"].reshape(*taps["z"].shape[:-1], heads, -1)
    return logits.numpy(), {
        site: value[0] if site in ("embeddings", "final_norm") else value
        for site, value in taps.items()
    }


def torch_generate(
    model: PreTrainedModel, tokens: np.ndarray, mask: np.ndarray, new_tokens: int
) -> np.ndarray:
    """Greedy continuation [B, new_tokens] with torch's KV cache; rows are padded on the left."""
    output = model.generate(
        input_ids=torch.tensor(tokens, dtype=torch.long),
        attention_mask=torch.tensor(mask, dtype=torch.long),
        max_new_tokens=new_tokens,
        do_sample=False,
        use_cache=True,
        eos_token_id=None,
        pad_token_id=_SIZES["pad_token_id"],
    )
    return output[:, tokens.shape[1] :].numpy()


def relative_error(ours: np.ndarray, reference: np.ndarray, mask: np.ndarray) -> float:
    """max|Δ| ÷ max|reference| over real tokens; both [B, T, …]."""
    return float(np.abs(ours - reference)[mask].max() / np.abs(reference)[mask].max())
