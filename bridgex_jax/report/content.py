"""What a report says, as plain values, and its way to and from the files of a run directory.

`choice.json` holds everything about the choice that is not in the Parquet tables, `evaluation.json`
the accuracies; with the tables and the manifest they give the report again (`read_report`). A score
that does not exist is NaN here and null in the files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from bridgex_jax.store.files import plain, read_json
from bridgex_jax.store.paths import AnyPath, as_path, files_below
from bridgex_jax.store.tables import (
    OverlapMatrix,
    PairSpectrum,
    read_choice,
    read_overlap,
    read_spectrum,
)

NAN = float("nan")


class Bounds(Protocol):
    """A number with its 95 % interval: `Interval` here, `Estimate` in icl/verdict.py."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % bootstrap interval."""

    value: float
    low: float = NAN
    high: float = NAN

    @classmethod
    def of(cls, bounds: Bounds) -> Interval:
        """The same number of another module."""
        return cls(bounds.value, bounds.low, bounds.high)


@dataclass(frozen=True)
class BridgeRank:
    """One candidate of a pair: mean score over the compared layers and how sure it is.

    p_best: share of bootstrap resamples in which it has the highest mean. p_value: permutation test
    against the maximum over bridges. layers: layers of the window in which it is present.
    neurons: |Y_b| over the compared layers. comparable: present in at least half of the window.
    """

    bridge: str
    score: Interval
    p_best: float = NAN
    p_value: float = NAN
    layers: int = 0
    neurons: int = 0
    comparable: bool = True


@dataclass(frozen=True)
class WordSample:
    """Some of the probe words with their translations, for the eye."""

    source: str
    target: str


@dataclass(frozen=True)
class PairReport:
    """The choice for one pair.

    bridge: the chosen one, None when no candidate is comparable. tied_with: bridges from which the
    data cannot tell it apart. window: layers of the window; compared: those in which all bridges
    are present.
    ranking: best first, those that are not comparable last. words: counts from the dictionary to
    the probe, in the order in which they fell. probe_words: those of the probe. resamples,
    permutations: how many were drawn.
    """

    source: str
    target: str
    bridge: str | None
    ranking: tuple[BridgeRank, ...]
    window: tuple[int, ...]
    compared: tuple[int, ...]
    runner_up: str | None = None
    margin: float = NAN
    tied_with: tuple[str, ...] = ()
    resamples: int = 0
    permutations: int = 0
    n_words: int = 0
    words: Mapping[str, int] = field(default_factory=dict)
    examples: tuple[WordSample, ...] = ()
    probe_words: tuple[str, ...] = ()
    spectrum: PairSpectrum | None = None

    @property
    def chosen(self) -> BridgeRank | None:
        """The ranking's row of the chosen bridge."""
        return next((row for row in self.ranking if row.bridge == self.bridge), None)


@dataclass(frozen=True)
class Source:
    """A text that went in: a corpus (one language) or a dictionary (two).

    size: lines or word pairs. tokens, stability (split-half Jaccard of T_k): corpora only.
    notes: what the reader found and mended (duplicates, CRLF, not NFC, …) with counts.
    """

    languages: tuple[str, ...]
    name: str
    size: int
    tokens: int | None = None
    stability: float = NAN
    notes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of one way of translating, pooled over directions.

    kind: "baseline" (zero-shot), "bridge" (one fixed bridge), "chooser" (a rule that picks one for
    each direction), "chosen" (ours) or "oracle".
    """

    name: str
    kind: str
    accuracy: Interval


@dataclass(frozen=True)
class Direction:
    """Accuracy in one direction, zero-shot and through every bridge; `chosen`: the one we took."""

    source: str
    target: str
    n_words: int
    zero_shot: float
    bridges: Mapping[str, float]
    chosen: str | None

    @property
    def best(self) -> str | None:
        """The oracle's bridge: the first of the most accurate."""
        return max(self.bridges, key=lambda b: self.bridges[b]) if self.bridges else None


@dataclass(frozen=True)
class Evaluation:
    """How well the chosen bridges translate.

    gain: chosen − random (the mean over bridges), regret: oracle − chosen, both paired, as shares
    of 1.
    rank_correlation: of score and accuracy over bridges, averaged over directions. sentence: what
    the tests say of the judged chooser; "" without one. log_probability: of right answers, mean in
    nats, by condition.
    """

    task: str
    n_words: int
    pooled: tuple[Accuracy, ...]
    directions: tuple[Direction, ...]
    gain: Interval
    regret: Interval
    rank_correlation: Interval | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    sentence: str = ""
    log_probability: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """All of `report.html`. manifest: as `RunDirectory.facts()` or `read_manifest` give it."""

    pairs: tuple[PairReport, ...]
    manifest: Mapping[str, Any]
    overlap: OverlapMatrix | None = None
    corpora: tuple[Source, ...] = ()
    dictionaries: tuple[Source, ...] = ()
    warnings: tuple[str, ...] = ()
    evaluation: Evaluation | None = None
    score_name: str = "score"


def choice_of(report: Report) -> dict[str, Any]:
    """What `choice.json` holds: the report without tables, accuracies and manifest."""
    return plain(
        {
            "pairs": [replace(pair, spectrum=None) for pair in report.pairs],
            "corpora": report.corpora,
            "dictionaries": report.dictionaries,
            "warnings": report.warnings,
            "score_name": report.score_name,
        }
    )


def evaluation_of(report: Report) -> dict[str, Any] | None:
    """What `evaluation.json` holds; None without an evaluation."""
    return None if report.evaluation is None else plain(report.evaluation)


def read_report(directory: str | AnyPath, manifest: Mapping[str, Any]) -> Report:
    """The report of a run from its files; InputError names one that is missing or damaged."""
    directory = as_path(directory)
    there = files_below(directory) or {}
    choice = read_choice(directory / "choice.json")
    spectra = {(s.source, s.target): s for s in read_spectrum(directory / "spectrum.parquet")}
    return Report(
        pairs=tuple(
            _pair(item, spectra.get((item["source"], item["target"]))) for item in choice["pairs"]
        ),
        manifest=manifest,
        overlap=(
            read_overlap(directory / "overlap.parquet") if "overlap.parquet" in there else None
        ),
        corpora=tuple(_source(item) for item in choice["corpora"]),
        dictionaries=tuple(_source(item) for item in choice["dictionaries"]),
        warnings=tuple(choice["warnings"]),
        evaluation=read_evaluation(directory) if "evaluation.json" in there else None,
        score_name=choice["score_name"],
    )


def read_evaluation(directory: str | AnyPath) -> Evaluation:
    """`evaluation.json` of a run; InputError when it is missing or damaged."""
    return _evaluation(read_json(as_path(directory) / "evaluation.json"))


def _number(value: float | None) -> float:
    return NAN if value is None else float(value)


def _interval(item: Mapping[str, Any]) -> Interval:
    return Interval(*(_number(item[key]) for key in ("value", "low", "high")))


def _pair(item: Mapping[str, Any], spectrum: PairSpectrum | None) -> PairReport:
    ranking = tuple(
        BridgeRank(
            **row
            | {
                "score": _interval(row["score"]),
                "p_best": _number(row["p_best"]),
                "p_value": _number(row["p_value"]),
            }
        )
        for row in item["ranking"]
    )
    changed = {
        "ranking": ranking,
        "margin": _number(item["margin"]),
        "examples": tuple(WordSample(**word) for word in item["examples"]),
        "spectrum": spectrum,
    }
    return PairReport(
        **{**item, **_tuples(item, ("window", "compared", "tied_with", "probe_words")), **changed}
    )


def _source(item: Mapping[str, Any]) -> Source:
    changed = {"languages": tuple(item["languages"]), "stability": _number(item["stability"])}
    return Source(**{**item, **changed})


def _evaluation(item: Mapping[str, Any]) -> Evaluation:
    correlation = item["rank_correlation"]
    changed = {
        "pooled": tuple(
            Accuracy(row["name"], row["kind"], _interval(row["accuracy"])) for row in item["pooled"]
        ),
        "directions": tuple(
            Direction(**row | {"zero_shot": _number(row["zero_shot"])})
            for row in item["directions"]
        ),
        "gain": _interval(item["gain"]),
        "regret": _interval(item["regret"]),
        "rank_correlation": None if correlation is None else _interval(correlation),
    }
    return Evaluation(**{**item, **changed})


def _tuples(item: Mapping[str, Any], names: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    return {name: tuple(item[name]) for name in names}


def is_number(value: float | None) -> bool:
    """Whether a value exists: neither None nor NaN."""
    return value is not None and math.isfinite(value)
