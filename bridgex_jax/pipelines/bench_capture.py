"""Benchmarks of capture: our way and its alternative in one process, in turns, as ratios.

Each round runs every way once and the median of the rounds' ratios counts, so that a busy machine
slows all alike; compilation is measured apart. torch and transformers serve as the reference where
they are installed. Axes: L B T F W (axes.py); Q = prompts of a row.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from bridgex_jax import runtime
from bridgex_jax.activations.run import count_activations, probe_prompts, probe_values
from bridgex_jax.data.batching import Batch, Encoded, bucketed
from bridgex_jax.data.cldr import read_concepts
from bridgex_jax.data.prompts import Prompt, word_prompt
from bridgex_jax.models.config import DecoderConfig, plain_llama
from bridgex_jax.models.decoder import init_params
from bridgex_jax.models.load import Model
from bridgex_jax.models.weights import weight_table
from bridgex_jax.pipelines.bench_rows import Row, bench_row
from bridgex_jax.pipelines.bench_torch import Nnsight, TorchWithHooks, TransformerLens, Values
from bridgex_jax.pipelines.console import Console

TORCH = (TorchWithHooks, Nnsight, TransformerLens)
REST = 0.5  # seconds before each run: OpenMP's threads spin on for a while after torch is done


def small_llama(
    n_layers: int, d_model: int, d_ff: int, n_heads: int, vocab_size: int
) -> DecoderConfig:
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


LLAMA_125M = small_llama(12, 768, 2560, 12, 32000)  # 123.7M parameters, 99.1M of them in the layers
LLAMA_8B = replace(
    small_llama(32, 4096, 14336, 32, 128256), n_kv_heads=8, tie_embeddings=False
)  # the shape of Llama 3


def in_turns(
    ways: Mapping[str, Callable[[], object]], repeats: int, progress: Callable[[int], object]
) -> dict[str, list[float]]:
    """Seconds of each way in each round; every round runs all of them, one after another."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            time.sleep(REST)
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


def bench_capture(
    repeats: int, console: Console, config: DecoderConfig = LLAMA_125M, n_prompts: int = 256
) -> list[Row]:
    """Counts, and token means of 150 neurons a layer on dictionary prompts, against torch.

    A random model in float32, the same weights on both sides. The first row is the highest rate at
    which this machine multiplies matrices: at the rate that one prompt at a time reaches, no way
    that computes every token of every prompt can be faster than the quotient of the two.
    """
    n_neurons, mesh = min(150, config.d_ff), runtime.one_device()
    model = Model(config, init_params(config, jax.random.key(0)))
    pair = dictionary_job(config, "sw", ("id",), n_prompts, n_neurons)
    words = dictionary_job(config, "sw", ("id", "he", "hu"), n_prompts, n_neurons)
    text = text_job(config, n_tokens=16 * n_prompts)
    batches = list(bucketed(pair.encoded, 16, multiple=4))

    def shared(job: CaptureJob) -> Values:
        return probe_prompts(model, job.encoded, job.neurons, mesh, batch_size=32)

    def alone() -> Values:
        return probe_values(model, batches, n_prompts, pair.neurons, mesh)

    ways: dict[str, Callable[[], object]] = {
        "counting": lambda: count_activations(model, bucketed(text.encoded, 8), mesh),
        "shared": lambda: shared(pair),
        "shared words": lambda: shared(words),
        "alone": alone,
        "peak": _matrix_product,
    }
    with jax.transfer_guard("disallow"):  # nothing goes over the bus unasked
        first = in_turns(ways, 1, lambda _: None)  # compiles
    difference = None
    for tool in TORCH:
        if not tool.is_installed():
            continue
        torch = tool(model, pair.neurons)
        ways |= torch_ways(torch, pair, words, batches)
        reference = torch.batched(batches, n_prompts, False)
        worst = max(_difference(way, reference) for way in (shared(pair), alone()))
        difference = max(difference or 0.0, worst)
    with console.progress("capture", repeats * len(ways), "runs") as progress:
        seconds = in_turns(ways, repeats, progress)
    compiled = {name: first[name][0] - median(seconds[name]) for name in first}
    jobs = {"pair": pair, "words": words, "text": text}
    return _capture_rows(config, jobs, seconds, compiled, difference)


def text_job(config: DecoderConfig, n_tokens: int, row_length: int = 128) -> CaptureJob:
    """Rows of random tokens, as a corpus gives them."""
    shape = (max(1, n_tokens // row_length), row_length)
    tokens = np.random.default_rng(0).integers(3, config.vocab_size, shape)
    rows = tuple(Encoded(tuple(row), (True,) * row_length) for row in tokens.tolist())
    return CaptureJob(rows, ())


def torch_ways(
    torch: TorchWithHooks, pair: CaptureJob, words: CaptureJob, batches: Sequence[Batch]
) -> dict[str, Callable[[], object]]:
    """What is measured of one torch tool, by the names that `_capture_rows` looks up."""
    name, n = torch.name, len(pair.encoded)
    ways: dict[str, Callable[[], object]] = {
        f"{name}, one": lambda: torch.one_at_a_time(pair.encoded),
        f"{name}, batched": lambda: torch.batched(batches, n),
    }
    if type(torch) is TorchWithHooks:
        ways[f"{name}, one, words"] = lambda: torch.one_at_a_time(words.encoded)
        ways[f"{name}, batched, no vocabulary"] = lambda: torch.batched(batches, n, False)
    return ways


def _difference(ours: Values, reference: Values) -> float:
    """max|Δ| ÷ max|reference|."""
    largest = max(np.abs(layer).max() for layer in reference)
    worst = max(np.abs(a - b).max() for a, b in zip(ours, reference, strict=True))
    return float(worst / largest)


def _matrix_product(size: int = 2048) -> None:
    x = jax.device_put(np.ones((size, size), np.float32))
    jax.block_until_ready(_product(x, x))


_product = jax.jit(jnp.matmul)


def _capture_rows(
    config: DecoderConfig,
    jobs: Mapping[str, CaptureJob],
    seconds: Mapping[str, Sequence[float]],
    compiled: Mapping[str, float],
    difference: float | None,
) -> list[Row]:
    shapes = (leaf.shape for leaf in weight_table(config) if leaf.stacked and leaf.n_in)
    per_token = 2 * config.n_layers * sum(int(np.prod(shape)) for shape in shapes)
    peak = 2 * 2048**3 / min(seconds["peak"]) / 1e9

    def rate(name: str, job: str) -> str:
        flops = per_token * jobs[job].n_tokens / median(seconds[name]) / 1e9
        return f"{flops:.0f} GFLOP/s ({flops / peak:.0%} of the peak)"

    flops = per_token * jobs["text"].n_tokens / median(seconds["counting"]) / 1e9
    rows = [
        bench_row(
            "capture", "peak: float32 product of 2048 x 2048 matrices", peak, None, unit="GF/s"
        ),
        bench_row(
            "capture",
            "counting active neurons in running text, without the vocabulary : the peak",
            flops,
            peak,
            unit="GF/s",
            ratio=flops / peak,
            target=0.85,
            note=f"{jobs['text'].n_tokens:,} tokens, compiled in {compiled['counting']:.1f} s",
        ),
    ]
    single, same = "torch, hooks, one prompt at a time", "torch, hooks, the same batches"
    comparisons: list[tuple[str, str, str, float | None, str]] = [
        ("shared", "torch, one", "pair", 5, f"shared beginnings : {single}"),
        ("shared", "torch, batched", "pair", 2.2, "shared beginnings : torch, hooks, batched"),
        ("shared words", "torch, one, words", "words", 7,
         "shared beginnings, 3 targets a word : torch, one"),
        ("alone", "torch, one", "pair", None, f"nothing shared : {single}"),
        ("alone", "torch, batched", "pair", None, f"nothing shared : {same}"),
        ("alone", "torch, batched, no vocabulary", "pair", None,
         "nothing shared : torch without logits"),
    ]  # fmt: skip
    for tool in TORCH[1:]:
        for way, what in (("one", "one prompt at a time"), ("batched", "batched")):
            comparisons.append(("shared", f"{tool.name}, {way}", "pair", None,
                                f"shared beginnings : {tool.name}, {what}"))  # fmt: skip
    for ours, other, job, target, what in comparisons:
        mine, time_of_mine = seconds[ours], median(seconds[ours])
        note = f"ours {rate(ours, job)}, compiled in {compiled[ours]:.1f} s"
        if other not in seconds:
            note = f"{other.split(',')[0]} is not installed; {note}"
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
                note=f"{note}; {other.split(',')[0]} {rate(other, job)}",
            )
        )
    if difference is not None:
        what = "largest difference from torch's values, of their largest"
        rows.append(bench_row("capture", what, difference, None, unit=""))
    return rows
