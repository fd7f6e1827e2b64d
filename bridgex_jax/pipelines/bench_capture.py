"""Benchmarks of capture: our way and its alternative in one process, in turns, as ratios.

Each round runs every way once and the median of the rounds' ratios counts, so that a busy machine
slows all alike; compilation is measured apart. torch and transformers serve as the reference where
they are installed. Axes: L B T F W (axes.py); Q = prompts of a row.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import multiprocessing
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from bridgex_jax import runtime
from bridgex_jax.activations.reducers import TreeMean
from bridgex_jax.activations.run import probe_prompts, probe_values, tree_step
from bridgex_jax.data.batching import Batch, Encoded, bucketed
from bridgex_jax.data.cldr import read_concepts
from bridgex_jax.data.prompts import Prompt, word_prompt
from bridgex_jax.data.trees import tree_batches
from bridgex_jax.models.config import DecoderConfig, plain_llama
from bridgex_jax.models.decoder import init_params
from bridgex_jax.models.load import Model
from bridgex_jax.models.weights import weight_table
from bridgex_jax.pipelines.bench_rows import Row, bench_row
from bridgex_jax.pipelines.console import Console

Values = list[Float[np.ndarray, "C W"]]
_MB = 1e6


def _llama(n_layers: int, d_model: int, d_ff: int, n_heads: int, vocab_size: int) -> DecoderConfig:
    return plain_llama(
        vocab_size=vocab_size,
        n_layers=n_layers,
        d_model=d_model,
        d_ff=d_ff,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        context=2048,
        initializer_range=0.02,
        bos_token_id=1,
        eos_token_id=2,
    )


LLAMA_125M = _llama(12, 768, 2560, 12, 32000)  # 123.7M parameters, 99.1M of them in the layers
LLAMA_8B = replace(
    _llama(32, 4096, 14336, 32, 128256), n_kv_heads=8, tie_embeddings=False
)  # the shape of Llama 3


def in_turns(
    ways: Mapping[str, Callable[[], object]], repeats: int, progress: Callable[[int], object]
) -> dict[str, list[float]]:
    """Seconds of each way in each round; every round runs all of them, one after another."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
            progress(1)
    return seconds


def median_ratio(other: Sequence[float], ours: Sequence[float]) -> float:
    """Median over rounds of other ÷ ours."""
    return median(a / b for a, b in zip(other, ours, strict=True))


# --- capture -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class CaptureJob:
    """What is captured: prompts and the chosen neurons of every layer."""

    encoded: tuple[Encoded, ...]
    neurons: tuple[Int[np.ndarray, " C"], ...]

    @property
    def n_tokens(self) -> int:
        """Tokens of all prompts, without padding, as if nothing were shared."""
        return sum(len(item.ids) for item in self.encoded)


def dictionary_job(
    config: DecoderConfig, source: str, targets: Sequence[str], n_prompts: int, n_neurons: int
) -> CaptureJob:
    """Prompts of CLDR words from `source` to each of `targets`, and random neurons."""
    rng = np.random.default_rng(0)
    concepts = read_concepts([source, *targets])
    words = [concepts[i].words[source] for i in rng.permutation(len(concepts))]
    prompts = [word_prompt(source, target, word) for word in words for target in targets]
    chosen = [np.sort(rng.permutation(config.d_ff)[:n_neurons]) for _ in range(config.n_layers)]
    encoded = tuple(encode(prompt, config.vocab_size) for prompt in prompts[:n_prompts])
    return CaptureJob(encoded, tuple(chosen))


def encode(prompt: Prompt, vocab_size: int) -> Encoded:
    """BOS and a token for every two bytes of UTF-8; in scope from the word on.

    That makes 20 tokens of a prompt from Swahili to Indonesian, 59 % of them unlike those of
    another prompt; the tokenizer of Mistral makes 18, of them 53 %.
    """
    parts = prompt.text[: prompt.start], prompt.text[prompt.start : prompt.end]
    ids: list[int] = [1]
    for part in (*parts, prompt.text[prompt.end :]):
        data = part.encode()
        ids += [3 + zlib.crc32(data[i : i + 2]) % (vocab_size - 3) for i in range(0, len(data), 2)]
    before = 1 - (-len(parts[0].encode()) // 2)
    return Encoded(tuple(ids), (False,) * before + (True,) * (len(ids) - before))


class TorchWithHooks:
    """The torch implementation with our weights and a hook on every layer's activation function."""

    def __init__(self, model: Model, neurons: Sequence[Int[np.ndarray, " C"]]):
        # By name: torch is no dependency, and only tests and this class know it.
        self.torch = importlib.import_module("torch")
        transformers = importlib.import_module("transformers")
        config = transformers.LlamaConfig.from_dict(model.config.to_hf())
        self.decoder = transformers.LlamaForCausalLM(config).eval()
        missing, unexpected = self.decoder.load_state_dict(self._weights(model), strict=False)
        assert set(missing) <= {"lm_head.weight"} and not unexpected
        self.neurons = [self.torch.from_numpy(chosen) for chosen in neurons]
        self.activations: list[Any] = []
        for layer in self.decoder.model.layers:
            layer.mlp.act_fn.register_forward_hook(
                lambda module, inputs, output: self.activations.append(output)
            )

    def _weights(self, model: Model) -> dict[str, Any]:
        weights = {}
        for leaf in weight_table(model.config):
            value = np.asarray(functools.reduce(dict.__getitem__, leaf.path, model.params))
            names = leaf.names(model.config.n_layers)
            for name, of_layer in zip(names, value if "{" in leaf.name else [value], strict=True):
                array = np.array(leaf.write(of_layer), order="C")
                weights[name] = self.torch.from_numpy(array)
        return weights

    def one_at_a_time(self, encoded: Sequence[Encoded]) -> Values:
        """As the released code of the paper does: a forward pass a prompt."""
        values = [np.zeros((len(chosen), len(encoded)), np.float32) for chosen in self.neurons]
        for word, item in enumerate(encoded):
            self._forward(self.decoder, np.array([item.ids]), None)
            first = item.scope.index(True)
            for into, chosen, found in zip(values, self.neurons, self.activations, strict=True):
                into[:, word] = found[0, first:][:, chosen].mean(0).numpy()
        return values

    def batched(self, batches: Iterable[Batch], n_words: int, vocabulary: bool = True) -> Values:
        """As a careful user would: padded batches; without the product with the vocabulary too."""
        decoder = self.decoder if vocabulary else self.decoder.model
        values = [np.zeros((len(chosen), n_words), np.float32) for chosen in self.neurons]
        for batch in batches:
            self._forward(decoder, batch.tokens, batch.mask)
            scope = self.torch.from_numpy(batch.scope)[:, :, None]
            real = batch.index >= 0
            for into, chosen, found in zip(values, self.neurons, self.activations, strict=True):
                mean = (found[:, :, chosen] * scope).sum(1) / scope.sum(1).clamp(min=1)
                into[:, batch.index[real]] = mean.numpy()[real].T
        return values

    def _forward(self, decoder: Any, tokens: np.ndarray, mask: np.ndarray | None) -> None:
        self.activations.clear()
        with self.torch.inference_mode():
            decoder(
                self.torch.from_numpy(tokens.astype(np.int64)),
                attention_mask=None if mask is None else self.torch.from_numpy(mask).long(),
                use_cache=False,
            )


def bench_capture(
    repeats: int, console: Console, config: DecoderConfig = LLAMA_125M, n_prompts: int = 256
) -> list[Row]:
    """Token means of 150 neurons a layer on dictionary prompts, against torch with hooks.

    A random model in float32, the same weights on both sides. The first row is the highest rate at
    which this machine multiplies matrices: at the rate that one prompt at a time reaches, no way
    that computes every token of every prompt can be faster than the quotient of the two.
    """
    n_neurons, mesh = min(150, config.d_ff), runtime.data_mesh()
    model = Model(config, init_params(config, jax.random.key(0)))
    pair = dictionary_job(config, "sw", ("id",), n_prompts, n_neurons)
    words = dictionary_job(config, "sw", ("id", "he", "hu"), n_prompts, n_neurons)
    batches = list(bucketed(pair.encoded, 16, multiple=4))

    def shared(job: CaptureJob) -> Values:
        return probe_prompts(model, job.encoded, job.neurons, mesh, batch_size=32)

    def alone() -> Values:
        return probe_values(model, batches, n_prompts, pair.neurons, mesh)

    ways: dict[str, Callable[[], object]] = {
        "shared": lambda: shared(pair),
        "shared words": lambda: shared(words),
        "alone": alone,
        "peak": _matrix_product,
    }
    first = in_turns(ways, 1, lambda _: None)  # compiles
    difference = None
    if torch := _torch_with_hooks(model, pair):
        ways |= {
            "one": lambda: torch.one_at_a_time(pair.encoded),
            "one, words": lambda: torch.one_at_a_time(words.encoded),
            "batched": lambda: torch.batched(batches, n_prompts),
            "batched, no vocabulary": lambda: torch.batched(batches, n_prompts, False),
        }
        reference = torch.batched(batches, n_prompts, False)
        difference = max(_difference(way, reference) for way in (shared(pair), alone()))
    with console.progress("capture", repeats * len(ways), "runs") as progress:
        seconds = in_turns(ways, repeats, progress)
    compiled = {name: first[name][0] - median(seconds[name]) for name in first}
    return _capture_rows(config, {"pair": pair, "words": words}, seconds, compiled, difference)


def _torch_with_hooks(model: Model, job: CaptureJob) -> TorchWithHooks | None:
    installed = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    return TorchWithHooks(model, job.neurons) if installed else None


def _difference(ours: Values, reference: Values) -> float:
    """max|Δ| ÷ max|reference|."""
    largest = max(np.abs(layer).max() for layer in reference)
    worst = max(np.abs(a - b).max() for a, b in zip(ours, reference, strict=True))
    return float(worst / largest)


def _matrix_product(size: int = 2048) -> None:
    x = jnp.ones((size, size), jnp.float32)
    jax.block_until_ready(_product(x, x))


_product = jax.jit(jnp.matmul)


def _capture_rows(
    config: DecoderConfig,
    jobs: Mapping[str, CaptureJob],
    seconds: Mapping[str, Sequence[float]],
    compiled: Mapping[str, float],
    difference: float | None,
) -> list[Row]:
    shapes = (leaf.shape for leaf in weight_table(config) if "{" in leaf.name and leaf.n_in)
    per_token = 2 * config.n_layers * sum(int(np.prod(shape)) for shape in shapes)
    peak = 2 * 2048**3 / min(seconds["peak"]) / 1e9

    def rate(name: str, job: str) -> str:
        flops = per_token * jobs[job].n_tokens / median(seconds[name]) / 1e9
        return f"{flops:.0f} GFLOP/s ({flops / peak:.0%} of the peak)"

    rows = [
        bench_row(
            "capture", "peak: float32 product of 2048 x 2048 matrices", peak, None, unit="GF/s"
        )
    ]
    for ours, other, job, target, what in (
        ("shared", "one", "pair", 5, "shared beginnings : torch, hooks, one prompt at a time"),
        ("shared", "batched", "pair", 2, "shared beginnings : torch, hooks, batched"),
        (
            "shared words",
            "one, words",
            "words",
            7,
            "shared beginnings, 3 targets a word : torch, one",
        ),
        ("alone", "one", "pair", None, "nothing shared : torch, hooks, one prompt at a time"),
        ("alone", "batched", "pair", None, "nothing shared : torch, hooks, the same batches"),
        ("alone", "batched, no vocabulary", "pair", None, "nothing shared : torch without logits"),
    ):
        mine, time_of_mine = seconds[ours], median(seconds[ours])
        note = f"ours {rate(ours, job)}, compiled in {compiled[ours]:.1f} s"
        if other not in seconds:
            note = f"torch is not installed; {note}"
            rows.append(bench_row("capture", what, time_of_mine, None, target=target, note=note))
            continue
        rows.append(
            bench_row(
                "capture",
                what,
                time_of_mine,
                median(seconds[other]),
                ratio=median_ratio(seconds[other], mine),
                target=target,
                note=f"{note}; torch {rate(other, job)}",
            )
        )
    if difference is not None:
        what = "largest difference from torch's values, of their largest"
        rows.append(bench_row("capture", what, difference, None, unit=""))
    return rows


# --- memory ------------------------------------------------------------------------------------

_LFN = _llama(8, 32, 8192, 4, 1024)  # wide: [L, F, N] would outweigh all else
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
        model, _random_prompts(_LFN, n_words), neurons, runtime.data_mesh(), batch_size=16
    )
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
