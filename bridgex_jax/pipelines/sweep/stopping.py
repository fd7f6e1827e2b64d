"""SIGTERM, as clusters send it before they take a machine away: finish the unit, or drop it.

The first SIGTERM lets the current unit end within the grace period; at its end, or at a second
SIGTERM, the unit is dropped: its finished parts stay for the next call, nothing looks complete.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from bridgex_jax import cluster

TERMINATED = 143  # 128 + SIGTERM, as shells have it


class Stop:
    """Whether this process was asked to end."""

    def __init__(self, grace: float):
        self.grace = grace
        self.asked = False
        self._timer: threading.Timer | None = None

    def listen(self) -> None:
        """Takes SIGTERM, again where a library has taken it meanwhile; in the main thread only."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.ask)

    def ask(self, number: int, frame: FrameType | None) -> None:
        """The signal's handler; KeyboardInterrupt where the unit has to be dropped."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        # Again after the grace period, by the same way as a second SIGTERM of the cluster's.
        self._timer = threading.Timer(self.grace, os.kill, (os.getpid(), signal.SIGTERM))
        self._timer.daemon = True
        self._timer.start()

    @contextmanager
    def dropping(self) -> Iterator[None]:
        """What is inside ends where it is dropped; Ctrl-C passes, which the command line answers.

        Processes that work together all end at once: none can go on without the others.
        """
        try:
            yield
        except KeyboardInterrupt:
            if not self.asked:
                raise
            cluster.leave("terminated", TERMINATED)
        self.close()

    def close(self) -> None:
        """No more dropping."""
        if self._timer is not None:
            self._timer.cancel()


@contextmanager
def until_terminated(grace: float) -> Iterator[Stop]:
    """Handles SIGTERM inside the `with`, in the main thread only; elsewhere nothing changes.

    What is dropped outside of `Stop.dropping` ends the program with status 143.
    """
    stop = Stop(grace)
    before = signal.getsignal(signal.SIGTERM)
    stop.listen()
    try:
        yield stop
    except KeyboardInterrupt:
        if stop.asked:
            raise SystemExit(TERMINATED) from None
        raise
    finally:
        stop.close()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
