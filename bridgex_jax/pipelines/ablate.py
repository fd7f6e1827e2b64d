"""`bridgex ablate`: how sensitive the choice of a bridge is, one setting at a time.

From a base point, the settings of `bridgex select`, every variation changes a single setting. Work
is shared: text is counted once, every token scope probed once for all words and neurons that any
variation needs, HSIC repeated only where sets, words or its own settings differ, and layer windows
read stored spectra. Axes: L layer, F neuron, G bridge, N words (axes.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, get_args

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from bridgex_jax import cluster, runtime
from bridgex_jax.bridge.choice import BridgeChoice, checked_window, choose_bridge
from bridgex_jax.bridge.sets import LENGTH_CONTROLS
from bridgex_jax.bridge.significance import bootstrap
from bridgex_jax.bridge.spectrum import (
    ProbedPair,
    ProbeValues,
    Spectrum,
    SpectrumSettings,
    score_pairs,
)
from bridgex_jax.data.batching import Scope
from bridgex_jax.errors import InputError
from bridgex_jax.icl.verdict import ranked_pairs
from bridgex_jax.models.load import Model
from bridgex_jax.neurons.sets import BridgeSet, PairSets
from bridgex_jax.pipelines.console import Console
from bridgex_jax.pipelines.count import Arrays, Part, count_languages
from bridgex_jax.pipelines.inputs import dictionary_facts, model_facts
from bridgex_jax.pipelines.select import (
    FEWEST_CORRECT_WORDS,
    FEWEST_WORDS,
    Probe,
    Request,
    SelectSettings,
    choose_probe,
    keep_probe,
    keep_values,
    make_sets,
    pair_sets,
    read_probes,
    select_inputs,
    union_neurons,
)
from bridgex_jax.report.ablation_figure import (
    Ablation,
    AblationRow,
    ablation_figure,
    ablation_json,
    ablation_sentence,
    ablation_table,
    read_ablation,
    write_ablation,
)
from bridgex_jax.report.drawing import to_svg
from bridgex_jax.store.counts import LanguageCounts, load_counts
from bridgex_jax.store.paths import AnyPath
from bridgex_jax.store.runs import create_run

TABLE, FIGURE = "ablation.parquet", "ablation.svg"
SEEDS = 5
# Of standardised activations, whose median distance is about 1.
FIXED_BANDWIDTHS = (0.5, 1.0, 2.0)
TOP_RATE_MULTIPLES = (0.5, 1, 2, 5)
WORD_SHARES = ((8, "1/8"), (4, "1/4"), (2, "1/2"))


@dataclass(frozen=True)
class BasePoint:
    """What is varied: the settings, and how many probe words and layers there are."""

    settings: SelectSettings
    n_words: int
    n_layers: int


@dataclass(frozen=True)
class Variation:
    """The base point with one setting at a value; `note` says why it cannot be run."""

    setting: str
    value: str
    settings: SelectSettings
    is_base: bool = False
    note: str = ""


# Values of every setting -------------------------------------------------------------------------

Value = tuple[str, SelectSettings]


def _plain(field: str, values: Sequence[Any]) -> Callable[[BasePoint], Iterator[Value]]:
    """Values of a field of SelectSettings."""

    def values_of(base: BasePoint) -> Iterator[Value]:
        for value in values:
            yield str(value), replace(base.settings, **{field: value})

    return values_of


def _of_spectrum(field: str, values: Mapping[str, Any]) -> Callable[[BasePoint], Iterator[Value]]:
    """Labelled values of a field of SpectrumSettings."""

    def values_of(base: BasePoint) -> Iterator[Value]:
        for label, value in values.items():
            spectrum = replace(base.settings.spectrum, **{field: value})
            yield label, replace(base.settings, spectrum=spectrum)

    return values_of


def _estimators(base: BasePoint) -> Iterator[Value]:
    """The five estimators, and the two published forms, which decide other settings as well."""
    for name in ("cka_debiased", "cka", "unbiased", "biased", "trace_khl"):
        spectrum = replace(base.settings.spectrum, estimator=name, compat=None)
        yield name, replace(base.settings, spectrum=spectrum)
    for compat in ("paper", "reference"):
        spectrum = SpectrumSettings(
            compat=compat, implementation=base.settings.spectrum.implementation
        )
        yield f"compat {compat}", replace(base.settings, spectrum=spectrum)


def _top_rates(base: BasePoint) -> Iterator[Value]:
    for multiple in TOP_RATE_MULTIPLES:
        rate = base.settings.top_rate * multiple
        yield f"{multiple:g}× ({rate:.4g})", replace(base.settings, top_rate=rate)


def _layers(base: BasePoint) -> Iterator[Value]:
    """The default window and the thirds; a window of the user's own is the base beside them."""
    n, third = base.n_layers, max(1, round(base.n_layers / 3))
    windows = {
        "middle": None,
        "first third": (0, third - 1),
        "last third": (n - third, n - 1),
        "all": (0, n - 1),
    }
    for label, ends in windows.items():
        layers = _window(replace(base.settings, layers=ends), n)
        name = f"{label} ({layers[0]}–{layers[-1]})"
        same = layers == _window(base.settings, n)
        yield name, base.settings if same else replace(base.settings, layers=ends)


def _words(base: BasePoint) -> Iterator[Value]:
    for parts, share in WORD_SHARES:
        n = round(base.n_words / parts)
        yield f"{share} ({n})", replace(base.settings, words=n)
    yield f"all ({base.n_words})", base.settings


def _seeds(base: BasePoint) -> Iterator[Value]:
    for seed in range(base.settings.seed, base.settings.seed + SEEDS):
        yield str(seed), replace(base.settings, seed=seed)


_BANDWIDTHS = {name: name for name in ("variable_median", "set_median")} | {
    f"fixed {value:g}": value for value in FIXED_BANDWIDTHS
}
SETTINGS: dict[str, Callable[[BasePoint], Iterator[Value]]] = {
    "token_scope": _plain("token_scope", get_args(Scope)),
    "bridge_set": _plain("bridge_set", get_args(BridgeSet)),
    "estimator": _estimators,
    "bandwidth": _of_spectrum("bandwidth", _BANDWIDTHS),
    "top_rate": _top_rates,
    "probe_filter": _plain("probe_filter", ("none", "correct")),
    "layers": _layers,
    "words": _words,
    "size_matching": _of_spectrum("size_matching", {"on": True, "off": False}),
    "length_control": _of_spectrum("length_control", {name: name for name in LENGTH_CONTROLS}),
    "seed": _seeds,
}
# What `compat` decides.
_FIXED_BY_COMPAT = ("bandwidth", "size_matching", "length_control")


def checked_vary(names: Sequence[str]) -> tuple[str, ...]:
    """The settings to vary, in their order; all where none is named. InputError for others."""
    if unknown := [name for name in names if name not in SETTINGS]:
        raise InputError(
            f"--vary {unknown[0]!r} is no setting", remedy=f"choose from {', '.join(SETTINGS)}"
        )
    return tuple(name for name in SETTINGS if not names or name in names)


def variations(base: BasePoint, vary: Sequence[str]) -> list[Variation]:
    """All variations, the base's own value among those of every setting."""
    found = []
    compat = base.settings.spectrum.compat
    for setting in vary:
        if compat and setting in _FIXED_BY_COMPAT:
            note = f"compat {compat} decides it"
            found.append(Variation(setting, "as given", base.settings, True, note))
            continue
        values = list(SETTINGS[setting](base))
        if base.settings not in [settings for _, settings in values]:
            values.insert(0, ("as given", base.settings))
        for value, settings in values:
            is_base = settings == base.settings
            note = "" if is_base else _refusal(setting, settings)
            found.append(Variation(setting, value, settings, is_base, note))
    return found


def _refusal(setting: str, settings: SelectSettings) -> str:
    """Why a variation cannot be run, as far as its settings say; else nothing."""
    few = settings.words < FEWEST_CORRECT_WORDS
    if not settings.top_rate < 1:
        return "a rate must be under 1"
    if setting == "words" and settings.words < FEWEST_WORDS:
        return f"{settings.words} words, at least {FEWEST_WORDS} are needed"
    if settings.probe_filter == "correct" and setting == "probe_filter" and few:
        return f"{settings.words} words, at least {FEWEST_CORRECT_WORDS} are needed"
    return ""


def _window(settings: SelectSettings, n_layers: int) -> list[int]:
    given = settings.layers and range(settings.layers[0], settings.layers[1] + 1)
    return checked_window(list(given) if given else None, n_layers)


# What a spectrum is made from --------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """All that a spectrum depends on: variations of like sources share it."""

    token_scope: Scope
    words: tuple[str, ...]
    top_rate: float
    bridge_set: BridgeSet
    spectrum: SpectrumSettings


class Shared:
    """What variations have in common, made when it is first asked for; `part` keeps it."""

    def __init__(
        self,
        model: Model,
        request: Request,
        settings: SelectSettings,
        counts: Mapping[str, LanguageCounts],
        mesh: Mesh,
        console: Console,
        part: Part,
    ):
        self.model, self.request, self.settings = model, request, settings
        self.counts, self.mesh, self.console, self.part = counts, mesh, console, part
        self._probes: dict[tuple[str, int], Probe] = {}
        self._sets: dict[tuple[float, BridgeSet], PairSets] = {}

    def source(self, settings: SelectSettings) -> Source:
        """What these settings score. Raises InputError where that cannot be made."""
        words = self.words(settings)
        if settings.seed != self.settings.seed and set(words) == set(self.words(self.settings)):
            raise InputError(f"all {len(words)} words are used, whatever the seed")
        self._make_sets(settings)
        return Source(
            settings.token_scope,
            words,
            settings.top_rate,
            settings.bridge_set,
            settings.spectrum.resolved(),
        )

    def words(self, settings: SelectSettings) -> tuple[str, ...]:
        """The probe words of these settings. Raises InputError where there are too few."""
        key = (settings.probe_filter, settings.seed)
        if key not in self._probes:
            # As many as the base has; fewer are the first of them.
            all_words = replace(settings, words=self.settings.words)
            self._probes[key] = self._choose_probe(all_words)
        probe = self._probes[key]
        if not probe.words:
            raise InputError(next(iter(probe.steps)))
        return probe.words[: settings.words]

    def _choose_probe(self, settings: SelectSettings) -> Probe:
        words = self.request.words

        def find() -> Probe:
            try:
                return choose_probe(self.model, words, settings, self.mesh, self.console)
            except InputError as error:
                if settings == self.settings:
                    raise
                # Kept as the only step, so that a killed run does not ask the model again.
                return Probe(words.source, words.target, (), {error.what: 0})

        name = f"probe-words-{settings.probe_filter}-{settings.seed}"
        return keep_probe(name, self.request, find, self.part)

    def _make_sets(self, settings: SelectSettings) -> None:
        key = (settings.top_rate, settings.bridge_set)
        if key not in self._sets:
            # What is said of neuron sets, a user wants to hear of the base's alone.
            console = self.console if settings == self.settings else Console(quiet=True)
            made = make_sets(self.counts, settings, console)
            self._sets[key] = pair_sets(made, self.request, settings)

    def pairs(self, scope: Scope, sources: Sequence[Source]) -> dict[Source, ProbedPair]:
        """All these sources of one token scope, from one pass for all their words and neurons."""
        words = tuple(dict.fromkeys(word for source in sources for word in source.words))
        sets = [self._sets[source.top_rate, source.bridge_set] for source in sources]
        neurons = union_neurons([m for one in sets for m in (one.shared, *one.bridges.values())])
        settings = replace(self.settings, token_scope=scope)
        probe = Probe(self.request.source, self.request.target, words, {})

        def read() -> ProbeValues:
            return read_probes(self.model, [probe], neurons, settings, self.mesh, self.console)[0]

        values = keep_values(f"probe-values-{scope}", neurons, read, self.part)
        place = {word: at for at, word in enumerate(words)}
        return {
            source: _cut(values, np.array([place[word] for word in source.words]), one)
            for source, one in zip(sources, sets, strict=True)
        }


def _cut(values: ProbeValues, columns: Int[np.ndarray, " N"], sets: PairSets) -> ProbedPair:
    """The values of these words and of the neurons of these sets."""
    wanted = union_neurons([sets.shared, *sets.bridges.values()])
    rows = [np.searchsorted(held, mine) for held, mine in zip(values.neurons, wanted, strict=True)]
    own = [layer[np.ix_(row, columns)] for layer, row in zip(values.values, rows, strict=True)]
    return ProbedPair(ProbeValues(own, wanted, values.strata[columns]), sets.shared, sets.bridges)


# Scores and choices ------------------------------------------------------------------------------


def score_sources(
    shared: Shared, base: Source, others: Sequence[Source]
) -> tuple[dict[Source, Spectrum], dict[str, float]]:
    """The spectrum of every source, and the base's bootstrap P(best) by bridge.

    Sources of like HSIC settings are scored together, so that few shapes are compiled; the base
    alone, so that its bootstrap is not padded to their sizes.
    """
    settings, bridges = shared.settings, shared.request.bridges
    sources = [base, *others]
    pairs: dict[Source, ProbedPair] = {}
    for scope in dict.fromkeys(source.token_scope for source in sources):
        pairs |= shared.pairs(scope, [s for s in sources if s.token_scope == scope])
    n_layers = shared.model.config.n_layers
    with shared.console.progress("scoring", len(sources) * n_layers, "layers") as progress:

        def score_base() -> Arrays:
            scores = score_pairs([pairs[base]], base.spectrum, shared.mesh, progress=progress)[0]
            window = _window(settings, n_layers)
            sure = {}
            if choose_bridge(scores.spectrum, window, base.spectrum.compat).bridge is not None:
                sure = bootstrap(scores, window, n=settings.resamples, seed=settings.seed).p_best
            p_best = np.array([sure.get(bridge, np.nan) for bridge in bridges])
            return _as_arrays([scores.spectrum]) | {"p_best": p_best}

        def score_alike(some: Sequence[Source]) -> Arrays:
            found = score_pairs(
                [pairs[s] for s in some], some[0].spectrum, shared.mesh, progress=progress
            )
            return _as_arrays([scores.spectrum for scores in found])

        stored = shared.part("scores-base", score_base)
        p_best = dict(zip(bridges, stored["p_best"].tolist(), strict=True))
        spectra = {base: _spectrum(stored, 0, bridges)}
        for i, alike in enumerate(dict.fromkeys(source.spectrum for source in others)):
            some = [source for source in others if source.spectrum == alike]
            arrays = shared.part(f"scores-{i}", partial(score_alike, some))
            spectra |= {source: _spectrum(arrays, k, bridges) for k, source in enumerate(some)}
    return spectra, p_best


def _as_arrays(spectra: Sequence[Spectrum]) -> dict[str, np.ndarray]:
    arrays = {}
    for k, spectrum in enumerate(spectra):
        for name in ("score", "n_shared", "n_bridge", "matched"):
            arrays[f"{name}-{k}"] = getattr(spectrum, name)
        arrays[f"note_names-{k}"] = np.array(list(spectrum.notes), np.str_)
        arrays[f"note_counts-{k}"] = np.array(list(spectrum.notes.values()), np.int64)
    return arrays


def _spectrum(arrays: Arrays, k: int, bridges: tuple[str, ...]) -> Spectrum:
    names, counts = arrays[f"note_names-{k}"].tolist(), arrays[f"note_counts-{k}"].tolist()
    of = {name: arrays[f"{name}-{k}"] for name in ("score", "n_shared", "n_bridge", "matched")}
    return Spectrum(bridges, notes=dict(zip(names, counts, strict=True)), **of)


def ablate(
    model: Model,
    request: Request,
    settings: SelectSettings | None = None,
    vary: Sequence[str] = (),
    *,
    counts: Mapping[str, LanguageCounts] | None = None,
    mesh: Mesh | None = None,
    console: Console | None = None,
    part: Part = lambda name, compute: compute(),
) -> tuple[Ablation, Spectrum, dict[str, LanguageCounts]]:
    """Chooses the bridge of one pair at the base point and at every variation.

    Args:
      vary: names of `SETTINGS`; all where none is given.
      counts: of all languages of the request, where they were made before.
      part: keeps finished steps, see `RunDirectory.part`.

    Returns the rows, the base's spectrum, and the counts. Raises InputError where the base point
    gives no answer; a variation that gives none says why in its row.
    """
    settings, console = settings or SelectSettings(), console or Console(quiet=True)
    vary, mesh = checked_vary(vary), mesh or model.mesh
    n_layers = model.config.n_layers
    _window(settings, n_layers)
    if counts is None:
        if request.corpora is None:
            raise InputError("neither corpora nor counts are given")
        counts = count_languages(model, request.corpora, settings.count, mesh, console, part)
    shared = Shared(model, request, settings, counts, mesh, console, part)
    base = shared.source(settings)
    planned = variations(BasePoint(settings, len(base.words), n_layers), vary)
    sources: list[Source | None] = []
    for i, variation in enumerate(planned):
        source = None
        if variation.is_base or not variation.note:
            try:
                source = shared.source(variation.settings)
            except InputError as error:
                planned[i] = replace(variation, note=error.what)
        sources.append(source)
    others = [source for source in dict.fromkeys(sources) if source not in (None, base)]
    console.say(
        f"{sum(not v.is_base for v in planned)} variations of {len(vary)} settings: "
        f"{len({s.token_scope for s in (base, *others)})} passes of probing, "
        f"{len(others) + 1} spectra"
    )
    spectra, p_best = score_sources(shared, base, others)
    first = _choice(spectra[base], settings)
    if first.bridge is None:
        raise InputError(
            f"no bridge is comparable from {request.source} to {request.target} at the base point",
            remedy="raise --top-rate",
        )
    rows = [
        _row(variation, source, spectra, first, p_best)
        for variation, source in zip(planned, sources, strict=True)
    ]
    return Ablation(tuple(rows)), spectra[base], dict(counts)


def _choice(spectrum: Spectrum, settings: SelectSettings) -> BridgeChoice:
    window = _window(settings, spectrum.score.shape[1])
    return choose_bridge(spectrum, window, settings.spectrum.compat)


def _row(
    variation: Variation,
    source: Source | None,
    spectra: Mapping[Source, Spectrum],
    base: BridgeChoice,
    p_best: Mapping[str, float],
) -> AblationRow:
    """What became of a variation, beside the base's choice."""
    setting, value, is_base = variation.setting, variation.value, variation.is_base
    note = variation.note
    if source is None:
        return AblationRow(setting, value, is_base, note=note)
    spectrum = spectra[source]
    choice = _choice(spectrum, variation.settings)
    scores = {bridge: choice.means.get(bridge) for bridge in spectrum.bridges}
    if choice.bridge is None:
        note = "no bridge is comparable"
    return AblationRow(
        setting,
        value,
        is_base,
        bridge=choice.bridge,
        same_as_base=None if choice.bridge is None else choice.bridge == base.bridge,
        rank_correlation=_rank_correlation(choice.means, base.means),
        margin=None if math.isnan(choice.margin) else choice.margin,
        p_best=p_best[choice.bridge] if is_base and choice.bridge else None,
        n_words=len(source.words),
        coverage=choice.coverage[choice.bridge] if choice.bridge else None,
        note=note,
        scores=scores,
    )


def _rank_correlation(scores: Mapping[str, float], base: Mapping[str, float]) -> float | None:
    """Spearman's over the bridges that both have; None where there is no order to compare."""
    both = {bridge: score for bridge, score in scores.items() if bridge in base}
    found = ranked_pairs([both], [{bridge: np.array([base[bridge]]) for bridge in both}])
    return float(found[0][0] @ found[0][1]) if found else None


# The run -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AblateResult:
    """What the command line prints."""

    ablation: Ablation
    out: AnyPath

    def to_json(self) -> dict[str, Any]:
        return ablation_json(self.ablation) | {"run": str(self.out)}

    def text(self) -> str:
        lines = [ablation_table(self.ablation), ablation_sentence(self.ablation)]
        return "\n".join([*lines, f"Figure: {self.out / FIGURE}"])


def run_ablate(
    model: Model,
    request: Request,
    settings: SelectSettings,
    vary: Sequence[str],
    out: AnyPath,
    console: Console,
) -> AblateResult:
    """Varies the settings into a run directory of kind `ablate`; a killed run continues."""
    assert model.source is not None
    counts = None
    if request.counts is not None:
        counts = load_counts(
            request.counts, model_sha256=model.source.hash, languages=request.languages
        )
    vary = checked_vary(vary)
    opened = create_run(
        out,
        kind="ablate",
        settings=asdict(settings) | {"vary": list(vary)},
        inputs=select_inputs(model, request, counts),
        peers=cluster.peers(),
    )
    with opened as run:
        if run.notice:
            console.say(run.notice)
        if run.complete:
            return AblateResult(read_ablation(run.directory / TABLE), out)
        with run.stage("ablate"):
            ablation, spectrum, counts = ablate(
                model, request, settings, vary, counts=counts, console=console, part=run.part
            )
        run.record(
            model=model_facts(model),
            devices=runtime.describe_devices(model.mesh),
            implementation=spectrum.notes,
            seed=settings.seed,
            data={
                "dictionary": dictionary_facts(request.words),
                "corpora": {code: item.corpus for code, item in counts.items()},
            },
            notes={"warnings": console.warnings},
        )
        write_ablation(run.path(TABLE), ablation)
        run.write_text(FIGURE, to_svg(ablation_figure(ablation), ablation_sentence(ablation)))
    return AblateResult(ablation, out)
