"""`load_model`: a directory or hub id to configuration, parameters and tokenizer.

The configuration goes through the allow-list of config.py and the weights through the table of
weights.py, so that a model either loads as the torch implementation would or is refused by name.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from bridgex_jax import runtime
from bridgex_jax.errors import InputError
from bridgex_jax.models.config import DecoderConfig, read_config
from bridgex_jax.models.hub import ModelSource, find_model
from bridgex_jax.models.sharding import Attention, Layout, make_layout
from bridgex_jax.models.stopping import token_bytes
from bridgex_jax.models.weights import read_weights

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params"],
    meta_fields=["config", "source", "layout"],
)
@dataclass(frozen=True)
class Model:
    """A decoder: `params` is the data of the pytree, all else is static.

    `params`: {"embed", "layers" (each leaf stacked to [L, …]), "final_norm", "lm_head" if untied}.
    layout: how they lie on a mesh; None for the default device.
    """

    config: DecoderConfig
    params: PyTree
    source: ModelSource | None = None
    layout: Layout | None = None

    @property
    def mesh(self) -> jax.sharding.Mesh:
        """The devices that hold the parameters; without a layout the default one."""
        return (
            self.layout.mesh if self.layout else runtime.make_mesh(devices=jax.local_devices()[:1])
        )

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The transformers tokenizer, loaded when first asked for; code of its own never runs.

        Raises InputError if the model has none or its files are damaged.
        """
        if self.source is None:
            raise InputError("the model was not read from a directory, so it has no tokenizer")
        tokenizer = read_tokenizer(self.source.small_files)
        if len(tokenizer) > self.config.vocab_size:  # JAX would clamp such an id without a word
            raise InputError(
                f"the tokenizer has {len(tokenizer)} tokens, the model {self.config.vocab_size}",
                file=self.source.path,
                remedy="use the tokenizer that the model was trained with",
            )
        return tokenizer

    @functools.cached_property
    def line_end_ids(self) -> tuple[int, ...]:
        """Tokens whose text holds a newline (tokenizers merge it with its neighbours), and EOS."""
        ends = {i for i, text in enumerate(self.token_bytes) if b"\n" in text}
        return tuple(sorted(ends | set(self.config.eos_token_ids)))

    @functools.cached_property
    def quote_ids(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Tokens that open a straight double quote and hold no other, and all that hold one."""
        quotes = {i: text for i, text in enumerate(self.token_bytes) if b'"' in text}
        opening = (i for i, text in quotes.items() if text.lstrip(b" ").rfind(b'"') == 0)
        return tuple(opening), tuple(quotes)

    @functools.cached_property
    def token_bytes(self) -> list[bytes]:
        """What each token adds to a text: `stopping.token_bytes` of the whole vocabulary."""
        return token_bytes(self.tokenizer, self.config.vocab_size)


def load_model(
    path_or_hub_id: str | Path,
    *,
    dtype: str = "float32",
    mesh: jax.sharding.Mesh | None = None,
    attention: Attention | None = None,
    revision: str | None = None,
    quiet: bool = False,
) -> Model:
    """Loads a Llama, Mistral, Qwen2 or Qwen3 model from a directory or the hub (cache first).

    Args:
      dtype: of the parameters: float32, bfloat16 or float16, whatever the file has.
      mesh: devices to split the parameters over, see `runtime.make_mesh`; None for the default one.
      attention: see `sharding.Layout`; None for what suits the mesh.
      revision: branch, tag or commit of a hub id.
      quiet: no progress bars; there are none without a terminal either.

    Raises InputError, one line with the remedy, for everything that cannot be loaded faithfully.
    """
    source = find_model(path_or_hub_id, revision=revision, quiet=quiet)
    config = read_config(source.small_files / "config.json")
    layout = None if mesh is None else make_layout(config, mesh, attention)
    params = read_weights(source.path, config, dtype=dtype, layout=layout, quiet=quiet)
    return Model(config, params, source, layout)


def read_tokenizer(directory: Path) -> Any:
    found = [directory / name for name in _TOKENIZERS if (directory / name).is_file()]
    if not found:
        remedy = f"add the tokenizer's files ({', '.join(_TOKENIZERS)})"
        raise InputError("the model has no tokenizer", file=directory, remedy=remedy)
    _check_json(found[0])
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        what = f"transformers cannot read the tokenizer: {error}"
        raise InputError(what, file=directory, remedy="download its files again") from error


def _check_json(file: Path) -> None:
    """The tokenizers library raises a bare Exception for a damaged file, so it is parsed first."""
    head = file.read_bytes()[:40]
    if head.startswith(b"version https://git-lfs"):
        what = "is a git-LFS pointer, not the file"
        raise InputError(what, file=file, line=1, remedy="run `git lfs pull`")
    if file.suffix != ".json":
        return
    try:
        json.loads(file.read_bytes())
    except json.JSONDecodeError as error:
        what = f"is not JSON: {error.msg}"
        raise InputError(what, file=file, line=error.lineno, remedy="download it again") from error
