"""Sweeps that something happens to: nothing is lost, nothing half-made counts, the rest goes on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import time
from pathlib import Path

import jax
import pyarrow.parquet as pq
import pytest

from bridgex_jax.cli.main import parse
from bridgex_jax.cli.main import run as run_command
from bridgex_jax.errors import InputError
from bridgex_jax.models.decoder import init_params
from bridgex_jax.models.weights import save_model
from bridgex_jax.pipelines.console import Console
from bridgex_jax.pipelines.sweep import run as sweeps
from bridgex_jax.pipelines.sweep import work
from bridgex_jax.pipelines.sweep.run import SweepSettings, run_sweep
from bridgex_jax.pipelines.sweep.shards import Shard
from bridgex_jax.pipelines.sweep.status import read_status
from bridgex_jax.store import files
from bridgex_jax.store import sweeps as store
from bridgex_jax.store.manifest import verify_run
from bridgex_jax.store.sweeps import SweepDirectory
from tests.conftest import TINY
from tests.sweep_plans import SELECT, write_plan

PAIRS = ["id-he", "he-id"]


def sweep(plan, out, **settings):
    return run_sweep(plan, str(out), SweepSettings(**settings), Console(quiet=True))


def tables(out):
    return [(out / name).read_bytes() for name in ("results.parquet", "spectrum.parquet")]


def unit(out, kind):
    return next(path for path in sorted((out / "units").iterdir()) if path.name.startswith(kind))


@pytest.fixture(scope="module")
def whole(tiny_directory, tmp_path_factory):
    """A sweep of two pairs that nothing disturbed: its plan and its directory."""
    place = tmp_path_factory.mktemp("whole")
    plan = write_plan(place / "data", [str(tiny_directory)], pairs=PAIRS)
    result = sweep(plan, place / "out")
    assert result.status == 0 and result.complete == 3 and result.table
    return plan, place / "out"


@pytest.fixture
def copied(whole, tmp_path):
    """A copy of it that may be disturbed."""
    plan, out = whole
    shutil.copytree(out, tmp_path / "out")
    return plan, tmp_path / "out"


def test_a_unit_is_what_select_gives_with_the_same_flags(whole, tiny_directory, tmp_path):
    plan, out = whole
    sections = json.loads(plan.read_text())
    chosen = unit(out, "select")
    pair = json.loads((chosen / "manifest.json").read_text())["inputs"]["pair"]
    flags = [
        part
        for name, value in SELECT.items()
        for part in (f"--{name.replace('_', '-')}", str(value))
    ]
    words = sections["dictionary"]["id-he"]
    text = [f"{code}={file}" for code, file in sections["corpus"].items()]
    for name, source in (("counted", ["--counts", str(unit(out, "count"))]),
                         ("read", ["--corpus", *text])):  # fmt: skip
        command = ["select", str(tiny_directory), "--source", pair[0], "--target", pair[1],
                   "--bridges", "en", "de", "--dictionary", f"id-he={words}", *source, *flags,
                   "--out", str(tmp_path / name), "--quiet"]  # fmt: skip
        assert run_command(parse(["bridgex", *command])) == 0
        for file in ("spectrum.parquet", "overlap.parquet"):
            assert (tmp_path / name / file).read_bytes() == (chosen / file).read_bytes()
    assert (tmp_path / "counted" / "choice.json").read_bytes() == (
        chosen / "choice.json"
    ).read_bytes()


def test_nothing_is_computed_twice(copied, monkeypatch):
    plan, out = copied
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    monkeypatch.setattr(work, "run_select", lambda *a, **k: pytest.fail("computed again"))
    monkeypatch.setattr(work, "run_count", lambda *a, **k: pytest.fail("computed again"))
    assert sweep(plan, out).status == 0
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert {p.name for p in after if after[p] != before.get(p)} == {
        "results.parquet",
        "spectrum.parquet",
    }


@pytest.mark.parametrize("kind", ["count", "select"])
@pytest.mark.parametrize("how", ["flip", "cut", "no manifest", "torn manifest", "gone"])
def test_a_damaged_unit_is_made_again(copied, whole, kind, how):
    plan, out = copied
    place = unit(out, kind)
    victim = place / ("counts.json" if kind == "count" else "choice.json")
    data = victim.read_bytes()
    if how == "flip":
        victim.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    elif how == "cut":
        victim.write_bytes(data[: len(data) // 2])
    elif how == "torn manifest":
        (place / "manifest.json").write_bytes((place / "manifest.json").read_bytes()[:100])
    else:
        shutil.rmtree(place)
        if how == "no manifest":  # as a cut copy between machines leaves it: nothing of ours
            place.mkdir()
    for name in ("results.parquet", "spectrum.parquet"):
        (out / name).unlink()
    result = sweep(plan, out)
    assert result.status == 0, result.failed
    assert tables(out) == tables(whole[1])
    verify_run(place)


def test_a_bad_model_is_recorded_and_the_others_go_on(whole, tiny_directory, tmp_path):
    broken, gone = tmp_path / "broken", tmp_path / "gone"
    shutil.copytree(tiny_directory, broken)
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[:1000])
    models = [str(gone), str(broken), str(tiny_directory)]
    plan, out = write_plan(tmp_path / "data", models, pairs=PAIRS), tmp_path / "out"

    result = sweep(plan, out)
    assert result.status == 1 and result.complete == 3 and len(result.failed) == 6
    reasons = dict(result.failed)
    assert "no such directory" in reasons[f"count 4 languages of {gone}"]
    assert "truncated" in reasons[f"count 4 languages of {broken}"]
    assert "count unit" in reasons[f"select id→he of {broken}"]
    status = read_status(str(out))
    assert [status.number(s) for s in ("complete", "failed", "waiting")] == [3, 6, 0]
    table = pq.read_table(out / "results.parquet")
    assert set(table["model"].to_pylist()) == {str(tiny_directory)} and table.num_rows == 4
    assert len(table.schema.metadata[b"missing_units"].split(b",")) == 4

    (broken / "model.safetensors").write_bytes(weights)
    shutil.copytree(tiny_directory, gone)
    assert sweep(plan, out).status == 0
    table = pq.read_table(out / "results.parquet")
    assert table.num_rows == 12 and table.schema.metadata[b"missing_units"] == b""
    assert read_status(str(out)).number("failed") == 0


def test_weights_that_change_under_their_name_fail_the_units_that_are_left(
    whole, tiny_directory, tmp_path
):
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(tiny_directory, model)
    plan = write_plan(tmp_path / "data", [str(model)], pairs=PAIRS)
    assert sweep(plan, out, shard=Shard(0, 2)).complete == 2
    save_model(model, TINY, init_params(TINY, jax.random.key(5)))
    result = sweep(plan, out)
    assert result.status == 1 and result.complete == 2
    assert [title for title, _ in result.failed] == [f"select he→id of {model}"]
    assert "has changed since the sweep began" in result.failed[0][1]
    save_model(model, TINY, init_params(TINY, jax.random.key(0)))
    assert sweep(plan, out).status == 0
    mine, others = pq.read_table(out / "results.parquet"), pq.read_table(
        whole[1] / "results.parquet"
    )  # fmt: skip
    assert mine["score"].equals(others["score"])


def test_weights_that_change_between_plan_and_work_are_a_recorded_failure(
    tiny_directory, tmp_path, monkeypatch
):
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(tiny_directory, model)
    plan = write_plan(tmp_path / "data", [str(model)])
    opened = sweeps.open_sweep

    def then_changed(*arguments):
        found = opened(*arguments)
        save_model(model, TINY, init_params(TINY, jax.random.key(5)))
        return found

    monkeypatch.setattr(sweeps, "open_sweep", then_changed)
    result = sweep(plan, out)
    assert result.status == 1 and not list((out / "units").glob("*"))
    assert "has changed since the sweep began" in dict(result.failed).popitem()[1] or any(
        "has changed" in reason for _, reason in result.failed
    )


def test_another_code_on_the_same_directory_is_refused(copied, monkeypatch):
    plan, out = copied
    before = tables(out)
    monkeypatch.setattr(sweeps, "code_version", lambda: "9.9.9+abc")
    with pytest.raises(InputError, match=r"holds a sweep of bridgex_jax .*this is 9\.9\.9\+abc"):
        sweep(plan, out)
    assert tables(out) == before


def test_a_worker_with_another_code_makes_nothing(copied, monkeypatch):
    plan, out = copied
    shutil.rmtree(unit(out, "select"))
    monkeypatch.setattr(work, "code_version", lambda: "9.9.9+abc")
    result = sweep(plan, out)
    assert result.status == 1 and "this worker runs bridgex_jax 9.9.9" in result.failed[0][1]


def out_of_memory(run, largest):
    """`run`, on a machine that has no memory for batches beyond `largest`."""

    def call(model, what, settings, *arguments, **more):
        if settings.batch_size is None or settings.batch_size > largest:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating")
        return run(model, what, settings, *arguments, **more)

    return call


def test_a_unit_without_memory_is_made_with_a_smaller_batch(
    whole, tiny_directory, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    plan = write_plan(tmp_path / "data", [str(tiny_directory)], pairs=PAIRS)
    with monkeypatch.context() as patch:
        patch.setattr(work, "run_select", out_of_memory(work.run_select, 20))
        patch.setattr(work, "run_count", out_of_memory(work.run_count, 3))
        assert sweep(plan, out).status == 0
    assert read_status(str(out)).number("complete") == 3
    table = pq.read_table(out / "results.parquet").to_pylist()
    assert {(row["batch_size"], row["planned_batch_size"]) for row in table} == {(16, 64)}
    assert {(row["count_batch_size"], row["planned_count_batch_size"]) for row in table} == {
        (2, None)
    }
    assert not {row["unit"] for row in table} & {
        path.name for path in (whole[1] / "units").iterdir()
    }
    # The stand-ins count for the planned units: nothing is tried again.
    before = tables(out)
    monkeypatch.setattr(work, "run_select", lambda *a, **k: pytest.fail("computed again"))
    assert sweep(plan, out).status == 0 and tables(out) == before


def test_memory_that_is_too_small_for_any_batch_is_a_failure_and_forgotten(
    copied, whole, monkeypatch
):
    plan, out = copied
    shutil.rmtree(unit(out, "select"))
    with monkeypatch.context() as patch:
        patch.setattr(work, "run_select", out_of_memory(work.run_select, 0))
        result = sweep(plan, out)
    assert result.status == 1 and "RESOURCE_EXHAUSTED" in result.failed[0][1]
    (record,) = SweepDirectory(out).failures().values()
    assert record["batch_size"] == 1 and record["attempts"] == 1
    assert sweep(plan, out).status == 0  # with the planned batch again
    assert tables(out) == tables(whole[1])


def test_any_error_of_a_unit_is_recorded_with_its_traceback(copied, whole, monkeypatch):
    plan, out = copied
    victim = unit(out, "select")
    shutil.rmtree(victim)

    def breaks(*arguments, **more):
        raise ZeroDivisionError("in the middle\nof it")

    with monkeypatch.context() as patch:
        patch.setattr(work, "run_select", breaks)
        for _ in range(2):
            result = sweep(plan, out)
    assert result.status == 1 and result.failed[0][1] == "ZeroDivisionError: in the middle"
    record = SweepDirectory(out).failure(victim.name)
    assert record["attempts"] == 2 and "in breaks" in record["traceback"]
    assert sweep(plan, out).status == 0 and tables(out) == tables(whole[1])
    assert SweepDirectory(out).failure(victim.name) is None


def test_a_full_disk_ends_the_sweep_and_leaves_what_is_whole(copied, whole, monkeypatch):
    plan, out = copied
    victim = unit(out, "select")
    shutil.rmtree(victim)
    replace = os.replace

    def full(source, target):
        if "running" not in str(target) and "parts" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", full)
        with pytest.raises(InputError, match="the disk is full"):
            sweep(plan, out)
    assert not victim.exists()
    assert sweep(plan, out).status == 0 and tables(out) == tables(whole[1])


def terminated_during(monkeypatch, once):
    """SIGTERM arrives while the first select unit works; then `once` is called."""
    run = work.run_select

    def call(*arguments, **more):
        monkeypatch.setattr(work, "run_select", run)
        os.kill(os.getpid(), signal.SIGTERM)
        once()
        return run(*arguments, **more)

    monkeypatch.setattr(work, "run_select", call)


def test_sigterm_lets_the_unit_end_and_no_other_begin(copied, whole, monkeypatch):
    plan, out = copied
    for path in (out / "units").glob("select*"):
        shutil.rmtree(path)
    terminated_during(monkeypatch, lambda: None)
    result = sweep(plan, out, grace=600)
    assert result.status == 143 and result.complete == 2 and result.waiting == 1
    assert result.table is None
    assert sweep(plan, out).status == 0 and tables(out) == tables(whole[1])


def test_sigterm_drops_a_unit_that_does_not_end_in_time(copied, whole, monkeypatch):
    plan, out = copied
    for path in (out / "units").glob("select*"):
        shutil.rmtree(path)

    def works_long():
        time.sleep(60)
        pytest.fail("was not dropped")

    terminated_during(monkeypatch, works_long)
    result = sweep(plan, out, grace=0.05)
    assert result.status == 143 and result.complete == 1 and result.waiting == 2
    assert not list((out / "running").iterdir()) and not list((out / "units").glob("select*"))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert sweep(plan, out).status == 0 and tables(out) == tables(whole[1])


def test_sigterm_while_the_plan_is_read_ends_with_143_too(whole, tmp_path, monkeypatch):
    def waits(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr(sweeps, "open_sweep", waits)
    with pytest.raises(SystemExit) as ended:
        sweep(whole[0], tmp_path / "out", grace=0.01)
    assert ended.value.code == 143 and not (tmp_path / "out").exists()


def test_ctrl_c_is_not_taken_for_a_failure(copied, monkeypatch):
    plan, out = copied
    shutil.rmtree(unit(out, "select"))

    def interrupted(*arguments, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(work, "run_select", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep(plan, out)
    assert not SweepDirectory(out).failures() and not SweepDirectory(out).running()


def test_status_shows_the_unit_at_work_and_what_is_left(copied, monkeypatch):
    plan, out = copied
    for path in (out / "units").glob("select*"):
        shutil.rmtree(path)
    seen = []
    run = work.run_select

    def watched(*arguments, **more):
        seen.append(read_status(str(out)))
        return run(*arguments, **more)

    monkeypatch.setattr(work, "run_select", watched)
    sweep(plan, out)
    assert [[s.number(x) for x in ("complete", "running", "waiting")] for s in seen] == [
        [1, 1, 1],
        [2, 1, 0],
    ]
    assert seen[0].left is None and seen[1].left > 0 and seen[1].spent > 0
    assert "select id→he" in seen[0].text()


def test_parts_of_a_stopped_unit_are_used_by_whoever_makes_it(copied, whole, monkeypatch):
    plan, out = copied
    shutil.rmtree(unit(out, "count"))
    asked = []
    part = SweepDirectory.part

    def stops(self, key, name, compute):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(name)
        return part(self, key, name, compute)

    with monkeypatch.context() as patch:
        patch.setattr(SweepDirectory, "part", stops)
        with pytest.raises(KeyboardInterrupt):
            sweep(plan, out)
    kept = sorted((out / "parts").rglob("*.npz"))
    assert len(kept) == 2
    kept[0].write_bytes(kept[0].read_bytes()[:-1])  # a damaged one is made again
    made = []

    def counted(self, key, name, compute):
        return part(self, key, name, lambda: made.append(name) or compute())

    monkeypatch.setattr(SweepDirectory, "part", counted)
    assert sweep(plan, out).status == 0
    assert len(made) == 3 and tables(out) == tables(whole[1])
    assert not list((out / "parts").iterdir())


def test_shards_of_one_model_begin_to_count_at_different_languages(whole, tmp_path, monkeypatch):
    plan, begun = whole[0], []
    part = SweepDirectory.part

    def counted(self, key, name, compute):
        begun.append(name)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return part(self, key, name, compute)

    monkeypatch.setattr(SweepDirectory, "part", counted)
    found = []
    for index in range(2):
        begun.clear()
        with pytest.raises(KeyboardInterrupt):
            sweep(plan, tmp_path / f"out-{index}", shard=Shard(index, 2))
        found.append(list(begun))
    # The shortest corpus says how much is counted of all, so all begin with that one.
    assert found[0][0] == found[1][0] and found[0][1] != found[1][1]


def test_a_unit_that_another_process_completes_meanwhile_does_no_harm(copied, whole, monkeypatch):
    """Its parts vanish under the writer, and its place is taken when it is done."""
    plan, out = copied
    victim = unit(out, "select")
    victim.rename(out.parent / "completed")
    part, write = SweepDirectory.part, store.write_bytes

    def overtaken(self, key, name, compute):
        found = part(self, key, name, compute)
        if not victim.exists():
            shutil.copytree(out.parent / "completed", victim)
        self.drop_parts(key)
        return found

    def removed_meanwhile(path, data):
        if "parts" in path.parts:
            shutil.rmtree(path.parent)
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(SweepDirectory, "part", overtaken)
        patch.setattr(store, "write_bytes", removed_meanwhile)
        assert sweep(plan, out).status == 0
    assert tables(out) == tables(whole[1])


def test_units_at_which_a_process_died_come_last(whole, tmp_path, monkeypatch):
    plan, out = whole
    shutil.copytree(out, tmp_path / "out")
    first = sweeps.open_sweep(plan, str(tmp_path / "out"), Console(quiet=True)).selects[0]
    sign = {"unit": first.key, "host": "elsewhere", "pid": 1, "at": "2020-01-01T00:00:00+00:00"}
    (tmp_path / "out" / "running" / f"{first.key}.elsewhere-1.json").write_text(json.dumps(sign))
    asked = []
    do = work.Worker.do
    monkeypatch.setattr(
        work.Worker, "do", lambda self, unit: asked.append(unit.key) or do(self, unit)
    )
    sweep(plan, tmp_path / "out")
    assert asked[-1] == first.key and len(asked) == 3
    assert read_status(str(tmp_path / "out")).number("running") == 0


def test_a_directory_with_other_files_is_refused_and_kept(whole, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"is not empty \(notes\.txt\) and holds no sweep"):
        sweep(whole[0], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_lost_index_is_made_again_without_computing(copied, monkeypatch):
    plan, out = copied
    (out / "sweep.json").write_text("{torn")
    with pytest.raises(InputError, match=r"sweep\.json"):
        sweep(plan, out)
    (out / "sweep.json").unlink()
    monkeypatch.setattr(work, "run_select", lambda *a, **k: pytest.fail("computed again"))
    assert sweep(plan, out).status == 0
    with pytest.raises(InputError, match="holds no sweep"):
        read_status(str(Path(out) / "units"))
