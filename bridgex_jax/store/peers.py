"""Several processes of one job run the same command and make one run; one of them leads.

The leader keeps the run's directory; the others write what is large (team_files.py) or nothing. The
store does not know JAX: whoever starts the job hands in `Peers` (with jax.distributed, process 0
leads). All processes must reach the same steps of a run in the same order.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Protocol

from bridgex_jax.errors import InputError
from bridgex_jax.store.files import json_bytes

_DONE, _FAILED = b"\0", b"\1"


class Peers(Protocol):
    """The processes of one job."""

    @property
    def is_leader(self) -> bool:
        """Whether this is process 0, which keeps the run's directory."""

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""

    @property
    def count(self) -> int:
        """How many processes there are."""

    def share(self, data: bytes | None) -> bytes:
        """The leader's `data` on every process; the others give None and wait for it."""

    def collect(self, data: bytes) -> list[bytes]:
        """The `data` of every process, by rank, on every process."""


class Alone:
    """A job of one process."""

    is_leader, rank, count = True, 0, 1

    def share(self, data: bytes | None) -> bytes:
        assert data is not None
        return data

    def collect(self, data: bytes) -> list[bytes]:
        return [data]


class Team:
    """What a run does together with its peers; one for each run.

    name: by which processes notice that they are not at the same run any more.
    """

    def __init__(self, peers: Peers, name: str) -> None:
        self.is_leader, self.rank, self.count = peers.is_leader, peers.rank, peers.count
        self._peers = peers
        self._name = name
        self._failure_is_known = False

    def do(self, step: str, act: Callable[[], bytes]) -> bytes:
        """`act` runs on the leader; its bytes, or its InputError, come out on every process.

        Another exception of the leader's is a RuntimeError on the others. Interrupts are not
        shared: the leader must not wait while it is being stopped.
        """
        if not self.is_leader:
            return self._heard(step)
        try:
            data = act()
        except Exception as error:
            self._say(step, _failure(error))
            self._failure_is_known = True
            raise
        self._say(step, _DONE + data)
        return data

    def collect(self, step: str, data: bytes = b"") -> list[bytes]:
        """The `data` of every process, by rank; none goes on before all are here."""
        self.do(step, lambda: b"")  # the others hear that the leader is here, or why it is not
        return self._peers.collect(data)

    def give_up(self, step: str, error: BaseException) -> None:
        """Tells the others of an error that ends the run here, unless they know of it.

        An error of all processes (bad input, no memory) is met by each of them, so the followers
        hear the leader out. What only a follower's own disk can cause ends it at once.
        """
        if self._failure_is_known or not isinstance(error, Exception):
            return
        self._failure_is_known = True
        if self.is_leader:
            self._say(step, _failure(error))
        elif not isinstance(error, OSError) and not isinstance(error.__cause__, OSError):
            self._peers.share(None)

    def _say(self, step: str, message: bytes) -> None:
        self._peers.share(f"{self._name} {step}\n".encode() + message)

    def _heard(self, step: str) -> bytes:
        label, _, message = self._peers.share(None).partition(b"\n")
        if message[:1] == _FAILED:
            self._failure_is_known = True
            told = json.loads(message[1:])
            if told.pop("is_input_error"):
                raise InputError(**told)
            raise RuntimeError(f"the first process failed: {told['what']}")
        if label.decode() != f"{self._name} {step}":
            self._failure_is_known = True
            raise RuntimeError(
                f"the processes of this job are not at the same step: the first is at "
                f"{label.decode()!r}, this one at '{self._name} {step}'"
            )
        return message[1:]


def _failure(error: Exception) -> bytes:
    if isinstance(error, InputError):
        told = {
            "is_input_error": True,
            "what": error.what,
            "file": None if error.file is None else str(error.file),
            "line": error.line,
            "remedy": error.remedy,
        }
    else:
        told = {"is_input_error": False, "what": f"{type(error).__name__}: {error}"}
    return _FAILED + json_bytes(told)
