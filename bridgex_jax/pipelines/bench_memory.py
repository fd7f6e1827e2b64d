"""Benchmarks of memory: what a step of capture holds, and how a process grows with the words.

Nothing as large as [L, F, N] may show in either. Axes: L F N (axes.py).
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bridgex_jax import runtime
from bridgex_jax.activations.reducers import TreeMean
from bridgex_jax.activations.run import probe_prompts, tree_step
from bridgex_jax.data.batching import Encoded
from bridgex_jax.data.trees import tree_batches
from bridgex_jax.models.config import DecoderConfig
from bridgex_jax.models.decoder import init_params
from bridgex_jax.models.load import Model
from bridgex_jax.pipelines.bench_capture import LLAMA_8B, LLAMA_125M, small_llama
from bridgex_jax.pipelines.bench_rows import Row, bench_row
from bridgex_jax.pipelines.console import Console

_MB = 1e6
_LFN = small_llama(8, 32, 8192, 4, 1024)  # wide: [L, F, N] would outweigh all else
_N_WORDS = (256, 2048)


def bench_memory(repeats: int, console: Console) -> list[Row]:
    """Peak memory of reading probes, against parameters + one batch + the chosen neurons' values.

    Of a compiled step, without running it, and of whole processes, by their growth with the words.
    """
    rows = [
        _step_memory("125M Llama, 256 prompts", LLAMA_125M, 256, 150),
        _step_memory("8B Llama, 1000 prompts", LLAMA_8B, 1000, 150),
    ]
    with console.progress("memory", len(_N_WORDS), "processes") as progress:
        return [*rows, *_growth(progress)]


def _step_memory(what: str, config: DecoderConfig, n_words: int, n_chosen: int) -> Row:
    """A step on the default batch, compiled for shapes alone, in float32."""
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    batch = next(iter(tree_batches(_random_prompts(config, 256), 64)))
    step = jax.jit(lambda *args: tree_step(*args, TreeMean())).lower(
        Model(config, params), *batch.arrays(), np.zeros((config.n_layers, n_chosen), np.int32)
    )
    analysis: Any = step.compile().memory_analysis()
    n_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    chosen = 4 * config.n_layers * n_chosen * n_words
    peak = 4 * n_params + analysis.temp_size_in_bytes + analysis.output_size_in_bytes + chosen
    activations = 4 * batch.tokens.size * (8 * config.d_model + 4 * config.d_ff)
    budget = 4 * n_params + activations + chosen
    every = 4 * config.n_layers * config.d_ff * n_words
    note = (
        f"{4 * n_params / _MB:.0f} parameters, {analysis.temp_size_in_bytes / _MB:.0f} temporary "
        f"(one layer's activations: {activations / _MB:.0f}), {chosen / _MB:.0f} values; "
        f"[L,F,N] would be {every / _MB:.0f} more"
    )
    what = f"{what} : parameters + one layer's activations of a batch + chosen values"
    ratio = budget / peak
    return bench_row(
        "memory", what, peak / _MB, budget / _MB, unit="MB", ratio=ratio, target=1, note=note
    )


def _random_prompts(config: DecoderConfig, n: int) -> list[Encoded]:
    """A beginning of 7 tokens, then 13 that no two prompts share."""
    tokens = np.random.default_rng(0).integers(3, config.vocab_size, (n, 20))
    tokens[:, :7] = tokens[0, :7]
    return [Encoded(tuple(row), (False,) * 7 + (True,) * 13) for row in tokens.tolist()]


def _growth(progress: Callable[[int], object]) -> list[Row]:
    """What eight times the words add to a process, against what [L, F, N] would add."""
    if not Path("/proc/self/status").is_file():
        return []
    peaks = []
    for n_words in _N_WORDS:
        # A process of its own: the peak of this one is long past.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peaks.append(pool.apply(_peak_of_process, (n_words,)))
        progress(1)
    more = _N_WORDS[1] - _N_WORDS[0]
    every = 4 * _LFN.n_layers * _LFN.d_ff * more / _MB
    grown = max(peaks[1] - peaks[0], 0.0) / _MB
    what = f"growth of a process from {_N_WORDS[0]} to {_N_WORDS[1]} words : [L,F,N] of the others"
    note = (
        f"chosen values: {4 * _LFN.n_layers * 150 * more / _MB:.0f} MB; peak {peaks[1] / _MB:.0f}"
    )
    ratio = every / max(grown, 1e-3)
    return [bench_row("memory", what, grown, every, unit="MB", ratio=ratio, target=10, note=note)]


def _peak_of_process(n_words: int) -> float:
    """Bytes; of this process alone, where getrusage counts what it was forked from, too."""
    model = Model(_LFN, init_params(_LFN, jax.random.key(0)))
    neurons = [np.arange(150)] * _LFN.n_layers
    probe_prompts(
        model, _random_prompts(_LFN, n_words), neurons, runtime.one_device(), batch_size=16
    )
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
