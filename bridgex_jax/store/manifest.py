"""`manifest.json`: what a run was, with what it was made, and every file with its size and sha256.

A run is complete if and only if its manifest is valid, so the manifest is always written last.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from bridgex_jax.errors import InputError
from bridgex_jax.store.files import disk_errors, file_sha256, read_json, write_bytes, write_json

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
    "matplotlib",
)
_AGAIN = "delete the directory and run the command again"


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


def read_manifest(directory: str | Path) -> dict[str, Any]:
    """The manifest of a complete run; every file must be there in its size.

    Raises InputError, naming the file, when the manifest is missing, damaged or of another schema,
    or when a listed file is missing or has another size. Contents are compared by `verify_run`.
    """
    directory = Path(directory)
    manifest = _parse(directory)
    for name, entry in manifest["files"].items():
        path = directory / name
        if not path.is_file():
            raise InputError("is listed in the manifest but missing", file=path, remedy=_AGAIN)
        size = path.stat().st_size
        if size != entry["size"]:
            raise InputError(
                f"has {size:,} bytes, the manifest says {entry['size']:,}", file=path, remedy=_AGAIN
            )
    return manifest


def verify_run(directory: str | Path, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Like `read_manifest`, and the sha256 of the named files (default: all) must agree."""
    directory = Path(directory)
    manifest = read_manifest(directory)
    for name in manifest["files"] if names is None else names:
        verify_file(directory, manifest, name)
    return manifest


def verify_file(directory: Path, manifest: Mapping[str, Any], name: str) -> Path:
    """Path of one listed file whose content is as the manifest says; InputError otherwise."""
    path = directory / name
    entry = manifest["files"].get(name)
    if entry is None:
        raise InputError("is not listed in the manifest", file=path, remedy=_AGAIN)
    if not path.is_file():
        raise InputError("is listed in the manifest but missing", file=path, remedy=_AGAIN)
    if file_sha256(path) != entry["sha256"]:
        raise InputError("has changed since the run ended", file=path, remedy=_AGAIN)
    return path


def replace_files(directory: str | Path, files: Mapping[str, bytes]) -> None:
    """Writes derived files (a report made anew) into a complete run and lists them in its manifest.

    All files that stay must be as the manifest says. A kill between the files and the manifest
    leaves a run that fails `verify_run` on exactly these files; calling again repairs it.
    """
    directory = Path(directory)
    manifest = _parse(directory)
    for name in manifest["files"].keys() - files.keys():
        verify_file(directory, manifest, name)
    with disk_errors(directory):
        for name, data in files.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(directory / name, data)
        manifest["files"] |= list_files(directory, files)
        write_json(directory / MANIFEST, manifest)


def _parse(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST
    if not directory.is_dir():
        raise InputError("is not a run directory", file=directory, remedy="give the --out of a run")
    if not path.is_file():
        raise InputError("holds no complete run (no manifest.json)", file=directory, remedy=_AGAIN)
    manifest = read_json(path)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise InputError("is not a manifest", file=path, remedy=_AGAIN)
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
        raise InputError("is not a whole manifest", file=path, remedy=_AGAIN)
    return manifest
