"""Bilingual lexicon induction: word translation, zero-shot and through a bridge language.

zero-shot `{S}:"{w}"→{T}:`; hop 1 `{S}:"{w}"→{B}:`; hop 2 `{S}:"{w}"→{B}:"{b}"→{T}:` with the
model's own hop-1 answer b (arXiv 2508.17078, released code). W = words (axes.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from bridgex_jax.data.prompts import chain_prompt, word_prompt
from bridgex_jax.icl.answers import is_right, parse_answer

ZERO_SHOT = "zero_shot"
Complete = Callable[[Sequence[str]], list[str]]


@dataclass(frozen=True)
class Task:
    """Words of one direction with their gold translations."""

    source: str
    target: str
    gold: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Condition:
    """How one direction was answered: zero-shot, or through one bridge.

    name: ZERO_SHOT or the bridge's code. For a bridge whose hop 1 gave no usable answer the word
    counts as wrong: its hop-2 prompt and answer are empty.
    """

    name: str
    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    correct: Bool[np.ndarray, " W"]
    hop1_prompts: tuple[str, ...] = ()
    hop1_answers: tuple[str, ...] = ()

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())


def evaluate_conditions(
    tasks: Sequence[Task], bridges: Sequence[str], complete: Complete
) -> list[dict[str, Condition]]:
    """Zero-shot and every bridge for every direction: {condition name: Condition}, one a task.

    `complete` is called twice with all prompts of a hop at once, so that it can batch them well
    and compute the hop-1 prompts that directions share only once.
    """
    first = [
        (task, name, word, word_prompt(task.source, name or task.target, word).text)
        for task in tasks
        for name in (None, *(b for b in bridges if b not in (task.source, task.target)))
        for word in task.gold
    ]
    answers = complete([prompt for *_, prompt in first])
    second: dict[tuple[str, str, str | None, str], str] = {}
    for (task, bridge, word, _), answer in zip(first, answers, strict=True):
        bridged = parse_answer(answer)
        if bridge and bridged and '"' not in bridged:
            prompt = chain_prompt(task.source, bridge, task.target, word, bridged).text
            second[task.source, task.target, bridge, word] = prompt
    finals = dict(zip(second, complete(list(second.values())), strict=True))

    results: list[dict[str, Condition]] = [{} for _ in tasks]
    place = {(task.source, task.target): i for i, task in enumerate(tasks)}
    gathered: dict[tuple[int, str], list[tuple[str, str, bool, str, str]]] = {}
    for (task, bridge, word, prompt), answer in zip(first, answers, strict=True):
        key = (task.source, task.target, bridge, word)
        shown = (prompt, answer) if bridge is None else (second.get(key, ""), finals.get(key, ""))
        row = (*shown, is_right(shown[1], task.gold[word]), prompt, answer)
        at = (place[task.source, task.target], bridge or ZERO_SHOT)
        gathered.setdefault(at, []).append(row)
    for (task_index, name), rows in gathered.items():
        prompts, finals_, right, hop1, hop1_answers = zip(*rows, strict=True)
        is_zero = name == ZERO_SHOT
        results[task_index][name] = Condition(
            name,
            prompts,
            finals_,
            np.array(right, bool),
            () if is_zero else hop1,
            () if is_zero else hop1_answers,
        )
    return results
