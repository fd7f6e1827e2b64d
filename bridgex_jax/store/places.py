"""Where a finished run appears: a local directory, or a place in an object store.

A directory appears by one rename. An object store cannot rename, and neither can some file systems:
there the files are put one by one and `manifest.json` last, for a run is complete if and only if
its manifest is valid. `.upload.json` lies beside them meanwhile and says whose files they are, so
that the same command can finish an upload that was cut.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import secrets
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bridgex_jax.errors import InputError
from bridgex_jax.store.files import NO_SPACE, disk_errors, read_json, sync_directory, write_json
from bridgex_jax.store.identity import difference
from bridgex_jax.store.manifest import MANIFEST, CorruptRun, parse_manifest, verify_run
from bridgex_jax.store.paths import (
    AnyPath,
    as_path,
    cache_directory,
    files_below,
    is_remote,
    remove_object,
    upload,
)

_UPLOAD = ".upload.json"
_INSIDE = ".partial"  # the work of a run in its own directory, where it cannot lie beside it
_ATTEMPTS = 4
_NOT_EMPTY = (errno.ENOTEMPTY, errno.EEXIST)


class Taken(Exception):
    """Something lies where a run was to appear."""


class Place:
    """The place of one run.

    out: as the user knows it. work: the hidden directory of a run made there (workplace.py).
    """

    def __init__(self, out: str | os.PathLike[str], identity: Mapping[str, Any]) -> None:
        path = as_path(out)
        self.out: AnyPath = path if is_remote(path) else path.resolve()
        self.work = _work_directory(self.out)
        self._identity = identity
        self._ours: set[str] = set()  # files there that an earlier process put for this run
        self._theirs: set[str] = set()  # files that other processes of this run put there

    def look(self) -> dict[str, Any] | None:
        """The manifest of the run that is there, unverified; None where there is room for one.

        Raises InputError for a file, for other files, and for the remains of another run's upload;
        CorruptRun for a manifest that cannot be read.
        """
        names = self._names()
        if names is None:
            return None
        if MANIFEST in names:
            return parse_manifest(self.out)
        if names - {_UPLOAD} and not self._are_remains(names):
            raise InputError(
                "is not empty and holds no complete run",
                file=self.out,
                remedy="choose another --out or empty the directory",
            )
        return None

    def _names(self) -> set[str] | None:
        """What lies there, but for what is not anybody's; None where there is nothing."""
        if is_remote(self.out):
            names = set(files_below(self.out) or ())
        elif not self.out.exists():
            return None
        else:
            with disk_errors(self.out):
                names = {p.name for p in self.out.iterdir()} if self.out.is_dir() else {""}
        if "" in names:
            raise InputError(
                "is a file, not a directory", file=self.out, remedy="choose another --out"
            )
        return {n for n in names if n != "lost+found" and not n.startswith(_INSIDE)}

    def _are_remains(self, names: set[str]) -> bool:
        """Whether the files there are what a cut upload of this very run left."""
        if _UPLOAD not in names:
            return False
        mark = read_json(self.out / _UPLOAD)
        if not isinstance(mark, dict) or not {"identity", "files"} <= mark.keys():
            return False
        if mark["identity"] != self._identity:
            raise InputError(
                "holds the remains of another run's upload "
                f"({difference(mark['identity'], self._identity)})",
                file=self.out,
                remedy="run its command to finish it, delete it, or choose another --out",
            )
        self._ours |= set(mark["files"])
        return set(files_below(self.out) or ()) <= self._ours | {_UPLOAD}

    def announce(self) -> None:
        """Says in an object store that this run will be put there: bad access shows itself now."""
        if is_remote(self.out) and set(files_below(self.out) or ()) <= {_UPLOAD}:
            self._mark(())

    def expect(self, names: Collection[str]) -> None:
        """Says in an object store that other processes of this run will now put these files."""
        self._theirs = set(names)
        self._mark(())

    def retract(self) -> None:
        """Takes an announcement back to which no files came."""
        if is_remote(self.out):
            with suppress(InputError):
                if set(files_below(self.out) or ()) == {_UPLOAD}:
                    remove_object(self.out / _UPLOAD)

    def publish(self, files: Path, names: Sequence[str]) -> None:
        """Puts the finished files there, the manifest last; raises Taken when there is no room."""
        if is_remote(self.out):
            return self._upload(files, names)
        if not files.is_relative_to(self.out) and not (self.out / _UPLOAD).exists():
            try:
                os.rename(files, self.out)
                sync_directory(self.out.parent)
                return
            except OSError as error:
                if error.errno in _NOT_EMPTY:
                    raise Taken from error
                # Buckets mounted as file systems cannot rename directories.
                if error.errno in NO_SPACE or not files.is_dir():
                    raise
        self._fill(files, names)

    def _fill(self, files: Path, names: Sequence[str]) -> None:
        assert not is_remote(self.out)
        self.out.mkdir(exist_ok=True)
        if (self.out / MANIFEST).exists():
            raise Taken
        self._mark(names)
        for name in (*names, MANIFEST):
            (self.out / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(files / name, self.out / name)
        (self.out / _UPLOAD).unlink(missing_ok=True)
        sync_directory(self.out)

    def _upload(self, files: Path, names: Sequence[str]) -> None:
        assert is_remote(self.out)
        if MANIFEST in (files_below(self.out) or ()):
            raise Taken
        for _ in range(_ATTEMPTS):
            self._mark(names)
            for name in (*names, MANIFEST):
                upload(files / name, self.out / name)
            try:
                verify_run(self.out)
            except CorruptRun:  # Another process put files of its own between ours.
                time.sleep(random.uniform(0, 1))
                continue
            self._clear({*names, MANIFEST})
            return None
        raise InputError(
            "is being written by another process at the same time",
            file=self.out,
            remedy="run the command again",
        )

    def _mark(self, names: Sequence[str]) -> None:
        files = {*self._ours, *self._theirs, *names, MANIFEST}
        mark = {"identity": self._identity, "files": sorted(files)}
        write_json(self.out / _UPLOAD, mark)

    def _clear(self, kept: set[str]) -> None:
        """Removes the mark, and files of an earlier upload that this run does not have."""
        assert is_remote(self.out)
        with suppress(InputError):  # Whoever may write need not be allowed to delete.
            ours = set(files_below(self.out) or ()) & (self._ours | {_UPLOAD})
            for name in sorted(ours - kept - self._theirs):
                remove_object(self.out / name)

    def set_aside(self, error: CorruptRun) -> str:
        """Makes room where a corrupt run lies; what was done, in a few words.

        Raises `error` where that cannot be done.
        """
        if is_remote(self.out):
            try:
                self._ours |= set(parse_manifest(self.out)["files"])
            except CorruptRun:
                raise error from None  # Whose the other files are is not known.
            self._mark(())
            remove_object(self.out / MANIFEST)
            return "overwritten"
        if self.work.parent == self.out:
            raise error
        aside = self.out.with_name(f".{self.out.name}.corrupt-{secrets.token_hex(4)}")
        try:
            os.rename(self.out, aside)
        except FileNotFoundError:
            return "gone"
        except OSError:  # Buckets mounted as file systems.
            (self.out / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(self.out)
            return "deleted"
        return self._settle(aside)

    def _settle(self, aside: Path) -> str:
        """Puts back what was set aside while another process replaced it by a whole run."""
        try:
            verify_run(aside)
        except InputError:
            return f"kept as {aside.name}"
        try:
            os.rename(aside, self.out)
        except OSError as error:
            if error.errno not in _NOT_EMPTY:
                raise
            shutil.rmtree(aside, ignore_errors=True)  # Two whole runs: one is enough.
        return "already made again"


def _work_directory(out: AnyPath) -> Path:
    """`.NAME.partial` beside `out`; inside it where nothing can be renamed onto `out`.

    A directory that is a mount point (a container's volume) or whose parent is read-only can only
    be filled file by file. A run for an object store works in the user's cache.
    """
    if is_remote(out):
        key = hashlib.sha256(str(out).encode()).hexdigest()[:16]
        return cache_directory() / "runs" / f".{out.name}-{key}.partial"
    if os.path.ismount(out) or (out.is_dir() and not os.access(out.parent, os.W_OK)):
        return out / _INSIDE
    return out.parent / f".{out.name}.partial"
