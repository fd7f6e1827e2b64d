"""Files that are whole or not there: written beside their place, synced, then renamed.

Every write of the store goes through here, so that a full disk or a kill leaves either the old file
or the new one, and a disk error reaches the user as one line.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from bridgex_jax.errors import InputError

# EFBIG: the limit of a quota or of a FAT disk shows itself as a limit on the size of one file.
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NOT_WRITABLE = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG}
)


@contextmanager
def disk_errors(place: Path, kept: str = "") -> Iterator[None]:
    """Turns a full or unwritable disk under `place` into one `InputError`; other errors pass.

    kept: what a later run can still use, added to the remedy.
    """
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            remedy = "free some space there or choose another --out"
            raise InputError(
                "the disk is full", file=place, remedy=f"{remedy}; {kept}" if kept else remedy
            ) from error
        if error.errno in _NOT_WRITABLE:
            reason = (error.strerror or str(error)).lower()
            raise InputError(
                f"cannot be written ({reason})", file=place, remedy="choose another --out"
            ) from error
        raise


@contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears under its name whole and synced, or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes `data` whole or not at all."""
    with new_file(path) as stream:
        stream.write(data)


def sync_file(path: Path) -> None:
    """Forces the content of a file that somebody else wrote to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Makes renames inside a directory durable, where the file system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Object stores mounted as directories refuse to sync a directory; there is nothing to lose.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def plain(value: Any) -> Any:
    """The value as JSON knows it: dataclass and mapping to dict, array to list, NaN to None."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no place in a JSON file")


def json_bytes(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys: equal values give equal bytes.

    A command line may hold bytes that are no UTF-8; they become JSON escapes.
    """
    text = json.dumps(plain(value), sort_keys=True, ensure_ascii=False, indent=2, allow_nan=False)
    return (text + "\n").encode("utf-8", "backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Writes `json_bytes(value)` atomically."""
    write_bytes(path, json_bytes(value))


def read_json(path: Path) -> Any:
    """Reads a JSON file of the store; raises InputError when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            "is missing", file=path, remedy="run the command that makes it again"
        ) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(
            f"is not valid JSON ({error})",
            file=path,
            line=getattr(error, "lineno", None),
            remedy="run the command that makes it again",
        ) from error
