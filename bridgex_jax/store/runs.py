"""The run directory: all of a run is made in a hidden place and appears under its name at once.

While a run works, its files and intermediate parts lie in `.NAME.partial` beside `NAME`; at the end
`manifest.json` is written there last and the directory of files is renamed. A killed run leaves
only the hidden directory, which the same command takes up again, part by part; any other command is
refused.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from bridgex_jax.errors import InputError
from bridgex_jax.store.files import (
    NO_SPACE,
    disk_errors,
    file_sha256,
    json_bytes,
    new_file,
    plain,
    read_json,
    sync_directory,
    sync_file,
    write_bytes,
    write_json,
)
from bridgex_jax.store.manifest import MANIFEST, SCHEMA, collect_versions, list_files, verify_run

_FACTS = frozenset({"model", "data", "devices", "implementation", "seed", "notes"})
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP})
_PART_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def create_run(
    out: str | Path,
    *,
    kind: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Any] | None = None,
    command: Sequence[str] | None = None,
) -> RunDirectory:
    """A run directory, for `with create_run(...) as run:`; nothing is touched before the `with`.

    out: the directory that will hold the finished run; missing or empty.
    kind: the verb that makes it ("count", "select", "evaluate", "demo").
    settings, inputs: everything that can change the result: options, and hashes of model and data.
        With kind and package version they are the identity by which a run is recognised and
        resumed.
    command: the command line for the manifest (default: of this process).

    Entering raises InputError when `out` holds another run or other files, when another process is
    writing it, when a part-finished run of another identity is in the way, and when the disk
    refuses.
    """
    return RunDirectory(Path(out), kind, settings, inputs or {}, command)


class RunDirectory:
    """One run on its way to the disk; made by `create_run`.

    directory: where the files are now: the hidden place while the run works, `out` once it is
    complete.
    complete: on entry, True when `out` already holds this very run: there is nothing to do, and
        nothing can be written.
    resumed: the parts of a killed run that were found on entry.
    """

    def __init__(
        self,
        out: Path,
        kind: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Any],
        command: Sequence[str] | None,
    ):
        self.out = out.resolve()
        self._work = _work_place(self.out)
        self.directory = self._work / "files"
        self.complete = False
        self.resumed: tuple[str, ...] = ()
        self._identity = {
            "kind": kind,
            "schema": SCHEMA,
            "bridgex_jax": collect_versions().get("bridgex_jax", "unknown"),
            "settings": plain(settings),
            "inputs": plain(inputs),
        }
        self._command = list(sys.argv if command is None else command)
        self._facts: dict[str, Any] = {}
        self._timings: dict[str, float] = {}
        self._whole_parts: set[str] = set()
        self._lock: int | None = None
        self._made_parents: list[Path] = []

    @property
    def identity(self) -> str:
        """Hash of kind, package version, settings and inputs."""
        return hashlib.sha256(json_bytes(self._identity)).hexdigest()

    @property
    def notice(self) -> str | None:
        """One line for the user when an earlier run was found: complete, or resumed."""
        if self.complete:
            return f"{self.out} already holds this run, complete"
        if self.resumed:
            return f"resuming a run that was stopped: {len(self.resumed)} parts are already there"
        return None

    # Entering and leaving ----------------------------------------------------------------------

    def __enter__(self) -> RunDirectory:
        if self._is_already_complete():
            self._sweep()
            return self
        with disk_errors(self.out):
            self._made_parents = _make_directories(self._work.parent)
            self._lock = _lock(self._work, self.out)
        try:
            # Again: the process that held the lock a moment ago may have finished this run.
            if self._is_already_complete():
                self._abandon()
                return self
            with disk_errors(self.out):
                self._claim()
        except BaseException:
            self._abandon()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._lock is None:
            return
        try:
            with disk_errors(self.out, kept=self._kept()):
                if error is None:
                    self._finish()
                elif isinstance(error, OSError) and error.errno in NO_SPACE:
                    raise error
        finally:
            self._abandon()

    def _is_already_complete(self) -> bool:
        if not self.out.exists():
            return False
        if not self.out.is_dir():
            raise InputError(
                "is a file, not a directory", file=self.out, remedy="choose another --out"
            )
        with disk_errors(self.out):
            names = {path.name for path in self.out.iterdir()} - {self._work.name, "lost+found"}
        if MANIFEST not in names:
            if names:
                raise InputError(
                    "is not empty and holds no complete run",
                    file=self.out,
                    remedy="choose another --out or empty the directory",
                )
            return False
        manifest = verify_run(self.out)
        if manifest["identity"] != self.identity:
            raise InputError(
                f"already holds another run ({_difference(manifest, self._identity)})",
                file=self.out,
                remedy="choose another --out or delete the directory",
            )
        self.complete = True
        self.directory = self.out
        return True

    def _claim(self) -> None:
        """Takes the work directory, with the parts of a killed run of the same identity."""
        owner = self._work / "identity.json"
        if owner.is_file():
            there = read_json(owner)
            if there != self._identity and self._part_names():
                raise InputError(
                    f"holds a run that was stopped ({_difference(there, self._identity)})",
                    file=self._work,
                    remedy="run its command to finish it, delete it, or choose another --out",
                )
        write_json(owner, self._identity)
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir()
        parts = self._work / "parts"
        parts.mkdir(exist_ok=True)
        for torn in parts.glob(".*.tmp"):
            torn.unlink()
        self.resumed = tuple(name for name in self._part_names() if self.has_part(name))

    def _finish(self) -> None:
        names = sorted(
            path.relative_to(self.directory).as_posix()
            for path in self.directory.rglob("*")
            if path.is_file()
        )
        for name in names:
            sync_file(self.directory / name)
        manifest = self.facts() | {"files": list_files(self.directory, names)}
        write_json(self.directory / MANIFEST, manifest)
        _publish(self.directory, self.out, names)
        self.complete = True
        self.directory = self.out

    def _abandon(self) -> None:
        """Leaves nothing behind but the parts of an unfinished run, which a next run can use."""
        if self._lock is None:
            return
        try:
            shutil.rmtree(self._work / "files", ignore_errors=True)
            if self.complete or not self._part_names():
                shutil.rmtree(self._work, ignore_errors=True)
            if not self.complete:
                for parent in reversed(self._made_parents):
                    with suppress(OSError):  # not empty
                        parent.rmdir()
        finally:
            self._release()

    def _sweep(self) -> None:
        """Removes the work directory of a complete run that was killed before it could do so."""
        if self._work.exists():
            with suppress(InputError, OSError):  # in use, or on a read-only disk: no harm
                self._lock = _lock(self._work, self.out)
            self._abandon()

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _must_be_open(self) -> None:
        if self._lock is None:
            raise RuntimeError(f"{self.out}: the run is complete or was not entered")

    def _kept(self) -> str:
        return f"finished parts are kept in {self._work}" if self._part_names() else ""

    # Files -------------------------------------------------------------------------------------

    def path(self, name: str) -> Path:
        """Where to write a result file of this run (`name` may hold folders).

        Here and in all that writes: RuntimeError when the run is complete.
        """
        self._must_be_open()
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_bytes(self, name: str, data: bytes) -> None:
        """Writes one result file."""
        with disk_errors(self.out, kept=self._kept()):
            write_bytes(self.path(name), data)

    def write_text(self, name: str, text: str) -> None:
        """Writes one UTF-8 result file."""
        self.write_bytes(name, text.encode("utf-8"))

    def write_json(self, name: str, value: Any) -> None:
        """Writes one JSON result file, with sorted keys and NaN as null."""
        self.write_bytes(name, json_bytes(value))

    # Parts -------------------------------------------------------------------------------------

    def has_part(self, name: str) -> bool:
        """Whether a whole part of that name is there; a damaged one counts as absent."""
        if name in self._whole_parts:
            return True
        path, checksum = self._part_files(name)
        if not path.is_file() or not checksum.is_file():
            return False
        if file_sha256(path) != checksum.read_text(encoding="ascii", errors="replace").strip():
            return False
        self._whole_parts.add(name)
        return True

    def save_part(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keeps named arrays (no object dtype) so that a killed run need not compute them again."""
        self._must_be_open()
        if any(array.dtype.hasobject for array in arrays.values()):
            raise ValueError(f"part {name}: arrays of Python objects cannot be stored")
        path, checksum = self._part_files(name)
        self._whole_parts.discard(name)
        with disk_errors(self.out, kept=self._kept()):
            checksum.unlink(missing_ok=True)
            with new_file(path) as stream:
                np.savez(stream, **arrays)  # type: ignore[arg-type]
            write_bytes(checksum, file_sha256(path).encode("ascii"))
        self._whole_parts.add(name)

    def load_part(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of a part that `has_part`; KeyError otherwise."""
        if not self.has_part(name):
            raise KeyError(name)
        try:
            with np.load(self._part_files(name)[0], allow_pickle=False) as archive:
                return {key: archive[key] for key in archive.files}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            # The checksum held at entry, so the disk itself is failing.
            self._whole_parts.discard(name)
            raise InputError(
                f"cannot be read back ({error})",
                file=self._part_files(name)[0],
                remedy="delete it and run the command again",
            ) from error

    def part(
        self, name: str, compute: Callable[[], Mapping[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """The stored part, or `compute()` stored under that name."""
        if not self.has_part(name):
            self.save_part(name, compute())
        return self.load_part(name)

    def _part_files(self, name: str) -> tuple[Path, Path]:
        if not _PART_NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} is no name for a part: letters, digits, '.', '_' and '-' only"
            )
        parts = self._work / "parts"
        return parts / f"{name}.npz", parts / f"{name}.sha256"

    def _part_names(self) -> list[str]:
        return sorted(path.stem for path in (self._work / "parts").glob("[!.]*.npz"))

    # Facts for the manifest --------------------------------------------------------------------

    def record(self, **facts: Any) -> None:
        """Adds facts to the manifest: model, data, devices, implementation, seed, notes."""
        unknown = facts.keys() - _FACTS
        if unknown:
            raise TypeError(f"the manifest has no place for {', '.join(sorted(unknown))}")
        self._facts |= plain(facts)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage of the run in wall seconds; the same name twice adds up."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self._timings[name] = round(self._timings.get(name, 0.0) + spent, 3)

    def facts(self) -> dict[str, Any]:
        """The manifest as far as it is known now, without its files."""
        return {
            "schema": SCHEMA,
            "kind": self._identity["kind"],
            "identity": self.identity,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": self._command,
            "settings": self._identity["settings"],
            "inputs": self._identity["inputs"],
            "versions": collect_versions(),
            "timings": dict(self._timings),
            "resumed_parts": list(self.resumed),
            **self._facts,
        }


def _work_place(out: Path) -> Path:
    """`.NAME.partial` beside `out`; inside it where nothing can be renamed onto `out`.

    A directory that is a mount point (a container's volume) or whose parent is read-only can only
    be filled file by file.
    """
    if os.path.ismount(out) or (out.is_dir() and not os.access(out.parent, os.W_OK)):
        return out / ".partial"
    return out.parent / f".{out.name}.partial"


def _make_directories(path: Path) -> list[Path]:
    """Makes a directory and its parents; those that were missing, outermost first."""
    missing = [parent for parent in (path, *path.parents) if not parent.exists()][::-1]
    path.mkdir(parents=True, exist_ok=True)
    return missing


def _lock(work: Path, out: Path) -> int:
    """Makes the work directory and holds it for this process; InputError when another one does."""
    while True:
        try:
            work.mkdir(parents=True, exist_ok=True)
            lock = os.open(work / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            continue  # The owner finished and removed the directory between the two lines.
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise InputError(
                "is being written by another process",
                file=out,
                remedy="wait for it to end or choose another --out",
            ) from error
        except OSError as error:
            # A file system without locks: two writers are then kept apart by the user alone.
            if error.errno not in _NO_LOCKS:
                os.close(lock)
                raise
            return lock
        if _is_still_there(lock, work / "lock"):
            return lock
        os.close(lock)


def _is_still_there(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _publish(files: Path, out: Path, names: Sequence[str]) -> None:
    """Puts finished files in their place: one rename, or file by file with the manifest last."""
    if not files.is_relative_to(out):
        try:
            os.rename(files, out)
            sync_directory(out.parent)
            return
        except OSError as error:
            # Buckets mounted as file systems cannot rename directories.
            if error.errno in NO_SPACE or error.errno == errno.ENOTEMPTY:
                raise
    out.mkdir(exist_ok=True)
    for name in (*names, MANIFEST):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(files / name, out / name)
    sync_directory(out)


def _difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """What two identities differ in, in a few words."""
    if there.get("kind") != here["kind"]:
        return f"of kind {there.get('kind')}, not {here['kind']}"
    found = []
    for group in ("settings", "inputs"):
        old, new = _flatten(there.get(group, {})), _flatten(here[group])
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                found.append(f"{key}: {_short(old.get(key))} there, {_short(new.get(key))} here")
    if not found:
        return "made by another version of bridgex_jax"
    return "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flatten(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:21] + "…"
