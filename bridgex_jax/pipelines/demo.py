"""`bridgex demo`: the main job on the built-in model, all 12 directions between its poor languages.

Half of the question is whether the answer helps, so the demo also evaluates: zero-shot, every
fixed bridge, and the choosers, on words that no probe saw. The directions never occurred in the
model's training (train/prompt_mix.py). Probe and evaluation concepts are split by a hash of
their identifiers, so the split is the same everywhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bridgex_jax import cluster, runtime
from bridgex_jax.bridge.choosers import pick, set_size
from bridgex_jax.bridge.spectrum import ProbeValues
from bridgex_jax.data.cldr import Concept, concepts_digest, fold, read_concepts, stable_fraction
from bridgex_jax.data.dictionaries import Dictionary, WordPair
from bridgex_jax.icl.conditions import Item, PairTask, evaluate_conditions
from bridgex_jax.icl.task import read_task
from bridgex_jax.models.load import Model, load_model
from bridgex_jax.pipelines.answering import ModelAnswerer
from bridgex_jax.pipelines.console import Console
from bridgex_jax.pipelines.count import CountSettings, count_languages
from bridgex_jax.pipelines.evaluate import answer_rows, summarise
from bridgex_jax.pipelines.inputs import builtin_directory, cldr_corpus, model_facts
from bridgex_jax.pipelines.publish import corpus_source, pair_report, publish
from bridgex_jax.pipelines.select import (
    LanguageSets,
    Probe,
    Request,
    Selection,
    SelectSettings,
    make_sets,
    pair_sets,
    read_probes,
    score_name,
    score_selections,
    union_neurons,
)
from bridgex_jax.pipelines.task_inputs import EvaluateSettings
from bridgex_jax.report.content import Report, Source, choice_of, evaluation_of, read_report
from bridgex_jax.report.text import evaluation_sentence, label
from bridgex_jax.store.files import read_json
from bridgex_jax.store.manifest import read_manifest
from bridgex_jax.store.paths import AnyPath
from bridgex_jax.store.runs import create_run
from bridgex_jax.store.tables import PairSpectrum, write_answers

PROBE_SHARE = 0.3  # of the concepts; the rest is evaluated
FEWEST_PROBES = 256
TOKENS_PER_LINE = 8  # at least, in the formatters' lines


@dataclass(frozen=True)
class DemoSettings:
    """seed: of resampling. Everything else that the demo decides stands here, to be seen."""

    seed: int = 0
    tokens: int = 16_000  # counted a language: a third of what a study should have, for time
    words: int = 80  # evaluated a direction; all of them take a minute and a half on two cores
    batch_size: int = 512
    top_rate: float = 0.10  # a small model's sets are empty in most layers at 0.01
    probe_filter: str = "none"  # the directions are held out: hardly a word is translated right
    resamples: int = 400
    permutations: int = 99


@dataclass(frozen=True)
class Held:
    """The concepts of the built-in model, split into those that probe and those that evaluate."""

    probe: tuple[Concept, ...]
    evaluation: tuple[Concept, ...]


@dataclass(frozen=True)
class DemoResult:
    """What the command line prints."""

    report: Report
    out: AnyPath

    def to_json(self) -> dict[str, Any]:
        return choice_of(self.report) | {
            "evaluation": evaluation_of(self.report),
            "run": str(self.out),
        }

    def text(self) -> str:
        evaluation = self.report.evaluation
        assert evaluation is not None
        lines = [f"{len(evaluation.directions)} directions, {evaluation.n_words:,} words evaluated"]
        for row in evaluation.pooled:
            a = row.accuracy
            lines.append(f"  {row.name:<12} {a.value:6.1%}  [{a.low:.1%}, {a.high:.1%}]")
        r, g = evaluation.regret, evaluation.gain
        lines.append(f"  chosen − random {g.value:+.1%}  [{g.low:+.1%}, {g.high:+.1%}]")
        lines.append(f"  oracle − chosen {r.value:+.1%}  [{r.low:+.1%}, {r.high:+.1%}]")
        for pair in self.report.pairs:
            best = pair.chosen
            sure = f"P(best) {best.p_best:.2f}, p {best.p_value:.3f}" if best else "not comparable"
            lines.append(f"  {pair.source} → {pair.target}: {pair.bridge or '–'}  ({sure})")
        chosen = [pair.bridge for pair in self.report.pairs if pair.bridge]
        common = max(sorted(set(chosen)), key=chosen.count) if chosen else None
        if common:
            lines.append(f"Chosen most often: {label(common)}, in {chosen.count(common)} of "
                         f"{len(self.report.pairs)} directions.")  # fmt: skip
        lines += [evaluation_sentence(evaluation), f"Report: {self.out / 'report.html'}"]
        return "\n".join(lines)


def read_recipe(directory: Path) -> dict[str, Any]:
    """How the built-in model was trained: its languages, its seed, what it never saw."""
    return read_json(directory / "recipe.json")


def split_concepts(concepts: Sequence[Concept], seed: int) -> Held:
    """Probe and evaluation concepts, by a hash of their identifiers; at least 256 probe."""
    ranked = sorted(concepts, key=lambda c: stable_fraction(seed, "probe", c.id))
    n_probe = max(FEWEST_PROBES, round(PROBE_SHARE * len(ranked)))
    return Held(tuple(ranked[:n_probe]), tuple(ranked[n_probe:]))


def evaluation_task(
    source: str, target: str, concepts: Sequence[Concept], n: int | None = None
) -> PairTask:
    """Concepts whose target word is neither the source word nor the English one, at most n.

    Every source has its own, by a hash of their identifiers: its directions share the words, and
    so their translations into the bridges, and together they evaluate nearly all concepts.
    """
    kept = [
        c
        for c in concepts
        if fold(c.words[target]) not in (fold(c.words[source]), fold(c.words["en"]))
    ]
    kept.sort(key=lambda c: stable_fraction(source, c.id))
    # As a dictionary, so that a word that names two concepts is asked once.
    gold = {c.words[source]: (c.words[target],) for c in kept[:n]}
    return PairTask(source, target, tuple(Item(word, word, golds) for word, golds in gold.items()))


def concept_dictionary(source: str, target: str, concepts: Sequence[Concept]) -> Dictionary:
    """Concepts as a dictionary, so that a direction is described as any other pair is."""
    pairs = tuple(WordPair(c.words[source], c.words[target]) for c in concepts)
    return Dictionary(source, target, pairs, {}, ("cldr",), concepts_digest(concepts))


def run_demo(settings: DemoSettings, out: AnyPath, console: Console) -> DemoResult:
    """Chooses and evaluates bridges for all directions into a run directory of kind `demo`."""
    directory = builtin_directory()
    recipe, form = read_recipe(directory), read_task("bli")
    mix = recipe["mix"]
    poor, bridges = tuple(mix["poor"]), tuple(mix["bridges"])
    concepts = read_concepts([*mix["bridges"], *mix["ordinary"], *mix["poor"]])
    if concepts_digest(concepts) != recipe["concepts_sha256"]:
        console.warn(
            f"this Babel's CLDR is not the one the model learned from (Babel {recipe['babel']}): "
            "accuracies can differ"
        )
    held = split_concepts(concepts, mix["seed"])
    model = load_model(directory, quiet=console.quiet)
    assert model.source is not None
    inputs = {"model": model.source.hash, "concepts": concepts_digest(concepts)}
    opened = create_run(
        out, kind="demo", settings=asdict(settings), inputs=inputs, peers=cluster.peers()
    )
    with opened as run:
        if run.notice:
            console.say(run.notice)
        if run.complete:
            return DemoResult(read_report(run.directory, read_manifest(run.directory)), out)
        mesh = model.mesh
        select = SelectSettings(
            top_rate=settings.top_rate,
            probe_filter=settings.probe_filter,
            seed=settings.seed,
            batch_size=settings.batch_size,
            resamples=settings.resamples,
            permutations=settings.permutations,
            words=len(held.probe),
        )
        languages = (*poor, *bridges)
        with run.stage("count"):
            lines = settings.tokens // TOKENS_PER_LINE
            corpora = {code: cldr_corpus(code, mix["seed"] + 1, lines) for code in languages}
            budget = CountSettings(tokens=settings.tokens)
            counts = count_languages(model, corpora, budget, mesh, console, run.part)
            sets = make_sets(counts, select, console)
        with run.stage("choose"):
            selections = choose_all(model, poor, bridges, held, sets, select, console)
        with run.stage("evaluate"):
            tasks = [evaluation_task(*pair, held.evaluation, settings.words) for pair in selections]
            evaluate = EvaluateSettings(seed=settings.seed, batch_size=settings.batch_size)
            answerer = ModelAnswerer(model, console, batch_size=settings.batch_size)
            results = evaluate_conditions(form, tasks, bridges, answerer)
        run.record(
            model=model_facts(model),
            devices=runtime.describe_devices(model.mesh),
            implementation=next(iter(selections.values())).spectrum.notes,
            seed=settings.seed,
            data={"concepts": len(concepts), "probe": len(held.probe),
                  "evaluation": len(held.evaluation), "recipe": recipe},
            notes={"warnings": console.warnings, "prompts": answerer.facts()},
        )  # fmt: skip
        by_word = {(code, c.words[code]): c for c in held.evaluation for code in poor}
        rows = answer_rows(
            form,
            tasks,
            results,
            lambda task, bridge, word: (by_word[task.source, word].words[bridge],),
        )
        write_answers(run.path("answers.parquet"), rows)
        evaluation = summarise(
            form,
            tasks,
            results,
            bridges,
            choosers(selections, bridges, console),
            _scores(selections),
            evaluate,
        )
        stability = dict(zip(sets.languages, sets.stability, strict=True))
        report = Report(
            pairs=tuple(_pair(pair, s, held) for pair, s in selections.items()),
            manifest=run.facts(),
            overlap=sets.overlap(),
            corpora=tuple(corpus_source(counts[c], stability[c]) for c in languages),
            dictionaries=(Source(poor, "cldr", len(held.probe)),),
            warnings=tuple(console.warnings),
            evaluation=evaluation,
            score_name=score_name(select.spectrum),
        )
        publish(run, report)
    return DemoResult(report, out)


def choose_all(
    model: Model,
    poor: Sequence[str],
    bridges: Sequence[str],
    held: Held,
    sets: LanguageSets,
    settings: SelectSettings,
    console: Console,
) -> dict[tuple[str, str], Selection]:
    """The choice for every direction; all prompts are probed in one pass."""
    pairs = {}
    for source, target in itertools.permutations(poor, 2):
        words = concept_dictionary(source, target, held.probe)
        request = Request(source, target, tuple(bridges), words, None)
        pairs[source, target] = pair_sets(sets, request, settings)
    probes = [
        Probe(s, t, tuple(c.words[s] for c in held.probe), {"probe words": len(held.probe)})
        for s, t in pairs
    ]
    members = [m for pair in pairs.values() for m in (pair.shared, *pair.bridges.values())]
    values = read_probes(model, probes, union_neurons(members), settings, model.mesh, console)
    probed = [
        (probe, _only(value, pair), pair)
        for probe, value, pair in zip(probes, values, pairs.values(), strict=True)
    ]
    found = score_selections(probed, settings, model.mesh, console)
    return dict(zip(pairs, found, strict=True))


def _only(values: ProbeValues, pair: Any) -> ProbeValues:
    """The values of this pair's neurons alone."""
    wanted = union_neurons([pair.shared, *pair.bridges.values()])
    kept = [np.isin(all_, mine) for all_, mine in zip(values.neurons, wanted, strict=True)]
    return ProbeValues(
        [layer[keep] for layer, keep in zip(values.values, kept, strict=True)],
        wanted,
        values.strata,
    )


def choosers(
    selections: Mapping[tuple[str, str], Selection], bridges: Sequence[str], console: Console
) -> dict[str, list[str]]:
    """Ours first, then the confound: the bridge with the largest set |Y_b|.

    A direction in which no bridge is comparable takes the first one, with a warning.
    """
    first = bridges[0]
    for (source, target), selection in selections.items():
        if selection.choice.bridge is None:
            console.warn(f"no bridge is comparable from {source} to {target}: {first} stands in")
    sizes = [pick(set_size(s.sets.bridges)) for s in selections.values()]
    return {
        "chosen": [s.choice.bridge or first for s in selections.values()],
        "largest |Y|": [bridge or first for bridge in sizes],
    }


def _scores(selections: Mapping[tuple[str, str], Selection]) -> list[dict[str, float]]:
    return [dict(s.choice.means) for s in selections.values()]


def _pair(pair: tuple[str, str], selection: Selection, held: Held):
    spectrum = selection.spectrum
    stored = PairSpectrum(
        *pair, spectrum.bridges, spectrum.score, spectrum.n_shared, spectrum.n_bridge
    )
    return pair_report(selection, stored, concept_dictionary(*pair, held.probe))
