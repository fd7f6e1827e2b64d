"""Variables of xarray whose values are read when they are used (needs the extra `xarray`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray
from xarray.backends import BackendArray
from xarray.core import indexing

Read = Callable[[Sequence[slice | np.ndarray | int]], np.ndarray]


class _OnDisk(BackendArray):
    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, read: Read) -> None:
        self.shape = shape
        self.dtype = dtype
        self._read = read

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._outer
        )

    def _outer(self, key: tuple[Any, ...]) -> np.ndarray:
        return self._read(key).astype(self.dtype, copy=False)


def lazy_variable(
    axes: Sequence[str],
    shape: tuple[int, ...],
    dtype: np.dtype,
    read: Read,
    attributes: Mapping[str, Any],
) -> xarray.Variable:
    """A variable with named axes; `read` takes one index an axis."""
    on_disk = indexing.LazilyIndexedArray(_OnDisk(shape, dtype, read))
    return xarray.Variable(axes, on_disk, dict(attributes))
