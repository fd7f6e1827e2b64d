"""Keys follow from all that decides a result; shards share the units; estimates need no weights."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bridgex_jax.cli import sweep as sweep_verb
from bridgex_jax.cli.options import Parser
from bridgex_jax.errors import InputError
from bridgex_jax.languages import language
from bridgex_jax.pipelines.console import Console
from bridgex_jax.pipelines.sweep import inputs as sweep_inputs
from bridgex_jax.pipelines.sweep import units as sweep_units
from bridgex_jax.pipelines.sweep.inputs import Inputs
from bridgex_jax.pipelines.sweep.plan import read_plan
from bridgex_jax.pipelines.sweep.run import in_order, plan_sweep
from bridgex_jax.pipelines.sweep.shards import Shard, read_shard
from bridgex_jax.pipelines.sweep.units import (
    Pinned,
    code_version,
    list_evaluations,
    list_selects,
)
from bridgex_jax.store.sweeps import RESULT_SCHEMA, SweepDirectory, write_table
from tests.sweep_plans import SELECT, write_data, write_evaluation, write_plan

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
NINE = ("zh", "ja", "ar", "he", "id", "tl", "fi", "hu", "sw")  # the paper's that are no bridges


@pytest.fixture(scope="module")
def unit(tiny_directory, tmp_path_factory):
    plan = write_plan(tmp_path_factory.mktemp("data"), [str(tiny_directory)])
    return list_selects(read_plan(plan), Inputs(), "1.0+abc")[0]


def changed(unit, **changes):
    """The unit with one thing of it, or of its count unit, changed."""
    own = {f.name for f in dataclasses.fields(unit)}
    mine = {k: v for k, v in changes.items() if k in own}
    count = dataclasses.replace(unit.count, **{k: v for k, v in changes.items() if k not in own})
    return dataclasses.replace(unit, count=count, **mine)


def test_whatever_decides_a_result_changes_the_key(unit):
    code, file, _ = unit.count.corpora[0]
    others = [
        changed(unit, code="1.0+abd"),
        changed(unit, model_pin=Pinned("model", "f" * 64)),
        changed(unit, model=dataclasses.replace(unit.model, dtype="bfloat16")),
        changed(unit, corpora=((code, file, Pinned("corpus", "f" * 64)), *unit.count.corpora[1:])),
        changed(unit, corpora=unit.count.corpora[1:]),
        changed(unit, words_pin=Pinned("words", "f" * 64)),
        changed(unit, pair=dataclasses.replace(unit.pair, bridges=("de", "en"))),
        unit.with_batch(1),
        unit.with_count(unit.count.with_batch(1)),
        *(
            dataclasses.replace(unit, settings=dataclasses.replace(unit.settings, **change))
            for change in ({"seed": 1}, {"top_rate": 0.31}, {"layers": (0, 1)})
        ),
    ]
    keys = [other.key for other in others]
    assert unit.key not in keys and len(set(keys)) == len(keys)


def test_where_the_same_bytes_lie_does_not_change_the_key(unit):
    moved = tuple((code, f"/elsewhere/{file}", pin) for code, file, pin in unit.count.corpora)
    there = changed(
        unit,
        corpora=moved,
        model=dataclasses.replace(unit.model, name="/elsewhere"),
        files=(),
        words_pin=dataclasses.replace(unit.words_pin, name="dictionary elsewhere"),
    )
    assert there.key == unit.key


@pytest.fixture(scope="module")
def evaluations(tiny_directory, tmp_path_factory):
    """The evaluate units of one pair: of words, and of texts."""
    place = tmp_path_factory.mktemp("evaluated")
    plan = read_plan(write_plan(place, [str(tiny_directory)], **write_evaluation(place)))
    pin = Inputs()
    return list_evaluations(plan, list_selects(plan, pin, "1.0+abc"), pin)


def test_whatever_decides_an_evaluation_changes_its_key(evaluations):
    words, texts = evaluations
    task, select = texts.task, texts.select
    here, there = texts.data_pins

    def settings(**changes):
        return dataclasses.replace(task, settings=dataclasses.replace(task.settings, **changes))

    others = [
        words,
        texts.with_batch(1),
        texts.with_select(select.with_batch(1)),
        texts.with_select(changed(select, code="1.0+abd")),
        *(
            dataclasses.replace(texts, task=one)
            for one in (
                settings(limit=8),
                settings(shots=0),
                settings(seed=1),
                dataclasses.replace(task, form=dataclasses.replace(task.form, prompt="{premise}")),
            )
        ),
        dataclasses.replace(texts, data_pins=(there, here)),
        dataclasses.replace(texts, data_pins=(here, Pinned("data", "f" * 64))),
        dataclasses.replace(texts, chooser_pins=(Pinned("scores", "f" * 64),)),
        dataclasses.replace(texts, task=dataclasses.replace(task, choosers=()), chooser_pins=()),
    ]
    keys = [other.key for other in others]
    assert texts.key not in keys and len(set(keys)) == len(keys)


def test_where_data_of_an_evaluation_lie_does_not_change_its_key(evaluations):
    texts = evaluations[1]
    task = dataclasses.replace(
        texts.task, data=(("id", "/elsewhere/id"), ("he", "/he")), choosers=(("scores", "/s"),)
    )
    assert dataclasses.replace(texts, task=task).key == texts.key


def test_units_come_after_those_that_they_need_and_doubtful_ones_last(evaluations):
    words, texts = evaluations
    select, count = words.select, words.count
    assert in_order([words, texts]) == [count, select, words, texts]
    assert in_order([words, texts], frozenset({words.key})) == [count, select, texts, words]


def test_the_code_version_follows_the_source_files(tmp_path, monkeypatch):
    here = code_version()
    package = tmp_path / "bridgex_jax"
    (package / "a" / "b").mkdir(parents=True)
    monkeypatch.setattr(sweep_units, "__file__", str(package / "a" / "b" / "units.py"))
    seen = []
    for text in ("x = 1", "x = 2", "x = 1"):
        (package / "module.py").write_text(text)
        code_version.cache_clear()
        seen.append(code_version())
    code_version.cache_clear()
    assert seen[0] == seen[2] != seen[1] and here not in seen


def test_text_made_from_the_cldr_follows_the_seed_and_files_do_not(tmp_path, tiny_directory):
    data = write_data(tmp_path)
    for corpus, counts in ((data["corpus"], 1), (data["corpus"] | {"de": "cldr"}, 2)):
        plan = write_plan(tmp_path, [str(tiny_directory)], corpus=corpus, grid={"seed": [0, 1]})
        units = in_order(list_selects(read_plan(plan), Inputs(), "1"))
        assert [unit.kind for unit in units].count("count") == counts
        assert [unit.kind for unit in units].count("select") == 2


@given(st.lists(st.integers(), max_size=40), st.integers(1, 12))
def test_shards_have_every_item_once_and_nearly_equal_numbers(items, count):
    parts = [Shard(index, count).part(items) for index in range(count)]
    assert [item for part in parts for item in part] == items
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


SLURM = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_STEP": "2",
         "SLURM_ARRAY_TASK_COUNT": "4"}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        (None, SLURM, Shard(0, 1)),
        ("3/16", {}, Shard(3, 16)),
        ("auto", SLURM, Shard(2, 4)),
        ("auto", {"JOB_COMPLETION_INDEX": "0", "BRIDGEX_SHARDS": "8"}, Shard(0, 8)),
    ],
)
def test_the_shard_is_the_given_one_or_that_of_the_cluster(text, environment, expected):
    assert read_shard(text, environment) == expected


@pytest.mark.parametrize(
    ("text", "environment"),
    [
        ("16/16", {}),
        ("-1/4", {}),
        ("1", {}),
        ("a/b", {}),
        ("1/", {}),
        ("auto", {}),
        ("auto", {"JOB_COMPLETION_INDEX": "0"}),
        ("auto", {"JOB_COMPLETION_INDEX": "8", "BRIDGEX_SHARDS": "8"}),
        ("auto", {"SLURM_ARRAY_TASK_ID": "3"}),
    ],
)
def test_what_is_no_shard_is_bad_input(text, environment):
    with pytest.raises(InputError) as caught:
        read_shard(text, environment)
    assert caught.value.remedy


def test_a_dry_run_reads_no_weights_and_writes_nothing(tmp_path, tiny_directory, monkeypatch):
    plan = write_plan(tmp_path / "data", [str(tiny_directory)], pairs=["id-he", "he-id"])
    monkeypatch.setattr(sweep_inputs, "read_model", lambda *a, **k: pytest.fail("loads weights"))
    status = plan_sweep(plan, str(tmp_path / "out"), Console(quiet=True))
    assert [row["kind"] for row in status.rows] == ["count", "select", "select"]
    assert status.number("waiting") == 3 and not (tmp_path / "out").exists()
    shown = status.text(every_unit=True)
    assert all(row["key"][:14] in shown for row in status.rows)
    counted = status.rows[0]
    layers = 4 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64 + 2 * 32) + 32
    assert counted["tokens"] == 4 * SELECT["tokens"]
    assert counted["flops"] == 2 * layers * counted["tokens"]


def test_the_estimate_grows_with_the_work(tmp_path, tiny_directory):
    def flops(**select):
        plan = write_plan(tmp_path, [str(tiny_directory)], select=SELECT | select)
        rows = plan_sweep(plan, str(tmp_path / "out"), Console(quiet=True)).rows
        return np.array([row["flops"] for row in rows])

    base = flops()
    assert (flops(tokens=128) < base).tolist() == [True, False]
    assert (flops(top_rate=0.6) > base).tolist() == [False, True]


def test_a_table_says_which_units_it_lacks_and_equal_rows_are_equal_bytes(tmp_path):
    row = {field.name: None for field in RESULT_SCHEMA if field.nullable}
    values = {"string": "x", "bool": True, "double": 1.5, "int32": 3, "int64": 3}
    row |= {f.name: values[str(f.type)] for f in RESULT_SCHEMA if not f.nullable}
    row["score"] = float("nan")
    for name in ("a", "b"):
        write_table(tmp_path / name, RESULT_SCHEMA, [row], ["select-1"])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    table = pq.read_table(tmp_path / "a")
    assert table.schema.equals(RESULT_SCHEMA) and table["score"].to_pylist() == [None]
    assert table.schema.metadata[b"missing_units"] == b"select-1"


def test_damaged_records_count_as_absent(tmp_path):
    sweep = SweepDirectory(tmp_path)
    sweep.fail("select-1", "no words")
    sweep.lower("select-1", 8)
    assert sweep.failure("select-1")["attempts"] == 1 and "select-1" in sweep.lowered()
    for folder in ("failures", "lowered"):
        (tmp_path / folder / "select-1.json").write_text("{")
    assert sweep.failure("select-1") is None and sweep.lowered() == {}
    sweep.fail("select-1", "again")
    assert sweep.failures()["select-1"]["attempts"] == 1


def test_the_plans_of_experiments_are_valid():
    for file in sorted(EXPERIMENTS.glob("*.yaml")):
        documents = list(yaml.safe_load_all(file.read_text()))
        if "models" in documents[0]:
            assert read_plan(file).pairs
        else:
            assert documents[-1]["kind"] == "Job"


def parsed(*words):
    parser = Parser()
    sweep_verb.add(parser.add_subparsers(parser_class=Parser))
    return parser.parse_args(["sweep", *words])


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["plan.yaml"], "--out is missing"),
        (["plan.yaml", "runs/sweep"], "write --out runs/sweep"),
        (["status"], "no DIR is given"),
        (["status", "nowhere"], "holds no sweep"),
        (["gone.yaml", "--out", "o"], "gone.yaml: no such file"),
        (["gone.yaml", "--out", "o", "--shard", "2/2"], "--shard 2/2"),
        (["gone.yaml", "--out", "o", "--workers", "2"], "--workers is for --engine ray"),
        (["gone.yaml", "--out", "o", "--engine", "ray", "--mesh", "data=2"], "to one worker"),
    ],
)
def test_a_wrong_command_is_bad_input(words, what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = parsed(*words, "--quiet")
    with pytest.raises(InputError) as caught:
        sweep_verb.run(args)
    assert what in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["sweep_slurm.sh", "sweep_slurm_nodes.sh"])
def test_the_slurm_scripts_are_valid_and_name_flags_that_exist(name):
    script = EXPERIMENTS / name
    subprocess.run(["bash", "-n", script], check=True)
    words = script.read_text().replace("\\\n", " ").split("bridgex sweep ")[1]
    words = words.splitlines()[0].replace('"$plan"', "plan.yaml").replace('"$out"', "runs/sweep")
    args = parsed(*words.split())
    assert args.shard == "auto" and args.grace > 0


@pytest.mark.parametrize("name", ["sweep_builtin.yaml", "paper_builtin.yaml"])
def test_the_built_in_plan_has_all_directions_between_the_poor_languages(name):
    plan = read_plan(EXPERIMENTS / name)
    pairs = {(pair.source, pair.target) for pair in plan.pairs}
    poor = {code for pair in pairs for code in pair}
    assert len(poor) == 4 and len(pairs) == 12


def test_the_paper_s_plan_has_its_pairs_bridges_models_and_all_families():
    plan = read_plan(EXPERIMENTS / "paper_pairs.yaml")
    sources, targets = ({getattr(p, side) for p in plan.pairs} for side in ("source", "target"))
    assert len(plan.pairs) == 15 and sources == targets == {*NINE}
    assert {pair.bridges for pair in plan.pairs} == {("en", "de", "fr", "it", "pt", "es")}
    assert len({language(code).family for code in plan.languages}) == 7
    assert len(plan.models) == 2 and [one.form.name for one in plan.evaluate] == ["bli", "mrc"]
    assert all({*sources} <= {*one.files} for one in plan.evaluate if one.data)


def test_the_kubernetes_job_knows_its_number_of_shards():
    (job,) = yaml.safe_load_all((EXPERIMENTS / "sweep_kubernetes.yaml").read_text())
    spec = job["spec"]
    pod = spec["template"]["spec"]
    container = pod["containers"][0]
    shards = next(e["value"] for e in container["env"] if e["name"] == "BRIDGEX_SHARDS")
    assert spec["completionMode"] == "Indexed" and int(shards) == spec["completions"]
    assert "--shard" in container["args"] and "auto" in container["args"]
    grace = float(container["args"][container["args"].index("--grace") + 1])
    assert grace < pod["terminationGracePeriodSeconds"]


def test_json_of_the_status_is_plain(tmp_path, tiny_directory):
    plan = write_plan(tmp_path / "data", [str(tiny_directory)])
    status = plan_sweep(plan, str(tmp_path / "out"), Console(quiet=True))
    assert json.loads(json.dumps(status.to_json(), allow_nan=False))["units"] == 2
