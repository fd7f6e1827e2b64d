"""The hidden directory in which a run is made, held by a lock for as long as its process lives.

A run that nobody else may make works in `.NAME.partial` beside `NAME`. Where several processes may
make the same run, each has `.NAME.partial.HOST-PID-RANDOM` of its own. What a killed process leaves
there is taken over or removed by a later one, if it is certain that the process is dead: it ran on
this very machine and its lock is free. Locks of other machines are not trusted, because a network
file system may keep them to itself.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bridgex_jax.errors import InputError
from bridgex_jax.store.files import read_json, write_json
from bridgex_jax.store.parts import Parts
from bridgex_jax.store.paths import AnyPath

_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP})
_OWNER = "identity.json"
_ABANDONED = 24 * 3600  # seconds after which what another machine left beside a run is removed


class Workplace:
    """A hidden directory held by this process.

    files: the results. parts: what a next run uses. mark: what its lock holds.
    """

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self.files = path / "files"
        self.parts = Parts(path / "parts")
        self._lock = lock
        self.mark = secrets.token_hex(16)
        os.ftruncate(lock, 0)
        os.pwrite(lock, self.mark.encode(), 0)

    def prepare(self, identity: Mapping[str, Any]) -> list[str]:
        """Makes it ready for a run; the names of the whole parts that are there."""
        write_json(self.path / _OWNER, identity)
        shutil.rmtree(self.files, ignore_errors=True)
        self.files.mkdir()
        return self.parts.prepare()

    def owner(self) -> Any:
        """Identity of the run that was made here before; None where there is none."""
        return _owner(self.path)

    def is_intact(self) -> bool:
        """Whether it is still there and still the one that this process holds."""
        return self.files.is_dir() and self._is_ours()

    def leave(self, *, keep_parts: bool) -> None:
        """Removes everything but, if wanted, the parts of an unfinished run; frees the lock."""
        try:
            if self._is_ours():
                shutil.rmtree(self.files, ignore_errors=True)
                if not (keep_parts and self.parts.names()):
                    _remove(self.path)
        finally:
            os.close(self._lock)

    def _is_ours(self) -> bool:
        return sees(self.path, self.mark)


def sees(path: Path, mark: str) -> bool:
    """Whether the hidden directory there is the one whose lock was so marked."""
    try:
        return (path / "lock").read_bytes() == mark.encode()
    except OSError:
        return False


def hold_alone(path: Path, out: AnyPath) -> Workplace:
    """Makes and holds `path`; InputError when another process does."""
    held = _hold(path)
    if held is None:
        raise InputError(
            "is being written by another process",
            file=out,
            remedy="wait for it to end or choose another --out",
        )
    return held


def hold_own(base: Path, identity: Mapping[str, Any]) -> Workplace:
    """Makes and holds a directory of this process's own, named after `base`.

    It holds the parts of a killed process of this machine that was making the same run.
    """
    while True:
        own = base.with_name(f"{base.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}")
        # Another process may take it for a dead one's before it is locked: None.
        held = _take_over(base, own, identity) or _hold(own)
        if held is not None:
            return held


def _hold(path: Path) -> Workplace | None:
    """Makes and holds `path`; None when another process does."""
    while True:
        path.mkdir(parents=True, exist_ok=True)
        try:
            lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            continue  # Its owner finished and removed the directory between the two lines.
        with _closing(lock):
            locked = _try_lock(lock)
            # Without locks, two writers are kept apart by the user, or by their names.
            if locked is None or (locked and _is_at(lock, path / "lock")):
                return Workplace(path, os.dup(lock))
        if not locked:
            return None


def sweep(base: Path) -> None:
    """Removes what killed processes left of a run that is complete now."""
    for path in [base, *_leftovers(base)]:
        # In use, or on a read-only disk: no harm.
        with suppress(OSError), _closing(_existing_lock(path)) as lock:
            is_old = time.time() - os.fstat(lock).st_mtime > _ABANDONED
            is_known = path == base or _is_of_this_machine(path, base)
            locked = _try_lock(lock)
            if (locked and is_known) or (locked is not False and is_old):
                _remove(path)


def _take_over(base: Path, own: Path, identity: Mapping[str, Any]) -> Workplace | None:
    """Renames the workplace of a dead process to `own`, with its parts and its lock.

    Those without parts are removed.
    """
    found = {p: Parts(p / "parts") for p in _leftovers(base) if _is_of_this_machine(p, base)}
    for path, parts in sorted(found.items(), key=lambda item: -len(item[1].names())):
        # Damaged, or it cannot be renamed: that is left to `sweep`.
        with suppress(OSError, InputError), _closing(_existing_lock(path)) as lock:
            if not _try_lock(lock) or not _is_at(lock, path / "lock"):
                continue
            if not parts.names():
                _remove(path)
            elif _owner(path) == identity:
                os.rename(path, own)
                return Workplace(own, os.dup(lock))
    return None


@contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _owner(path: Path) -> Any:
    return read_json(path / _OWNER) if (path / _OWNER).is_file() else None


def _existing_lock(path: Path) -> int:
    """The open lock of a workplace that is there; one that was only begun is removed."""
    try:
        return os.open(path / "lock", os.O_RDWR)
    except FileNotFoundError:
        path.rmdir()  # Its process, if it lives, makes it again.
        raise


def _remove(path: Path) -> None:
    """Removes a workplace; its lock goes last, so that a kill leaves one that can be locked."""
    with suppress(OSError):
        for inside in path.iterdir():
            if inside.is_dir():
                shutil.rmtree(inside, ignore_errors=True)
            elif inside.name != "lock":
                inside.unlink()
        if [inside.name for inside in path.iterdir()] == ["lock"]:
            (path / "lock").unlink()
            path.rmdir()


def _leftovers(base: Path) -> Iterator[Path]:
    """Workplaces of single processes for the run of `base`."""
    pattern = re.compile(re.escape(base.name) + r"\.[A-Za-z0-9_-]+-\d+-[0-9a-f]{8}")
    with suppress(OSError):
        yield from (p for p in list(base.parent.iterdir()) if pattern.fullmatch(p.name))


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname())[:64]


def _is_of_this_machine(path: Path, base: Path) -> bool:
    return path.name.removeprefix(f"{base.name}.").rsplit("-", 2)[0] == _host()


def _try_lock(lock: int) -> bool | None:
    """Whether the lock is this process's now; None on a file system without locks."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False
