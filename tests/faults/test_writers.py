"""Several processes that make the same run: one result, whole, whoever dies when."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from bridgex_jax.errors import InputError
from bridgex_jax.store import places, workplace
from bridgex_jax.store.manifest import verify_run
from bridgex_jax.store.runs import create_run


def begin(out, seed=0):
    settings = {"seed": seed}
    return create_run(out, kind="select", settings=settings, command=[], exclusive=False)


def write(run):
    run.part("counts", lambda: {"x": np.arange(4)})
    run.write_text("a/b.txt", "b")
    run.write_text("choice.json", "{}")


def finish(out, **changes):
    with begin(out, **changes) as run:
        if not run.complete:
            write(run)
    return run


def names(directory):
    return sorted(path.name for path in directory.iterdir())


WORKER = """
    import sys
    import numpy as np
    from bridgex_jax.store.runs import create_run

    options = {"settings": {"seed": 0}, "command": [], "exclusive": False}
    with create_run(sys.argv[1], kind="select", **options) as run:
        print("entered", run.complete, ",".join(run.resumed), flush=True)
        run.part("counts", lambda: {"x": np.arange(4)})
        print("saved", flush=True)
        sys.stdin.readline()
        run.write_text("a/b.txt", "b")
        run.write_text("choice.json", "{}")
    print(run.complete, run.notice, flush=True)
"""


def started(program, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )


@pytest.fixture
def workers(tmp_path):
    """Starts processes that make `one` and stop half-way, until a line reaches them."""
    running = []

    def start():
        running.append(started(WORKER, tmp_path / "one"))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.wait(30)
        process.stdin.close()
        process.stdout.close()


def ended(process):
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.wait(30) == 0
    return process.stdout.read()


def test_of_two_processes_the_first_wins_and_the_other_finds_its_run(tmp_path, workers):
    first, second = workers(), workers()
    for process in (first, second):
        assert process.stdout.readline() == "entered False \n"
        assert process.stdout.readline() == "saved\n"
    assert len(names(tmp_path)) == 2
    assert ended(second) == "True None\n"
    manifest = (tmp_path / "one" / "manifest.json").read_bytes()
    assert ended(first) == f"True {tmp_path / 'one'}: another process made this run first\n"
    assert (tmp_path / "one" / "manifest.json").read_bytes() == manifest
    verify_run(tmp_path / "one")
    assert names(tmp_path) == ["one"]


def test_the_parts_of_a_killed_process_are_taken_over_and_those_of_a_live_one_are_not(
    tmp_path, workers
):
    killed = workers()
    assert killed.stdout.readline() == "entered False \n"
    assert killed.stdout.readline() == "saved\n"
    with begin(tmp_path / "one") as run:
        assert run.resumed == () and not run.has_part("counts")
    shutil.rmtree(tmp_path / "one")
    killed.send_signal(signal.SIGKILL)
    killed.wait(30)
    later = workers()
    assert later.stdout.readline() == "entered False counts\n"
    assert len(names(tmp_path)) == 1  # the killed one's directory bears a new name
    assert later.stdout.readline() == "saved\n"
    ended(later)
    assert verify_run(tmp_path / "one")["resumed_parts"] == ["counts"]
    assert names(tmp_path) == ["one"]


KILLED = """
    import os, signal, sys
    import numpy as np
    from bridgex_jax.store.manifest import verify_run
    from bridgex_jax.store.runs import create_run

    def attempt(out):
        options = {"settings": {}, "command": [], "exclusive": False}
        with create_run(out, kind="select", **options) as run:
            if not run.complete:
                run.part("counts", lambda: {"x": np.arange(4)})
                run.write_text("a/b.txt", "b")
                run.write_text("choice.json", "{}")

    def kill_at(moment):
        calls = 0
        def guarded(original):
            def call(*args, **keywords):
                nonlocal calls
                calls += 1
                if calls == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*args, **keywords)
            return call
        for name in ("fsync", "replace", "rename", "mkdir", "rmdir", "unlink", "open"):
            setattr(os, name, guarded(getattr(os, name)))

    for moment in range(1, 300):
        child = os.fork()
        if not child:
            kill_at(moment)
            attempt(sys.argv[1])
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if os.path.exists(sys.argv[1]):
            files = verify_run(sys.argv[1])["files"]
            assert set(files) == {"a/b.txt", "choice.json"}, files
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
    print(moment)
"""


def test_a_kill_at_any_system_call_leaves_nothing_that_looks_finished(tmp_path):
    process = started(KILLED, tmp_path / "one")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and int(output) > 20
    verify_run(tmp_path / "one")
    assert names(tmp_path) == ["one"]


@pytest.mark.parametrize("how", ["missing", "longer", "changed", "manifest"])
def test_a_corrupt_run_is_set_aside_and_made_again(tmp_path, how):
    finish(tmp_path / "one")
    victim = tmp_path / "one" / ("manifest.json" if how == "manifest" else "choice.json")
    if how == "missing":
        victim.unlink()
    else:
        victim.write_bytes({"longer": b"{} ", "changed": b"[]", "manifest": b"{"}[how])
    run = finish(tmp_path / "one")
    assert victim.name in run.notice and "again" in run.notice
    note = verify_run(tmp_path / "one")["notes"]["redone"]
    assert victim.name in note
    (aside,) = set(names(tmp_path)) - {"one"}
    assert aside in note
    if how != "missing":
        assert (tmp_path / aside / victim.name).exists()
    assert finish(tmp_path / "one").notice.endswith("already holds this run, complete")


def test_what_another_process_mended_meanwhile_is_put_back(tmp_path, monkeypatch):
    finish(tmp_path / "one")
    (tmp_path / "one" / "choice.json").write_text("[]")
    rename = os.rename

    def mended_before(a, b):
        if str(a) == str(tmp_path / "one"):
            monkeypatch.setattr(os, "rename", rename)
            shutil.rmtree(tmp_path / "one")
            finish(tmp_path / "one")
            (tmp_path / "one" / "mark").write_text("the other's")
        rename(a, b)

    with begin(tmp_path / "one") as run:
        write(run)
        monkeypatch.setattr(os, "rename", mended_before)
    assert run.complete and (tmp_path / "one" / "mark").exists()
    verify_run(tmp_path / "one")
    assert names(tmp_path) == ["one"]


def test_other_runs_and_other_peoples_files_are_refused_and_kept(tmp_path):
    finish(tmp_path / "one")
    (tmp_path / "one" / "choice.json").write_text("[]")
    with pytest.raises(InputError, match=r"already holds another run \(seed: 0 there, 1 here\)"):
        finish(tmp_path / "one", seed=1)
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no complete run"):
        finish(tmp_path / "two")
    assert names(tmp_path) == ["one", "two"]


def test_files_that_come_meanwhile_are_refused_and_kept(tmp_path):
    with (
        pytest.raises(InputError, match="is not empty and holds no complete run"),
        begin(tmp_path / "one") as run,
    ):
        write(run)
        (tmp_path / "one").mkdir()
        (tmp_path / "one" / "notes.txt").write_text("mine")
    assert (tmp_path / "one" / "notes.txt").read_text() == "mine"
    shutil.rmtree(tmp_path / "one")
    with begin(tmp_path / "one") as run:
        assert run.resumed == ("counts",)


def no_locks(*args):
    raise OSError(errno.ENOLCK, "No locks available")


def test_without_locks_writers_are_apart_and_nothing_is_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(KeyboardInterrupt), begin(tmp_path / "one") as run:
        run.save_part("counts", {"x": np.arange(4)})
        raise KeyboardInterrupt
    with begin(tmp_path / "one") as first:
        assert first.resumed == ()
        write(first)
        assert finish(tmp_path / "one").complete
    assert "another process" in first.notice
    verify_run(tmp_path / "one")
    # Whether its process is dead cannot be known, so it is left, for a day.
    assert len(names(tmp_path)) == 2
    (left,) = set(names(tmp_path)) - {"one"}
    old = time.time() - 2 * workplace._ABANDONED
    os.utime(tmp_path / left / "lock", (old, old))
    finish(tmp_path / "one")
    assert names(tmp_path) == ["one"]


def test_another_machine_s_parts_are_left_alone_and_removed_a_day_later(tmp_path, monkeypatch):
    monkeypatch.setattr(workplace.socket, "gethostname", lambda: "node-7.example")
    with pytest.raises(KeyboardInterrupt), begin(tmp_path / "one") as run:
        run.save_part("counts", {"x": np.arange(4)})
        raise KeyboardInterrupt
    monkeypatch.undo()
    (left,) = names(tmp_path)
    assert "node_7_example" in left
    with begin(tmp_path / "one") as run:
        assert run.resumed == ()
        write(run)
    assert names(tmp_path) == sorted([left, "one"])
    old = time.time() - 2 * workplace._ABANDONED
    os.utime(tmp_path / left / "lock", (old, old))
    finish(tmp_path / "one")
    assert names(tmp_path) == ["one"]


def test_parts_of_another_identity_or_damaged_ones_are_not_taken(tmp_path):
    with pytest.raises(KeyboardInterrupt), begin(tmp_path / "one", seed=1) as run:
        run.save_part("counts", {"x": np.arange(4)})
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), begin(tmp_path / "one") as run:
        assert run.resumed == ()
        run.save_part("counts", {"x": np.arange(4)})
        raise KeyboardInterrupt
    for part in tmp_path.glob(".one.*/parts/counts.npz"):
        part.write_bytes(b"torn")
    with begin(tmp_path / "one") as run:
        assert run.resumed == ()
        write(run)
    assert names(tmp_path) == ["one"]


def test_a_lone_writer_and_several_ones_do_no_harm_to_each_other(tmp_path):
    with create_run(tmp_path / "one", kind="select", settings={"seed": 0}, command=[]) as alone:
        write(alone)
        finish(tmp_path / "one")
    assert alone.complete and "another process made this run first" in alone.notice
    verify_run(tmp_path / "one")
    assert names(tmp_path) == ["one"]


def test_files_put_one_by_one_and_cut_are_finished_by_the_same_run_only(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def rename(a, b):
        raise OSError(errno.EMFILE, "Too many open files")  # what a mounted bucket answers

    put = os.replace

    def replace(a, b):
        if str(b) == str(tmp_path / "one" / "choice.json"):
            raise Killed
        put(a, b)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(places.os, "replace", replace)
        finish(tmp_path / "one")
    assert (tmp_path / "one" / "a" / "b.txt").exists()
    with pytest.raises(InputError, match=r"remains of another run's upload \(seed: 0 there, 1"):
        finish(tmp_path / "one", seed=1)
    finish(tmp_path / "one")
    verify_run(tmp_path / "one")
    assert names(tmp_path) == ["one"] and names(tmp_path / "one") == [
        "a",
        "choice.json",
        "manifest.json",
    ]
