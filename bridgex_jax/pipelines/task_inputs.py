"""From files to the questions of a pair: dictionaries and records as items, drawn by seed.

What chose a bridge is left out (by source word and by English pivot); the examples that stand
before a question are never asked. Where data hold text that a corpus has, that is counted.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bridgex_jax.data.corpora import Corpus, read_corpus
from bridgex_jax.data.dictionaries import Dictionary
from bridgex_jax.data.records import Records, join
from bridgex_jax.data.task_files import READERS, read_hub
from bridgex_jax.errors import InputError
from bridgex_jax.icl.answers import is_right
from bridgex_jax.icl.conditions import Item, PairTask
from bridgex_jax.icl.contamination import contaminated
from bridgex_jax.icl.task import WORDS, TaskForm
from bridgex_jax.languages import language
from bridgex_jax.pipelines.choosers import (
    ByChooser,
    estimator_choosers,
    picks,
    plain_choosers,
    read_choosers,
)
from bridgex_jax.pipelines.console import Console
from bridgex_jax.pipelines.inputs import CLDR, dictionary_facts, keyed
from bridgex_jax.store.manifest import verify_run
from bridgex_jax.store.paths import as_path, is_file
from bridgex_jax.store.tables import read_choice

FEWEST_ITEMS = 8
HUB = "hub"
# Where the data of a kind lie on the Hugging Face hub: dataset, configuration of a language, split.
_HUB = {
    "belebele": ("facebook/belebele", "flores", "{}", "test"),
    "xnli": ("facebook/xnli", "code", "{}", "test"),
    "xquad": ("google/xquad", "code", "xquad.{}", "validation"),
}


@dataclass(frozen=True)
class EvaluateSettings:
    """limit: questions at most (None: all); shots: examples before each; both drawn by seed.

    chat: prompts in the form of the tokenizer's chat template. log_probs: of right answers.
    """

    limit: int | None = None
    shots: int = 0
    seed: int = 0
    batch_size: int = 256
    chat: bool = False
    log_probs: bool = True
    resamples: int = 2000


@dataclass(frozen=True)
class Asked:
    """What is evaluated: a task for a pair, through which bridges, and how."""

    form: TaskForm
    source: str
    target: str
    bridges: tuple[str, ...]
    settings: EvaluateSettings = EvaluateSettings()


@dataclass(frozen=True)
class Chosen:
    """What is known of the choice before the test. choosers: name -> the bridge it takes, the one
    that is judged first.

    excluded: words that chose a bridge. corpora: text that did, where the task asks about texts;
    unread: files of such text that are not there any more.
    """

    choosers: Mapping[str, str]
    scores: ByChooser
    excluded: frozenset[str] = frozenset()
    corpora: tuple[Corpus, ...] = ()
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class Exam:
    """What one pair is asked. choosers: name -> the bridge it picks; the first one is judged.

    scores: of every bridge, by chooser. hashes: of the data, for the identity of the run; facts:
    for its manifest.
    """

    form: TaskForm
    task: PairTask
    bridges: tuple[str, ...]
    choosers: Mapping[str, str]
    scores: ByChooser
    hashes: Mapping[str, Any]
    facts: Mapping[str, Any]


def read_chosen(
    asked: Asked,
    selection: str | None,
    *,
    typology: str | None = None,
    table: str | None = None,
    corpora: Sequence[str] | None = None,
    ablation: str | None = None,
) -> Chosen:
    """The choosers that can be judged, and what they were made from.

    selection: a run of `bridgex select`; ablation: of `bridgex ablate` with the same words, whose
    estimators are choosers too. corpora: CODE=FILE; None for those of the selection.
    Raises InputError where the run is not complete or chose for another pair, and for corpora of a
    task that asks words.
    """
    pair = asked.source, asked.target
    scores: ByChooser = {}
    excluded: frozenset[str] = frozenset()
    files: dict[str, str] = {}
    if selection is not None:
        place = as_path(selection)
        manifest = verify_run(place, ("choice.json",), ("select",))
        known = read_choosers(place, manifest, *pair)
        (choice,) = read_choice(place / "choice.json")["pairs"]
        excluded = frozenset(choice["probe_words"])
        scores = {name: {b: s.get(b, math.nan) for b in asked.bridges} for name, s in known.items()}
        if ablation is not None:
            more = estimator_choosers(as_path(ablation), *pair)
            scores |= {n: {b: s.get(b, math.nan) for b in asked.bridges} for n, s in more.items()}
        files = {c: str(f["file"]) for c, f in manifest["data"]["corpora"].items()}
    elif ablation is not None:
        raise InputError("--ablate needs --select", remedy="give the run with the same words")
    scores |= plain_choosers(*pair, asked.bridges, typology=typology, table=table)
    if asked.form.data == WORDS:
        if corpora is not None:
            raise InputError(
                f"--corpus is not for {asked.form.name}, which asks words", remedy="take it out"
            )
        return Chosen(picks(scores), scores, excluded)
    if corpora is not None:
        files = dict(keyed(corpora, "--corpus", "--corpus en=FILE"))
    files = {code: file for code, file in files.items() if file != CLDR}
    there = {code: file for code, file in files.items() if is_file(as_path(file))}
    read = tuple(read_corpus(file, code) for code, file in there.items())
    unread = tuple(file for code, file in files.items() if code not in there)
    return Chosen(picks(scores), scores, excluded, read, unread)


def word_exam(asked: Asked, words: Dictionary, chosen: Chosen) -> Exam:
    """Word translation, without the words that chose a bridge."""
    everything = word_items(words)
    items = word_items(words, chosen.excluded)
    task = pair_task(asked, items, words.files)
    return _exam(
        asked,
        task,
        chosen,
        {"dictionary": words.sha256, "excluded": sorted(chosen.excluded)},
        {"dictionary": dictionary_facts(words), "excluded": len(everything) - len(items)},
    )


def record_exam(
    asked: Asked, given: Mapping[str, str] | str, chosen: Chosen, console: Console
) -> Exam:
    """Questions about texts; warns where text that chose a bridge is among them."""
    records = [read_records(asked.form, given, code) for code in (asked.source, asked.target)]
    items = record_items(asked.form, *records)
    files = [file for one in records for file in one.files]
    task = pair_task(asked, items, files)
    lines = [line for corpus in chosen.corpora for line in corpus.lines]
    names = [corpus.file for corpus in chosen.corpora]
    seen = contaminated([item.text for item in task.items], lines)
    if seen.any():
        console.warn(
            f"{seen.sum()} of {len(task.items)} questions are about text that chose the bridge "
            f"({', '.join(names)}): their accuracy says too much"
        )
    if chosen.unread:
        console.warn(
            f"{', '.join(chosen.unread)}: is not there any more, so it was not looked for in the "
            "questions; give --corpus CODE=FILE"
        )
    facts = {
        one.language: {"files": one.files, "sha256": one.sha256, "notes": one.notes}
        for one in records
    }
    return _exam(
        asked,
        task,
        chosen,
        {
            "data": {one.language: one.sha256 for one in records},
            "corpora": {corpus.language: corpus.sha256 for corpus in chosen.corpora},
        },
        {"data": facts, "contaminated": int(seen.sum()), "corpora": names},
    )


def _exam(
    asked: Asked,
    task: PairTask,
    chosen: Chosen,
    hashes: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> Exam:
    return Exam(asked.form, task, asked.bridges, chosen.choosers, chosen.scores, hashes, facts)


def data_files(items: Sequence[str] | None, form: TaskForm) -> Mapping[str, str] | str:
    """`--data` as files by language code, or `hub`. Raises InputError without any."""
    if not items:
        raise InputError(
            f"--data is missing for {form.name}", remedy=f"give --data CODE=FILE …, or --data {HUB}"
        )
    if list(items) == [HUB]:
        return HUB
    pairs = keyed(items, "--data", "--data en=FILE")
    return {language(code).code: file for code, file in pairs}


def word_items(dictionary: Dictionary, excluded: Collection[str] = ()) -> list[Item]:
    """Source words with all of their translations, without `excluded` words and their pivots."""
    pivots: dict[str, set[str]] = {}
    for pair in dictionary.pairs:
        pivots.setdefault(pair.source.casefold(), set()).update(p.casefold() for p in pair.pivots)
    words = {word.casefold() for word in excluded}
    taken = words | {pivot for word in words for pivot in pivots.get(word, ())}
    return [
        Item(word, word, golds)
        for word, golds in dictionary.translations().items()
        if not ({word.casefold()} | pivots[word.casefold()]) & taken
    ]


def read_records(form: TaskForm, given: Mapping[str, str] | str, code: str) -> Records:
    """The data of a task in one language: of a file given as CODE=FILE, or from the hub.

    Raises InputError where the language has no file.
    """
    if isinstance(given, str):
        dataset, kind, config, split = _HUB[form.data]
        return read_hub(dataset, config.format(getattr(language(code), kind)), split, form.data)
    if code not in given:
        raise InputError(
            f"no data of {code} for {form.name}",
            remedy=f"give --data {code}=FILE, or --data {HUB} to take them from the hub",
        )
    return READERS[form.data](given[code], code)


def record_items(form: TaskForm, source: Records, target: Records) -> list[Item]:
    """Questions of the target language about texts of the source language.

    Raises InputError where the two do not hold the same questions, or an answer is no choice.
    """
    items = []
    for there, here in join(source, target, same_golds=bool(form.choices)):
        if form.choices and (other := [g for g in there.golds if g not in form.choices]):
            raise InputError(
                f"the answer of {there.key} is {other[0]!r}, not one of {', '.join(form.choices)}",
                file=source.files[0],
                remedy="mend the line, or the task's choices",
            )
        fields = {k: v for k, v in here.fields.items() if k != form.bridged}
        items.append(Item(there.key, there.fields[form.bridged], there.golds, fields))
    return items


def pair_task(asked: Asked, items: Sequence[Item], files: Sequence[str]) -> PairTask:
    """At most `limit` questions in their order, and `shots` others as examples, drawn by seed.

    Raises InputError where fewer than 8 questions are left.
    """
    settings = asked.settings
    drawn = np.random.default_rng(settings.seed).permutation(len(items))
    examples = tuple(items[i] for i in drawn[: settings.shots])
    rest = sorted(drawn[settings.shots :][: settings.limit].tolist())
    if len(rest) < FEWEST_ITEMS:
        raise InputError(
            f"{len(rest)} questions are left to evaluate {asked.source}-{asked.target} on",
            file=" and ".join(files),
            remedy=f"give data with at least {FEWEST_ITEMS - len(rest)} questions more",
        )
    return PairTask(asked.source, asked.target, tuple(items[i] for i in rest), examples)


def copied(task: PairTask) -> float:
    """The accuracy of answering every word with itself."""
    return float(np.mean([is_right(item.text, item.golds) for item in task.items]))
