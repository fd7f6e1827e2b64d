"""`bridgex verdict`: from runs of `bridgex evaluate` to what they say of every chooser, together.

One verdict for a task and a model, over all pairs: accuracies, gains with p-values, regret, rank
correlation of score and accuracy, win rates, and one plain sentence (icl/verdict.py,
icl/significance.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bridgex_jax.bridge.choosers import CHOOSERS
from bridgex_jax.errors import InputError
from bridgex_jax.icl.conditions import ZERO_SHOT
from bridgex_jax.icl.significance import (
    GainVerdict,
    judge_gain,
    judge_gains,
    mcnemar,
    pooled,
    rank_correlation_test,
    win_rates,
)
from bridgex_jax.icl.verdict import (
    RANDOM,
    Correct,
    judge,
    mean_rank_correlation,
    words_in_common,
)
from bridgex_jax.pipelines.choosers import ByChooser, picks, read_choosers
from bridgex_jax.pipelines.console import Console
from bridgex_jax.pipelines.evaluate import ANSWERS
from bridgex_jax.report import drawing, verdict_figures
from bridgex_jax.report.content import Direction, Interval
from bridgex_jax.report.verdict_content import ChooserRow, GainRow, VerdictReport
from bridgex_jax.report.verdict_html import render_verdict
from bridgex_jax.report.verdict_text import subject, verdict_sentence
from bridgex_jax.store.manifest import MANIFEST, read_manifest, verify_run
from bridgex_jax.store.paths import AnyPath, as_path, files_below, is_remote
from bridgex_jax.store.runs import create_run
from bridgex_jax.store.tables import Answer, read_answers

JUDGED = "hsic"
PERMUTATIONS = 10_000


@dataclass(frozen=True)
class PairResult:
    """One evaluated pair. correct, log_prob: [W] by condition; log_prob NaN without a prompt.

    correct: by the task's first metric, right or wrong, or F1.
    """

    source: str
    target: str
    correct: Correct
    log_prob: Correct | None
    scores: ByChooser

    @property
    def bridges(self) -> tuple[str, ...]:
        return tuple(name for name in self.correct if name != ZERO_SHOT)


@dataclass(frozen=True)
class EvaluatedRun:
    """A run of `bridgex evaluate`, and what tells it from others."""

    place: AnyPath
    task: str
    model: str
    identity: str
    pair: PairResult


def find_runs(places: Sequence[str]) -> list[EvaluatedRun]:
    """The evaluations at these places, or below them (a sweep), each verified.

    Raises InputError where there is none, and for a run that is damaged.
    """
    found: list[EvaluatedRun] = []
    for given in places:
        place = as_path(given)
        names = files_below(place) if is_remote(place) or place.is_dir() else None
        homes = sorted(n for n in names or () if n == MANIFEST or n.endswith(f"/{MANIFEST}"))
        runs = [r for home in homes if (r := _read_run(place / home)) is not None]
        if not runs:
            raise InputError(
                "holds no run of bridgex evaluate",
                file=place,
                remedy="give the --out of bridgex evaluate, or of a sweep that evaluates",
            )
        found += runs
    return sorted(found, key=lambda run: (run.pair.source, run.pair.target))


def _read_run(manifest_file: AnyPath) -> EvaluatedRun | None:
    place = manifest_file.parent
    if read_manifest(place)["kind"] != "evaluate":
        return None
    manifest = verify_run(place)
    source, target = manifest["inputs"]["pair"]
    answers = read_answers(place / ANSWERS)
    metric = manifest["inputs"]["task"]["metrics"][0]
    pair = _pair_result(
        source, target, metric, answers, read_choosers(place, manifest, source, target)
    )
    model = manifest["model"]
    title = str(model["id"]) + ("" if model["dtype"] == "float32" else f" ({model['dtype']})")
    return EvaluatedRun(
        place, manifest["inputs"]["task"]["name"], title, manifest["identity"], pair
    )


def _pair_result(
    source: str, target: str, metric: str, answers: Sequence[Answer], scores: ByChooser
) -> PairResult:
    by_condition: dict[str, list[Answer]] = {}
    for answer in answers:
        by_condition.setdefault(answer.condition, []).append(answer)
    correct = {
        name: np.array([a.f1 if metric == "f1" else a.correct for a in rows])
        for name, rows in by_condition.items()
    }
    values = {
        name: np.array([np.nan if (v := a.log_probability) is None else v for a in rows])
        for name, rows in by_condition.items()
    }
    known = all(np.isfinite(v).any() for v in values.values())
    return PairResult(source, target, correct, values if known else None, scores)


def compare(
    pairs: Sequence[PairResult],
    *,
    task: str,
    model: str,
    judged: str | None = None,
    resamples: int = 2000,
    seed: int = 0,
    runs: Sequence[str] = (),
) -> VerdictReport:
    """The verdict over these pairs.

    judged: the chooser that the sentence is about; None for HSIC where there is one, else the
    first. Choosers that cannot say in some pair are left out, and named in `dropped`.

    Raises InputError for a judged chooser that is not there.
    """
    chosen, dropped = _choosers(pairs)
    if judged is not None and judged not in chosen:
        raise InputError(
            f"--judge {judged}: no such chooser in all of these runs",
            remedy=f"there are {', '.join(chosen) or 'none'}",
        )
    first = judged or (JUDGED if JUDGED in chosen else next(iter(chosen), None))
    names = [n for n in (first,) if n] + [n for n in chosen if n != first]
    choosers = {name: chosen[name] for name in names}
    correct = [pair.correct for pair in pairs]
    bridges = list(dict.fromkeys(b for pair in pairs for b in pair.bridges))
    verdict = judge(correct, bridges, choosers, resamples=resamples, seed=seed)
    options: dict[str, Any] = {"resamples": resamples, "seed": seed}
    log_probs, lost = _log_probs(pairs)
    dropped += lost
    wins = win_rates(correct, choosers)
    rows = []
    for name in names:
        gains = judge_gains(correct, bridges, choosers, name, verdict, seed=seed)
        scores = [pair.scores.get(name, {}) for pair in pairs]
        ranked = rank_correlation_test(scores, correct, permutations=PERMUTATIONS, seed=seed)
        interval = mean_rank_correlation(scores, correct, **options)
        known = np.isfinite(ranked.correlation)
        probable = None
        if log_probs is not None:
            probable = _gain(judge_gain(log_probs, bridges, choosers, name, RANDOM, **options))
        rows.append(
            ChooserRow(
                name=name,
                what=CHOOSERS.get(name, ""),
                picks=tuple(choosers[name]),
                accuracy=Interval.of(verdict.rules[name]),
                gains=tuple(map(_gain, gains)),
                regret=Interval.of(verdict.regret[name]),
                regret_split=Interval.of(verdict.regret_split[name]),
                log_probability=probable,
                correlation=Interval.of(interval) if known else None,
                correlation_p=ranked.p,
                against_judged=None if name == first else _mcnemar(correct, choosers, first, name),
            )
        )
    sentence = verdict_sentence(
        rows[0].gains, subject=subject(rows[0].name)
    ) if rows else verdict_sentence([])  # fmt: skip
    return VerdictReport(
        task=task,
        model=model,
        n_words=sum(len(pair.correct[ZERO_SHOT]) for pair in pairs),
        directions=tuple(_direction(p, choosers[first][i] if first else None)
                         for i, p in enumerate(pairs)),
        rules={n: Interval.of(e) for n, e in verdict.rules.items() if n not in choosers},
        choosers=tuple(rows),
        win_share=tuple(tuple(map(float, row)) for row in wins.share),
        levels=verdict.levels,
        scores=tuple(pair.scores.get(first, {}) if first else {} for pair in pairs),
        dropped=tuple(dropped),
        sentence=sentence,
        runs=tuple(runs),
    )  # fmt: skip


def _choosers(pairs: Sequence[PairResult]) -> tuple[dict[str, list[str]], list[str]]:
    """Picks of the choosers that can say in every pair; the others, in words."""
    each = [picks(pair.scores) for pair in pairs]
    names = list(dict.fromkeys(name for one in each for name in one))
    found, dropped = {}, []
    for name in names:
        there = [one.get(name) for one in each]
        able = sum(pick in pair.correct for pick, pair in zip(there, pairs, strict=True))
        if able == len(pairs):
            found[name] = [str(pick) for pick in there]
        else:
            dropped.append(f"{name} takes a bridge in {able} of {len(pairs)} pairs")
    return found, dropped


def _log_probs(pairs: Sequence[PairResult]) -> tuple[list[Correct] | None, list[str]]:
    """Log-probabilities of the words that have one under every condition of their pair."""
    values = [pair.log_prob for pair in pairs]
    if any(one is None for one in values):
        return None, []
    whole = [one for one in values if one is not None]
    common = words_in_common(whole)
    n, left = (sum(len(one[ZERO_SHOT]) for one in some) for some in (whole, common))
    if any(not len(one[ZERO_SHOT]) for one in common):
        return None, ["log-probabilities: a pair has no word that every bridge translated"]
    if left < n:
        return common, [
            f"log-probabilities: {n - left} of {n} words that a bridge gave nothing for"
        ]
    return common, []


def _mcnemar(
    correct: Sequence[Correct], choosers: Mapping[str, Sequence[str]], first: str | None, name: str
) -> tuple[int, int, float] | None:
    if first is None:
        return None
    ours, theirs = (pooled(correct, choosers[which]) for which in (first, name))
    if ours.dtype != bool:  # shares, such as F1
        return None
    found = mcnemar(ours, theirs)
    return found.only_a, found.only_b, found.p


def _direction(pair: PairResult, chosen: str | None) -> Direction:
    means = {name: float(np.mean(values)) for name, values in pair.correct.items()}
    return Direction(
        pair.source,
        pair.target,
        len(pair.correct[ZERO_SHOT]),
        means.pop(ZERO_SHOT),
        means,
        chosen,
    )


def _gain(found: GainVerdict) -> GainRow:
    return GainRow(
        found.baseline,
        Interval.of(found.gain),
        found.p,
        found.n_pairs,
        found.n_words,
        found.is_real,
        found.unit,
    )


# The run ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VerdictSettings:
    """judge: the chooser that the sentence is about."""

    judge: str | None = None
    task: str | None = None
    model: str | None = None
    resamples: int = 2000
    seed: int = 0


@dataclass(frozen=True)
class VerdictResult:
    """What the command line prints."""

    verdict: VerdictReport
    out: AnyPath

    def to_json(self) -> dict[str, Any]:
        return asdict(self.verdict) | {"run": str(self.out)}

    def text(self) -> str:
        return "\n".join([*verdict_lines(self.verdict), f"Report: {self.out / 'report.html'}"])


def verdict_lines(verdict: VerdictReport) -> list[str]:
    """The table for the terminal, and the sentence."""
    pairs = "1 pair" if len(verdict.directions) == 1 else f"{len(verdict.directions)} pairs"
    width = max(len(name) for name in (*verdict.rules, *(row.name for row in verdict.choosers)))
    head = "accuracy  [95 % interval]   − random  [95 % interval]        p   − oracle"
    lines = [
        f"{verdict.task}, {verdict.model}: {pairs}, {verdict.n_words:,} questions",
        f"  {'':<{width}} {head}",
    ]
    for name, a in verdict.rules.items():
        lines.append(f"  {name:<{width}} {a.value:8.1%}  [{a.low:.1%}, {a.high:.1%}]")
    for row in verdict.choosers:
        a, gain = row.accuracy, next(g for g in row.gains if g.baseline == RANDOM)
        g = gain.gain
        lines.append(
            f"  {row.name:<{width}} {a.value:8.1%}  [{a.low:.1%}, {a.high:.1%}]  {g.value:+8.1%}"
            f"  [{g.low:+.1%}, {g.high:+.1%}]  {gain.p:6.3f}  {-row.regret.value:+8.1%}"
        )
    lines += [f"  left out: {text}" for text in verdict.dropped]
    return [*lines, verdict.sentence]


def run_verdict(
    runs: Sequence[EvaluatedRun], settings: VerdictSettings, out: AnyPath, console: Console
) -> VerdictResult:
    """Compares evaluations of one task and one model into a run directory of kind `verdict`.

    Raises InputError where they are of several tasks or models, or twice of one pair.
    """
    runs = [
        run
        for run in runs
        if settings.task in (None, run.task) and settings.model in (None, run.model)
    ]
    for what, option in (("task", "--task"), ("model", "--model")):
        kinds = list(dict.fromkeys(getattr(run, what) for run in runs))
        if len(kinds) != 1:
            raise InputError(
                f"evaluations of {len(kinds)} {what}s: {', '.join(kinds) or 'none is left'}",
                remedy=f"choose one with {option}",
            )
    pairs: dict[tuple[str, str], EvaluatedRun] = {}
    for run in runs:
        key = run.pair.source, run.pair.target
        if key in pairs:
            raise InputError(
                f"evaluates {key[0]}-{key[1]}, and so does {pairs[key].place}",
                file=run.place,
                remedy="give one of them",
            )
        pairs[key] = run
    opened = create_run(
        out,
        kind="verdict",
        settings=asdict(settings),
        inputs={"runs": sorted(run.identity for run in runs)},
    )
    with opened as run_directory:
        if run_directory.notice:
            console.say(run_directory.notice)
        verdict = compare(
            [run.pair for run in runs],
            task=runs[0].task,
            model=runs[0].model,
            judged=settings.judge,
            resamples=settings.resamples,
            seed=settings.seed,
            runs=[str(run.place) for run in runs],
        )
        if run_directory.complete:
            return VerdictResult(verdict, out)
        run_directory.record(
            data={f"{s}-{t}": str(run.place) for (s, t), run in pairs.items()},
            notes={"warnings": console.warnings, "left_out": list(verdict.dropped)},
        )
        svgs = draw(verdict)
        run_directory.write_json("verdict.json", asdict(verdict))
        for name, svg in svgs.items():
            run_directory.write_text(name, svg)
        page = render_verdict(verdict, svgs, run_directory.facts())
        run_directory.write_text("report.html", page)
    return VerdictResult(verdict, out)


def draw(verdict: VerdictReport) -> dict[str, str]:
    """The figures as SVG by file name."""
    drawn = {
        "pairs.svg": drawing.to_svg(
            verdict_figures.pair_by_bridge(verdict.directions), "Accuracy by pair and bridge"
        )
    }
    if not verdict.choosers:
        return drawn
    first = verdict.choosers[0]
    regrets = {row.name: row.regret for row in verdict.choosers}
    drawn["regret.svg"] = drawing.to_svg(
        verdict_figures.regret_by_chooser(regrets, first.name, n_words=verdict.n_words),
        "Regret of every chooser",
    )
    if first.correlation is not None:
        figure = verdict_figures.score_against_accuracy(
            verdict.directions, verdict.scores, first.correlation, first.correlation_p
        )
        drawn["score.svg"] = drawing.to_svg(figure, "Score against accuracy")
    return drawn
