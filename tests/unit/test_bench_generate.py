"""The benchmark of generation: both sides give the same tokens, ratios are of one round."""

import json
from dataclasses import replace

import jax
import pytest

from bridgex_jax.models.decoder import init_params
from bridgex_jax.models.load import Model
from bridgex_jax.pipelines import bench_generate as bench
from bridgex_jax.pipelines.console import Console

SMALL = replace(
    bench.LLAMA_125M, n_layers=2, d_model=32, d_ff=48, n_heads=2, n_kv_heads=2, head_dim=16,
    vocab_size=200, sliding_window=(None,) * 2,
)  # fmt: skip
SHAPE = bench.Shape(batch=3, prompt=7, new=6, job=9)


@pytest.fixture
def machine(monkeypatch):
    monkeypatch.setattr(bench.hsic_bench, "peak_gflops", lambda: 100.0)
    monkeypatch.setattr(bench, "_bandwidth", lambda: 1e10)
    monkeypatch.setattr(bench, "CLEAR", 0.3)
    monkeypatch.setattr(bench, "TORCH_BATCH", 4)


def test_torch_gives_our_tokens_and_rows_are_ratios(machine):
    pytest.importorskip("torch")
    rows = bench.bench_generate(2, Console(quiet=True), SMALL, SHAPE)
    assert [row["target"] for row in rows] == [3, None, None]
    assert all(row["ratio"] > 0 for row in rows)
    for row in rows[:2]:
        assert row["note"].startswith("100.0% of the answers equal")
    assert json.loads(json.dumps(rows)) == rows


def test_without_torch_the_rows_say_so(machine, monkeypatch):
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    rows = bench.bench_generate(1, Console(quiet=True), SMALL, SHAPE)
    assert [row["ratio"] is None for row in rows] == [True, True, False]
    assert all(row["note"].startswith("torch is not installed") for row in rows[:2])


def test_the_floor_is_the_slower_of_products_and_weights(machine, monkeypatch):
    model = Model(SMALL, init_params(SMALL, jax.random.key(0)))
    weights = sum(leaf.size for leaf in jax.tree.leaves(model.params) if leaf.ndim > 1)
    weights -= SMALL.n_layers * 2 * SMALL.d_model  # norms, stacked
    monkeypatch.setattr(bench, "_bandwidth", lambda: 4 * weights / 2.0)  # two seconds a step
    note = bench.floor(model, bench.Shape(batch=1, prompt=1, new=5), 16.0)
    assert note.startswith("floor 8.00 s, of which 50% reached: a step 2000 ms")
