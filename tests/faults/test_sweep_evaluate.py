"""Sweeps that also evaluate: every choice in every task, whatever happens to one of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bridgex_jax.cli.main import parse
from bridgex_jax.cli.main import run as run_command
from bridgex_jax.pipelines.console import Console
from bridgex_jax.pipelines.sweep import work
from bridgex_jax.pipelines.sweep.run import SweepSettings, plan_sweep, run_sweep
from bridgex_jax.pipelines.sweep.shards import Shard
from bridgex_jax.pipelines.sweep.status import read_status
from bridgex_jax.store.manifest import verify_run
from bridgex_jax.store.sweeps import EVALUATION_SCHEMA, SweepDirectory
from bridgex_jax.store.tables import read_answers
from tests.faults.test_sweep import out_of_memory
from tests.sweep_plans import PROBED, SELECT, write_evaluation, write_plan

PAIRS = ["id-he", "he-id"]
TABLES = ("results.parquet", "spectrum.parquet", "evaluations.parquet")


def sweep(plan, out, **settings):
    return run_sweep(plan, str(out), SweepSettings(**settings), Console(quiet=True))


def tables(out):
    return [(out / name).read_bytes() for name in TABLES]


def units(out, kind):
    return sorted((out / "units").glob(f"{kind}-*"))


def unit(out, task, pair=("id", "he")):
    """The evaluate unit of a task and pair."""
    for place in units(out, "evaluate"):
        inputs = json.loads((place / "manifest.json").read_text())["inputs"]
        if inputs["task"]["name"] == task and inputs["pair"] == list(pair):
            return place
    raise AssertionError(f"no {task} of {pair}")


@pytest.fixture(scope="module")
def whole(tiny_directory, tmp_path_factory):
    """A sweep of two pairs and two tasks that nothing disturbed: its plan and its directory."""
    place = tmp_path_factory.mktemp("whole")
    more = write_evaluation(place / "data")
    plan = write_plan(place / "data", [str(tiny_directory)], pairs=PAIRS, **more)
    result = sweep(plan, place / "out")
    assert result.status == 0 and result.complete == 7 and result.table, result.failed
    return plan, place / "out"


@pytest.fixture
def copied(whole, tmp_path):
    """A copy of it that may be disturbed."""
    plan, out = whole
    shutil.copytree(out, tmp_path / "out")
    return plan, tmp_path / "out"


def test_the_table_has_every_task_pair_and_condition_in_the_plan_s_order(whole):
    _, out = whole
    table = pq.read_table(out / "evaluations.parquet")
    assert table.schema.equals(EVALUATION_SCHEMA)
    assert table.schema.metadata[b"missing_units"] == b""
    rows = table.to_pylist()
    assert [(r["source"], r["task"], r["condition"]) for r in rows] == [
        (source, task, condition)
        for source in ("id", "he")
        for task in ("words", "short")
        for condition in ("zero_shot", "en", "de")
    ]
    chosen = {(r["source"], r["bridge"]) for r in
              pq.read_table(out / "results.parquet").to_pylist() if r["chosen"]}  # fmt: skip
    for row in rows:
        assert row["questions"] == 9 and 0 <= row["accuracy"] <= 1
        assert (row["f1"] is None) == (row["task"] == "short")
        assert row["log_probability"] is None or row["log_probability"] < 0
        assert ("hsic" in row["choosers"]) == ((row["source"], row["condition"]) in chosen)
        assert ("english" in row["choosers"]) == (row["condition"] == "en")
        assert ("table" in row["choosers"]) == (row["condition"] == "de")


def test_an_evaluate_unit_is_what_evaluate_gives_with_the_same_flags(
    whole, tiny_directory, tmp_path
):
    plan, out = whole
    sections = json.loads(plan.read_text())
    asked = sections["evaluate"]
    place = unit(out, "words")
    selection = next(p for p in units(out, "select")
                     if json.loads((p / "manifest.json").read_text())["inputs"]["pair"]
                     == ["id", "he"])  # fmt: skip
    command = ["evaluate", str(tiny_directory), "--task", asked["task"][0], "--source", "id",
               "--target", "he", "--bridges", "en", "de", "--dictionary",
               f"id-he={sections['dictionary']['id-he']}", "--select", str(selection), "--scores",
               asked["scores"], "--limit", str(asked["limit"]), "--shots", str(asked["shots"]),
               "--batch-size", str(asked["batch_size"]), "--answers", str(tmp_path / "answers"),
               "--out", str(tmp_path / "run"), "--quiet"]  # fmt: skip
    assert run_command(parse(["bridgex", *command])) == 0
    for name in ("answers.parquet", "evaluation.json"):
        assert (tmp_path / "run" / name).read_bytes() == (place / name).read_bytes()


def test_words_that_chose_a_bridge_are_not_asked(whole):
    _, out = whole
    for place in units(out, "select"):
        (pair,) = json.loads((place / "choice.json").read_text())["pairs"]
        assert len(pair["probe_words"]) == PROBED
        answers = read_answers(
            unit(out, "words", (pair["source"], pair["target"])) / "answers.parquet"
        )
        assert answers and not {answer.item for answer in answers} & set(pair["probe_words"])


def test_nothing_is_computed_twice(copied, monkeypatch):
    plan, out = copied
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    for name in ("run_count", "run_select", "run_evaluate"):
        monkeypatch.setattr(work, name, lambda *a, **k: pytest.fail("computed again"))
    assert sweep(plan, out).status == 0
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert {p.name for p in after if after[p] != before.get(p)} == set(TABLES)


@pytest.mark.parametrize("how", ["flip", "cut", "torn manifest", "gone"])
def test_a_damaged_evaluate_unit_is_made_again_and_no_other(copied, whole, monkeypatch, how):
    plan, out = copied
    place = unit(out, "short")
    victim = place / ("manifest.json" if how == "torn manifest" else "answers.parquet")
    data = victim.read_bytes()
    if how == "gone":
        shutil.rmtree(place)
    else:
        victim.write_bytes(bytes([data[0] ^ 1]) + data[1:] if how == "flip" else data[:100])
    made = []
    run = work.run_evaluate
    monkeypatch.setattr(work, "run_evaluate", lambda *a, **k: made.append(1) or run(*a, **k))
    for name in ("run_count", "run_select"):
        monkeypatch.setattr(work, name, lambda *a, **k: pytest.fail("computed again"))
    for name in TABLES:
        (out / name).unlink()
    result = sweep(plan, out)
    assert result.status == 0 and made == [1], result.failed
    assert tables(out) == tables(whole[1])
    verify_run(place)


def test_a_select_unit_that_is_gone_is_made_again_and_its_evaluations_stay(
    copied, whole, monkeypatch
):
    plan, out = copied
    shutil.rmtree(units(out, "select")[0])
    monkeypatch.setattr(work, "run_evaluate", lambda *a, **k: pytest.fail("computed again"))
    assert sweep(plan, out).status == 0 and tables(out) == tables(whole[1])


def test_missing_data_of_one_task_are_recorded_and_the_others_go_on(copied, whole, tmp_path):
    """A file that is not there, and a language without one; mended, its units alone are made."""
    _, out = copied
    sections = json.loads(whole[0].read_text())
    file = Path(sections["evaluate"]["data"]["he"])
    away = tmp_path / "away.tsv"
    plan = tmp_path / "plan.yaml"
    for he, what in ((str(away), "no such file"), (None, "no data of he for short")):
        sections["evaluate"]["data"].pop("he")
        if he:
            sections["evaluate"]["data"]["he"] = he
        plan.write_text(json.dumps(sections))
        result = sweep(plan, out)
        assert result.status == 1 and result.complete == 5 and len(result.failed) == 2
        assert all("evaluate short" in title and what in r for title, r in result.failed)
        table = pq.read_table(out / "evaluations.parquet")
        assert set(table["task"].to_pylist()) == {"words"} and table.num_rows == 6
        assert len(table.schema.metadata[b"missing_units"].split(b",")) == 2
        assert tables(out)[:2] == tables(whole[1])[:2]
        status = read_status(str(out))
        assert [status.number(s) for s in ("complete", "failed", "waiting")] == [5, 2, 0]
        sections["evaluate"]["data"]["he"] = str(away)
    shutil.copy(file, away)
    plan.write_text(json.dumps(sections))
    assert sweep(plan, out).status == 0 and tables(out) == tables(whole[1])


def test_evaluations_of_a_choice_that_failed_are_recorded_as_such(copied, whole, monkeypatch):
    plan, out = copied
    for place in [units(out, "select")[0], *units(out, "evaluate")]:
        shutil.rmtree(place)

    def breaks(*arguments, **more):
        raise ZeroDivisionError("in the middle")

    with monkeypatch.context() as patch:
        patch.setattr(work, "run_select", breaks)
        result = sweep(plan, out)
    reasons = [reason for title, reason in result.failed if title.startswith("evaluate")]
    assert reasons == ["its select unit is not complete; see why that failed"] * 2
    assert len(result.failed) == 3 and result.complete == 4
    assert pq.read_table(out / "evaluations.parquet").num_rows == 6
    assert sweep(plan, out).status == 0 and tables(out) == tables(whole[1])
    assert not SweepDirectory(out).failures()


def test_an_evaluation_without_memory_is_made_with_a_smaller_batch(copied, whole, monkeypatch):
    plan, out = copied
    for place in units(out, "evaluate"):
        shutil.rmtree(place)
    with monkeypatch.context() as patch:
        patch.setattr(work, "run_evaluate", out_of_memory(work.run_evaluate, 2))
        assert sweep(plan, out).status == 0
    mine, others = (pq.read_table(at / "evaluations.parquet") for at in (out, whole[1]))
    assert set(mine["batch_size"].to_pylist()) == {2}
    assert set(mine["planned_batch_size"].to_pylist()) == {4}
    assert mine["accuracy"].equals(others["accuracy"])
    assert not set(mine["unit"].to_pylist()) & set(others["unit"].to_pylist())
    before = tables(out)
    monkeypatch.setattr(work, "run_evaluate", lambda *a, **k: pytest.fail("computed again"))
    assert sweep(plan, out).status == 0 and tables(out) == before


def test_evaluations_follow_a_choice_that_was_made_with_a_smaller_batch(
    whole, tmp_path, monkeypatch
):
    plan, out = whole[0], tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(work, "run_select", out_of_memory(work.run_select, 20))
        result = sweep(plan, out)
    assert result.status == 0, result.failed
    selects = {place.name for place in units(out, "select")}
    rows = pq.read_table(out / "evaluations.parquet").to_pylist()
    assert {row["select_unit"] for row in rows} == selects
    assert not selects & {place.name for place in units(whole[1], "select")}
    assert read_status(str(out)).number("complete") == 7


def test_every_shard_makes_the_choices_that_its_evaluations_need(whole, tmp_path, monkeypatch):
    plan, out = whole[0], tmp_path / "out"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "answers"))  # nothing is answered yet
    last = sweep(plan, out, shard=Shard(2, 3))
    assert last.status == 0 and last.table is None
    assert [len(units(out, kind)) for kind in ("count", "select", "evaluate")] == [1, 1, 2]
    assert [sweep(plan, out, shard=Shard(at, 3)).status for at in (0, 1)] == [0, 0]
    assert tables(out) == tables(whole[1])


def test_a_dry_run_and_the_status_list_evaluations(whole, tmp_path, monkeypatch):
    plan, out = whole
    status = plan_sweep(plan, str(tmp_path / "out"), Console(quiet=True))
    kinds = [row["kind"] for row in status.rows]
    assert kinds == ["count", *["select", "evaluate", "evaluate"] * 2]
    assert all(row["flops"] > 0 for row in status.rows) and not (tmp_path / "out").exists()
    assert "evaluate short id→he" in status.text(every_unit=True)
    there = read_status(str(out))
    assert there.number("complete") == 7 and there.left == 0
    assert all(row["seconds"] > 0 for row in there.rows if row["kind"] == "evaluate")


def test_data_that_change_under_their_name_fail_the_units_that_are_left(
    whole, tiny_directory, tmp_path, monkeypatch
):
    more = write_evaluation(tmp_path / "data")
    plan = write_plan(tmp_path / "data", [str(tiny_directory)], pairs=PAIRS, **more)
    out = tmp_path / "out"
    shutil.copytree(whole[1] / "units", out / "units")
    sweep(plan, out)
    assert len(units(out, "evaluate")) == 4  # the same bytes at another place: the same units
    shutil.rmtree(unit(out, "short"))
    with open(tmp_path / "data" / "scores.csv", "a") as file:
        file.write("id,sw,en,1\n")
    result = sweep(plan, out)
    assert result.status == 1 and len(result.failed) == 1
    assert "scores.csv: has changed since the sweep began" in result.failed[0][1]


def test_what_was_answered_before_does_not_change_a_unit(tiny_directory, tmp_path, monkeypatch):
    """Units that share many of their prompts, made in both orders."""
    more = write_evaluation(tmp_path / "data")
    grid = {"seed": [0, 1]}
    plan = write_plan(tmp_path / "data", [str(tiny_directory)], grid=grid, **more)
    for name, order in (("forwards", (0, 1)), ("backwards", (1, 0))):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"answers-{name}"))
        for at in order:
            assert sweep(plan, tmp_path / name, shard=Shard(at, 2)).status == 0
    assert tables(tmp_path / "forwards") == tables(tmp_path / "backwards")
    notes = [json.loads((place / "manifest.json").read_text())["notes"]["prompts"]
             for place in units(tmp_path / "forwards", "evaluate")]  # fmt: skip
    # Equal questions are answered once: those about texts, which are the same for both choices.
    assert sum(not note["computed"] for note in notes) == 1


def test_text_that_is_parallel_gives_the_choices_of_a_sweep_their_choosers(
    tiny_directory, tmp_path
):
    plan = write_plan(tmp_path / "data", [str(tiny_directory)], select=SELECT | {"parallel": 20})
    assert sweep(plan, tmp_path / "out").status == 0
    (place,) = units(tmp_path / "out", "select")
    (pair,) = json.loads((place / "choosers.json").read_text())["pairs"]
    assert {"hsic", "tokenizer", "embedding", "cka"} <= set(pair["scores"])
