"""Named-axis arrays in Zarr v3, written and read through TensorStore.

One group of arrays that xarray and zarr-python open as it is: axis names are `dimension_names`, and
the metadata of all arrays stand in the group's own. Chunks of about a megabyte carry a CRC-32C and
lie together in shard files of at most 64 MB along the axis that is written. bfloat16 is kept
as uint16, with an attribute that says so, because zarr-python has no such type.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from bridgex_jax.errors import InputError
from bridgex_jax.store.files import write_bytes
from bridgex_jax.store.paths import AnyPath, is_remote

if TYPE_CHECKING:
    import jax

META = "zarr.json"
CHUNK_BYTES = 2**20
SHARD_BYTES = 2**26
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_DTYPE = "bridgex_dtype"  # attribute: what the bits of an array are
# Along these an array is cut, the first first; along all others it is whole.
_CUT = ("token", "example", "layer", "chosen_layer", "text")
LAYER_AXES = ("layer", "chosen_layer")
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")
_QUOTED = re.compile(r'"(/[^"]+|[^"]+/c/[^"]+)"')


@dataclass(frozen=True)
class NamedArray:
    """An array of the group before it is written: its axes by name, in order, with their sizes.

    layers_apart: no file holds two layers, so that several processes can write a layer each.
    """

    name: str
    axes: Mapping[str, int]
    dtype: np.dtype
    attributes: Mapping[str, Any] = field(default_factory=dict)
    layers_apart: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.axes.values())

    @property
    def stored_dtype(self) -> np.dtype:
        return np.dtype(np.uint16) if self.dtype == BFLOAT16 else self.dtype


def chunk_shapes(array: NamedArray) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of a chunk and of a shard file (a whole number of chunks)."""
    axes = list(array.axes)
    chunk = {axis: 1 if axis in _CUT else max(1, n) for axis, n in array.axes.items()}
    cut = sorted((axis for axis in axes if axis in _CUT), key=_CUT.index)
    item = array.stored_dtype.itemsize
    if cut and cut[0] in ("token", "example"):
        one = math.prod(chunk.values()) * item
        chunk[cut[0]] = max(1, min(array.axes[cut[0]], CHUNK_BYTES // one))
    shard = dict(chunk)
    for axis in cut:
        if array.layers_apart and axis in LAYER_AXES:
            continue
        room = SHARD_BYTES // (math.prod(shard.values()) * item)
        shard[axis] *= max(1, min(room, -(-array.axes[axis] // chunk[axis])))
    return tuple(chunk.values()), tuple(shard.values())


class ZarrWriter:
    """A new group in an empty directory; `finish` makes it readable as one.

    Several processes may write the same arrays: each what it holds, no element twice. One of them
    writes the metadata.
    """

    def __init__(
        self,
        directory: Path,
        arrays: Iterable[NamedArray],
        attributes: Mapping[str, Any],
        with_metadata: bool = True,
    ) -> None:
        self._directory = directory
        self._arrays = {array.name: array for array in arrays}
        self._attributes = dict(attributes)
        self._stores = {n: _create(directory, a, with_metadata) for n, a in self._arrays.items()}

    def write(
        self, name: str, start: Sequence[int], values: np.ndarray | jax.Array
    ) -> list[tuple[slice, ...]]:
        """Writes a block that begins at `start`; what of the array was written, region by region.

        Of a `jax.Array` this process writes the shards on its own devices, of copies the first.
        Raises OSError where the disk refuses.
        """
        import tensorstore

        store, regions = self._stores[name], []
        with _write_errors(), tensorstore.Transaction() as transaction:
            for begin, block in _blocks(values):
                low = [a + b for a, b in zip(start, begin, strict=True)]
                region = tuple(slice(a, a + n) for a, n in zip(low, block.shape, strict=True))
                bits = np.ascontiguousarray(block, self._arrays[name].dtype)
                store.with_transaction(transaction)[region].write(
                    bits.view(self._arrays[name].stored_dtype)
                ).result()
                regions.append(region)
        return regions

    def finish(self) -> None:
        """Writes the group's metadata, with those of all arrays; nothing is whole before."""
        metadata = {
            name: json.loads((self._directory / name / META).read_bytes()) for name in self._arrays
        }
        consolidated = {"kind": "inline", "must_understand": False, "metadata": metadata}
        group = {
            "zarr_format": 3,
            "node_type": "group",
            "attributes": self._attributes,
            "consolidated_metadata": consolidated,
        }
        write_bytes(self._directory / META, json.dumps(group, sort_keys=True).encode())


def _blocks(values: np.ndarray | jax.Array) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """Where in the array each block begins, and the block: each element once in all processes."""
    if isinstance(values, np.ndarray):
        yield (0,) * values.ndim, values
        return
    for shard in values.addressable_shards:
        if shard.replica_id == 0:
            yield tuple(s.start or 0 for s in shard.index), np.asarray(shard.data)


def _create(directory: Path, array: NamedArray, with_metadata: bool) -> Any:
    import tensorstore

    chunk, shard = chunk_shapes(array)
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    checked = {"name": "crc32c"}
    zstd = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}
    codec = {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": chunk,
            "codecs": [little, zstd, checked],
            "index_codecs": [little, checked],
        },
    }
    attributes = dict(array.attributes)
    if array.dtype == BFLOAT16:
        attributes[_DTYPE] = "bfloat16"
    metadata = {
        "shape": array.shape,
        "data_type": array.stored_dtype.name,
        "dimension_names": list(array.axes),
        "attributes": attributes,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard}},
        "codecs": [codec],
    }
    how = {"create": True, "open": True} if with_metadata else {"assume_metadata": True}
    with _write_errors():
        return tensorstore.open(
            {
                "driver": "zarr3",
                "kvstore": _key_value_store(directory / array.name),
                "metadata": metadata,
                **how,
            }
        ).result()


class ZarrReader:
    """The arrays of a finished group, by name."""

    def __init__(self, directory: AnyPath, group: Mapping[str, Any]) -> None:
        self.directory = directory
        self.attributes: dict[str, Any] = group["attributes"]
        self._metadata: dict[str, Any] = group["consolidated_metadata"]["metadata"]
        self._stores: dict[str, Any] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._metadata))

    def axes(self, name: str) -> dict[str, int]:
        """Axis names and sizes of an array. KeyError for an unknown one."""
        metadata = self._metadata[name]
        return dict(zip(metadata["dimension_names"], metadata["shape"], strict=True))

    def array_attributes(self, name: str) -> dict[str, Any]:
        return self._metadata[name].get("attributes", {})

    def dtype(self, name: str) -> np.dtype:
        if self.array_attributes(name).get(_DTYPE) == "bfloat16":
            return BFLOAT16
        return np.dtype(self._metadata[name]["data_type"])

    def read(self, name: str, index: Sequence[slice | np.ndarray | int]) -> np.ndarray:
        """A part of an array, every axis indexed on its own. InputError for a damaged chunk."""
        with _read_errors(self.directory / name):
            found = self._store(name).oindex[tuple(index)].read().result()
        return found.view(self.dtype(name))

    def _store(self, name: str) -> Any:
        import tensorstore

        if name not in self._stores:
            spec = {"driver": "zarr3", "kvstore": _key_value_store(self.directory / name)}
            self._stores[name] = tensorstore.open(spec, open=True, read=True).result()
        return self._stores[name]


def _key_value_store(path: AnyPath) -> dict[str, Any]:
    if not is_remote(path):
        return {"driver": "file", "path": str(path)}
    scheme, _, rest = str(path).partition("://")
    bucket, _, key = rest.partition("/")
    spec: dict[str, Any] = {
        "driver": {"gs": "gcs"}.get(scheme, scheme),
        "bucket": bucket,
        "path": key,
    }
    if scheme == "s3" and "AWS_ACCESS_KEY_ID" in os.environ:
        spec["aws_credentials"] = {"type": "environment"}  # else files are looked for, and missed
    if scheme == "s3" and (endpoint := os.environ.get("AWS_ENDPOINT_URL")):
        spec |= {"endpoint": endpoint, "aws_region": os.environ.get("AWS_REGION", "us-east-1")}
    return spec


@contextmanager
def _write_errors() -> Iterator[None]:
    """TensorStore says ValueError also where the disk is full: as the OSError that it was."""
    try:
        yield
    except ValueError as error:
        if found := _OS_ERROR.search(str(error)):
            number = int(found[1])
            raise OSError(number, os.strerror(number)) from error
        raise


@contextmanager
def _read_errors(place: AnyPath) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        named = _QUOTED.search(str(error))
        reason = str(error).split(": ")[-1].split(" [")[0]
        raise InputError(
            f"is damaged ({reason})",
            file=named[1] if named else place,
            remedy="delete the run and make it again",
        ) from error
