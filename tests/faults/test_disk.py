"""A full or unwritable disk: one line with the remedy, parts kept, nothing that looks finished."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from bridgex_jax.errors import InputError
from bridgex_jax.store.manifest import replace_files, verify_run
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


def test_a_really_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system can only be mounted as root")
    try:
        assert f"{disk / 'one'}: the disk is full" in work(disk / "one")
        assert [p.name for p in disk.iterdir()] == [".one.partial"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)
