"""`manifest.json`: what a run was, with what it was made, and every file with its size and sha256.

A run is complete if and only if its manifest is valid, so the manifest is always written last.
"""

from __future__ import annotations

import functools
import hashlib
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from bridgex_jax.errors import InputError
from bridgex_jax.store.files import disk_errors, write_bytes, write_json
from bridgex_jax.store.paths import (
    AnyPath,
    as_path,
    file_sha256,
    files_below,
    is_remote,
    read_bytes,
)

SCHEMA = 1
MANIFEST = "manifest.json"

_DISTRIBUTIONS = (
    "bridgex-jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "numpy",
    "einops",
    "transformers",
    "tokenizers",
    "safetensors",
    "huggingface-hub",
    "absl-py",
    "babel",
    "pyarrow",
    "orbax-checkpoint",
    "tensorstore",
    "matplotlib",
)
_AGAIN = "delete the directory and run the command again"
_FINISHED = "give the --out of a run that is finished"
_NO_RUN = "holds no complete run (no manifest.json)"
_GONE = "is listed in the manifest but missing"


class CorruptRun(InputError):
    """A run that was complete and is not any more: a file is missing or was changed."""


def collect_versions() -> dict[str, str]:
    """Versions of Python and of the installed distributions that can change a result."""
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _DISTRIBUTIONS:
        version = _version(name)
        if version is not None:
            versions[name.replace("-", "_")] = version
    return versions


@functools.cache
def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def list_files(directory: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Size in bytes and sha256 of every named file, as the manifest keeps them."""
    return {
        name: {"size": (directory / name).stat().st_size, "sha256": file_sha256(directory / name)}
        for name in sorted(names)
    }


def parse_manifest(directory: str | AnyPath) -> dict[str, Any]:
    """The manifest of a run; its files are not looked at.

    Raises InputError where there is none, CorruptRun where it is damaged or of another schema.
    """
    directory = as_path(directory)
    path = directory / MANIFEST
    if not is_remote(directory) and not directory.is_dir():
        raise InputError("is not a run directory", file=directory, remedy="give the --out of a run")
    if not is_remote(directory) and not path.exists():
        raise InputError(_NO_RUN, file=directory, remedy=_FINISHED)
    data = read_bytes(path, missing=_NO_RUN, remedy=_FINISHED)
    try:
        manifest = json.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CorruptRun(f"is not valid JSON ({error})", file=path, remedy=_AGAIN) from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise CorruptRun("is not a manifest", file=path, remedy=_AGAIN)
    if manifest.get("schema") != SCHEMA:
        raise InputError(
            f"has schema {manifest.get('schema')}, this version reads {SCHEMA}",
            file=path,
            remedy="use the version of bridgex_jax that the manifest names",
        )
    missing = {"kind", "identity", "settings", "inputs"} - manifest.keys()
    if missing or not all(
        isinstance(entry, dict) and {"size", "sha256"} <= entry.keys()
        for entry in manifest["files"].values()
    ):
        raise CorruptRun("is not a whole manifest", file=path, remedy=_AGAIN)
    return manifest


def read_manifest(directory: str | AnyPath) -> dict[str, Any]:
    """The manifest of a complete run; every file must be there in its size.

    Raises InputError as `parse_manifest` does, and CorruptRun, naming the file, when a listed file
    is missing or has another size. Contents are compared by `verify_run`.
    """
    directory = as_path(directory)
    manifest = parse_manifest(directory)
    there = _sizes(directory, manifest["files"])
    for name, entry in manifest["files"].items():
        if name not in there:
            raise _missing(directory / name)
        if there[name] != entry["size"]:
            raise CorruptRun(
                f"has {there[name]:,} bytes, the manifest says {entry['size']:,}",
                file=directory / name,
                remedy=_AGAIN,
            )
    return manifest


def verify_run(
    directory: str | AnyPath, names: Iterable[str] | None = None, kinds: Sequence[str] = ()
) -> dict[str, Any]:
    """Like `read_manifest`, and the sha256 of the named files (default: all) must agree.

    kinds: of the run; any where none is given. InputError for another.
    """
    directory = as_path(directory)
    manifest = read_manifest(directory)
    if kinds and manifest["kind"] not in kinds:
        raise InputError(
            f"holds a run of kind {manifest['kind']}, not {kinds[0]}",
            file=directory,
            remedy=f"give the --out of bridgex {kinds[0]}",
        )
    for name in manifest["files"] if names is None else names:
        verify_file(directory, manifest, name)
    return manifest


def verify_file(directory: AnyPath, manifest: Mapping[str, Any], name: str) -> AnyPath:
    """Path of one listed file whose content is as the manifest says; CorruptRun otherwise."""
    path = directory / name
    entry = _entry(path, manifest, name)
    if not is_remote(path) and not path.is_file():
        raise _missing(path)
    if file_sha256(path) != entry["sha256"]:
        raise _changed(path)
    return path


def read_file(directory: AnyPath, manifest: Mapping[str, Any], name: str) -> bytes:
    """The bytes of one listed file, as the manifest says; CorruptRun otherwise."""
    path = directory / name
    entry = _entry(path, manifest, name)
    data = read_bytes(path, missing=_GONE, remedy=_AGAIN)
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise _changed(path)
    return data


def replace_files(directory: str | AnyPath, files: Mapping[str, bytes]) -> None:
    """Writes derived files (a report made anew) into a complete run and lists them in its manifest.

    All files that stay must be as the manifest says. A kill between the files and the manifest
    leaves a run that fails `verify_run` on exactly these files; calling again repairs it.
    """
    directory = as_path(directory)
    manifest = parse_manifest(directory)
    for name in manifest["files"].keys() - files.keys():
        verify_file(directory, manifest, name)
    with disk_errors(directory):
        for name, data in files.items():
            if not is_remote(directory):
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(directory / name, data)
        manifest["files"] |= {
            name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in files.items()
        }
        write_json(directory / MANIFEST, manifest)


def _sizes(directory: AnyPath, names: Iterable[str]) -> dict[str, int]:
    """Sizes of those of the named files that are there."""
    if is_remote(directory):
        there = files_below(directory) or {}  # one request for all
        return {name: there[name] for name in names if name in there}
    return {
        name: (directory / name).stat().st_size for name in names if (directory / name).is_file()
    }


def _entry(path: AnyPath, manifest: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    if name not in manifest["files"]:
        raise InputError("is not listed in the manifest", file=path, remedy=_AGAIN)
    return manifest["files"][name]


def _missing(path: AnyPath) -> CorruptRun:
    return CorruptRun(_GONE, file=path, remedy=_AGAIN)


def _changed(path: AnyPath) -> CorruptRun:
    return CorruptRun("has changed since the run ended", file=path, remedy=_AGAIN)
