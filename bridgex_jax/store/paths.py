"""Paths as users give them: a local one, or `s3://bucket/key` and `gs://bucket/key`.

Whatever takes a path from outside passes it through `as_path`, and reads it through `read_bytes`.
A remote path is an `etils.epath.Path`, which Orbax takes as well; what it stands for is reached
through fsspec (s3fs, gcsfs), configured by their usual environment: AWS_ENDPOINT_URL, AWS_PROFILE,
GOOGLE_APPLICATION_CREDENTIALS, FSSPEC_S3_… . epath's own file methods are not used: they have no
listing with sizes, keep old listings, and turn to TensorFlow where that is installed. Local paths
load none of these libraries.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, TypeGuard

from bridgex_jax.errors import InputError

if TYPE_CHECKING:
    from etils import epath

AnyPath: TypeAlias = "Path | epath.Path"

_BACK_ENDS = {"s3": "s3fs", "gs": "gcsfs"}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# What is left of a scheme after pathlib.Path.
_FLATTENED = re.compile(r"(s3|gs):/[^/]")
_NO_BUCKET = ("no such bucket", "check the name of the bucket")
_ACCESS = {
    "s3": "check the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID)",
    "gs": "check the credentials (GOOGLE_APPLICATION_CREDENTIALS)",
}
_REACH = {
    "s3": "check the network, the credentials and AWS_ENDPOINT_URL",
    "gs": "check the network, the credentials and STORAGE_EMULATOR_HOST",
}


def as_path(path: str | os.PathLike[str]) -> AnyPath:
    """The path that a user gave: `pathlib.Path`, or `epath.Path` for s3:// and gs://.

    Raises InputError for another scheme, for a remote path that went through `pathlib.Path` (which
    makes one slash of two), and where the back end is not installed.
    """
    text = os.fspath(path)
    if _FLATTENED.match(text):
        raise InputError(
            "has lost a slash in a pathlib.Path", file=text, remedy="give remote paths as text"
        )
    found = _SCHEME.match(text)
    if found is None:
        return Path(path)
    scheme = found[1]
    if scheme not in _BACK_ENDS:
        raise InputError(
            f"{scheme}:// is no place that can be used",
            file=text,
            remedy="give a local path, s3://… or gs://…",
        )
    if not text[found.end() :].strip("/"):
        raise InputError("names no bucket", file=text, remedy=f"give {scheme}://BUCKET/KEY")
    if importlib.util.find_spec(_BACK_ENDS[scheme]) is None:
        raise InputError(
            f"{scheme}:// needs the package {_BACK_ENDS[scheme]}, which is not installed",
            file=text,
            remedy="pip install 'bridgex_jax[cloud]'",
        )
    from etils import epath

    return epath.Path(text)


def is_remote(path: AnyPath) -> TypeGuard[epath.Path]:
    """Whether a path of `as_path` lies in an object store."""
    return not isinstance(path, Path)


def cache_directory() -> Path:
    """Where the user's own caches lie: XDG_CACHE_HOME, or `.cache` in the home directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bridgex_jax"


# Reading, of either kind -----------------------------------------------------------------------


def read_bytes(
    path: str | os.PathLike[str], *, missing: str = "no such file", remedy: str = "check the path"
) -> bytes:
    """All bytes of a file. Raises InputError where it is not there or cannot be read.

    missing, remedy: what is said of a file that is not there.
    """
    place = as_path(path)
    if is_remote(place):
        with remote_errors(place, missing, remedy):
            return file_system(place).cat_file(str(place))
    with _read_errors(place, missing, remedy):
        return place.read_bytes()


def is_file(path: AnyPath) -> bool:
    """Whether there is a file. Raises InputError for a place that cannot be reached."""
    if is_remote(path):
        with remote_errors(path, *_NO_BUCKET):
            return bool(file_system(path).isfile(str(path)))
    return path.is_file()


def file_size(path: AnyPath) -> int:
    """Bytes of a file that is there."""
    if is_remote(path):
        with remote_errors(path):
            return int(file_system(path).size(str(path)))
    return path.stat().st_size


@contextmanager
def open_binary(path: AnyPath) -> Iterator[BinaryIO]:
    """A file for reading from its beginning on; of a remote one only what is read is fetched."""
    if not is_remote(path):
        with _read_errors(path), open(path, "rb") as stream:
            yield stream
        return
    with remote_errors(path):
        stream = file_system(path).open(str(path), "rb")
    with stream:
        yield stream


def file_sha256(path: AnyPath) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    if is_remote(path):
        return hashlib.sha256(read_bytes(path)).hexdigest()
    with _read_errors(path), open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def files_below(directory: AnyPath) -> dict[str, int] | None:
    """Sizes in bytes of all files below a directory by relative name; None where it is not there.

    In an object store a directory is what lies below it, so an empty one is not there, and an
    object in its place has the empty name. Raises InputError for a bucket that is missing or
    cannot be listed.
    """
    if not is_remote(directory):
        if not directory.is_dir():
            return None
        return {
            path.relative_to(directory).as_posix(): path.stat().st_size
            for path in directory.rglob("*")
            if path.is_file()
        }
    with remote_errors(directory, *_NO_BUCKET):
        found = file_system(directory).find(str(directory), detail=True)
    start = len(str(directory).split("://", 1)[1].rstrip("/")) + 1
    # A slash at the end: how consoles mark a folder.
    files = {name[start:]: entry for name, entry in found.items() if not name.endswith("/")}
    return {name: int(entry["size"]) for name, entry in files.items()} or None


@contextmanager
def _read_errors(
    path: Path, missing: str = "no such file", remedy: str = "check the path"
) -> Iterator[None]:
    try:
        yield
    except IsADirectoryError:
        raise InputError("is a directory", file=path, remedy="give a text file") from None
    except FileNotFoundError:
        raise InputError(missing, file=path, remedy=remedy) from None
    except OSError as error:
        reason = error.strerror or "unknown error"
        raise InputError(f"cannot be read ({reason})", file=path, remedy="check the file") from None


# The object store ------------------------------------------------------------------------------


def file_system(path: epath.Path) -> Any:
    """The fsspec file system of a remote path; one a process and scheme."""
    return _file_system(str(path).split("://", 1)[0])


@functools.cache
def _file_system(scheme: str) -> Any:
    import fsspec

    # Another process may write at any moment, so no listing is kept.
    return fsspec.filesystem(scheme, use_listings_cache=False)


@contextmanager
def remote_errors(
    path: epath.Path, missing: str = "no such file", remedy: str = "check the path"
) -> Iterator[None]:
    """Turns whatever a back end raises into one InputError; wrap nothing else in it."""
    scheme = str(path).split("://", 1)[0]
    try:
        yield
    except FileNotFoundError as error:
        if "bucket does not exist" in str(error):
            missing, remedy = _NO_BUCKET
        raise InputError(missing, file=path, remedy=remedy) from error
    except PermissionError as error:
        raise InputError("access is denied", file=path, remedy=_ACCESS[scheme]) from error
    except Exception as error:  # every back end has classes of its own for a network that fails
        reason = str(error) or type(error).__name__
        raise InputError(
            f"cannot be reached ({reason})", file=path, remedy=_REACH[scheme]
        ) from error


def upload(source: Path, path: epath.Path) -> None:
    """Copies a local file into the object store; it appears there whole or not at all."""
    if not source.is_file():
        raise InputError("has vanished", file=source, remedy="run the command again")
    with remote_errors(path, *_NO_BUCKET):
        file_system(path).put_file(str(source), str(path))


def upload_bytes(data: bytes, path: epath.Path) -> None:
    """Writes an object; it appears whole or not at all."""
    with remote_errors(path, *_NO_BUCKET):
        file_system(path).pipe_file(str(path), data)


def remove_object(path: epath.Path) -> None:
    """Deletes an object; InputError where that is refused."""
    with remote_errors(path):
        file_system(path).rm_file(str(path))
