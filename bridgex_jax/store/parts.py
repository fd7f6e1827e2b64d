"""Intermediate results of a run that is not finished: named arrays, each with its checksum."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bridgex_jax.errors import InputError
from bridgex_jax.store.files import new_file, write_bytes
from bridgex_jax.store.paths import file_sha256

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Parts:
    """The parts in one directory. A part is whole when its sha256 lies beside it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def names(self) -> list[str]:
        """Names of all parts, damaged ones included."""
        return sorted(path.stem for path in self.directory.glob("[!.]*.npz"))

    def prepare(self) -> list[str]:
        """Makes the directory, removes torn files; the names of the whole parts."""
        self.directory.mkdir(exist_ok=True)
        for torn in self.directory.glob(".*.tmp"):
            torn.unlink()
        return [name for name in self.names() if _is_whole_file(*self._files(name))]

    def save(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes a part whole or not at all."""
        path, checksum = self._files(name)
        checksum.unlink(missing_ok=True)
        with new_file(path) as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
        write_bytes(checksum, file_sha256(path).encode("ascii"))

    def read(self, name: str) -> bytes:
        """The file of a whole part, for `unpack`; InputError where the disk fails."""
        path, checksum = self._files(name)
        try:
            data = path.read_bytes()
            reason = "" if _is_whole(data, checksum) else "its sha256 is another one now"
        except OSError as error:
            reason = error.strerror or str(error)
        if reason:
            # The checksum held at entry, so the disk itself is failing.
            raise InputError(
                f"cannot be read back ({reason})",
                file=path,
                remedy="delete it and run the command again",
            )
        return data

    def _files(self, name: str) -> tuple[Path, Path]:
        return self.directory / f"{name}.npz", self.directory / f"{name}.sha256"


def _is_whole_file(path: Path, checksum: Path) -> bool:
    return checksum.is_file() and file_sha256(path) == _stored(checksum)


def _is_whole(data: bytes, checksum: Path) -> bool:
    return hashlib.sha256(data).hexdigest() == _stored(checksum)


def _stored(checksum: Path) -> str:
    return checksum.read_text("ascii", "replace").strip()


def check_name(name: str) -> None:
    """ValueError for what cannot be a part's name."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name for a part: letters, digits, '.', '_' and '-' only")


def unpack(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of `Parts.read`."""
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}
