"""The activations of a `bridgex capture` run: what the arrays are called, and reading them back.

    of texts     statistics [text, layer, …]; tokens_in_text
    of examples  means and last tokens [layer, example, …]; example_text, entry (its number in its
                 text), text_hash, n_tokens, first_token
    of tokens    full activations [layer, token, …]; token_example, token_position, token_id

The axis is `chosen_layer` where not all layers were kept. Examples are in the order of the input,
their tokens one example after the other. `text` codes the names in `Activations.texts`. Axes in
words: layer token example neuron embed head head_dim bin.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int, Num

from bridgex_jax.errors import InputError
from bridgex_jax.store.manifest import read_file, read_manifest
from bridgex_jax.store.named_arrays import (
    BFLOAT16,
    LAYER_AXES,
    META,
    NamedArray,
    ZarrReader,
    ZarrWriter,
)
from bridgex_jax.store.paths import AnyPath, as_path

if TYPE_CHECKING:
    import jax
    import xarray

GROUP = "activations.zarr"
KIND = "capture"
_OF_TEXTS = ("tokens_in_text",)
_OF_EXAMPLES = ("example_text", "entry", "text_hash", "n_tokens", "first_token")
_OF_TOKENS = ("token_example", "token_position", "token_id")


@dataclass(frozen=True)
class Examples:
    """What is known of every example and, where tokens are kept, of every token in scope.

    text: the number of its text; entry: its number therein; tokens: ids and positions of the tokens
    in scope, one example after the other.
    """

    text: Int[np.ndarray, " E"]
    entry: Int[np.ndarray, " E"]
    text_hash: Int[np.ndarray, " E"]
    n_tokens: Int[np.ndarray, " E"]
    token_id: Int[np.ndarray, " T"]
    token_position: Int[np.ndarray, " T"]

    @property
    def offsets(self) -> Int[np.ndarray, " E+1"]:
        """Where the tokens of every example begin, and where the last one's end."""
        return np.concatenate([[0], np.cumsum(self.n_tokens)]).astype(np.int64)


def hash_text(text: str) -> int:
    """The first 64 bits of the sha256 of a text: tells whether two examples are the same."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def token_places(
    offsets: Int[np.ndarray, " E+1"], examples: Int[np.ndarray, " e"]
) -> Int[np.ndarray, " t"]:
    """Where the tokens of the given examples lie on the axis of all tokens."""
    counts = (offsets[1:] - offsets[:-1])[examples]
    starts = np.repeat(offsets[:-1][examples], counts)
    before = np.repeat(np.cumsum(counts) - counts, counts)
    return starts + np.arange(int(counts.sum())) - before


def create_store(
    directory: Path,
    arrays: Sequence[NamedArray],
    texts: Sequence[str],
    tokens_in_text: Sequence[int],
    examples: Examples,
    chosen_layers: Sequence[int] | None,
) -> ZarrWriter:
    """The arrays, still empty, and all that is known of texts, examples and tokens before.

    Raises ValueError where two arrays have an axis of one name and two sizes.
    """
    sizes: dict[str, int] = {"text": len(texts)}
    for array in arrays:
        for axis, size in array.axes.items():
            if sizes.setdefault(axis, size) != size:
                raise ValueError(
                    f"{array.name}: {axis} has {size} entries, elsewhere {sizes[axis]}"
                )
    known = _known(sizes, tokens_in_text, examples, chosen_layers)
    named = [NamedArray(name, {axis: sizes[axis]}, v.dtype) for name, (axis, v) in known.items()]
    others = " ".join(name for name, (axis, _) in known.items() if name != axis)
    writer = ZarrWriter(directory, [*arrays, *named], {"texts": list(texts), "coordinates": others})
    for name, (_, values) in known.items():
        writer.write(name, (0,), values)
    return writer


def _known(
    sizes: Mapping[str, int],
    tokens_in_text: Sequence[int],
    examples: Examples,
    chosen_layers: Sequence[int] | None,
) -> dict[str, tuple[str, np.ndarray]]:
    """Coordinates by name, with the axis that each of them lies along."""
    known: dict[str, tuple[str, np.ndarray]] = {
        axis: (axis, np.arange(size, dtype=np.int32))
        for axis, size in sizes.items()
        if axis not in ("token", "chosen_layer")
    }
    if chosen_layers is not None and "chosen_layer" in sizes:
        known["chosen_layer"] = ("chosen_layer", np.asarray(chosen_layers, np.int32))
    known["tokens_in_text"] = ("text", np.asarray(tokens_in_text, np.int64))
    if "example" in sizes or "token" in sizes:
        of_examples: tuple[np.ndarray, ...] = (
            examples.text.astype(np.int32),
            examples.entry.astype(np.int64),
            examples.text_hash.astype(np.uint64),
            examples.n_tokens.astype(np.int32),
            examples.offsets[:-1],
        )
        for name, values in zip(_OF_EXAMPLES, of_examples, strict=True):
            known[name] = ("example", values)
    if "token" in sizes:
        owners = np.repeat(np.arange(len(examples.n_tokens)), examples.n_tokens)
        of_tokens = (owners, examples.token_position, examples.token_id)
        for name, values in zip(_OF_TOKENS, of_tokens, strict=True):
            known[name] = ("token", values.astype(np.int32))
    return known


def open_activations(directory: str | AnyPath) -> Activations:
    """The activations of a finished run, local or remote; arrays are read when asked for.

    Every file must be there in its size; each chunk is checked by its CRC-32C when it is read.
    `store.manifest.verify_run` compares the sha256 of all files. Raises InputError for what is no
    capture run, or not whole.
    """
    place = as_path(directory)
    manifest = read_manifest(place)
    name = f"{GROUP}/{META}"
    if manifest["kind"] != KIND or name not in manifest["files"]:
        raise InputError(
            f"holds a run of kind {manifest['kind']}, not activations",
            file=place,
            remedy="give the --out of bridgex capture",
        )
    group = json.loads(read_file(place, manifest, name))
    return Activations(ZarrReader(place / GROUP, group), manifest)


class Activations:
    """Arrays with named axes. `str()` lists them.

    manifest: of the run: model, settings, texts with their hashes. texts: what `text` codes.
    """

    def __init__(self, reader: ZarrReader, manifest: dict[str, Any]) -> None:
        self.manifest = manifest
        self.texts: tuple[str, ...] = tuple(reader.attributes["texts"])
        self._reader = reader
        self._known = {*reader.attributes["coordinates"].split()}
        self._known |= {n for n in reader.names if list(reader.axes(n)) == [n]}

    def __str__(self) -> str:
        return "\n".join(
            f"{name} [{', '.join(f'{a} {n}' for a, n in self.axes(name).items())}] "
            f"{self._reader.dtype(name)}"
            for name in self.names
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The statistics and activations."""
        return tuple(name for name in self._reader.names if name not in self._known)

    @property
    def coordinates(self) -> tuple[str, ...]:
        """What is known of layers, texts, examples and tokens; read like the others."""
        return tuple(name for name in self._reader.names if name in self._known)

    def axes(self, name: str) -> dict[str, int]:
        """Names and sizes of the axes of an array, in order."""
        self._check(name)
        return self._reader.axes(name)

    def attributes(self, name: str) -> dict[str, Any]:
        """What is known of an array beside its axes: site, reducer, limits of a histogram."""
        self._check(name)
        return self._reader.array_attributes(name)

    def numpy(
        self,
        name: str,
        *,
        layers: Sequence[int] | None = None,
        examples: Sequence[int] | None = None,
    ) -> Num[np.ndarray, "..."]:
        """An array, or the part of it that belongs to the given layers and examples.

        layers: numbers in the model. examples: numbers in the run; of an array of tokens all tokens
        of each, see `offsets`. Raises InputError for a damaged chunk, ValueError for a layer or an
        example that is not there.
        """
        return self._reader.read(name, self._selection(name, layers, examples))

    def offsets(self, examples: Sequence[int] | None = None) -> Int[np.ndarray, " e+1"]:
        """Where the tokens of each of these examples begin on the axis `token` of `numpy`."""
        counts = self.numpy("n_tokens", examples=examples)
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def jax(
        self,
        name: str,
        sharding: jax.sharding.Sharding | None = None,
        *,
        layers: Sequence[int] | None = None,
        examples: Sequence[int] | None = None,
    ) -> jax.Array:
        """`numpy` on the devices; with a sharding every device's part is read on its own."""
        import jax

        if sharding is None:
            return jax.numpy.asarray(self.numpy(name, layers=layers, examples=examples))
        selected = self._selection(name, layers, examples)

        def read(index: tuple[slice, ...] | None) -> np.ndarray:
            part = [chosen[cut] for chosen, cut in zip(selected, index or (), strict=True)]
            return self._reader.read(name, part)

        shape = tuple(len(chosen) for chosen in selected)
        return jax.make_array_from_callback(shape, sharding, read)

    def xarray(self) -> xarray.Dataset:
        """All arrays as an xarray Dataset, read when they are used; texts by name.

        bfloat16 comes as float32, which holds it exactly. Raises InputError where xarray is not
        installed.
        """
        try:
            import xarray
        except ImportError:
            raise InputError(
                "xarray is not installed", remedy="pip install 'bridgex_jax[xarray]'"
            ) from None
        from bridgex_jax.store.lazy_xarray import lazy_variable

        variables = {
            name: lazy_variable(
                list(self.axes(name)),
                tuple(self.axes(name).values()),
                np.dtype(np.float32) if self._reader.dtype(name) == BFLOAT16
                else self._reader.dtype(name),
                partial(self._reader.read, name),
                self.attributes(name),
            )
            for name in self._reader.names
        }  # fmt: skip
        dataset = xarray.Dataset(variables).set_coords(list(self.coordinates))
        return dataset.assign_coords(text=list(self.texts))

    def _selection(
        self, name: str, layers: Sequence[int] | None, examples: Sequence[int] | None
    ) -> list[np.ndarray]:
        """For every axis of an array the places that are wanted."""
        axes = self.axes(name)
        found = {axis: np.arange(size) for axis, size in axes.items()}
        for axis in LAYER_AXES:
            if layers is not None and axis in axes:
                found[axis] = self._places(axis, layers)
        if examples is not None and {"example", "token"} & set(axes):
            chosen = self._places("example", examples)
            if "example" in axes:
                found["example"] = chosen
            if "token" in axes:
                offsets = self.offsets()
                found["token"] = token_places(offsets, chosen)
        return list(found.values())

    def _places(self, axis: str, wanted: Sequence[int]) -> Int[np.ndarray, " n"]:
        there = {int(v): i for i, v in enumerate(self.numpy(axis))}
        if missing := [value for value in wanted if int(value) not in there]:
            raise ValueError(f"{axis} {missing[0]} is not in this run")
        return np.array([there[int(value)] for value in wanted], np.int64)

    def _check(self, name: str) -> None:
        if name not in self._reader.names:
            raise ValueError(f"no array {name!r}; there are {', '.join(self.names)}")
