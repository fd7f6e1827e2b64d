"""The configuration of a decoder, read from and written to Hugging Face's config.json.

Every attribute of the file is on a list: what shapes the computation is read, what is known to be
bookkeeping is skipped, anything else raises. Where a file leaves out an attribute, the value is the
one that the family's transformers configuration class resolves, never a default of ours.
Axis letters: L layer, D embed, F neuron, N/K query/key heads, H head_dim, V vocab.
"""

import copy
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridgex_jax.errors import InputError

ACTIVATIONS = ("silu",)  # all that Llama, Mistral, Qwen2 and Qwen3 release


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding: base, kind of scaling, and the parameters of that kind.

    Names are those of transformers' `rope_parameters` (`theta` is its `rope_theta`); None where the
    kind has no such parameter. `max_position_embeddings` is the model's own: `dynamic` starts to
    rescale beyond it.
    """

    theta: float
    type: str
    max_position_embeddings: int
    factor: float | None = None
    original_max_position_embeddings: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    attention_factor: float | None = None
    truncate: bool | None = None
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None


@dataclass(frozen=True)
class DecoderConfig:
    """Shape and numerics of one decoder: hashable, so static under `jax.jit`; without defaults.

    `family` is Hugging Face's `model_type`. `sliding_window` has one entry a layer: the number of
    tokens that a query sees, itself included, or None for all.
    """

    family: str
    vocab_size: int  # V
    n_layers: int  # L
    d_model: int  # D
    d_ff: int  # F
    n_heads: int  # N
    n_kv_heads: int  # K
    head_dim: int  # H
    norm_eps: float
    activation: str
    tie_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    sliding_window: tuple[int | None, ...]
    rope: RopeConfig
    max_position_embeddings: int
    initializer_range: float
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None

    @classmethod
    def from_hf(cls, source: Any, *, file: str | Path | None = None) -> "DecoderConfig":
        """Reads a config.json's dictionary, or a transformers configuration object.

        `file` is named in errors. Raises InputError for an unknown architecture, an attribute that
        is not on the list, or a value that the decoder does not implement.
        """
        values = dict(source) if isinstance(source, Mapping) else source.to_dict()
        return _from_values(values, file)

    def to_hf(self) -> dict[str, Any]:
        """The config.json of this decoder, complete, so that reading it back needs no default.

        RoPE is written as `rope_theta` and `rope_scaling`: transformers 4 and 5 both read that,
        whereas 4 would ignore `rope_parameters` and silently use theta 10000.
        """
        return _to_values(self)


def plain_llama(
    *,
    vocab_size: int,
    n_layers: int,
    d_model: int,
    d_ff: int,
    n_heads: int,
    n_kv_heads: int,
    context: int,
    initializer_range: float,
    bos_token_id: int,
    eos_token_id: int,
) -> DecoderConfig:
    """A Llama made here: tied embeddings, no biases, no windows, RoPE base 10000, eps 1e-5."""
    return DecoderConfig(
        family="llama",
        vocab_size=vocab_size,
        n_layers=n_layers,
        d_model=d_model,
        d_ff=d_ff,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=d_model // n_heads,
        norm_eps=1e-5,
        activation="silu",
        tie_embeddings=True,
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        qk_norm=False,
        sliding_window=(None,) * n_layers,
        rope=RopeConfig(theta=10000.0, type="default", max_position_embeddings=context),
        max_position_embeddings=context,
        initializer_range=initializer_range,
        bos_token_id=bos_token_id,
        eos_token_ids=(eos_token_id,),
        pad_token_id=None,
    )


@dataclass(frozen=True)
class _Family:
    """What a `model_type` adds to the common attributes, and what its implementation fixes."""

    architecture: str
    reads: tuple[str, ...]
    fixed: tuple[
        tuple[str, Any], ...
    ]  # attributes that it does not read: allowed at this value only
    qk_norm: bool = False


FAMILIES = {
    "llama": _Family(
        "LlamaForCausalLM",
        ("attention_bias", "mlp_bias"),
        (("sliding_window", None), ("use_sliding_window", False)),
    ),
    "mistral": _Family(
        "MistralForCausalLM",
        ("sliding_window",),
        (("attention_bias", False), ("mlp_bias", False)),
    ),
    "qwen2": _Family(
        "Qwen2ForCausalLM",
        ("use_sliding_window", "sliding_window", "layer_types"),
        (("attention_bias", True), ("mlp_bias", False)),
    ),
    "qwen3": _Family(
        "Qwen3ForCausalLM",
        ("attention_bias", "use_sliding_window", "sliding_window", "layer_types"),
        (("mlp_bias", False),),
        qk_norm=True,
    ),
}

_COMMON = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "tie_word_embeddings",
    "max_position_embeddings",
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
_ROPE = ("rope_theta", "rope_scaling", "rope_parameters", "original_max_position_embeddings")
_NULLABLE = ("sliding_window", "bos_token_id", "eos_token_id", "pad_token_id")

# Attributes supported at their neutral value only: another would change the function computed.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "pretraining_tp": (1, None),
    "partial_rotary_factor": (1, None),
    "is_causal": (True, None),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "chunk_size_feed_forward": (0,),
    "pruned_heads": ({}, None),
    "per_layer_config": (None, {}),
    "tie_encoder_decoder": (False,),
    "quantization_config": (None,),
    "use_mrope": (False, None),
    "rope_interleaved": (False,),
    "embedding_multiplier": (1,),
    "logits_scaling": (1,),
}

# Training, generation and bookkeeping: no effect on the forward pass in evaluation.
# fmt: off
_BOOKKEEPING = frozenset((
    "_name_or_path", "name_or_path", "architectures", "model_type", "transformers_version",
    "torch_dtype", "dtype", "use_cache", "attention_dropout", "hidden_dropout", "resid_pdrop",
    "embd_pdrop", "output_attentions", "output_hidden_states", "output_scores", "return_dict",
    "return_dict_in_generate", "torchscript", "use_bfloat16", "tf_legacy_loss", "problem_type",
    "id2label", "label2id", "num_labels", "finetuning_task", "task_specific_params",
    "gradient_checkpointing", "max_window_layers", "tie_last_hidden_states",
    "_attn_implementation", "attn_implementation", "_attn_implementation_internal",
    "_flash_attn_2_enabled", "_experts_implementation", "tokenizer_class", "prefix",
    "sep_token_id", "decoder_start_token_id", "bos_token", "eos_token", "pad_token",
    "unk_token_id", "max_sequence_length", "max_length", "min_length", "do_sample",
    "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty", "temperature", "top_k",
    "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences",
    "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values",
    "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens",
    "unsloth_fixed", "unsloth_version", "is_decoder",
))
# fmt: on

# kind of RoPE scaling → (parameters it must have, parameters it may have)
_ROPE_KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ()),
    "llama3": (
        ("factor", "low_freq_factor", "high_freq_factor"),
        ("original_max_position_embeddings",),
    ),
    "yarn": (
        (),
        (
            *("factor", "original_max_position_embeddings", "attention_factor"),
            *("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
        ),
    ),
    "longrope": (
        ("short_factor", "long_factor"),
        ("factor", "original_max_position_embeddings", "attention_factor"),
    ),
}
_ROPE_IGNORED = ("finetuned",)  # in early YaRN releases: says how the weights were made


def read_config(path: str | Path) -> DecoderConfig:
    """The configuration in a config.json.

    Raises InputError for a file that is missing, a git-LFS pointer, not JSON, or that
    `DecoderConfig.from_hf` refuses.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(
            f"cannot read the configuration: {error.strerror}",
            file=path,
            remedy="point to a directory in Hugging Face format (config.json, *.safetensors)",
        ) from error
    except UnicodeDecodeError as error:
        raise InputError("is not UTF-8 text", file=path, remedy="download it again") from error
    if text.startswith("version https://git-lfs"):
        raise InputError(
            "is a git-LFS pointer, not the file", file=path, line=1, remedy="run `git lfs pull`"
        )
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"is not JSON: {error.msg}", file=path, line=error.lineno, remedy="download it again"
        ) from error
    if not isinstance(values, dict):
        raise InputError("is not a JSON object", file=path, line=1, remedy="download it again")
    return DecoderConfig.from_hf(values, file=path)


@dataclass(frozen=True)
class _Reader:
    """The attributes of one file, with checks that name the file and the line."""

    values: dict[str, Any]
    file: str | Path | None

    def refuse(self, name: str, what: str, remedy: str) -> InputError:
        return InputError(what, file=self.file, line=_line_of(self.file, name), remedy=remedy)

    def integer(self, name: str, minimum: int = 1) -> int:
        value = self.values[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise self.refuse(
                name, f"{name} is {value!r}", f"it must be an integer of at least {minimum}"
            )
        return value

    def number(self, name: str) -> float:
        return _positive(self, name, self.values[name])

    def flag(self, name: str) -> bool:
        value = self.values[name]
        if not isinstance(value, bool):
            raise self.refuse(name, f"{name} is {value!r}", "it must be true or false")
        return value

    def token(self, name: str) -> int | None:
        value = self.values[name]
        return None if value in (None, -1) else self.integer(name, 0)  # -1: none, in early Llamas


def _from_values(values: dict[str, Any], file: str | Path | None) -> DecoderConfig:
    family = _check_attributes(_Reader(values, file))
    reader = _Reader(_complete(values, family, file), file)
    n_heads, n_kv_heads = (
        reader.integer("num_attention_heads"),
        reader.integer("num_key_value_heads"),
    )
    head_dim, activation = reader.integer("head_dim"), reader.values["hidden_act"]
    if n_heads % n_kv_heads:
        what = f"{n_heads} query heads cannot share {n_kv_heads} key heads"
        raise reader.refuse("num_key_value_heads", what, "it must divide num_attention_heads")
    if head_dim % 2:
        what = f"head_dim is {head_dim}"
        raise reader.refuse("head_dim", what, "rotary embedding needs an even head_dim")
    if activation not in ACTIVATIONS:
        what = f"hidden_act {activation!r} is not supported"
        raise reader.refuse("hidden_act", what, f"supported: {', '.join(ACTIVATIONS)}")
    attention_bias = reader.values.get("attention_bias", family == "qwen2")
    return DecoderConfig(
        family=family,
        vocab_size=reader.integer("vocab_size"),
        n_layers=reader.integer("num_hidden_layers"),
        d_model=reader.integer("hidden_size"),
        d_ff=reader.integer("intermediate_size"),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        norm_eps=reader.number("rms_norm_eps"),
        activation=activation,
        tie_embeddings=reader.flag("tie_word_embeddings"),
        qkv_bias=attention_bias,
        o_bias=attention_bias and family != "qwen2",  # Qwen2 has biases on q, k and v only
        mlp_bias=reader.values.get("mlp_bias", False),
        qk_norm=FAMILIES[family].qk_norm,
        sliding_window=_read_windows(reader, family),
        rope=_read_rope(reader),
        max_position_embeddings=reader.integer("max_position_embeddings"),
        initializer_range=reader.number("initializer_range"),
        bos_token_id=reader.token("bos_token_id"),
        eos_token_ids=_read_eos(reader),
        pad_token_id=reader.token("pad_token_id"),
    )


def _check_attributes(reader: _Reader) -> str:
    """The family, once every attribute is known: read, fixed at its value, neutral or harmless."""
    family = reader.values.get("model_type")
    if family not in FAMILIES:
        what = f"unknown architecture: model_type is {family!r}"
        raise reader.refuse("model_type", what, f"supported: {', '.join(FAMILIES)}")
    table = FAMILIES[family]
    for architecture in reader.values.get("architectures") or ():
        if architecture != table.architecture:
            what = f"unknown architecture {architecture!r}"
            raise reader.refuse(
                "architectures", what, f"{family} is supported as {table.architecture}"
            )
    allowed = {**_NEUTRAL, **{name: (value,) for name, value in table.fixed}}
    for name, value in reader.values.items():
        if name in allowed and value not in allowed[name]:
            what = f"{name} is {value!r}, which the {family} decoder does not implement"
            raise reader.refuse(name, what, f"only {allowed[name][0]!r} is supported")
        if name == "auto_map":
            _check_auto_map(reader, value)
        elif name not in {*_COMMON, *_ROPE, *table.reads, *allowed, *_BOOKKEEPING}:
            what = f"unknown configuration attribute {name!r} of a {family} model"
            raise reader.refuse(
                name, what, "remove it if it does not change what the model computes"
            )
    for name in ("attention_bias", "mlp_bias"):
        if name in table.reads and name in reader.values:
            reader.flag(name)
    return family


def _check_auto_map(reader: _Reader, value: Any) -> None:
    """Refuses a model with code of its own, which never runs; a tokenizer's class is ignored."""
    own = [name for name in value or () if name != "AutoTokenizer"]
    if own:
        what = (
            f"auto_map asks for the repository's own code ({', '.join(own)}), which never runs here"
        )
        raise reader.refuse("auto_map", what, "use a repository with the standard architecture")


def _complete(values: dict[str, Any], family: str, file: str | Path | None) -> dict[str, Any]:
    """`values`, with what is absent filled in by the family's transformers configuration class."""
    _check_rope_blocks(_Reader(values, file))
    needed = (*_COMMON, *FAMILIES[family].reads)
    absent = [
        name
        for name in needed
        if name not in values or (values[name] is None and name not in _NULLABLE)
    ]
    blocks = (values, values.get("rope_parameters"), values.get("rope_scaling"))
    has_rope = any(block and block.get("rope_theta") is not None for block in blocks)
    if has_rope and not absent:
        return values
    # Imported only here: it is slow, and a complete file needs none of it.
    from huggingface_hub.errors import StrictDataclassError
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    known = (*needed, "max_window_layers")  # without layer_types, Qwen's windows start there
    own = {name: copy.deepcopy(value) for name, value in values.items() if name in known}
    try:
        resolved = CONFIG_MAPPING[family](**own).to_dict()
    except (StrictDataclassError, TypeError, ValueError, ArithmeticError) as error:
        what = f"transformers refuses the configuration: {error}"
        raise InputError(what, file=file, remedy="correct the value") from error
    if "head_dim" not in resolved:  # as Qwen2Attention resolves it
        resolved["head_dim"] = resolved["hidden_size"] // resolved["num_attention_heads"]
    filled = {name: resolved[name] for name in absent}
    if not has_rope:
        filled["rope_theta"] = resolved["rope_parameters"]["rope_theta"]
    return {**values, **filled}


def _check_rope_blocks(reader: _Reader) -> None:
    for name in ("rope_scaling", "rope_parameters"):
        block = reader.values.get(name)
        if block is not None and not isinstance(block, dict):
            raise reader.refuse(name, f"{name} is {block!r}", "it must be an object")


def _read_rope(reader: _Reader) -> RopeConfig:
    """RoPE as transformers 4 (`rope_theta`, `rope_scaling`) or 5 (`rope_parameters`) writes it."""
    _check_rope_blocks(reader)
    values = reader.values
    name = "rope_parameters" if values.get("rope_parameters") else "rope_scaling"
    if values.get("rope_parameters") and values.get("rope_scaling"):
        raise reader.refuse(
            name, "rope_parameters and rope_scaling are both given", "keep one of them"
        )
    block = {k: v for k, v in (values.get(name) or {}).items() if v is not None}
    kinds = {block.pop(k) for k in ("rope_type", "type") if k in block} or {"default"}
    kind = kinds.pop()
    if kinds or kind not in _ROPE_KINDS:
        what = (
            f"unknown RoPE scaling {kind!r}"
            if not kinds
            else f"two kinds of RoPE: {kind!r}, {kinds.pop()!r}"
        )
        raise reader.refuse(name, what, f"supported: {', '.join(_ROPE_KINDS)}")
    thetas = {
        theta
        for theta in (block.pop("rope_theta", None), values.get("rope_theta"))
        if theta is not None
    }
    if len(thetas) > 1:
        raise reader.refuse(
            "rope_theta", f"two values of rope_theta: {sorted(thetas)}", "keep one of them"
        )
    if block.pop("partial_rotary_factor", 1) != 1:
        raise reader.refuse(name, "partial_rotary_factor is not supported", "only 1.0 is supported")
    required, optional = _ROPE_KINDS[kind]
    unknown = [k for k in block if k not in (*required, *optional, *_ROPE_IGNORED)]
    missing = [k for k in required if k not in block]
    if unknown or missing:
        what = "; ".join(
            f"{label} {', '.join(keys)}"
            for label, keys in (("unknown", unknown), ("missing", missing))
            if keys
        )
        raise reader.refuse(
            name, f"{name} of kind {kind!r}: {what}", "correct the parameters of the scaling"
        )
    parameters = {
        k: _rope_parameter(reader, k, v) for k, v in block.items() if k not in _ROPE_IGNORED
    }
    context = reader.integer("max_position_embeddings")
    theta = _positive(reader, "rope_theta", thetas.pop())
    return RopeConfig(
        theta=theta,
        type=kind,
        max_position_embeddings=context,
        **_resolve_rope(reader, kind, parameters),
    )


def _resolve_rope(reader: _Reader, kind: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Fills in what modeling_rope_utils derives: original context, factor, YaRN's constants."""
    if kind not in ("llama3", "yarn", "longrope"):
        return parameters
    context = reader.values["max_position_embeddings"]
    outer = reader.values.get("original_max_position_embeddings")  # takes precedence there too
    original = outer or parameters.get("original_max_position_embeddings") or context
    derived: dict[str, Any] = {"factor": context / original}
    if kind == "yarn":
        derived |= {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}
    return derived | parameters | {"original_max_position_embeddings": original}


def _rope_parameter(reader: _Reader, name: str, value: Any) -> Any:
    if name == "truncate":
        return bool(value)
    if name in ("short_factor", "long_factor"):
        expected = reader.values["head_dim"] // 2
        if not isinstance(value, list) or len(value) != expected:
            raise reader.refuse(
                name, f"{name} must be a list of {expected} numbers", "correct the list"
            )
        return tuple(_positive(reader, name, v) for v in value)
    number = _positive(reader, name, value)
    return int(number) if name == "original_max_position_embeddings" else number


def _read_windows(reader: _Reader, family: str) -> tuple[int | None, ...]:
    """Sliding windows: on all layers in Mistral, on those that `layer_types` names in Qwen."""
    n_layers = reader.integer("num_hidden_layers")
    if family == "llama":
        return (None,) * n_layers
    window = None if reader.values["sliding_window"] is None else reader.integer("sliding_window")
    if family == "mistral":
        return (window,) * n_layers
    layer_types = reader.values["layer_types"]
    kinds = {"full_attention", "sliding_attention"}
    if len(layer_types) != n_layers or not kinds.issuperset(layer_types):
        what = f"layer_types must name {' or '.join(sorted(kinds))} for each of {n_layers} layers"
        raise reader.refuse("layer_types", what, "correct the list")
    if "sliding_attention" in layer_types and (
        window is None or not reader.flag("use_sliding_window")
    ):
        what = "layer_types names sliding_attention without a sliding window in use"
        raise reader.refuse("layer_types", what, "set use_sliding_window and sliding_window")
    return tuple(window if kind == "sliding_attention" else None for kind in layer_types)


def _read_eos(reader: _Reader) -> tuple[int, ...]:
    value = reader.values["eos_token_id"]
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(i, int) and i >= 0 for i in ids):
        what = f"eos_token_id is {value!r}"
        raise reader.refuse("eos_token_id", what, "it must be one token id or a list of them")
    return tuple(ids)


def _positive(reader: _Reader, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise reader.refuse(name, f"{name} is {value!r}", "it must be a number above 0")
    return float(value)


def _line_of(file: str | Path | None, name: str) -> int | None:
    """The line of config.json on which attribute `name` stands, if the file can be read."""
    if file is None or not Path(file).is_file():
        return None
    lines = Path(file).read_text(encoding="utf-8", errors="replace").splitlines()
    key = re.compile(rf'"{re.escape(name)}"\s*:')
    return next((number for number, line in enumerate(lines, 1) if key.search(line)), None)


def _to_values(config: DecoderConfig) -> dict[str, Any]:
    rope = config.rope
    required, optional = _ROPE_KINDS[rope.type]
    scaling = {name: getattr(rope, name) for name in (*required, *optional)}
    scaling = {
        k: list(v) if isinstance(v, tuple) else v for k, v in scaling.items() if v is not None
    }
    eos = config.eos_token_ids
    values: dict[str, Any] = {
        "architectures": [FAMILIES[config.family].architecture],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": config.activation,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "max_position_embeddings": config.max_position_embeddings,
        "initializer_range": config.initializer_range,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": None if not eos else eos[0] if len(eos) == 1 else list(eos),
        "pad_token_id": config.pad_token_id,
        "rope_theta": rope.theta,
        "rope_scaling": None if rope.type == "default" else {"rope_type": rope.type, **scaling},
    }
    windows = [w for w in config.sliding_window if w is not None]
    kinds = ["full_attention" if w is None else "sliding_attention" for w in config.sliding_window]
    own = {
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "sliding_window": windows[0] if windows else None,
        "use_sliding_window": bool(windows),
        "layer_types": kinds,
    }
    return values | {name: own[name] for name in FAMILIES[config.family].reads}
