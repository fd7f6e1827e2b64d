"""A full or unwritable disk: one line with the remedy, parts kept, nothing that looks finished."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from bridgex_jax.errors import InputError
from bridgex_jax.store.manifest import read_manifest, replace_files, verify_run
from bridgex_jax.store.runs import create_run


def begin(out):
    return create_run(out, kind="select", settings={}, command=[])


def refuse(number):
    def call(*args, **keywords):
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_one_line_and_keeps_the_parts(tmp_path, monkeypatch, number):
    with pytest.raises(InputError) as caught, begin(tmp_path / "one") as run:
        run.save_part("counts", {"x": np.arange(4)})
        monkeypatch.setattr(os, "fsync", refuse(number))
        run.write_text("choice.json", "{}")
    monkeypatch.undo()
    assert "\n" not in str(caught.value)
    for part in (str(tmp_path / "one"), "the disk is full", "--out", "finished parts are kept"):
        assert part in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == [".one.partial"]
    with begin(tmp_path / "one") as run:
        assert run.resumed == ("counts",)
    verify_run(tmp_path / "one")


def test_a_disk_that_fills_at_the_very_end_leaves_no_run(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="the disk is full"), begin(tmp_path / "one") as run:
        run.write_text("choice.json", "{}")
        monkeypatch.setattr(os, "replace", refuse(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_in_somebody_elses_write_is_one_line_too(tmp_path):
    with pytest.raises(InputError, match="the disk is full"), begin(tmp_path / "one") as run:
        run.path("figure.svg").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_other_disk_errors_keep_their_traceback(tmp_path):
    with pytest.raises(OSError, match="flaky"), begin(tmp_path / "one"):
        raise OSError(errno.EIO, "flaky")


def test_a_place_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "mkdir", refuse(errno.EACCES))
    with (
        pytest.raises(
            InputError, match=r"cannot be written \(permission denied\); choose another --out"
        ),
        begin(tmp_path / "one"),
    ):
        pass


def test_a_report_that_does_not_fit_leaves_the_run_valid(tmp_path, monkeypatch):
    with begin(tmp_path / "one") as run:
        run.write_text("report.html", "old")
    monkeypatch.setattr(os, "fsync", refuse(errno.ENOSPC))
    with pytest.raises(InputError, match="the disk is full"):
        replace_files(tmp_path / "one", {"report.html": b"new"})
    monkeypatch.undo()
    verify_run(tmp_path / "one")
    assert (tmp_path / "one" / "report.html").read_text() == "old"


WRITES = {
    "text": lambda run: run.write_text("choice.json", "{}"),
    "path": lambda run: run.path("figures/a.svg"),
    "part": lambda run: run.save_part("more", {"x": np.arange(4)}),
    "load": lambda run: run.load_part("counts"),
    "foreign": lambda run: (run.directory / "a.svg").write_text("<svg/>"),
    "end": lambda run: None,
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
@pytest.mark.parametrize("exclusive", [True, False])
def test_a_directory_that_vanishes_is_one_line_and_never_half_a_run(tmp_path, write, exclusive):
    """What was written before it vanished is lost, so what comes after must not look whole."""
    out = tmp_path / "runs" / "one"
    with (
        pytest.raises(InputError, match=r"vanished while .*run the command again") as caught,
        create_run(out, kind="select", settings={}, command=[], exclusive=exclusive) as run,
    ):
        run.write_text("first.json", "{}")
        run.save_part("counts", {"x": np.arange(4)})
        shutil.rmtree(tmp_path / "runs")
        write(run)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_a_directory_that_another_run_took_meanwhile_stays_the_other_s(tmp_path):
    with pytest.raises(InputError, match="vanished while"), begin(tmp_path / "one") as first:
        shutil.rmtree(tmp_path / ".one.partial")
        with begin(tmp_path / "one") as second:
            second.save_part("counts", {"x": np.arange(4)})
            second.write_text("choice.json", "second")
            with pytest.raises(InputError, match="vanished while"):
                first.write_text("choice.json", "first")
            assert second.path("choice.json").read_text() == "second"
        first.write_text("choice.json", "first")
    verify_run(tmp_path / "one")
    assert (tmp_path / "one" / "choice.json").read_text() == "second"


def test_a_run_whose_files_vanished_is_named(tmp_path):
    with begin(tmp_path / "one") as run:
        run.write_text("choice.json", "{}")
    shutil.rmtree(tmp_path / "one")
    for read in (read_manifest, verify_run):
        with pytest.raises(InputError, match="one: is not a run directory"):
            read(tmp_path / "one")


@pytest.fixture
def disk(tmp_path):
    """A file system of its own, which a test may make read-only or take away."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system can only be mounted as root")
    yield place
    while not subprocess.run(["umount", "-l", str(place)], capture_output=True).returncode:
        pass  # several may lie over each other


@pytest.mark.parametrize("exclusive", [True, False])
def test_a_disk_that_turns_read_only_is_one_line_and_keeps_the_parts(disk, exclusive):
    def start():
        settings = {"kind": "select", "settings": {}, "command": []}
        return create_run(disk / "one", exclusive=exclusive, **settings)

    def mount(*arguments):
        subprocess.run(["mount", *arguments, str(disk)], check=True)

    def turn_read_only():  # laid over the disk, which has open files
        mount("--bind", str(disk))
        mount("-o", "remount,bind,ro")

    with (
        pytest.raises(InputError, match=r"disk/one: cannot be written \(read-only.*kept in"),
        start() as run,
    ):
        run.save_part("counts", {"x": np.arange(4)})
        turn_read_only()
        run.write_text("choice.json", "{}")
    with pytest.raises(InputError, match=r"cannot be written \(read-only"), start():
        pytest.fail("was entered")
    subprocess.run(["umount", str(disk)], check=True)
    with start() as run:
        assert run.resumed == ("counts",)
    assert [p.name for p in disk.iterdir()] == ["one"]
    turn_read_only()
    with start() as run:  # what is complete can be read
        assert run.complete


def test_a_disk_that_is_taken_away_is_one_line(disk):
    with pytest.raises(InputError, match=r"one.*vanished while"), begin(disk / "one") as run:
        run.save_part("counts", {"x": np.arange(4)})
        subprocess.run(["umount", "-l", str(disk)], check=True)
        run.write_text("choice.json", "{}")
    assert list(disk.iterdir()) == []


WORKER = """
    import resource, sys
    import numpy as np
    from bridgex_jax.errors import InputError
    from bridgex_jax.store.runs import create_run

    if len(sys.argv) > 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
    try:
        with create_run(sys.argv[1], kind="select", settings={}, command=[]) as run:
            run.save_part("small", {"x": np.arange(4)})
            run.save_part("large", {"x": np.arange(100_000)})
    except InputError as error:
        print(error)
"""


def work(out, *limit):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WORKER), str(out), *limit],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    return done.stdout


def test_a_write_that_the_kernel_cuts_short_leaves_no_torn_part(tmp_path):
    assert "the disk is full" in work(tmp_path / "one", "200000")
    parts = tmp_path / ".one.partial" / "parts"
    assert sorted(p.name for p in parts.iterdir()) == ["small.npz", "small.sha256"]


def test_a_really_full_disk(disk):
    subprocess.run(["mount", "-o", "remount,size=256k", str(disk)], check=True)
    assert f"{disk / 'one'}: the disk is full" in work(disk / "one")
    assert [p.name for p in disk.iterdir()] == [".one.partial"]
