"""Run directories: whole or absent, resumed by their own command only, never mixed."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest

from bridgex_jax.errors import InputError
from bridgex_jax.store import runs
from bridgex_jax.store.manifest import verify_run
from bridgex_jax.store.runs import create_run

SETTINGS = {"seed": 0, "bridges": ("en", "de"), "top_rate": 0.01}


def begin(out, **changes):
    return create_run(
        out, kind="select", settings=SETTINGS | changes, inputs={"model": "ff"}, command=["bridgex"]
    )


def finish(out, **changes):
    with begin(out, **changes) as run:
        run.write_text("choice.json", "{}")
    return run


def stop(out, **changes):
    """A run that is killed after one part."""
    with pytest.raises(KeyboardInterrupt), begin(out, **changes) as run:
        run.write_text("choice.json", "half")
        run.save_part("probe-he", {"x": np.arange(3)})
        raise KeyboardInterrupt


def test_a_finished_run_is_whole_and_alone(tmp_path):
    run = finish(tmp_path / "runs" / "one")
    assert run.complete and run.directory == tmp_path / "runs" / "one"
    verify_run(run.directory)
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["one"]
    assert sorted(p.name for p in run.directory.iterdir()) == ["choice.json", "manifest.json"]


def test_nothing_shows_under_the_name_before_the_end(tmp_path):
    with begin(tmp_path / "one") as run:
        run.write_text("choice.json", "{}")
        assert not (tmp_path / "one").exists()
        assert not run.complete


def test_the_same_run_is_recognised_and_left_alone(tmp_path):
    finish(tmp_path / "one")
    before = (tmp_path / "one" / "manifest.json").read_bytes()
    with begin(tmp_path / "one") as run:
        assert run.complete
        assert "already holds this run" in run.notice
        with pytest.raises(RuntimeError, match="complete"):
            run.write_text("choice.json", "[]")
        with pytest.raises(RuntimeError, match="complete"):
            run.save_part("x", {})
    assert (tmp_path / "one" / "manifest.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


def test_another_run_is_refused_and_the_difference_named(tmp_path):
    finish(tmp_path / "one")
    with pytest.raises(
        InputError, match=r"another run \(seed: 0 there, 1 here\); choose another --out"
    ):
        finish(tmp_path / "one", seed=1)
    with (
        pytest.raises(InputError, match="of kind select, not demo"),
        create_run(tmp_path / "one", kind="demo", settings=SETTINGS),
    ):
        pass
    verify_run(tmp_path / "one")
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


def test_a_complete_run_that_was_changed_is_not_taken_for_complete(tmp_path):
    finish(tmp_path / "one")
    (tmp_path / "one" / "choice.json").write_text("[]")
    with pytest.raises(InputError, match=r"choice\.json: has changed"):
        finish(tmp_path / "one")


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "choice.json"])
def test_other_peoples_files_are_refused_and_kept(tmp_path, name):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / name).write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no complete run"):
        finish(tmp_path / "one")
    assert (tmp_path / "one" / name).read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


def test_an_empty_directory_and_a_link_to_one_are_filled(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "one")
    finish(tmp_path / "link")
    verify_run(tmp_path / "one")
    verify_run(tmp_path / "link")


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path):
    (tmp_path / "one").write_text("mine")
    with pytest.raises(InputError, match="not a directory"):
        finish(tmp_path / "one")
    with pytest.raises(InputError, match="cannot be written"):
        finish(tmp_path / "one" / "two")
    assert (tmp_path / "one").read_text() == "mine"


def test_a_stopped_run_is_resumed_from_its_parts(tmp_path):
    stop(tmp_path / "one")
    assert [p.name for p in tmp_path.iterdir()] == [".one.partial"]
    with begin(tmp_path / "one") as run:
        assert run.resumed == ("probe-he",)
        assert "1 part" in run.notice
        assert not (run.directory / "choice.json").exists()  # a half file is not taken over
        part = run.part("probe-he", lambda: pytest.fail("computed again"))
        np.testing.assert_array_equal(part["x"], np.arange(3))
        run.write_text("choice.json", "{}")
    manifest = verify_run(tmp_path / "one")
    assert manifest["resumed_parts"] == ["probe-he"]
    assert set(manifest["files"]) == {"choice.json"}
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


def test_parts_keep_types_and_names(tmp_path):
    arrays = {
        "words": np.array(["בית", "air"]),
        "mask": np.array([True, False]),
        "x": np.float32([[1.5]]),
    }
    with begin(tmp_path / "one") as run:
        run.save_part("p", arrays)
        loaded = run.load_part("p")
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array)
        assert loaded[name].dtype == array.dtype


def test_a_stopped_run_of_other_settings_is_refused_and_kept(tmp_path):
    stop(tmp_path / "one")
    with pytest.raises(InputError, match=r"was stopped \(seed: 0 there, 7 here\).*delete it"):
        finish(tmp_path / "one", seed=7)
    with begin(tmp_path / "one") as run:
        assert run.has_part("probe-he")


def test_a_stopped_run_without_parts_is_in_nobodys_way(tmp_path):
    (tmp_path / ".one.partial" / "files").mkdir(parents=True)
    (tmp_path / ".one.partial" / "files" / "old").write_text("torn")
    finish(tmp_path / "one", seed=7)
    assert set(verify_run(tmp_path / "one")["files"]) == {"choice.json"}


@pytest.mark.parametrize("victim", ["probe-he.npz", "probe-he.sha256"])
@pytest.mark.parametrize("how", ["flip", "truncate", "delete"])
def test_a_damaged_part_is_made_again(tmp_path, victim, how):
    stop(tmp_path / "one")
    path = tmp_path / ".one.partial" / "parts" / victim
    data = path.read_bytes()
    path.unlink()
    if how != "delete":
        path.write_bytes(
            data[: len(data) // 2] if how == "truncate" else bytes([data[0] ^ 1]) + data[1:]
        )
    with begin(tmp_path / "one") as run:
        assert run.resumed == () and not run.has_part("probe-he")
        with pytest.raises(KeyError):
            run.load_part("probe-he")
        np.testing.assert_array_equal(
            run.part("probe-he", lambda: {"x": np.ones(2)})["x"], np.ones(2)
        )


def test_bad_input_inside_a_run_leaves_nothing_at_all(tmp_path):
    with (
        pytest.raises(InputError, match="no words"),
        begin(tmp_path / "deep" / "er" / "one") as run,
    ):
        run.write_text("choice.json", "{}")
        raise InputError("no words")
    assert list(tmp_path.iterdir()) == []


def test_two_writers_of_one_run_are_kept_apart(tmp_path):
    with begin(tmp_path / "one") as run:
        run.write_text("choice.json", "{}")
        with (
            pytest.raises(InputError, match="is being written by another process"),
            begin(tmp_path / "one"),
        ):
            pass
        assert run.path("choice.json").read_text() == "{}"
    verify_run(tmp_path / "one")


def test_a_run_that_another_process_finished_meanwhile_is_recognised(tmp_path, monkeypatch):
    hold = runs.hold_alone

    def finished_by_another(work, out):
        monkeypatch.setattr(runs, "hold_alone", hold)
        finish(tmp_path / "one")
        return hold(work, out)

    monkeypatch.setattr(runs, "hold_alone", finished_by_another)
    with begin(tmp_path / "one") as run:
        assert run.complete
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


def test_leftovers_of_a_complete_run_are_swept(tmp_path):
    stop(tmp_path / "one")
    shutil.copytree(tmp_path / ".one.partial", tmp_path / "saved")
    finish(tmp_path / "one")
    (tmp_path / "saved").rename(tmp_path / ".one.partial")
    with begin(tmp_path / "one") as run:
        assert run.complete
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


def test_a_mount_point_is_filled_from_inside_with_the_manifest_last(tmp_path, monkeypatch):
    out = tmp_path / "volume"
    (out / "lost+found").mkdir(parents=True)
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == str(out))
    moved = []
    replace = os.replace
    with begin(out) as run:
        run.write_text("figures/a.svg", "<svg/>")
        run.write_text("z.json", "{}")
        monkeypatch.setattr(os, "replace", lambda a, b: (moved.append(b), replace(a, b)))
    assert [str(p) for p in moved[-3:]] == [
        str(out / n) for n in ("figures/a.svg", "z.json", "manifest.json")
    ]
    verify_run(out)
    assert sorted(p.name for p in out.iterdir()) == [
        "figures",
        "lost+found",
        "manifest.json",
        "z.json",
    ]


def test_a_file_system_that_cannot_rename_directories_gets_the_files_one_by_one(
    tmp_path, monkeypatch
):
    def rename(a, b):
        raise OSError(24, "Too many open files")  # what a mounted bucket answers

    monkeypatch.setattr(os, "rename", rename)
    finish(tmp_path / "one")
    verify_run(tmp_path / "one")
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


def test_names_that_the_manifest_or_the_parts_do_not_know_are_faults(tmp_path):
    with begin(tmp_path / "one") as run:
        with pytest.raises(TypeError, match="colour"):
            run.record(colour="blue")
        with pytest.raises(ValueError, match="no name for a part"):
            run.save_part("../x", {})
        with pytest.raises(ValueError, match="Python objects"):
            run.save_part("x", {"a": np.array([object()])})
