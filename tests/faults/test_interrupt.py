"""Runs that are stopped at any moment: whatever lies under the run's name is whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from bridgex_jax.store.manifest import verify_run
from bridgex_jax.store.runs import create_run

WORKER = """
    import sys, time
    import numpy as np
    from bridgex_jax.store.runs import create_run

    with create_run(sys.argv[1], kind="select", settings={"seed": 0}, command=[]) as run:
        run.write_text("choice.json", "{}")
        run.save_part("counts", {"x": np.arange(4)})
        print("ready", flush=True)
        time.sleep(60)
"""


def started(out):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WORKER), str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    with process.stdout:
        assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_process_leaves_only_the_hidden_directory_and_is_resumed(tmp_path, how):
    process = started(tmp_path / "one")
    process.send_signal(how)
    assert process.wait(30) != 0
    assert [p.name for p in tmp_path.iterdir()] == [".one.partial"]
    with create_run(tmp_path / "one", kind="select", settings={"seed": 0}, command=[]) as run:
        assert run.resumed == ("counts",)
        np.testing.assert_array_equal(run.load_part("counts")["x"], np.arange(4))
    verify_run(tmp_path / "one")
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


def test_a_second_process_is_refused_while_the_first_works(tmp_path):
    from bridgex_jax.errors import InputError

    process = started(tmp_path / "one")
    try:
        with (
            pytest.raises(InputError, match="another process"),
            create_run(tmp_path / "one", kind="select", settings={"seed": 0}, command=[]),
        ):
            pass
    finally:
        process.kill()
        process.wait(30)


class Stopped(BaseException):
    """Stands for a Ctrl-C that arrives at a chosen system call."""


def stop_at(monkeypatch, moment: int) -> None:
    """The `moment`-th call that changes the disk is not made; a Ctrl-C arrives instead."""
    calls = 0

    def guarded(original):
        def call(*args, **keywords):
            nonlocal calls
            calls += 1
            if calls == moment:
                raise Stopped
            return original(*args, **keywords)

        return call

    for name in ("fsync", "replace", "rename", "mkdir"):
        monkeypatch.setattr(os, name, guarded(getattr(os, name)))


def test_a_stop_at_any_system_call_leaves_nothing_that_looks_finished(tmp_path):
    """Stops the same run at its 1st, 2nd, … disk operation until one gets through."""

    def attempt():
        with create_run(tmp_path / "one", kind="select", settings={}, command=[]) as run:
            if run.complete:  # the stop came after the last step
                return
            run.part("counts", lambda: {"x": np.arange(4)})
            run.write_text("a/b.txt", "b")
            run.write_text("choice.json", "{}")

    deadline = time.monotonic() + 60
    for moment in range(1, 200):
        with pytest.MonkeyPatch.context() as patch:
            stop_at(patch, moment)
            try:
                attempt()
                finished = True
            except Stopped:
                finished = False
        if (tmp_path / "one").exists():
            assert set(verify_run(tmp_path / "one")["files"]) == {"a/b.txt", "choice.json"}
        if finished:
            break
        assert time.monotonic() < deadline
    assert finished and moment > 10
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


CALLBACK = """
    import time
    from bridgex_jax import runtime

    class Finalised:
        def __del__(self):
            raise KeyboardInterrupt

    runtime.keep_interrupts()
    try:
        Finalised()
        time.sleep(20)
    except KeyboardInterrupt:
        print("seen")
"""


def test_an_interrupt_that_falls_into_a_finaliser_comes_again():
    program = [sys.executable, "-c", textwrap.dedent(CALLBACK)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60)
    assert done.stdout == "seen\n" and done.stderr == ""
