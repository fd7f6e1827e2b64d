"""Benchmarks: both sides do the same work, ratios are of one round, the ratio stands first."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from bridgex_jax import runtime
from bridgex_jax.activations.run import probe_prompts
from bridgex_jax.cli import bench as cli_bench
from bridgex_jax.data.batching import bucketed
from bridgex_jax.data.prompts import word_prompt
from bridgex_jax.models.decoder import init_params
from bridgex_jax.models.load import Model
from bridgex_jax.pipelines import bench as all_bench
from bridgex_jax.pipelines import bench_capture as bench
from bridgex_jax.pipelines import bench_hsic, bench_memory, bench_rows, bench_torch
from bridgex_jax.pipelines.console import Console

SMALL = replace(
    bench.LLAMA_125M, n_layers=2, d_model=32, d_ff=48, n_heads=2, n_kv_heads=2, head_dim=16,
    vocab_size=200, sliding_window=(None,) * 2, initializer_range=0.3,
)  # fmt: skip


@pytest.fixture(scope="module")
def job():
    return bench.dictionary_job(SMALL, "sw", ("id", "he"), 12, 5)


def test_prompts_of_the_benchmark_begin_alike_and_count_from_the_word_on(job):
    first = job.encoded[0].scope.index(True)
    assert len({item.ids[:first] for item in job.encoded}) == 1
    assert len({item.ids for item in job.encoded}) == 12
    assert all(item.scope == (False,) * first + (True,) * (len(item.ids) - first)
               for item in job.encoded)  # fmt: skip
    prompt = word_prompt("sw", "id", "maji")
    assert first == 1 + -(-len(prompt.text[: prompt.start].encode()) // 2)


@pytest.mark.parametrize("tool", bench.TORCH, ids=lambda tool: tool.name)
def test_what_torch_reads_is_what_we_read_one_at_a_time_and_batched(job, tool):
    if not tool.is_installed():
        pytest.skip(f"{tool.name} is not installed")
    model = Model(SMALL, init_params(SMALL, jax.random.key(0)))
    torch = tool(model, job.neurons)
    one = torch.one_at_a_time(job.encoded)
    ours = probe_prompts(model, job.encoded, job.neurons, runtime.one_device())
    batches = list(bucketed(job.encoded, 4))
    for other in (torch.batched(batches, 12), torch.batched(batches, 12, vocabulary=False), ours):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(a).max())


def test_capture_rows_are_ratios_of_the_same_round(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(bench, "_matrix_product", lambda: None)
    rows = bench.bench_capture(2, Console(quiet=True), SMALL, 12)
    with_target = [row for row in rows if row["target"]]
    assert [row["target"] for row in with_target] == [0.85, 5, 2.2, 7]
    assert all(row["ratio"] > 0 for row in with_target)
    assert json.loads(json.dumps(rows)) == rows
    assert bench.median_ratio([2.0, 30.0, 8.0], [1.0, 10.0, 2.0]) == 3.0


def test_without_torch_the_rows_say_so(monkeypatch):
    monkeypatch.setattr(bench_torch.importlib.util, "find_spec", lambda name: None)
    rows = bench.bench_capture(1, Console(quiet=True), SMALL, 6)
    against = [row for row in rows if " : " in row["what"] and "the peak" not in row["what"]]
    assert len(against) == 10 and all(row["ratio"] is None for row in against)
    for tool in bench.TORCH:
        assert any(f"{tool.name} is not installed" in row["note"] for row in against)


def test_a_step_needs_parameters_one_batch_and_the_chosen_values(monkeypatch):
    wide = replace(bench.LLAMA_125M, n_layers=3)
    row = bench_memory._step_memory("three layers", wide, 256, 150)
    assert row["ratio"] > 0.95
    more = bench_memory._step_memory("three layers", wide, 1256, 150)
    assert more["ours"] - row["ours"] == pytest.approx(4 * 3 * 150 * 1000 / 1e6)


def test_the_table_puts_the_ratio_first_and_aligns_its_columns():
    rows = [
        bench_rows.bench_row("capture", "a : b", 1.5, 7.5, ratio=5.0, target=2, note="remark"),
        bench_rows.bench_row("memory", "c", 1234.0, None, unit="MB"),
    ]
    head, first, note, second = bench_rows.format_table(rows).splitlines()
    assert head.split() == ["ratio", "target", "benchmark", "ours", "other", "what"]
    assert first.split() == ["5", "x", ">=", "2", "capture", "1.5", "s", "7.5", "s", "a", ":", "b"]
    at = head.index("what")
    assert first[at:] == "a : b" and note[at:] == "remark" and second[at:] == "c"


def test_hsic_rows_name_all_ways_and_their_roofline_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_hsic.hsic_bench, "SIZES", ((8, 8, 256),))
    monkeypatch.setattr(bench_hsic.hsic_bench, "LARGE", (12, 12, 256))
    monkeypatch.setattr(bench_hsic.hsic_bench, "peak_gflops", lambda: 100.0)
    monkeypatch.setattr(bench_hsic, "LENGTHS", (512,))
    rows = bench_hsic.bench_hsic(1, Console(quiet=True))
    *sizes, length = rows
    named = [row["detail"]["implementation"] for row in sizes]
    assert {"released loop", "NumPy, one product", "features", "exact"} <= set(named)
    assert all(row["detail"]["error"] < 1e-4 for row in sizes)
    assert "512" in length["what"] and "exact" in length["note"]
    bench_rows.write_bench(rows, tmp_path)
    assert json.loads((tmp_path / "bench.json").read_text()) == json.loads(json.dumps(rows))
    assert "roofline" in (tmp_path / "roofline.svg").read_text().lower()
    assert (tmp_path / "roofline.png").stat().st_size > 10_000


def test_a_part_of_a_spectrum_is_scaled_up(monkeypatch):
    monkeypatch.setattr(bench_hsic.hsic_bench, "peak_gflops", lambda: 100.0)
    for name, size in (("NEURONS", 12), ("PADDED", 16), ("WORDS", 60), ("PADDED_WORDS", 64),
                       ("REPLICATES", 8)):  # fmt: skip
        monkeypatch.setattr(bench_hsic, name, size)
    rows = bench_hsic.bench_spectrum(1, Console(quiet=True))
    assert len(rows) == 5 and all(row["ratio"] > 0 for row in rows)
    assert "asked: 10 s on 2 cores, 0.1 s on an H200" in rows[0]["note"]


def test_an_unknown_benchmark_is_refused():
    with pytest.raises(KeyError):
        all_bench.run(["speed"])


def test_the_command_line_knows_every_benchmark():
    assert {*all_bench.BENCHMARKS, "all"} == set(cli_bench.WHAT)
