"""Benchmark of generation: ours and torch's `generate` on the same weights, in one process.

Rounds and ratios as in bench_capture.py; the tokens of both sides are compared. For idle cores
alone: the threads of torch wait for one another and slow down tenfold where another program runs.
Axes: B T D V (axes.py); U = new tokens.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from bridgex_jax import runtime
from bridgex_jax.activations.reducers import CountPositive
from bridgex_jax.data.batching import Encoded
from bridgex_jax.icl.completion import complete_ids
from bridgex_jax.kernels.hsic import bench as hsic_bench
from bridgex_jax.models.config import DecoderConfig
from bridgex_jax.models.decoder import init_params
from bridgex_jax.models.generate import generate
from bridgex_jax.models.load import Model
from bridgex_jax.models.stopping import stop_at_ids
from bridgex_jax.models.weights import weight_table
from bridgex_jax.pipelines.bench_capture import (
    LLAMA_125M,
    dictionary_job,
    in_turns,
    median_ratio,
)
from bridgex_jax.pipelines.bench_rows import Row, bench_row
from bridgex_jax.pipelines.bench_torch import TorchWithHooks
from bridgex_jax.pipelines.console import Console

# Wider than models are trained from: the most probable token is then far from the next.
CLEAR = 0.1
TORCH_BATCH = 32


@dataclass(frozen=True)
class Shape:
    """A batch of prompts of one length; `job`: prompts of a dictionary, whose answers end."""

    batch: int = TORCH_BATCH
    prompt: int = 24
    new: int = 32
    job: int = 128


def bench_generate(
    repeats: int, console: Console, config: DecoderConfig = LLAMA_125M, shape: Shape = Shape()
) -> list[Row]:
    """Greedy decoding in float32 against torch's `generate` with its cache.

    The first row is one batch of random prompts, all of its tokens on both sides: there the floor
    is the work itself, which the note compares with. The second is a job: dictionary prompts, whose
    answers end at random, at a sixteenth of the vocabulary. The third is the cost of counting.
    """
    config = replace(config, initializer_range=CLEAR, eos_token_ids=())
    model = Model(config, init_params(config, jax.random.key(0)))
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, config.vocab_size, (shape.batch, shape.prompt)).astype(np.int32)
    job = dictionary_job(config, "sw", ("id",), shape.job, 1).encoded
    ends = rng.permutation(config.vocab_size)[: config.vocab_size // 16].tolist()
    stops, mesh = stop_at_ids(ends, config.vocab_size), runtime.one_device()
    new = shape.new
    batch = jax.device_put((tokens, np.ones(tokens.shape, bool)))

    def ours(reduce: CountPositive | None = None) -> Int[np.ndarray, "B U"]:
        found = generate(model, *batch, max_new_tokens=new, reduce=reduce)
        jax.block_until_ready(found.taps)
        return np.asarray(found.tokens)

    def our_job() -> list[list[int]]:
        return complete_ids(model, job, mesh, batch_size=256, max_new_tokens=new, stops=stops)

    ways: dict[str, Callable[[], object]] = {
        "batch": ours,
        "counts": lambda: ours(CountPositive()),
        "job": our_job,
    }
    first = in_turns(ways, 1, lambda _: None)  # compiles
    equal = None
    if all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        torch = TorchGenerate(model)
        ways |= {
            "torch": lambda: torch.batch(tokens, new),
            "torch job": lambda: torch.job(job, new, ends),
        }
        equal = {
            "batch": _agreement(ours().tolist(), torch.batch(tokens, new).tolist()),
            "job": _agreement(our_job(), torch.job(job, new, ends)),
        }
    lengths = [len(answer) for answer in our_job()]
    with console.progress("generate", repeats * len(ways), "runs") as progress:
        seconds = in_turns(ways, repeats, progress)
    compiled = {name: first[name][0] - median(seconds[name]) for name in first}
    return [
        _row(
            seconds,
            ("batch", "torch"),
            f"greedy, {shape.batch} x {shape.prompt} + {new} tokens : torch generate",
            3,
            equal,
            f"{floor(model, shape, median(seconds['batch']))}; compiled in "
            f"{compiled['batch']:.1f} s",
        ),
        _row(
            seconds,
            ("job", "torch job"),
            f"{shape.job} dictionary prompts, answers that end : torch, batches of {TORCH_BATCH}",
            None,
            equal,
            f"median answer {median(lengths):.0f} tokens, longest {max(lengths)}; compiled in "
            f"{compiled['job']:.1f} s",
        ),
        _row(
            seconds,
            ("counts", "batch"),
            "greedy, with counts of all neurons over all tokens : without",
            None,
            None,
            "",
        ),
    ]


def _row(
    seconds: Mapping[str, Sequence[float]],
    names: tuple[str, str],
    what: str,
    target: float | None,
    equal: Mapping[str, float] | None,
    note: str,
) -> Row:
    ours, other = names
    time_of_ours = median(seconds[ours])
    if other not in seconds:
        note = f"torch is not installed; {note}"
        return bench_row("generate", what, time_of_ours, None, target=target, note=note)
    if equal:
        note = f"{equal[ours]:.1%} of the answers equal; {note}"
    return bench_row(
        "generate",
        what,
        time_of_ours,
        median(seconds[other]),
        ratio=median_ratio(seconds[other], seconds[ours]),
        target=target,
        note=note,
    )


def _agreement(ours: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> float:
    """The share of rows that are equal."""
    return float(np.mean([list(a) == list(b) for a, b in zip(ours, other, strict=True)]))


class TorchGenerate:
    """transformers' own `generate` with our weights: greedy, with its cache."""

    def __init__(self, model: Model):
        with_hooks = TorchWithHooks(model, [np.zeros(1, np.int64)] * model.config.n_layers)
        self.torch, self.decoder = with_hooks.torch, with_hooks.decoder
        for layer in self.decoder.model.layers:
            layer.mlp.act_fn._forward_hooks.clear()
        self.decoder.generation_config.eos_token_id = None

    def batch(
        self, tokens: Int[np.ndarray, "B T"], new: int, ends: Sequence[int] | None = None,
        mask: np.ndarray | None = None,
    ) -> Int[np.ndarray, "B U"]:  # fmt: skip
        """New tokens of every row; left-padded rows need a mask."""
        mask = np.ones(tokens.shape) if mask is None else mask
        with self.torch.inference_mode():
            found = self.decoder.generate(
                self.torch.from_numpy(tokens.astype(np.int64)),
                attention_mask=self.torch.from_numpy(mask).long(),
                max_new_tokens=new,
                do_sample=False,
                use_cache=True,
                eos_token_id=ends,
                pad_token_id=0,
            )
        return found.numpy()[:, tokens.shape[1] :]

    def job(self, encoded: Sequence[Encoded], new: int, ends: Sequence[int]) -> list[list[int]]:
        """Answers up to their ends, in batches of prompts of about one length."""
        answers: list[list[int]] = [[] for _ in encoded]
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].ids))
        for start in range(0, len(order), TORCH_BATCH):
            some = order[start : start + TORCH_BATCH]
            longest = max(len(encoded[i].ids) for i in some)
            tokens = np.zeros((len(some), longest), np.int64)
            mask = np.zeros(tokens.shape, bool)
            for row, i in enumerate(some):
                n = len(encoded[i].ids)
                tokens[row, longest - n :], mask[row, longest - n :] = encoded[i].ids, True
            for i, row in zip(some, self.batch(tokens, new, ends, mask).tolist(), strict=True):
                last = next((n for n, token in enumerate(row) if token in set(ends)), len(row))
                answers[i] = row[:last]
        return answers


def floor(model: Model, shape: Shape, seconds: float) -> str:
    """The least time in which this machine can do the work, and the share of it reached.

    A step reads all weights and multiplies them with a batch of tokens; the prompts are one such
    step, over all of their tokens and without the vocabulary.
    """
    layers, vocabulary = weights_multiplied(model.config)
    peak, bandwidth = hsic_bench.peak_gflops() * 1e9, _bandwidth()
    step_flops = 2 * shape.batch * (layers + vocabulary)
    step_bytes = 4 * (layers + vocabulary)
    step = max(step_flops / peak, step_bytes / bandwidth)
    prompts = 2 * shape.batch * (shape.prompt * layers + vocabulary) / peak
    least = prompts + (shape.new - 1) * step
    return (
        f"floor {least:.2f} s, of which {least / seconds:.0%} reached: a step {step * 1e3:.0f} ms "
        f"= {step_flops / 1e9:.1f} GFLOP at {peak / 1e9:.0f} GFLOP/s (its weights, "
        f"{step_bytes / 1e6:.0f} MB, take {step_bytes / bandwidth * 1e3:.0f} ms)"
    )


def weights_multiplied(config: DecoderConfig) -> tuple[int, int]:
    """How many a token is multiplied with: in all layers, and by the vocabulary."""
    shapes = (leaf.shape for leaf in weight_table(config) if "{" in leaf.name and leaf.n_in)
    layers = config.n_layers * sum(int(np.prod(size)) for size in shapes)
    return layers, config.vocab_size * config.d_model


def _bandwidth(n_rows: int = 1 << 14) -> float:
    """Bytes a second at which a product with one vector reads a matrix, the best of five."""
    matrix, vector = jnp.ones((n_rows, 4096), jnp.float32), jnp.ones(n_rows, jnp.float32)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        jax.block_until_ready(_product(vector, matrix))
        times.append(time.perf_counter() - start)
    return matrix.nbytes / min(times[1:])


_product = jax.jit(jnp.matmul)
