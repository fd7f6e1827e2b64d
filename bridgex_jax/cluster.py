"""Several processes that run one command together: joining, sharing, noticing that one has died.

`jax.distributed` connects them; process 0 is its coordinator, and leads (store/peers.py).
Every process tells the others every two seconds that it lives and, where it stops, why; without
this a process that lost a peer would wait in a collective, or end with a stack dump of C++.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import jax
import numpy as np

from bridgex_jax.errors import InputError

_EVERY = 2.0  # seconds between signs of life
_SILENCE = 30.0  # seconds without one after which a process counts as dead
_LINGER = 3 * _EVERY  # how long the coordinator stays, so that the others can read why it stops
_PIECE = 1 << 28  # bytes shared at once
_leaving = threading.Event()  # this process has said why it ends
_ALIVE, _STOPPED = "bridgex/alive/", "bridgex/stopped/"
LOST_A_PEER = 3  # exit status


def join(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Connects this process with the others that run the same command; before any computation.

    Args:
      coordinator: HOST:PORT of process 0. All None: from the environment of a TPU pod, Slurm,
        Open MPI or Kubernetes, see `jax.distributed.initialize`.

    Raises InputError where there is no such environment, or not all processes come.
    """
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"cannot join the other processes: {str(error).splitlines()[0]}",
            remedy="give --coordinator HOST:PORT, --num-processes and --process-id, or start the "
            "command through srun, mpirun or a Kubernetes job",
        ) from error
    threading.Thread(target=_watch, daemon=True, name="peers").start()


class Peers:
    """The processes of this command, for those who must take the same turns (store/runs.py)."""

    @property
    def is_leader(self) -> bool:
        """Whether this is the process that keeps the run's directory."""
        return self.rank == 0

    @property
    def rank(self) -> int:
        return jax.process_index()

    @property
    def count(self) -> int:
        return jax.process_count()

    def share(self, data: bytes | None) -> bytes:
        """The leader's bytes, on every process; all must call it, in the same order."""
        from jax.experimental.multihost_utils import broadcast_one_to_all

        own = np.frombuffer(data or b"", np.uint8)
        n = int(broadcast_one_to_all(np.int32(len(own))))
        pieces = []
        for start in range(0, n, _PIECE):
            size = min(_PIECE, n - start)
            piece = own[start : start + size] if self.is_leader else np.zeros(size, np.uint8)
            pieces.append(np.asarray(broadcast_one_to_all(piece)).tobytes())
        return b"".join(pieces)

    def collect(self, data: bytes) -> list[bytes]:
        """The bytes of every process, by rank; all must call it, in the same order."""
        from jax.experimental.multihost_utils import process_allgather

        sizes = [int(n) for n in process_allgather(np.int32(len(data)))]
        padded = np.zeros(max(1, *sizes), np.uint8)
        padded[: len(data)] = np.frombuffer(data, np.uint8)
        rows = np.asarray(process_allgather(padded))
        return [row[:n].tobytes() for row, n in zip(rows, sizes, strict=True)]


def is_leader() -> bool:
    """Whether this process is the one that writes and speaks."""
    return _client() is None or jax.process_index() == 0


def peers() -> Peers | None:
    """The other processes; None for a process that works alone."""
    return Peers() if _client() is not None and jax.process_count() > 1 else None


def all_here(step: str, seconds: float = _SILENCE) -> bool:
    """Whether all processes come to this step in time; without devices, so also after an error.

    step: a name that is never used again.
    """
    if peers() is None:
        return True
    try:
        _client().wait_at_barrier(f"bridgex/{step}", round(seconds * 1000))
    except Exception:  # of the runtime's own kind: some are elsewhere, or gone
        return False
    return True


def stop_watching() -> None:
    """From here on this process has a reason of its own to end, and says that one alone."""
    _leaving.set()


def leave(reason: str, status: int) -> None:
    """Ends this process and tells the others why; returns only where there are no others."""
    if (client := _client()) is None:
        return
    with suppress(Exception):
        client.key_value_set(
            f"{_STOPPED}{jax.process_index()}", f"{socket.gethostname()}: {reason}"
        )
        if jax.process_index() == 0:
            time.sleep(_LINGER)
    _exit(status)


def lost_peer() -> None:
    """After an error that a peer's death may have caused: waits until it is known, and ends so."""
    if _client() is not None:
        time.sleep(_SILENCE + 2 * _EVERY)


def _client() -> Any:
    from jax._src.distributed import global_state  # no public name yet

    return global_state.client


def _watch() -> None:
    """Gives signs of life and looks for those of the others; ends the process when one is gone."""
    client, own, n = _client(), jax.process_index(), jax.process_count()
    here = socket.gethostname()
    seen = {rank: ("", time.monotonic()) for rank in range(n)}
    beat, unreachable = 0, 0
    while True:
        try:
            client.key_value_set(f"{_ALIVE}{own}", f"{here} {beat}", allow_overwrite=True)
            stopped = dict(client.key_value_dir_get(_STOPPED))
            alive = dict(client.key_value_dir_get(_ALIVE))
            unreachable = 0
        except Exception:
            unreachable += 1
            if unreachable * _EVERY > _SILENCE / 2:
                _end("process 0, the coordinator, cannot be reached any more")
            time.sleep(_EVERY)
            continue
        for key, reason in sorted(stopped.items()):
            rank = int(key.rsplit("/", 1)[-1])
            if rank != own:
                _end(f"process {rank} stopped on {reason}")
        now = time.monotonic()
        for rank in range(n):
            said = alive.get(f"{_ALIVE}{rank}", "")
            if said != seen[rank][0]:
                seen[rank] = (said, now)
            elif now - seen[rank][1] > _SILENCE:
                host = said.split(" ")[0] or "an unknown host"
                _end(f"process {rank} on {host} has given no sign of life for {_SILENCE:.0f} s")
        beat += 1
        time.sleep(_EVERY)


def _end(what: str) -> None:
    if _leaving.is_set():
        return
    print(f"bridgex: error: {what}; this process stops too (finished parts are kept, the same "
          "command continues)", file=sys.stderr)  # fmt: skip
    _exit(LOST_A_PEER)


def _exit(status: int) -> None:
    """At once: the interpreter's own way out would wait for the processes that are gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
