"""Benchmark of an evaluation: words zero-shot and through every bridge, ours against torch.

torch goes as the released scripts of arXiv 2508.17078: one prompt at a time, nothing shared between
words, bridges or pairs. Both sides are asked by `evaluate_conditions`; ours writes its answers.
Rounds and ratios as in bench_capture.py. For idle cores alone: where another program runs, torch
slows down far more than we do, and the ratio says nothing. Axes: W (axes.py).
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from bridgex_jax.data.cldr import read_concepts
from bridgex_jax.icl.conditions import Condition, PairTask, evaluate_conditions
from bridgex_jax.icl.task import TaskForm, read_task
from bridgex_jax.kernels.hsic import bench as hsic_bench
from bridgex_jax.models.load import Model, load_model
from bridgex_jax.models.stopping import stop_at_ids
from bridgex_jax.pipelines.answering import ModelAnswerer
from bridgex_jax.pipelines.bench_capture import in_turns, median_ratio
from bridgex_jax.pipelines.bench_generate import TorchGenerate, weights_multiplied
from bridgex_jax.pipelines.bench_rows import Row, bench_row
from bridgex_jax.pipelines.console import Console
from bridgex_jax.pipelines.demo import evaluation_task, read_recipe, split_concepts
from bridgex_jax.pipelines.inputs import builtin_directory
from bridgex_jax.pipelines.task_inputs import EvaluateSettings

LIMIT = 60.0  # seconds on two cores for 500 words and 6 bridges, compilation included

Results = list[dict[str, Condition]]


@dataclass(frozen=True)
class Job:
    """words: of all directions together; sample: as many of them for torch. new: tokens at most."""

    words: int = 500
    sample: int = 16
    directions: tuple[tuple[str, str], ...] = (
        ("he", "id"), ("id", "hu"), ("hu", "sw"), ("sw", "he")
    )  # fmt: skip
    bridges: tuple[str, ...] = ("en", "de", "fr", "it", "pt", "es")
    new: int = 30
    batch_size: int = EvaluateSettings().batch_size

    def form(self) -> TaskForm:
        return replace(read_task("bli"), max_new_tokens=self.new, max_translation_tokens=self.new)

    def tasks(self) -> list[PairTask]:
        """Words that `bridgex demo` evaluates, as many of each direction."""
        mix = read_recipe(builtin_directory())["mix"]
        concepts = read_concepts([*mix["bridges"], *mix["ordinary"], *mix["poor"]])
        held = split_concepts(concepts, mix["seed"]).evaluation
        n = self.words // len(self.directions)
        return [evaluation_task(*pair, held, n) for pair in self.directions]

    def part(self, tasks: Sequence[PairTask]) -> list[PairTask]:
        """The first words of each direction, `sample` of them together."""
        n = self.sample // len(self.directions)
        return [replace(task, items=task.items[:n]) for task in tasks]


def bench_evaluate(
    repeats: int, console: Console, model: Model | None = None, job: Job = Job()
) -> list[Row]:
    """Words zero-shot and through every bridge on the built-in model, against torch's `generate`.

    The first call of ours compiles and gives the rows of what a user waits for. Then every round
    runs ours without and with log-probabilities of right answers, each on an empty store, once
    more with all answers known, and torch on a sample of the words.
    """
    model = model or load_model(builtin_directory(), quiet=console.quiet)
    form, tasks = job.form(), job.tasks()
    with _places() as place:
        known = place()
        ours = _Ours(model, console, form, tasks, job)
        first = ours.run(known, log_probs=True)
        again = ours.run(known, log_probs=True)
        ways: dict[str, Callable[[], object]] = {
            "ours": lambda: ours.run(place(), log_probs=False),
            "with gold": lambda: ours.run(place(), log_probs=True),
            "known": lambda: ours.run(known, log_probs=True),
        }
        equal = None
        if all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
            torch = TorchAnswerer(model)
            part = job.part(tasks)
            ways["torch"] = lambda: evaluate_conditions(form, part, job.bridges, torch)
            equal = agreement(first.results, evaluate_conditions(form, part, job.bridges, torch))
        with console.progress("evaluate", repeats * len(ways), "runs") as progress:
            seconds = in_turns(ways, repeats, progress)
    return evaluate_rows(
        Sizes(_n_words(tasks), _n_words(job.part(tasks)), len(job.bridges)),
        seconds,
        first,
        again.computed,
        equal,
        floor(model, first.results, median(seconds["ours"])),
    )


class Run(NamedTuple):
    """An evaluation: its results, seconds, those that scoring took, prompts that were computed."""

    results: Results
    seconds: float
    scoring: float
    computed: int


@dataclass(frozen=True)
class _Ours:
    """An evaluation as `bridgex evaluate` runs it, answers written."""

    model: Model
    console: Console
    form: TaskForm
    tasks: Sequence[PairTask]
    job: Job

    def run(self, place: Path, *, log_probs: bool) -> Run:
        start = time.perf_counter()
        batch_size = self.job.batch_size
        answerer = _Timed(self.model, self.console, batch_size=batch_size, place=place)
        results = evaluate_conditions(
            self.form, self.tasks, self.job.bridges, answerer, log_probs=log_probs
        )
        seconds = time.perf_counter() - start
        return Run(results, seconds, answerer.scoring, answerer.computed)


class _Timed(ModelAnswerer):
    """scoring: seconds that went into log-probabilities."""

    scoring = 0.0

    def score(
        self, what: str, prompts: Sequence[str], continuations: Sequence[str]
    ) -> Float[np.ndarray, " n"]:
        start = time.perf_counter()
        found = super().score(what, prompts, continuations)
        self.scoring += time.perf_counter() - start
        return found


class TorchAnswerer:
    """`Answerer` by torch's `generate`: every prompt alone, to the end of the line."""

    def __init__(self, model: Model) -> None:
        self._torch, self._tokenizer = TorchGenerate(model), model.tokenizer
        self._ends = list(model.line_end_ids)
        self._stops = stop_at_ids(self._ends, model.config.vocab_size)

    def complete(
        self, what: str, prompts: Sequence[str], max_new_tokens: int, *, quoted: bool
    ) -> list[str]:
        return [self._one(prompt, max_new_tokens) for prompt in prompts]

    def _one(self, prompt: str, max_new_tokens: int) -> str:
        tokens = np.array([self._tokenizer(prompt)["input_ids"]])
        (ids,) = self._torch.batch(tokens, max_new_tokens, self._ends).tolist()
        ids = self._stops.trim(ids, ids[-1] in self._stops.dropped)
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def score(
        self, what: str, prompts: Sequence[str], continuations: Sequence[str]
    ) -> Float[np.ndarray, " n"]:
        raise NotImplementedError("the released scripts score nothing")


def agreement(ours: Results, other: Results) -> float:
    """The share of final answers of `other`, as they are read, that ours gave too."""
    equal = [
        a == b
        for one, two in zip(ours, other, strict=True)
        for name, condition in two.items()
        for a, b in zip(one[name].read, condition.read, strict=False)  # a sample
    ]
    return float(np.mean(equal))


class Sizes(NamedTuple):
    """Words of the job and of torch's sample, and bridges."""

    words: int
    sample: int
    bridges: int


def evaluate_rows(
    sizes: Sizes,
    seconds: Mapping[str, Sequence[float]],
    first: Run,
    computed_again: int,
    equal: float | None,
    floor: str,
) -> list[Row]:
    """seconds: of the ways in each round; first: the call that compiled; floor: a remark."""
    what = f"{sizes.words} words x {sizes.bridges} bridges"
    ours, with_gold, known = (seconds[name] for name in ("ours", "with gold", "known"))
    ratio = other = None
    note = f"torch is not installed; {floor}"
    if "torch" in seconds:
        scaled = [s * sizes.words / sizes.sample for s in seconds["torch"]]
        ratio, other = median_ratio(scaled, ours), median(scaled)
        note = (
            f"torch on {sizes.sample} words, scaled up; {equal:.1%} of its final answers are "
            f"ours; {floor}"
        )
    cold = {"": first.seconds - first.scoring, " and gold log-probabilities": first.seconds}
    warm = (median(ours), median(with_gold))
    return [
        bench_row(
            "evaluate",
            f"{what} : torch generate, one prompt at a time",
            median(ours),
            other,
            ratio=ratio,
            target=10,
            note=note,
        ),
        *(
            bench_row(
                "evaluate",
                f"the first call, compilation{added} included : {LIMIT:.0f} s",
                total,
                LIMIT,
                ratio=LIMIT / total,
                target=1,
                note=f"compiled in {total - later:.1f} s, {_cache()}",
            )
            for (added, total), later in zip(cold.items(), warm, strict=True)
        ),
        bench_row(
            "evaluate",
            "without gold log-probabilities : with",
            median(ours),
            median(with_gold),
            ratio=median_ratio(with_gold, ours),
        ),
        bench_row(
            "evaluate",
            "the same again, all answers known : computing them",
            median(known),
            median(with_gold),
            ratio=median_ratio(with_gold, known),
            note=f"{median(known) / median(with_gold):.1%} of the time, "
            f"{computed_again} prompts computed",
        ),
    ]


def _cache() -> str:
    """Whether programs may come from the disk (`runtime.use_compilation_cache`)."""
    place = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    return "with programs of earlier processes from the disk" if place else "nothing from the disk"


def floor(model: Model, results: Results, seconds: float) -> str:
    """The least time in which products as fast as a large one do this work, and the share reached.

    Tokens that distinct prompts begin alike with are counted once; of an answer, the tokens of its
    text. A prompt's last token gives the first new one, so an answer's last token needs no layers.
    """
    answers = {
        prompt: answer
        for one in results
        for condition in one.values()
        for prompts, texts in (
            (condition.hop1_prompts, condition.hop1_answers),
            (condition.prompts, condition.answers),
        )
        for prompt, answer in zip(prompts, texts, strict=True)
        if prompt
    }
    prompts = model.tokenizer(list(answers))["input_ids"]
    texts = model.tokenizer(list(answers.values()), add_special_tokens=False)["input_ids"]
    n_prompt = len({tuple(ids[:n]) for ids in prompts for n in range(1, len(ids) + 1)})
    n_new = sum(max(1, len(ids)) for ids in texts)
    layers, vocabulary = weights_multiplied(model.config)
    flops = 2 * ((n_prompt + n_new - len(prompts)) * layers + n_new * vocabulary)
    least = flops / hsic_bench.peak_gflops() / 1e9
    return (
        f"floor {least:.2f} s, of which {least / seconds:.0%} reached: {len(prompts):,} prompts, "
        f"{n_prompt:,} tokens unlike those of another, {n_new:,} new ones, "
        f"{flops / 1e9:,.0f} GFLOP"
    )


def _n_words(tasks: Sequence[PairTask]) -> int:
    return sum(len(task.items) for task in tasks)


@contextmanager
def _places() -> Iterator[Callable[[], Path]]:
    """Empty directories, as many as are asked for, gone at the end."""
    with tempfile.TemporaryDirectory() as directory:
        yield lambda: Path(tempfile.mkdtemp(dir=directory))
