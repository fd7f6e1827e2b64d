"""A task for one pair of languages, answered zero-shot and through every bridge.

Hop 1 translates what is in the source language into each bridge; the questions are then asked with
the model's own translations (arXiv 2508.17078). All prompts of a hop are handed over at once, so
that equal ones are computed once, whatever conditions need them. W = items of a pair (axes.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from jaxtyping import Float

from bridgex_jax.icl import metrics
from bridgex_jax.icl.answers import is_right, normalise, parse_answer
from bridgex_jax.icl.task import TaskForm, fill

ZERO_SHOT = "zero_shot"


@dataclass(frozen=True)
class Item:
    """One question. text: what is in the source language; fields: the rest of the question.

    key: the same in all languages. golds: right answers, labels of `choices` for a choice.
    """

    key: str
    text: str
    golds: tuple[str, ...]
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PairTask:
    """The questions of one pair; examples: answered ones that stand before each of them."""

    source: str
    target: str
    items: tuple[Item, ...]
    examples: tuple[Item, ...] = ()


class Answerer(Protocol):
    """The model, as the conditions see it."""

    def complete(
        self, what: str, prompts: Sequence[str], max_new_tokens: int, *, quoted: bool
    ) -> list[str]:
        """The continuations: to the end of the line, or of an answer in quotes."""

    def score(
        self, what: str, prompts: Sequence[str], continuations: Sequence[str]
    ) -> Float[np.ndarray, " n"]:
        """Log-probabilities of the continuations, in nats."""


@dataclass(frozen=True)
class Condition:
    """How the questions of a pair were answered: zero-shot, or through one bridge.

    name: ZERO_SHOT or the bridge's code. An item whose hop 1 gave nothing to go on with counts as
    wrong: its prompt and answer are empty. read: the answer as it was compared, "" where it is
    invalid. scores: by metric, in 0 … 1. log_prob: of the most probable right answer, NaN where
    there was no prompt; None where it was not asked for.
    """

    name: str
    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    read: tuple[str, ...]
    scores: Mapping[str, Float[np.ndarray, " W"]]
    log_prob: Float[np.ndarray, " W"] | None = None
    hop1_prompts: tuple[str, ...] = ()
    hop1_answers: tuple[str, ...] = ()

    @property
    def correct(self) -> np.ndarray:
        """The first metric: bool where it says right or wrong, else float64. [W]"""
        name, values = next(iter(self.scores.items()))
        return values if name == "f1" else values > 0

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())


def evaluate_conditions(
    form: TaskForm,
    tasks: Sequence[PairTask],
    bridges: Sequence[str],
    answerer: Answerer,
    *,
    log_probs: bool = False,
) -> list[dict[str, Condition]]:
    """Zero-shot and every bridge for every pair: {condition name: Condition}, one a pair.

    A bridge that is a language of the pair is left out there. log_probs: also of right answers.
    """
    asked = [(task, b) for task in tasks for b in (None, *_usable(task, bridges))]
    hop1 = [
        (task, bridge, item, _translate(form, task, bridge, item))
        for task, bridge in asked
        if bridge
        for item in (*task.items, *task.examples)
    ]
    answers = answerer.complete(
        "hop 1", [p for *_, p in hop1], form.max_translation_tokens, quoted=form.read == "quoted"
    )
    translations = {
        (task.source, task.target, bridge, item.key): (prompt, answer)
        for (task, bridge, item, prompt), answer in zip(hop1, answers, strict=True)
    }
    prompts = [_prompts(form, task, bridge, translations) for task, bridge in asked]
    real = [p for of_pair in prompts for p in of_pair if p]
    finals = dict(zip(real, _answers(form, real, answerer), strict=True))
    golds = _gold_log_probs(form, asked, prompts, finals, answerer) if log_probs else None

    results: list[dict[str, Condition]] = [{} for _ in tasks]
    places = {id(task): i for i, task in enumerate(tasks)}
    for n, (task, bridge) in enumerate(asked):
        raw = [finals[p].text if p else "" for p in prompts[n]]
        read = [_read(form, text) for text in raw]
        hops = [translations[task.source, task.target, bridge, i.key] for i in task.items
                ] if bridge else []  # fmt: skip
        results[places[id(task)]][bridge or ZERO_SHOT] = Condition(
            bridge or ZERO_SHOT,
            tuple(prompts[n]),
            tuple(raw),
            tuple(read),
            _scores(form, task, raw, read),
            golds[n] if golds is not None else None,
            tuple(prompt for prompt, _ in hops),
            tuple(answer for _, answer in hops),
        )
    return results


def _usable(task: PairTask, bridges: Sequence[str]) -> list[str]:
    return [bridge for bridge in bridges if bridge not in (task.source, task.target)]


# Prompts ----------------------------------------------------------------------------------------


def _translate(form: TaskForm, task: PairTask, bridge: str, item: Item) -> str:
    values = {form.bridged: item.text}
    return fill(form.translate, values, source=task.source, bridge=bridge)


def _prompts(
    form: TaskForm,
    task: PairTask,
    bridge: str | None,
    translations: Mapping[tuple[str, str, str, str], tuple[str, str]],
) -> list[str]:
    """The prompt of every item under one condition; "" where there is no translation."""

    def ask(item: Item) -> str:
        values = {**item.fields, form.bridged: item.text}
        languages = {"source": task.source, "target": task.target}
        if bridge is None:
            return fill(form.prompt, values, **languages)
        _, answer = translations[task.source, task.target, bridge, item.key]
        translation = _translation(form, answer)
        if not translation:
            return ""
        values["translation"] = translation
        return fill(form.chain, values, **languages, bridge=bridge)

    shown = [(ask(example), example) for example in task.examples]
    before = "".join(
        prompt + form.example.format(gold=_shown_gold(form, example))
        for prompt, example in shown
        if prompt
    )
    return [before + prompt if (prompt := ask(item)) else "" for item in task.items]


def _translation(form: TaskForm, answer: str) -> str:
    """What hop 1 gives to hop 2; "" where that is nothing, or breaks the quotes of the prompt."""
    if form.read != "quoted":
        return " ".join(answer.split())
    word = parse_answer(answer)
    return "" if '"' in word else word


def _shown_gold(form: TaskForm, item: Item) -> str:
    gold = item.golds[0]
    return form.choices[gold].strip() if form.choices else gold


# Answers ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Final:
    """An answer; log_probs: of all choices, in their order, where the model had to choose."""

    text: str
    log_probs: tuple[float, ...] = ()


def _answers(form: TaskForm, prompts: Sequence[str], answerer: Answerer) -> list[_Final]:
    if form.read != "choice":
        quoted = form.read == "quoted"
        texts = answerer.complete("answers", prompts, form.max_new_tokens, quoted=quoted)
        return [_Final(text) for text in texts]
    labels, texts = list(form.choices), list(form.choices.values())
    n = len(labels)
    found = answerer.score(
        "answers", [prompt for prompt in prompts for _ in labels], texts * len(prompts)
    )
    rows = found.reshape(len(prompts), n)
    return [_Final(labels[int(np.argmax(row))], tuple(row.tolist())) for row in rows]


def _read(form: TaskForm, text: str) -> str:
    if form.read == "quoted":
        return normalise(parse_answer(text))
    return text.strip() if form.read == "line" else text


def _scores(
    form: TaskForm, task: PairTask, raw: Sequence[str], read: Sequence[str]
) -> dict[str, Float[np.ndarray, " W"]]:
    spans: Mapping[str, Callable[[str, str, str], float]] = {
        "exact": metrics.exact_match,
        "f1": metrics.f1,
    }

    def score(metric: str, i: int, item: Item) -> float:
        if form.read == "quoted" and metric == "exact":
            return float(is_right(raw[i], item.golds))
        if form.read == "choice":
            return float(read[i] in item.golds)
        return metrics.best(spans[metric], read[i], item.golds, task.source)

    return {
        metric: np.array([score(metric, i, item) for i, item in enumerate(task.items)])
        for metric in form.metrics
    }


def _gold_log_probs(
    form: TaskForm,
    asked: Sequence[tuple[PairTask, str | None]],
    prompts: Sequence[Sequence[str]],
    finals: Mapping[str, _Final],
    answerer: Answerer,
) -> list[Float[np.ndarray, " W"]]:
    """log p of the most probable right answer; of a choice, among the choices."""
    values = [np.full(len(of_pair), np.nan) for of_pair in prompts]
    places = [
        (n, i, prompt, item.golds)
        for n, (task, _) in enumerate(asked)
        for i, (prompt, item) in enumerate(zip(prompts[n], task.items, strict=True))
        if prompt
    ]
    if form.read == "choice":
        labels = list(form.choices)
        for n, i, prompt, golds in places:
            row = np.array(finals[prompt].log_probs)
            best = max(row[labels.index(gold)] for gold in golds)
            values[n][i] = best - np.logaddexp.reduce(row)
        return values
    pairs = [(n, i, prompt, form.gold.format(gold=g)) for n, i, prompt, gs in places for g in gs]
    found = answerer.score("right answers", [p for _, _, p, _ in pairs], [c for *_, c in pairs])
    for (n, i, _, _), value in zip(pairs, found, strict=True):
        values[n][i] = np.fmax(values[n][i], value)
    return values
