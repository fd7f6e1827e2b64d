"""The run directory: all of a run is made in a hidden place and appears under its name at once.

While a run works, its files and intermediate parts lie in a hidden directory (workplace.py); at the
end `manifest.json` is written there last and all appears in its place (places.py). A killed run
leaves only the hidden directory, which the same command takes up again, part by part; any other
command is refused.
"""

from __future__ import annotations

import json
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from bridgex_jax.errors import InputError
from bridgex_jax.store.files import (
    NO_SPACE,
    disk_errors,
    json_bytes,
    plain,
    sync_file,
    write_bytes,
    write_json,
)
from bridgex_jax.store.identity import difference, identity_hash, make_identity
from bridgex_jax.store.manifest import (
    MANIFEST,
    SCHEMA,
    CorruptRun,
    collect_versions,
    list_files,
    verify_run,
)
from bridgex_jax.store.parts import check_name, unpack
from bridgex_jax.store.paths import AnyPath, is_remote
from bridgex_jax.store.peers import Alone, Peers, Team
from bridgex_jax.store.places import Place, Taken
from bridgex_jax.store.team_files import OwnPlace, find_own_place, parse_files
from bridgex_jax.store.workplace import Workplace, hold_alone, hold_own, sweep

_FACTS = frozenset({"model", "data", "devices", "implementation", "seed", "notes"})
_ATTEMPTS = 4


def create_run(
    out: str | AnyPath,
    *,
    kind: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Any] | None = None,
    command: Sequence[str] | None = None,
    exclusive: bool = True,
    peers: Peers | None = None,
) -> RunDirectory:
    """A run directory, for `with create_run(...) as run:`; nothing is touched before the `with`.

    out: the directory that will hold the finished run, local or remote; missing or empty.
    kind: the verb that makes it ("count", "select", "evaluate", "demo").
    settings, inputs: everything that can change the result: options, and hashes of model and data.
        With kind and package version they are the identity by which a run is recognised and
        resumed.
    command: the command line for the manifest (default: of this process).
    exclusive: False for the units of a sweep. Several processes, on any machines, may then make
        the same run at once: the first to finish wins, the others drop theirs. A run there that is
        not whole any more is made again (`redone` in the manifest's notes).
    peers: the processes of one job that all make this run. Their leader keeps the directory; what
        is large each may write itself (`own_path`, `own_part`).

    Entering raises InputError when `out` holds another run or other files, when the disk refuses,
    and, if exclusive, when another process is writing it, when a part-finished run of another
    identity is in the way or a file of the complete run has changed.
    """
    identity = make_identity(kind, settings, inputs or {})
    return RunDirectory(Place(out, identity), identity, command, exclusive, peers or Alone())


class RunDirectory:
    """One run on its way to the disk; made by `create_run`.

    directory: where the files are now: the hidden place while the run works, `out` once it is
        complete.
    complete: on entry, True when `out` already holds this very run: there is nothing to do, and
        nothing can be written. With peers, all of them must be able to read `out`.
    resumed: the parts of a killed run that were found on entry.
    notice: one line for the user when an earlier run was found (complete, resumed, redone) or
        another process was first.
    """

    def __init__(
        self,
        place: Place,
        identity: dict[str, Any],
        command: Sequence[str] | None,
        exclusive: bool,
        peers: Peers,
    ):
        self.out: AnyPath = place.out
        self.directory: AnyPath = place.work / "files"
        self.complete = False
        self.resumed: tuple[str, ...] = ()
        self.notice: str | None = None
        self._place = place
        self._identity = identity
        self._command = list(sys.argv if command is None else command)
        self._exclusive = exclusive
        self._team = Team(peers, place.out.name)
        self._facts: dict[str, Any] = {}
        self._corrupt: CorruptRun | None = None
        self._redone: str | None = None
        self._timings: dict[str, float] = {}
        self._whole_parts: set[str] = set()
        self._work: Workplace | None = None  # the leader's
        self._scratch: Path | None = None  # a follower's
        self._own: OwnPlace | None = None
        self._theirs: dict[str, Any] = {}  # files that followers put into the object store
        self._blind: list[str] = []  # processes that cannot write what they hold
        self._uses_own = False
        self._made_parents: list[Path] = []

    @property
    def identity(self) -> str:
        """Hash of kind, package version, settings and inputs."""
        return identity_hash(self._identity)

    # Entering and leaving ----------------------------------------------------------------------

    def __enter__(self) -> RunDirectory:
        try:
            state = json.loads(self._team.do("begins", self._begin))
            if not self._team.is_leader:
                self._follow(state)
            elif self._work is not None:
                self._own = OwnPlace(self._work.files, self._work.parts)
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
        if not self._is_open():
            return
        try:
            if error is None:
                if self._uses_own and self._team.count > 1:
                    self._put_own_files()
                state = json.loads(self._team.do("ends", self._end))
                self.complete, self.directory = True, self.out
                self.notice = state["notice"] or self.notice
            else:
                with self._disk_errors():
                    if isinstance(error, OSError) and self._is_the_disk(error):
                        raise error
        except BaseException as failure:
            self._team.give_up("ends", failure)
            raise
        else:
            if error is not None:
                self._team.give_up("ends", error)
        finally:
            self._abandon()

    def _begin(self) -> bytes:
        """Looks at what is there and takes the hidden directory; the state for the followers."""
        if self._is_already_complete():
            self.notice = f"{self.out} already holds this run, complete"
            sweep(self._place.work)
            return self._state()
        with self._disk_errors():
            self._made_parents = _make_directories(self._place.work.parent)
            if self._exclusive:
                self._work = hold_alone(self._place.work, self.out)
            else:
                self._work = hold_own(self._place.work, self._identity)
        # Again: the process that held the lock a moment ago may have finished this run.
        if self._is_already_complete():
            self.notice = f"{self.out} already holds this run, complete"
            self._abandon()
            return self._state()
        self._claim(self._work)
        return self._state()

    def _is_already_complete(self) -> bool:
        """Whether `out` holds this run. InputError where it holds anything else."""
        self._corrupt = None
        try:
            manifest = self._place.look()
            if manifest is None:
                return False
            if manifest["identity"] != self.identity:
                raise InputError(
                    f"already holds another run ({difference(manifest, self._identity)})",
                    file=self.out,
                    remedy="choose another --out or delete the directory",
                )
            verify_run(self.out)
        except CorruptRun as error:
            if self._exclusive:
                raise
            self._corrupt, self._redone = error, f"{error.file}: {error.what}"
            return False
        self.complete = True
        self.directory = self.out
        return True

    def _claim(self, work: Workplace) -> None:
        """Takes the hidden directory, with the parts of a killed run of the same identity."""
        with self._disk_errors():
            there = work.owner()
            if there not in (None, self._identity) and work.parts.names():
                raise InputError(
                    f"holds a run that was stopped ({difference(there, self._identity)})",
                    file=work.path,
                    remedy="run its command to finish it, delete it, or choose another --out",
                )
            self.resumed = tuple(work.prepare(self._identity))
        self._place.announce()
        self.directory = work.files
        self._whole_parts = set(self.resumed)
        if self.resumed:
            self.notice = (
                f"resuming a run that was stopped: {len(self.resumed)} parts are already there"
            )
        elif self._redone:
            self.notice = f"making the run again: {self._redone}"

    def _state(self) -> bytes:
        state = {"complete": self.complete, "resumed": self.resumed, "notice": self.notice}
        if self._work is not None:
            state |= {"work": str(self._work.path), "mark": self._work.mark}
        return json_bytes(state | {"identity": self._identity})

    def _follow(self, state: Mapping[str, Any]) -> None:
        """Takes the leader's branches; what this process writes goes into a directory of no use."""
        if state["identity"] != self._identity:
            raise InputError(
                "this process has other settings or inputs than the first "
                f"({difference(state['identity'], self._identity)})",
                file=self.out,
                remedy="give all processes the same command and the same files",
            )
        self.complete, self.notice = state["complete"], state["notice"]
        self.resumed = tuple(state["resumed"])
        self._whole_parts = set(self.resumed)
        if self.complete:
            self.directory = self.out
        else:
            self._scratch = Path(tempfile.mkdtemp(prefix="bridgex-"))
            self.directory = self._scratch
            leaders, work, rank = Path(state["work"]), self._place.work, self._team.rank
            self._own = find_own_place(leaders, state["mark"], work, self.out, rank, self._identity)

    def _share_parts(self) -> None:
        """What followers have of their own is known to all: parts of a killed run, or no place."""
        own = self._own.whole if self._own else None
        me = f"process {self._team.rank} on {socket.gethostname()}"
        told = self._team.collect("shares its parts", json_bytes([me, own]))
        for name, parts in map(json.loads, told):
            if parts is None:
                self._blind.append(name)
            self._whole_parts |= set(parts or ())

    def _put_own_files(self) -> None:
        """Followers put what the leader does not see into the object store."""
        own = self._own.list_files() if self._own else {}
        self._theirs = parse_files(self._team.collect("lists its files", json_bytes(own)))
        if self._theirs:
            self._team.do("makes room", self._expect)
            if self._own:
                self._own.put(self.out, own)
            self._team.collect("has put its files")

    def _expect(self) -> bytes:
        self._place.expect(self._theirs.keys())
        return b""

    def _end(self) -> bytes:
        with self._disk_errors():
            work = self._held()
            names = sorted(
                path.relative_to(work.files).as_posix()
                for path in work.files.rglob("*")
                if path.is_file()
            )
            for name in names:
                sync_file(work.files / name)
            published = self._publish(work.files, names)
        notice = None if published else f"{self.out}: another process made this run first"
        self.complete, self.directory = True, self.out
        return json_bytes({"notice": notice})

    def _publish(self, files: Path, names: Sequence[str]) -> bool:
        """Puts the run in its place; False where another process has done so meanwhile."""
        for _ in range(_ATTEMPTS):
            manifest = self.facts() | {"files": list_files(files, names) | self._theirs}
            write_json(files / MANIFEST, manifest)
            try:
                self._place.publish(files, names)
                return True
            except Taken:
                if self._is_already_complete():
                    return False
                if self._corrupt is not None:
                    self._redone = f"{self._redone} ({self._place.set_aside(self._corrupt)})"
        raise InputError(
            "is being changed by other processes", file=self.out, remedy="run the command again"
        )

    def _abandon(self) -> None:
        """Leaves nothing behind but the parts of an unfinished run, which a next run can use."""
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None
        if self._own is not None:
            self._own.leave(keep_parts=not self.complete)
            self._own = None
        if self._work is None:
            return
        work, self._work = self._work, None
        work.leave(keep_parts=not self.complete)
        if self.complete:
            sweep(self._place.work)
            return
        self._place.retract()
        for parent in reversed(self._made_parents):
            with suppress(OSError):  # not empty
                parent.rmdir()

    def _is_open(self) -> bool:
        return self._work is not None or self._scratch is not None

    def _held(self) -> Workplace:
        """The leader's hidden directory; InputError when it is no longer this process's."""
        assert self._work is not None
        if not self._work.is_intact():
            raise InputError(
                "vanished while the run was working",
                file=self._work.path,
                remedy="run the command again",
            )
        return self._work

    def _must_be_open(self) -> None:
        if not self._is_open():
            raise RuntimeError(f"{self.out}: the run is complete or was not entered")
        if self._work is not None:
            self._held()

    def _disk_errors(self) -> AbstractContextManager[None]:
        if self._scratch is not None:
            return disk_errors(self._scratch, remedy="set TMPDIR to another disk")
        kept = ""
        if self._work is not None and self._work.parts.names():
            kept = f"finished parts are kept in {self._work.path}"
        if is_remote(self.out):
            return disk_errors(self._place.work.parent, kept, "set XDG_CACHE_HOME to another disk")
        return disk_errors(self.out, kept)

    def _is_the_disk(self, error: OSError) -> bool:
        """Whether an error in somebody else's write comes from the disk under the run."""
        return error.errno in NO_SPACE or (self._work is not None and not self._work.is_intact())

    # Files -------------------------------------------------------------------------------------

    def path(self, name: str) -> Path:
        """Where to write a result file of this run (`name` may hold folders).

        Here and in all that writes: RuntimeError when the run is complete, InputError when its
        hidden directory is gone.
        """
        self._must_be_open()
        assert not is_remote(self.directory)
        path = self.directory / name
        with self._disk_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_bytes(self, name: str, data: bytes) -> None:
        """Writes one result file."""
        with self._disk_errors():
            write_bytes(self.path(name), data)

    def write_text(self, name: str, text: str) -> None:
        """Writes one UTF-8 result file."""
        self.write_bytes(name, text.encode("utf-8"))

    def write_json(self, name: str, value: Any) -> None:
        """Writes one JSON result file, with sorted keys and NaN as null."""
        self.write_bytes(name, json_bytes(value))

    def own_path(self, name: str) -> Path:
        """Where this process writes a file that no other of its peers writes.

        InputError on all where one of them does not see the leader's disk and the run does not go
        to an object store.
        """
        path = self._own_place().files / name
        with disk_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _own_place(self) -> OwnPlace:
        self._must_be_open()
        if not self._uses_own and self._team.count > 1:
            self._share_parts()
        self._uses_own = True
        if self._blind:
            raise InputError(
                f"{self._blind[0]} does not see this directory of the first process",
                file=self.out,
                remedy="give --out on a disk that all processes share, or in an object store",
            )
        assert self._own is not None
        return self._own

    # Parts: a step of all peers together --------------------------------------------------------

    def has_part(self, name: str) -> bool:
        """Whether a whole part of that name is there; a damaged one counts as absent."""
        check_name(name)
        return name in self._whole_parts

    def save_part(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keeps named arrays (no object dtype) so that a killed run need not compute them again."""
        check_name(name)
        self._must_be_open()
        if any(array.dtype.hasobject for array in arrays.values()):
            raise ValueError(f"part {name}: arrays of Python objects cannot be stored")

        def save() -> bytes:
            with self._disk_errors():
                self._held().parts.save(name, arrays)
            return b""

        self._whole_parts.discard(name)
        self._team.do(f"saves {name}", save)
        self._whole_parts.add(name)

    def load_part(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of a part that `has_part`; KeyError otherwise."""
        if not self.has_part(name):
            raise KeyError(name)
        self._must_be_open()
        return unpack(self._team.do(f"loads {name}", lambda: self._held().parts.read(name)))

    def part(
        self, name: str, compute: Callable[[], Mapping[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """The stored part, or `compute()` stored under that name."""
        if not self.has_part(name):
            self.save_part(name, compute())
        return self.load_part(name)

    def own_part(
        self, name: str, compute: Callable[[], Mapping[str, np.ndarray]]
    ) -> Mapping[str, np.ndarray]:
        """Like `part`, for arrays of which each process computes, keeps and gets back its own.

        All compute where one of them has lost its part, or they are more or fewer than before.
        """
        place = self._own_place()
        count, rank = self._team.count, self._team.rank
        own = f"{name}.{rank}of{count}"
        check_name(own)
        if all(f"{name}.{i}of{count}" in self._whole_parts for i in range(count)):
            return unpack(place.parts.read(own))
        arrays = compute()
        with disk_errors(place.parts.directory):
            place.parts.save(own, arrays)
        return arrays

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
        facts = dict(self._facts)
        if self._redone is not None:
            facts["notes"] = {**facts.get("notes", {}), "redone": self._redone}
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
            **facts,
        }


def _make_directories(path: Path) -> list[Path]:
    """Makes a directory and its parents; those that were missing, outermost first."""
    missing = [parent for parent in (path, *path.parents) if not parent.exists()][::-1]
    path.mkdir(parents=True, exist_ok=True)
    return missing
