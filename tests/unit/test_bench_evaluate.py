"""The benchmark of an evaluation: both sides answer alike, ratios are of the seconds given."""

import json
from dataclasses import replace

import numpy as np
import pytest

from bridgex_jax.icl.conditions import ZERO_SHOT, Condition, evaluate_conditions
from bridgex_jax.pipelines import bench_evaluate as bench
from bridgex_jax.pipelines.answering import ModelAnswerer
from bridgex_jax.pipelines.console import Console

QUIET = Console(quiet=True)
JOB = bench.Job(
    words=4, sample=2, directions=(("id", "sw"), ("sw", "id")), bridges=("en", "de"), new=6,
    batch_size=16,
)  # fmt: skip
SIZES = bench.Sizes(words=40, sample=4, bridges=2)
FIRST = bench.Run([], seconds=50.0, scoring=20.0, computed=9)


@pytest.fixture
def machine(monkeypatch):
    monkeypatch.setattr(bench.hsic_bench, "peak_gflops", lambda: 100.0)


def test_torch_gives_our_answers_and_known_ones_are_not_computed(machine, tiny_model):
    pytest.importorskip("torch")
    rows = bench.bench_evaluate(1, QUIET, tiny_model, JOB)
    assert [row["target"] for row in rows] == [10, 1, 1, None, None]
    assert all(row["ratio"] > 0 for row in rows)
    assert "on 2 words, scaled up; 100.0% of its final answers" in rows[0]["note"]
    assert rows[0]["what"].startswith("4 words x 2 bridges")
    assert rows[-1]["note"].endswith(", 0 prompts computed")
    assert json.loads(json.dumps(rows)) == rows


def test_without_torch_the_row_says_so(machine, tiny_model, monkeypatch):
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    rows = bench.bench_evaluate(1, QUIET, tiny_model, JOB)
    assert [row["ratio"] is None for row in rows] == [True, False, False, False, False]
    assert rows[0]["note"].startswith("torch is not installed; floor ")


def test_ratios_are_of_one_round_and_torch_is_scaled_by_words():
    seconds = {
        "ours": [1.0, 4.0, 2.0],
        "with gold": [2.0, 6.0, 5.0],
        "known": [0.5, 0.5, 0.25],
        "torch": [3.0, 8.0, 2.0],
    }
    against, cold, cold_gold, gold, known = bench.evaluate_rows(
        SIZES, seconds, FIRST, 0, 0.75, "floor"
    )
    assert (against["ratio"], against["ours"], against["other"]) == (20.0, 2.0, 30.0)
    assert "75.0% of its final answers" in against["note"]
    assert [row["ours"] for row in (cold, cold_gold)] == [30.0, 50.0]
    assert [row["ratio"] for row in (cold, cold_gold)] == [2.0, 1.2]
    assert cold["note"].startswith("compiled in 28.0 s")
    assert cold_gold["note"].startswith("compiled in 45.0 s")
    assert gold["ratio"] == 2.0
    assert known["ratio"] == 12.0 and known["note"].startswith("10.0% of the time, 0 prompts")


def test_both_sides_are_asked_the_words_of_the_demo_once_each():
    tasks = bench.Job().tasks()
    words = [(task.source, item.text) for task in tasks for item in task.items]
    assert len(words) == len(set(words)) == 500
    part = bench.Job().part(tasks)
    assert [len(task.items) for task in part] == [4] * 4
    assert all(a.items[:4] == b.items for a, b in zip(tasks, part, strict=True))


def test_agreement_is_of_the_words_that_both_have():
    def condition(*read):
        return Condition(ZERO_SHOT, read, read, read, {"exact": np.zeros(len(read))})

    ours = [{ZERO_SHOT: condition("a", "b", "c")}]
    assert bench.agreement(ours, [{ZERO_SHOT: condition("a", "x")}]) == 0.5


def test_the_floor_counts_shared_tokens_once(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(bench.hsic_bench, "peak_gflops", lambda: 1e-9)  # a FLOP a second
    task = replace(JOB.tasks()[0], items=JOB.tasks()[0].items[:2])
    answerer = ModelAnswerer(tiny_model, QUIET, batch_size=4, place=tmp_path)
    (found,) = evaluate_conditions(JOB.form(), [task], (), answerer)
    prompts = tiny_model.tokenizer(list(found[ZERO_SHOT].prompts))["input_ids"]
    texts = tiny_model.tokenizer(list(found[ZERO_SHOT].answers), add_special_tokens=False)
    shared = next(i for i, (a, b) in enumerate(zip(*prompts, strict=False)) if a != b)
    layers, vocabulary = bench.weights_multiplied(tiny_model.config)
    n_prompt = sum(map(len, prompts)) - shared
    n_new = sum(max(1, len(ids)) for ids in texts["input_ids"])
    flops = 2 * ((n_prompt + n_new - 2) * layers + n_new * vocabulary)
    note = bench.floor(tiny_model, [found], 2.0 * flops)
    assert note.startswith(f"floor {flops:.2f} s, of which 50% reached: 2 prompts, {n_prompt} ")
