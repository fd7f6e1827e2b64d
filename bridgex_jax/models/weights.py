"""Weights between Hugging Face safetensors and the parameter tree, in both directions.

One table per configuration says which tensor of the file is which leaf; names and shapes must match
it exactly, and everything that does not is reported together. Orbax reads what the devices of this
process need, some tensors at a time; on the devices they are transposed and stacked to [L, …].
Pickled weights are never opened.
Axis letters: L layer, D embed, F neuron, N/K query/key heads, H head_dim, V vocab.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes  # also teaches NumPy, and with it safetensors, the name bfloat16
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from jaxtyping import Array, PyTree
from safetensors import SafetensorError
from safetensors.numpy import save_file

from bridgex_jax import runtime
from bridgex_jax.errors import InputError
from bridgex_jax.models.config import DecoderConfig
from bridgex_jax.models.sharding import KERNEL_ROLES, Layout
from bridgex_jax.store.paths import (
    AnyPath,
    as_path,
    file_size,
    files_below,
    is_file,
    open_binary,
    read_bytes,
)

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_FILE_DTYPES = dict(zip(("F32", "F16", "BF16"), DTYPES.values(), strict=True))
_AT_ONCE = 256 << 20  # bytes of tensors that are read together; a larger tensor comes alone
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# What decides which tokens a text has: part of a model's identity.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json",
                   "merges.txt", "special_tokens_map.json", "added_tokens.json")  # fmt: skip
_LM_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
# Rotary frequencies, which early releases store: they follow from the configuration.
_TOLERATED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
_LARGEST_HEADER = 100_000_000  # bytes; the format's own limit
_SHOWN = 4  # how many of each kind of error fit into a line


@dataclass(frozen=True)
class Leaf:
    """One leaf of the tree and the tensors that it is made of.

    `name` holds `{layer}` where one tensor a layer is stacked. `shape` is that of one layer's leaf;
    a kernel is stored by torch as [out, in] with heads flattened, so transposed to `stored`.
    """

    name: str
    path: tuple[str, ...]
    shape: tuple[int, ...]
    n_in: int = 0  # leading axes of `shape` that are inputs; 0: stored as it is, but flat

    @property
    def stored(self) -> tuple[int, ...]:
        """The shape in the file."""
        if self.n_in:
            inputs, outputs = self.shape[: self.n_in], self.shape[self.n_in :]
            return int(np.prod(outputs)), int(np.prod(inputs))
        return self.shape if self.path[0] == "embed" else (int(np.prod(self.shape)),)

    @property
    def stacked(self) -> bool:
        """Whether every layer has one."""
        return "{" in self.name

    def names(self, n_layers: int) -> list[str]:
        """Tensor names, one a layer where layers are stacked."""
        return [self.name.format(layer=i) for i in range(n_layers if self.stacked else 1)]

    @property
    def roles(self) -> tuple[str | None, ...]:
        """What the axes of `shape` are, for the table of sharding.py; norms are copied."""
        roles = KERNEL_ROLES.get(self.path[-2], (None,))
        return roles[-len(self.shape) :] if self.path[-1] == "bias" else roles

    def sharding(self, layout: Layout | None) -> Sharding:
        """Where the leaf lies, without the axis of layers."""
        if layout is None:
            return SingleDeviceSharding(jax.local_devices()[0])
        return NamedSharding(layout.mesh, layout.parameter_spec(self.roles, self.shape))

    def stored_sharding(self, layout: Layout | None) -> Sharding:
        """The same parts, of the tensor in the file: heads are flattened, their first axis split"""
        sharding = self.sharding(layout)
        if not isinstance(sharding, NamedSharding):
            return sharding
        axes = (*sharding.spec, *(None,) * len(self.shape))[: len(self.shape)]
        firsts = (self.n_in, 0) if self.n_in else range(len(self.stored))
        spec = PartitionSpec(*(axes[first] for first in firsts))
        return NamedSharding(sharding.mesh, spec)

    def read(self, tensor: Array, dtype: np.dtype) -> Array:
        """The file's tensor as one layer's leaf."""
        return (tensor.T if self.n_in else tensor).reshape(self.shape).astype(dtype)

    def write(self, leaf: np.ndarray) -> np.ndarray:
        """One layer's leaf as the file's tensor."""
        return leaf.reshape(self.stored[::-1]).T if self.n_in else leaf.reshape(self.stored)


def weight_table(config: DecoderConfig) -> tuple[Leaf, ...]:
    """Every tensor of a decoder with this configuration, and where it goes in the tree."""
    d, f, h = config.d_model, config.d_ff, config.head_dim
    n, k, v = config.n_heads, config.n_kv_heads, config.vocab_size
    leaves = [
        Leaf(_EMBEDDING, ("embed", "embedding"), (v, d)),
        Leaf("model.norm.weight", ("final_norm", "scale"), (d,)),
    ]
    if not config.tie_embeddings:
        leaves.append(Leaf(_LM_HEAD, ("lm_head", "kernel"), (d, v), 1))
    norms = [("input_layernorm", "attn_norm", d), ("post_attention_layernorm", "mlp_norm", d)]
    if config.qk_norm:
        norms += [("self_attn.q_norm", "q_norm", h), ("self_attn.k_norm", "k_norm", h)]
    for theirs, ours, size in norms:
        leaves.append(
            Leaf(f"model.layers.{{layer}}.{theirs}.weight", ("layers", ours, "scale"), (size,))
        )
    for theirs, ours, inputs, outputs, bias in (
        ("self_attn.q_proj", "q", (d,), (n, h), config.qkv_bias),
        ("self_attn.k_proj", "k", (d,), (k, h), config.qkv_bias),
        ("self_attn.v_proj", "v", (d,), (k, h), config.qkv_bias),
        ("self_attn.o_proj", "o", (n, h), (d,), config.o_bias),
        ("mlp.gate_proj", "gate", (d,), (f,), config.mlp_bias),
        ("mlp.up_proj", "up", (d,), (f,), config.mlp_bias),
        ("mlp.down_proj", "down", (f,), (d,), config.mlp_bias),
    ):
        stem = f"model.layers.{{layer}}.{theirs}"
        kernel = ("layers", ours, "kernel")
        leaves.append(Leaf(f"{stem}.weight", kernel, (*inputs, *outputs), len(inputs)))
        if bias:
            leaves.append(Leaf(f"{stem}.bias", ("layers", ours, "bias"), outputs))
    return tuple(leaves)


def read_weights(
    directory: str | AnyPath,
    config: DecoderConfig,
    *,
    dtype: str = "float32",
    layout: Layout | None = None,
    quiet: bool = False,
) -> PyTree:
    """The parameter tree of a Hugging Face directory, in `dtype`, split over the layout's mesh.

    A process reads only the bytes that its devices need, `_AT_ONCE` of them at a time.

    Raises InputError for missing, truncated or pickled files, and one for all tensors that are
    missing, unexpected, of the wrong shape or of a type other than float32, float16 and bfloat16.
    """
    if dtype not in DTYPES:
        raise InputError(f"unknown dtype {dtype!r}", remedy=f"use one of {', '.join(DTYPES)}")
    directory, table = as_path(directory), weight_table(config)
    tensors = _list_tensors(directory)
    _check_tensors(directory, config, table, tensors, layout)
    places = {
        name: (leaf, layer)
        for leaf in table
        for layer, name in enumerate(leaf.names(config.n_layers))
    }
    leaves: dict[tuple[str, ...], Array] = {}
    for group in _progress(_groups(places, tensors), quiet):
        found = _read_tensors(tensors, {name: places[name][0] for name in group}, layout)
        for name in group:
            leaf, layer = places[name]
            sharding = leaf.sharding(layout)
            value = _convert(found.pop(name), leaf, DTYPES[dtype], sharding)
            if leaf.stacked:
                if leaf.path not in leaves:
                    leaves[leaf.path] = _zeros(config.n_layers, value, sharding)
                value = _place(leaves[leaf.path], value, jnp.int32(layer))
            leaves[leaf.path] = value
        jax.block_until_ready(leaves)  # else the host holds several groups
    params: dict[str, Any] = {}
    for leaf in table:
        if dtype == "float16" and not runtime.fetch(jnp.isfinite(leaves[leaf.path]).all()):
            what = f"{leaf.name} holds values beyond the range of float16"
            raise InputError(what, file=directory, remedy="use bfloat16 or float32")
        _set(params, leaf.path, leaves[leaf.path])
    return params


def _groups(
    places: Mapping[str, tuple[Leaf, int]], tensors: Mapping[str, _Stored]
) -> list[list[str]]:
    """Names of tensors that are read together: of one file, at most `_AT_ONCE` bytes."""
    groups: list[list[str]] = []
    size, file = 0, None
    for name in sorted(places, key=lambda name: (tensors[name].file, tensors[name].offset)):
        stored = tensors[name]
        if stored.file != file or size + stored.n_bytes > _AT_ONCE:
            groups.append([])
            size, file = 0, stored.file
        groups[-1].append(name)
        size += stored.n_bytes
    return groups


def _read_tensors(
    tensors: Mapping[str, _Stored], leaves: Mapping[str, Leaf], layout: Layout | None
) -> dict[str, Array]:
    """Tensors of one file as they are stored, split like their leaves."""
    from orbax.checkpoint.experimental import v1 as ocp

    wanted = {
        name: jax.ShapeDtypeStruct(
            tensors[name].shape,
            _FILE_DTYPES[tensors[name].dtype],
            sharding=leaf.stored_sharding(layout),
        )
        for name, leaf in leaves.items()
    }
    file = next(tensors[name].file for name in leaves)
    context = ocp.Context()
    context.checkpoint_layout = ocp.options.CheckpointLayout.SAFETENSORS
    context.safetensors.max_over_read_ratio = 1.0  # no byte that another process needs
    context.memory.read_concurrent_bytes = _AT_ONCE
    with context:
        return ocp.load(file, wanted)


@partial(jax.jit, static_argnames=("leaf", "dtype", "sharding"))
def _convert(tensor: Array, leaf: Leaf, dtype: np.dtype, sharding: Sharding) -> Array:
    return jax.lax.with_sharding_constraint(leaf.read(tensor, dtype), sharding)


def _zeros(n_layers: int, layer: Array, sharding: Sharding) -> Array:
    """Room for all layers of a leaf, split as one of them is."""
    if isinstance(sharding, NamedSharding):
        sharding = NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))
    return jnp.zeros((n_layers, *layer.shape), layer.dtype, device=sharding)


@partial(jax.jit, donate_argnames=("stacked",))
def _place(stacked: Array, layer: Array, index: Array) -> Array:
    return jax.lax.dynamic_update_index_in_dim(stacked, layer, index, 0)


def save_model(
    directory: str | Path, config: DecoderConfig, params: PyTree, *, dtype: str = "float32"
) -> None:
    """Writes config.json and model.safetensors, in Hugging Face's layout, into `directory`.

    Both are written beside their places and renamed, config.json last: without it the directory
    does not load. Files of other names (a tokenizer) are left alone. Raises InputError if the disk
    is full or the place cannot be written, ValueError if `params` does not fit `config`.
    """
    directory, tensors = Path(directory), _to_tensors(config, params, DTYPES[dtype])
    text = json.dumps(config.to_hf() | {"torch_dtype": dtype}, indent=2) + "\n"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _beside(directory / SINGLE) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})
        with _beside(directory / "config.json") as temporary:
            temporary.write_text(text, encoding="utf-8")
    except (OSError, SafetensorError) as error:  # safetensors wraps the full disk's OSError
        what = f"cannot write the model: {getattr(error, 'strerror', None) or error}"
        size = sum(tensor.nbytes for tensor in tensors.values())
        remedy = f"make sure that it can be written and has {size / 1e6:,.1f} MB free"
        raise InputError(what, file=directory, remedy=remedy) from error


def model_files(directory: str | AnyPath) -> list[AnyPath]:
    """The weight files of a Hugging Face directory, in order; raises InputError if any is missing.

    A single model.safetensors goes before an index of shards, as in transformers.
    """
    directory = as_path(directory)
    if is_file(directory / SINGLE):
        return [directory / SINGLE]
    index = directory / INDEX
    if not is_file(index):
        raise _no_weights(directory)
    try:
        names = set(json.loads(read_bytes(index))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        _refuse_pointer(index)
        what = "is not an index of safetensors shards"
        raise InputError(what, file=index, remedy="download it again") from error
    for name in sorted(names):
        if Path(name).name != name or not name.endswith(".safetensors"):
            what = f"names {name!r}, which is not a safetensors file of this directory"
            raise InputError(what, file=index, remedy="use a repository with safetensors weights")
    missing = sorted(name for name in names if not is_file(directory / name))
    if missing:
        what = f"{len(missing)} of {len(names)} shards missing: {_some(missing)}"
        raise InputError(what, file=index, remedy="download the missing files")
    return [directory / name for name in sorted(names)]


def model_hash(directory: str | AnyPath) -> str:
    """SHA-256, in hex, over config.json, the tokenizer's files and the weights, in this order."""
    digest = hashlib.sha256()
    directory = as_path(directory)
    tokenizer = [directory / name for name in TOKENIZER_FILES if is_file(directory / name)]
    for file in [directory / "config.json", *tokenizer, *model_files(directory)]:
        with open_binary(file) as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def _no_weights(directory: AnyPath) -> InputError:
    names = files_below(directory) or ()
    pickles = sorted(name for name in names if "/" not in name and name.endswith(_PICKLES))
    if not pickles:
        remedy = f"point to a directory in Hugging Face format ({SINGLE} or {INDEX})"
        return InputError("no safetensors weights", file=directory, remedy=remedy)
    what = f"the weights are pickles, which can run code and are never opened: {_some(pickles)}"
    remedy = "convert them: transformers' save_pretrained writes safetensors"
    return InputError(what, file=directory, remedy=remedy)


@dataclass(frozen=True)
class _Stored:
    """Where a tensor lies and what it is; `offset` from the beginning of the tensors' bytes."""

    file: AnyPath
    shape: tuple[int, ...]
    dtype: str
    offset: int
    n_bytes: int


def _list_tensors(directory: AnyPath) -> dict[str, _Stored]:
    """Every tensor of the directory, from the headers alone."""
    tensors: dict[str, _Stored] = {}
    twice = []
    for file in model_files(directory):
        found = _read_header(file)
        twice += [name for name in found if name in tensors]
        tensors |= found
    if twice:
        what = f"tensors stand in two shards: {_some(twice)}"
        raise InputError(what, file=directory, remedy="remove shards that are not in the index")
    return tensors


def _read_header(file: AnyPath) -> dict[str, _Stored]:
    """The tensors of one file: 8 bytes of length, then JSON, then the tensors' bytes."""
    _refuse_pointer(file)
    size = file_size(file)
    with open_binary(file) as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = stream.read(length) if length <= min(size, _LARGEST_HEADER) else b""
    again = "download it again"
    if size == 0:
        raise InputError("is empty", file=file, remedy=again)
    if size < 8 + length and length <= _LARGEST_HEADER:
        raise _truncated(file, 8 + length, size)
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        found = {}
        for name, entry in entries.items():
            start, end = entry["data_offsets"]
            found[name] = _Stored(file, tuple(entry["shape"]), entry["dtype"], start, end - start)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError("is not a safetensors file", file=file, remedy=again) from error
    ends = max((stored.offset + stored.n_bytes for stored in found.values()), default=0)
    if size < 8 + length + ends:
        raise _truncated(file, 8 + length + ends, size)
    return found


def _truncated(file: AnyPath, expected: int, size: int) -> InputError:
    what = f"is truncated: its header promises {expected:,} bytes, the file has {size:,}"
    return InputError(what, file=file, remedy="download it again")


def _refuse_pointer(file: AnyPath) -> None:
    with open_binary(file) as stream:
        if stream.read(40).startswith(b"version https://git-lfs"):
            what = "is a git-LFS pointer, not the file"
            raise InputError(what, file=file, line=1, remedy="run `git lfs pull`")


def _check_tensors(
    directory: AnyPath,
    config: DecoderConfig,
    table: tuple[Leaf, ...],
    tensors: Mapping[str, _Stored],
    layout: Layout | None,
) -> None:
    """All that does not match, in both directions, in one InputError."""
    expected = {name: leaf for leaf in table for name in leaf.names(config.n_layers)}
    tied = {_LM_HEAD} if config.tie_embeddings else set()
    present = [(name, expected[name], tensors[name]) for name in expected if name in tensors]
    errors = {
        "missing": [name for name in expected if name not in tensors],
        "unexpected": [
            name
            for name in tensors
            if name not in {*expected, *tied} and not _TOLERATED.fullmatch(name)
        ],
        "wrong shape": [
            f"{name} {list(stored.shape)}, expected {list(leaf.stored)}"
            for name, leaf, stored in present
            if stored.shape != leaf.stored
        ],
        "not float32, float16 or bfloat16": [
            f"{name} {stored.dtype}"
            for name, _, stored in present
            if stored.dtype not in _FILE_DTYPES
        ],
    }
    found = [f"{len(names)} {kind}: {_some(names)}" for kind, names in errors.items() if names]
    if not found and tied.intersection(tensors):
        same = dict.fromkeys((_LM_HEAD, _EMBEDDING), expected[_EMBEDDING])
        head, embedding = (
            _read_tensors(tensors, {name: leaf}, layout)[name] for name, leaf in same.items()
        )
        if not runtime.fetch(jnp.array_equal(head, embedding)):
            found = [f"{_LM_HEAD} differs from the embedding that it is tied to"]
    if found:
        remedy = f"config.json and the weights must belong together ({config.family})"
        raise InputError(f"tensors do not match: {'; '.join(found)}", file=directory, remedy=remedy)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _to_tensors(config: DecoderConfig, params: PyTree, dtype: np.dtype) -> dict[str, np.ndarray]:
    table = weight_table(config)
    leaves = {
        tuple(key.key for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    if unmatched := set(leaves).symmetric_difference(leaf.path for leaf in table):
        raise ValueError(f"parameters do not fit the configuration: {sorted(unmatched)}")
    tensors = {}
    for leaf in table:
        names, value = leaf.names(config.n_layers), np.asarray(leaves[leaf.path])
        stacked = value if leaf.stacked else value[None]
        if stacked.shape != (len(names), *leaf.shape):
            raise ValueError(f"{'/'.join(leaf.path)} has shape {value.shape}, not {leaf.shape}")
        for layer, name in enumerate(names):
            tensors[name] = np.ascontiguousarray(leaf.write(stacked[layer]).astype(dtype))
    return tensors


def _set(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def _progress(groups: list[list[str]], quiet: bool) -> Iterator[list[str]]:
    from tqdm import tqdm

    silent = quiet or not sys.stderr.isatty()
    yield from tqdm(groups, desc="reading weights", delay=2, leave=False, disable=silent)


@contextlib.contextmanager
def _beside(file: Path) -> Iterator[Path]:
    """A temporary name beside `file`, synced and renamed to it if the block ends without error."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.chmod(0o644)  # safetensors leaves it readable by its owner only
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
