"""Files that are whole or not there: written beside their place, synced, then renamed.

Every write of the store goes through here, so that a full disk or a kill leaves either the old file
or the new one, and a disk error reaches the user as one line. Objects in a store (paths.py) appear
whole by themselves.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import IO, Any

import numpy as np

from bridgex_jax.errors import InputError
from bridgex_jax.store.paths import AnyPath, is_remote, read_bytes, upload_bytes

# EFBIG: the limit of a quota or of a FAT disk shows itself as a limit on the size of one file.
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NOT_WRITABLE = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG}
)
# A directory that somebody deleted, a disk that was unplugged, a server that went away.
_VANISHED = frozenset(
    {errno.ENOENT, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.EHOSTDOWN}
)


@contextmanager
def disk_errors(
    place: AnyPath, kept: str = "", remedy: str = "choose another --out"
) -> Iterator[None]:
    """Turns a full, unwritable or vanished disk under `place` into one `InputError`.

    kept: what a later run can still use, added to the remedy. Other errors pass.
    """
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        if error.errno in NO_SPACE:
            what, remedy = "the disk is full", f"free some space there or {remedy}"
        elif error.errno in _NOT_WRITABLE:
            what = f"cannot be written ({reason})"
        elif error.errno in _VANISHED:
            what, remedy = f"vanished while it was written ({reason})", "run the command again"
        else:
            raise
        remedy = f"{remedy}; {kept}" if kept else remedy
        raise InputError(what, file=place, remedy=remedy) from error


@contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears under its name whole and synced, or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
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


def write_bytes(path: AnyPath, data: bytes) -> None:
    """Writes `data` whole or not at all."""
    if is_remote(path):
        return upload_bytes(data, path)
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
    if isinstance(value, PurePath):
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


def write_json(path: AnyPath, value: Any) -> None:
    """Writes `json_bytes(value)` atomically."""
    write_bytes(path, json_bytes(value))


def read_json(path: AnyPath) -> Any:
    """Reads a JSON file of the store; raises InputError when it is missing or damaged."""
    remedy = "run the command that makes it again"
    try:
        return json.loads(read_bytes(path, missing="is missing", remedy=remedy).decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(
            f"is not valid JSON ({error})",
            file=path,
            line=getattr(error, "lineno", None),
            remedy=remedy,
        ) from error
