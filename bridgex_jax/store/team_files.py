"""Where each of several processes of one run writes what it alone holds: files and parts.

All write into the leader's hidden directory where they see it (one machine, a shared file system).
A process that does not keeps its own hidden directory, if the run goes to an object store, and puts
its files there itself before the leader writes the manifest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridgex_jax.store.manifest import list_files
from bridgex_jax.store.parts import Parts
from bridgex_jax.store.paths import AnyPath, is_remote, upload
from bridgex_jax.store.workplace import Workplace, hold_alone, sees


@dataclass(frozen=True)
class OwnPlace:
    """files, parts: where this process writes. held: the hidden directory, where it is its own.

    whole: the parts of a killed run in a directory of its own.
    """

    files: Path
    parts: Parts
    held: Workplace | None = None
    whole: tuple[str, ...] = ()

    def list_files(self) -> dict[str, dict[str, Any]]:
        """What the leader does not see of the files, with sizes and hashes."""
        if self.held is None:
            return {}
        names = (path.relative_to(self.files) for path in self.files.rglob("*") if path.is_file())
        return list_files(self.files, (name.as_posix() for name in names))

    def put(self, out: AnyPath, names: Mapping[str, Any]) -> None:
        """Copies its own files to where the run will appear."""
        if self.held is not None:
            assert is_remote(out)
            for name in names:
                upload(self.files / name, out / name)

    def leave(self, *, keep_parts: bool) -> None:
        if self.held is not None:
            self.held.leave(keep_parts=keep_parts)


def find_own_place(
    leader: Path, mark: str, work: Path, out: AnyPath, rank: int, identity: Mapping[str, Any]
) -> OwnPlace | None:
    """A follower's; None where what it writes would never come together with the rest.

    leader: the leader's hidden directory, and what its lock holds. work: where this process would
    have its own.
    """
    if sees(leader, mark):
        return OwnPlace(leader / "files", Parts(leader / "parts"))
    if not is_remote(out):
        return None
    work = work.with_name(f"{work.name}.rank{rank}")
    work.parent.mkdir(parents=True, exist_ok=True)
    held = hold_alone(work, out)
    return OwnPlace(held.files, held.parts, held, tuple(held.prepare(identity)))


def parse_files(told: list[bytes]) -> dict[str, dict[str, Any]]:
    """The files of all processes together, of their `list_files` as JSON."""
    return {name: entry for one in told for name, entry in json.loads(one).items()}
