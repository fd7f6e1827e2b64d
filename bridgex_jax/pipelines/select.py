"""`bridgex select`: from dictionary and text to the bridge language of one pair.

Stages of bridgex-icl in their order: counts, neuron sets, probe prompts, probe activations, shared
and bridge sets, HSIC per layer, the choice; then intervals, p-values, tables and the report.
Axes: L F G W (axes.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from bridgex_jax import cluster, runtime
from bridgex_jax.activations.run import probe_prompts
from bridgex_jax.bridge.choice import BridgeChoice, checked_window, choose_bridge
from bridgex_jax.bridge.significance import (
    BootstrapResult,
    PermutationResult,
    bootstrap,
    permutation_test,
)
from bridgex_jax.bridge.spectrum import (
    ProbedPair,
    ProbeValues,
    Spectrum,
    SpectrumSettings,
    score_pairs,
)
from bridgex_jax.data.batching import Encoded, Scope, encode_prompts, extend
from bridgex_jax.data.corpora import Corpus
from bridgex_jax.data.dictionaries import Dictionary
from bridgex_jax.data.prompts import WORD_TEMPLATE, Prompt, Template, parse_template, word_prompt
from bridgex_jax.errors import InputError
from bridgex_jax.icl.answers import is_right
from bridgex_jax.icl.completion import complete, complete_ids
from bridgex_jax.models.load import Model
from bridgex_jax.neurons import sets as neuron_sets
from bridgex_jax.neurons import similarity
from bridgex_jax.pipelines.choosers import FILE as CHOOSERS
from bridgex_jax.pipelines.choosers import choosers_of, neuron_choosers
from bridgex_jax.pipelines.console import Console
from bridgex_jax.pipelines.count import CountSettings, OpenRun, Part, count_languages
from bridgex_jax.pipelines.estimate import estimate_select
from bridgex_jax.pipelines.inputs import CLDR, added_language_names, dictionary_facts, model_facts
from bridgex_jax.pipelines.publish import (
    corpus_source,
    dictionary_source,
    pair_report,
    publish,
)
from bridgex_jax.pipelines.text_choosers import text_choosers
from bridgex_jax.report.content import Report, choice_of, read_report
from bridgex_jax.report.text import choice_sentence
from bridgex_jax.store.counts import LanguageCounts, load_counts
from bridgex_jax.store.manifest import read_manifest
from bridgex_jax.store.paths import AnyPath
from bridgex_jax.store.runs import RunDirectory, create_run
from bridgex_jax.store.tables import OverlapMatrix, PairSpectrum

FEWEST_WORDS = 8
FEWEST_CORRECT_WORDS = 128
STEADY_JACCARD = 0.8


@dataclass(frozen=True)
class SelectSettings:
    """Everything that can change the choice, beside model and data. See `bridgex select --help`.

    parallel: lines of the corpora that are translations of each other, for other choosers.
    """

    top_rate: float = 0.01
    rate_scope: neuron_sets.Scope = "global"
    bridge_set: neuron_sets.BridgeSet = "exclusive"
    top_k: int | None = None
    drop_common: bool = False
    words: int = 500
    probe_filter: str = "correct"
    token_scope: Scope = "from_word_mean"
    template: str | None = None
    layers: tuple[int, int] | None = None
    seed: int = 0
    batch_size: int = 64
    resamples: int = 1000
    permutations: int = 499
    parallel: int | None = None
    count: CountSettings = field(default_factory=CountSettings)
    spectrum: SpectrumSettings = field(default_factory=SpectrumSettings)


@dataclass(frozen=True)
class Request:
    """What `select` is asked: the pair, the candidates, words, and text or earlier counts.

    Text beside counts is not counted again: other choosers read it.
    """

    source: str
    target: str
    bridges: tuple[str, ...]
    words: Dictionary
    corpora: Mapping[str, Corpus] | None
    counts: str | AnyPath | None = None

    @property
    def languages(self) -> tuple[str, ...]:
        return (self.source, self.target, *self.bridges)


@dataclass(frozen=True)
class LanguageSets:
    """T_k of every language, and what they were made from."""

    languages: tuple[str, ...]
    members: Bool[np.ndarray, "G L F"]
    rates: Float[np.ndarray, "G L F"]
    stability: Float[np.ndarray, " G"]

    def overlap(self) -> OverlapMatrix:
        return OverlapMatrix(
            self.languages,
            similarity.overlap(self.members),
            similarity.jaccard(self.members),
            similarity.activation_cosine(self.rates, self.members),
        )


@dataclass(frozen=True)
class Probe:
    """The probe words of one pair, and how many were left after each step."""

    source: str
    target: str
    words: tuple[str, ...]
    steps: dict[str, int]


@dataclass(frozen=True)
class Selection:
    """The answer for one pair: the spectrum, the choice, and how sure it is."""

    probe: Probe
    sets: neuron_sets.PairSets
    spectrum: Spectrum
    window: tuple[int, ...]
    choice: BridgeChoice
    bootstrap: BootstrapResult | None
    permutation: PermutationResult | None


def settings_from(args: Mapping[str, Any]) -> SelectSettings:
    """Settings from the command line's values. Raises InputError where they contradict."""
    compat = args["compat"]
    given = {k: args[k] for k in ("estimator", "bandwidth", "length_control") if args[k]}
    if args["no_size_matching"]:
        given["size_matching"] = False
    if compat and given:
        name = next(iter(given)).replace("_", "-")
        raise InputError(f"--compat {compat} already decides the {name}", remedy="give one of them")
    if args["probe_filter"] == "correct" and args["words"] < FEWEST_CORRECT_WORDS:
        raise InputError(
            f"--words {args['words']} is under {FEWEST_CORRECT_WORDS}, the least that "
            "--probe-filter correct works with",
            remedy="add --probe-filter none, or take more words",
        )
    if args["template"]:
        parse_template(args["template"])
    names = ("top_rate", "rate_scope", "bridge_set", "top_k", "drop_common", "words",
             "probe_filter", "token_scope", "template", "layers", "seed", "batch_size", "resamples",
             "permutations")  # fmt: skip
    return SelectSettings(
        **{name: args[name] for name in names},
        parallel=args.get("parallel"),
        count=CountSettings(args["tokens"], args["row_length"]),
        spectrum=SpectrumSettings(compat=compat, **given),
    )


def make_sets(
    counts: Mapping[str, LanguageCounts], settings: SelectSettings, console: Console
) -> LanguageSets:
    """Stage 2: the most active neurons of every language; warns where halves disagree."""
    languages = tuple(counts)
    positive = np.stack([counts[code].counts for code in languages])
    tokens = np.array([counts[code].n_tokens for code in languages])
    halves = np.stack([counts[code].halves for code in languages])
    half_tokens = np.array([counts[code].half_tokens for code in languages])
    rule: dict[str, Any] = {"rate": settings.top_rate, "scope": settings.rate_scope}
    stability = neuron_sets.split_half_jaccard(
        halves[:, 0], halves[:, 1], half_tokens[:, 0], half_tokens[:, 1], **rule
    )
    members = neuron_sets.top_rate_sets(positive, tokens, **rule)
    if settings.drop_common:
        members = neuron_sets.without_common(members)
    shaky = [code for code, j in zip(languages, stability, strict=True) if not j >= STEADY_JACCARD]
    shown = ", ".join(f"{c} {j:.2f}" for c, j in zip(languages, stability, strict=True))
    console.say(f"split-half Jaccard of the neuron sets: {shown}")
    if shaky:
        console.warn(
            f"the neuron sets of {', '.join(shaky)} change between halves of their corpus "
            f"(Jaccard under {STEADY_JACCARD}): give more text"
        )
    return LanguageSets(languages, members, neuron_sets.rates(positive, tokens), stability)


def choose_probe(
    model: Model, words: Dictionary, settings: SelectSettings, mesh: Mesh, console: Console
) -> Probe:
    """Stage 3: distinct source words in random order, filtered, at most `settings.words`.

    Raises InputError for fewer than 8 words, or fewer than 128 that the model translates right.
    """
    gold = words.translations()
    rng = np.random.default_rng(settings.seed)
    in_order = list(gold)
    candidates = [in_order[i] for i in rng.permutation(len(in_order))]
    steps = {"word pairs": len(words.pairs), "source words": len(candidates)}
    place = " and ".join(words.files)
    if len(candidates) < FEWEST_WORDS:
        raise InputError(
            f"only {len(candidates)} usable words from {words.source} to {words.target}",
            file=place,
            remedy=f"give a dictionary with at least {FEWEST_WORDS}",
        )
    if settings.probe_filter == "none":
        chosen = candidates[: settings.words]
    else:
        chosen, asked = _translated_right(model, words, gold, candidates, settings, mesh, console)
        steps |= {"asked of the model": asked, "translated right": len(chosen)}
        if len(chosen) < FEWEST_CORRECT_WORDS:
            raise InputError(
                f"the model translates {len(chosen)} of {asked} words right, at least "
                f"{FEWEST_CORRECT_WORDS} are needed",
                file=place,
                remedy="add --probe-filter none to probe with all words",
            )
    return Probe(words.source, words.target, tuple(chosen), steps | {"probe words": len(chosen)})


def _translated_right(
    model: Model,
    words: Dictionary,
    gold: Mapping[str, tuple[str, ...]],
    candidates: list[str],
    settings: SelectSettings,
    mesh: Mesh,
    console: Console,
) -> tuple[list[str], int]:
    """Right words in the given order until there are enough, and how many were asked."""
    right: list[str] = []
    asked = 0
    template = _template(settings)
    with console.progress("probe filter", len(candidates), "words") as progress:
        while asked < len(candidates) and len(right) < settings.words:
            part = candidates[asked : asked + max(settings.words, 4 * settings.batch_size)]
            prompts = [word_prompt(words.source, words.target, w, template).text for w in part]
            answers = complete(
                model, prompts, mesh, batch_size=settings.batch_size, progress=progress
            )
            right += [w for w, a in zip(part, answers, strict=True) if is_right(a, gold[w])]
            asked += len(part)
    return right[: settings.words], asked


def _template(settings: SelectSettings) -> Template:
    return parse_template(settings.template) if settings.template else WORD_TEMPLATE


def union_neurons(members: Sequence[Bool[np.ndarray, "L F"]]) -> list[Int[np.ndarray, " c"]]:
    """Indices, layer by layer, of neurons that are in any of the sets."""
    anywhere = np.logical_or.reduce(list(members))
    return [np.flatnonzero(layer).astype(np.int32) for layer in anywhere]


def read_probes(
    model: Model,
    probes: Sequence[Probe],
    neurons: list[Int[np.ndarray, " c"]],
    settings: SelectSettings,
    mesh: Mesh,
    console: Console,
) -> list[ProbeValues]:
    """Stage 4: probe activations of the chosen neurons, for all pairs in one pass."""
    template = _template(settings)
    prompts: list[Prompt] = [
        word_prompt(probe.source, probe.target, word, template)
        for probe in probes
        for word in probe.words
    ]
    encoded = encode_prompts(model.tokenizer, prompts, settings.token_scope)
    if settings.token_scope == "prompt_and_generated_mean":
        encoded = _with_answers(model, encoded, settings, mesh, console)
    with console.progress("probing", len(encoded), "prompts") as progress:
        values = probe_prompts(
            model, encoded, neurons, mesh, batch_size=settings.batch_size, progress=progress
        )
    # All tokens of the prompt: their number is what length control is about, in any scope.
    n_tokens = np.array([len(item.ids) for item in encoded])
    ends = np.cumsum([len(probe.words) for probe in probes])
    return [
        ProbeValues([layer[:, a:b] for layer in values], neurons, n_tokens[a:b])
        for a, b in zip([0, *ends[:-1]], ends, strict=True)
    ]


def _with_answers(
    model: Model, encoded: list[Encoded], settings: SelectSettings, mesh: Mesh, console: Console
) -> list[Encoded]:
    with console.progress("generating", len(encoded), "prompts") as progress:
        answers = complete_ids(
            model, encoded, mesh, batch_size=settings.batch_size, progress=progress
        )
    return [extend(item, answer) for item, answer in zip(encoded, answers, strict=True)]


def pair_sets(
    sets: LanguageSets, request: Request, settings: SelectSettings
) -> neuron_sets.PairSets:
    """Stage 5: shared set and bridge sets. Raises InputError where source and target share none."""
    pair = neuron_sets.pair_sets(
        sets.members,
        sets.languages,
        request.source,
        request.target,
        request.bridges,
        definition=settings.bridge_set,
    )
    if settings.top_k is not None:
        rates = dict(zip(sets.languages, sets.rates, strict=True))
        cut = {
            bridge: neuron_sets.strongest(members, rates[bridge], settings.top_k)
            for bridge, members in pair.bridges.items()
        }
        pair = neuron_sets.PairSets(pair.shared, cut)
    if not pair.shared.any():
        raise InputError(
            f"{request.source} and {request.target} share no neuron of their sets",
            remedy="raise --top-rate",
        )
    return pair


def score_selections(
    probed: Sequence[tuple[Probe, ProbeValues, neuron_sets.PairSets]],
    settings: SelectSettings,
    mesh: Mesh,
    console: Console,
) -> list[Selection]:
    """Stages 6 and 7 of all pairs, with the bootstrap interval and the permutation test."""
    n_layers = probed[0][2].shared.shape[0]
    given = settings.layers and range(settings.layers[0], settings.layers[1] + 1)
    window = checked_window(list(given) if given else None, n_layers)
    selections = []
    pairs = [ProbedPair(values, sets.shared, sets.bridges) for _, values, sets in probed]
    with console.progress("scoring", len(pairs) * n_layers, "layers") as progress:
        found = score_pairs(pairs, settings.spectrum, mesh, progress=progress)
    with console.progress("resampling", len(pairs), "pairs") as progress:
        for (probe, _, sets), scores in zip(probed, found, strict=True):
            choice = choose_bridge(scores.spectrum, window, settings.spectrum.compat)
            boot = permuted = None
            if choice.bridge is not None:
                boot = bootstrap(scores, window, n=settings.resamples, seed=settings.seed)
                n = settings.permutations
                permuted = permutation_test(scores, window, n=n, seed=settings.seed)
            spectrum = scores.spectrum
            selections.append(
                Selection(probe, sets, spectrum, tuple(window), choice, boot, permuted)
            )
            progress(1)
    return selections


def keep_probe(name: str, request: Request, find: Callable[[], Probe], part: Part) -> Probe:
    """The probe words that `part` holds under that name, else those that `find` chooses."""

    def arrays() -> dict[str, np.ndarray]:
        probe = find()
        return {
            "words": np.array(probe.words, np.str_),
            "step_names": np.array(list(probe.steps), np.str_),
            "step_counts": np.array(list(probe.steps.values()), np.int64),
        }

    found = part(name, arrays)
    words = tuple(found["words"].tolist())
    names, numbers = found["step_names"].tolist(), found["step_counts"].tolist()
    return Probe(request.source, request.target, words, dict(zip(names, numbers, strict=True)))


def keep_values(
    name: str,
    neurons: list[Int[np.ndarray, " c"]],
    read: Callable[[], ProbeValues],
    part: Part,
) -> ProbeValues:
    """The values of these neurons that `part` holds under that name, else those of `read`."""

    def arrays() -> dict[str, np.ndarray]:
        values = read()
        layers = {f"layer-{i}": layer for i, layer in enumerate(values.values)}
        return layers | {"n_tokens": values.strata}

    stored = part(name, arrays)
    layers = [stored[f"layer-{i}"] for i in range(len(neurons))]
    return ProbeValues(layers, neurons, stored["n_tokens"])


def select_bridge(
    model: Model,
    request: Request,
    settings: SelectSettings | None = None,
    *,
    counts: Mapping[str, LanguageCounts] | None = None,
    mesh: Mesh | None = None,
    console: Console | None = None,
    part: Part = lambda name, compute: compute(),
) -> tuple[Selection, LanguageSets, dict[str, LanguageCounts]]:
    """Chooses the bridge of one pair; nothing is written.

    Args:
      counts: of all languages of the request, where they were made before.
      part: keeps finished stages, see `RunDirectory.part`.

    Raises InputError for words, text or settings that give no answer.
    """
    settings, console = settings or SelectSettings(), console or Console(quiet=True)
    mesh = mesh or model.mesh
    if counts is None:
        if request.corpora is None:
            raise InputError("neither corpora nor counts are given")
        counts = count_languages(model, request.corpora, settings.count, mesh, console, part)
    sets = make_sets(counts, settings, console)
    pair = pair_sets(sets, request, settings)

    probe = keep_probe(
        "probe-words",
        request,
        lambda: choose_probe(model, request.words, settings, mesh, console),
        part,
    )
    neurons = union_neurons([pair.shared, *pair.bridges.values()])
    values = keep_values(
        "probe-values",
        neurons,
        lambda: read_probes(model, [probe], neurons, settings, mesh, console)[0],
        part,
    )
    selection = score_selections([(probe, values, pair)], settings, mesh, console)[0]
    return selection, sets, dict(counts)


@dataclass(frozen=True)
class SelectResult:
    """What the command line prints."""

    report: Report
    out: AnyPath

    def to_json(self) -> dict[str, Any]:
        return choice_of(self.report) | {"run": str(self.out)}

    def text(self) -> str:
        pair = self.report.pairs[0]
        lines = ["bridge    score  [95 % interval]     P(best)      p  layers"]
        for row in pair.ranking:
            score = row.score
            lines.append(
                f"{row.bridge:<6} {score.value:8.4f}  [{score.low:.4f}, {score.high:.4f}]"
                f"   {row.p_best:8.3f}  {row.p_value:.3f}  {row.layers:>3}"
                + ("" if row.comparable else "  not comparable")
            )
        return "\n".join([*lines, choice_sentence(pair), f"Report: {self.out / 'report.html'}"])


def select_inputs(
    model: Model, request: Request, counts: Mapping[str, LanguageCounts] | None
) -> dict[str, Any]:
    """What a run of one pair is made from, beside its settings: hashes for its identity."""
    assert model.source is not None
    return {
        "model": model.source.hash,
        "dtype": str(jax.tree.leaves(model.params)[0].dtype),
        "pair": [request.source, request.target],
        "bridges": list(request.bridges),
        "dictionary": request.words.sha256,
        "corpora": {c: corpus.sha256 for c, corpus in (request.corpora or {}).items()},
        "counts": {c: item.digest for c, item in (counts or {}).items()},
        **added_language_names(),
    }


def run_select(
    model: Model,
    request: Request,
    settings: SelectSettings,
    out: AnyPath,
    console: Console,
    *,
    open_run: OpenRun = create_run,
    part: Part | None = None,
) -> SelectResult:
    """Chooses into a run directory of kind `select`; a killed run continues.

    open_run: `create_run` with what a sweep sets; part: keeps finished stages (default: the run
    does).
    """
    assert model.source is not None
    check_parallel(request, settings)
    counts = None
    if request.counts is not None:
        counts = load_counts(
            request.counts, model_sha256=model.source.hash, languages=request.languages
        )
    inputs = select_inputs(model, request, counts)
    opened = open_run(
        out, kind="select", settings=asdict(settings), inputs=inputs, peers=cluster.peers()
    )
    with opened as run:
        if run.notice:
            console.say(run.notice)
        if run.complete:
            return SelectResult(read_report(run.directory, read_manifest(run.directory)), out)
        console.say(estimate_select(model, request, settings, counts))
        with run.stage("select"):
            selection, sets, counts = select_bridge(
                model, request, settings, counts=counts, console=console, part=part or run.part
            )
        report = _publish(run, model, request, selection, sets, counts, settings, console)
    return SelectResult(report, out)


def check_parallel(request: Request, settings: SelectSettings) -> None:
    """Raises InputError where `parallel` is asked for without text that can be parallel."""
    if settings.parallel is None:
        return
    if request.corpora is None or any(c.file == CLDR for c in request.corpora.values()):
        raise InputError("--parallel needs corpora of files", remedy="give --corpus CODE=FILE …")


def _lost(selection: Selection) -> float | None:
    """The largest share of a kernel that the permutation test's low rank leaves out."""
    return None if selection.permutation is None else selection.permutation.lost


def score_name(settings: SpectrumSettings) -> str:
    """How figures and tables call the score."""
    resolved = settings.resolved()
    return f"{resolved.estimator}{', size-matched' if resolved.size_matching else ''}"


def _publish(
    run: RunDirectory,
    model: Model,
    request: Request,
    selection: Selection,
    sets: LanguageSets,
    counts: Mapping[str, LanguageCounts],
    settings: SelectSettings,
    console: Console,
) -> Report:
    run.record(
        model=model_facts(model),
        devices=runtime.describe_devices(model.mesh),
        implementation=selection.spectrum.notes | {"lost_by_permutation": _lost(selection)},
        data={
            "dictionary": dictionary_facts(request.words),
            "corpora": {code: item.corpus for code, item in counts.items()},
        },
        notes={"warnings": console.warnings},
    )
    spectrum = selection.spectrum
    stored = PairSpectrum(
        request.source,
        request.target,
        spectrum.bridges,
        spectrum.score,
        spectrum.n_shared,
        spectrum.n_bridge,
    )
    stability = dict(zip(sets.languages, sets.stability, strict=True))
    report = Report(
        pairs=(pair_report(selection, stored, request.words),),
        manifest=run.facts(),
        overlap=sets.overlap(),
        corpora=tuple(corpus_source(counts[c], stability[c]) for c in sets.languages),
        dictionaries=(dictionary_source(request.words),),
        warnings=tuple(console.warnings),
        score_name=score_name(settings.spectrum),
    )
    scores = neuron_choosers(sets, selection)
    if request.corpora is not None:
        scores |= text_choosers(
            model,
            {code: request.corpora[code] for code in request.languages},
            request.source,
            request.target,
            request.bridges,
            parallel=settings.parallel,
            batch_size=settings.batch_size,
            mesh=model.mesh,
            part=run.part,
        )
    pairs = {(request.source, request.target): scores}
    run.write_json(CHOOSERS, choosers_of(pairs))
    publish(run, report)
    return report
