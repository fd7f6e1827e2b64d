"""Tests of what verdict.py estimates: is a gain real, does the score predict accuracy, who wins.

All p-values are two-sided but that of the rank correlation, and none is corrected for looking at
several choosers or baselines: name the judged chooser beforehand. Axes: W words of a pair, G
bridges, C choosers, n units.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from bridgex_jax.icl.conditions import ZERO_SHOT
from bridgex_jax.icl.verdict import (
    ENGLISH,
    RANDOM,
    Correct,
    Estimate,
    Levels,
    Rule,
    Verdict,
    check,
    gain_estimate,
    random_rule,
    ranked_pairs,
)

SIGNIFICANCE = 0.05
PAIRS_FOR_A_TEST = 6  # the smallest two-sided p of n flipped signs is 2/2ⁿ: .0625 at 5, .031 at 6
_EXACT_SIGNS = 14  # so many are enumerated: 16,384 rows
_EXACT_ORDERS = 5040  # 7!
_AT_ONCE = 1000
_TIE = 1e-12


@dataclass(frozen=True)
class GainVerdict:
    """How much a chooser gains over a baseline, and whether that is more than chance.

    gain: chooser − baseline with its interval, over n_pairs pairs and n_words words.
    p: two-sided, by flipping signs of whole pairs where there are 6, else of single words
      (`unit`), and then it says nothing of other pairs.
    is_real: p < .05 and the interval leaves out 0, in whichever direction.
    """

    name: str
    baseline: str
    gain: Estimate
    p: float
    n_pairs: int
    n_words: int
    is_real: bool
    unit: Literal["pairs", "words"]

    @property
    def helps(self) -> bool:
        """Whether the gain is real and not a loss."""
        return self.is_real and self.gain.value > 0


@dataclass(frozen=True)
class RankTest:
    """Mean Spearman correlation over n_pairs pairs and its one-sided p; NaN without a pair.

    n: permutations that were drawn, or all there are (`exact`).
    """

    correlation: float
    p: float
    n_pairs: int
    n: int
    exact: bool


@dataclass(frozen=True)
class WinRates:
    """Choosers against each other over n_pairs pairs; row beats column.

    share: pairs in which the row's pick is more accurate, ties counting half. wins, ties: counts.
    p: sign test, ties left out; 1 on the diagonal.
    """

    names: tuple[str, ...]
    share: Float[np.ndarray, "C C"]
    wins: Int[np.ndarray, "C C"]
    ties: Int[np.ndarray, "C C"]
    p: Float[np.ndarray, "C C"]
    n_pairs: int


@dataclass(frozen=True)
class McNemar:
    """Words that only a gets right, that only b gets right, and the exact two-sided p."""

    only_a: int
    only_b: int
    p: float


def judge_gain(
    correct: Sequence[Correct],
    bridges: Sequence[str],
    choosers: Mapping[str, Sequence[str]],
    name: str,
    baseline: str,
    *,
    gain: Estimate | None = None,
    levels: Levels | None = None,
    resamples: int = 2000,
    permutations: int = 10_000,
    seed: int = 0,
) -> GainVerdict:
    """Whether chooser `name` gains over ZERO_SHOT, "random", a bridge or another chooser.

    Pairs that lack the baseline's bridge are left out. The interval is that of `judge` with the
    same seed; the test flips the signs of the pairs' summed differences, so that a word counts
    once in both; `gain` is that interval where `judge` has made it. Against "random"
    the differences of a chooser without skill have mean 0, but are symmetric only as far as the
    accuracies of the bridges are.

    Raises ValueError as `judge` does, and for a baseline that no pair has; KeyError for a name
    that is no chooser.
    """
    check(correct, bridges, choosers)
    rule: Rule = [(pick,) for pick in choosers[name]]
    against = _baseline_rule(correct, bridges, choosers, baseline)
    kept = [i for i, conditions in enumerate(against) if all(c in correct[i] for c in conditions)]
    if not kept:
        raise ValueError(f"no pair has {baseline}, so it cannot be a baseline")
    correct = [correct[i] for i in kept]
    rule, against = [rule[i] for i in kept], [against[i] for i in kept]
    gain = gain or gain_estimate(
        correct, rule, against, levels=levels, resamples=resamples, seed=seed
    )
    differences = [
        _word_scores(one, mine) - _word_scores(one, other)
        for one, mine, other in zip(correct, rule, against, strict=True)
    ]
    unit: Literal["pairs", "words"] = "pairs" if len(kept) >= PAIRS_FOR_A_TEST else "words"
    units = (
        np.array([values.sum() for values in differences])
        if unit == "pairs"
        else np.concatenate(differences)
    )
    p = sign_flip_test(units, permutations=permutations, seed=seed)
    return GainVerdict(
        name=name,
        baseline=baseline,
        gain=gain,
        p=p,
        n_pairs=len(kept),
        n_words=sum(map(len, differences)),
        is_real=p < SIGNIFICANCE and not gain.low <= 0 <= gain.high,
        unit=unit,
    )


def judge_gains(
    correct: Sequence[Correct],
    bridges: Sequence[str],
    choosers: Mapping[str, Sequence[str]],
    name: str,
    verdict: Verdict,
    *,
    permutations: int = 10_000,
    seed: int = 0,
) -> list[GainVerdict]:
    """`judge_gain` over random, over zero-shot and, where English is a bridge, over English.

    verdict: of `judge` on the same pairs, which has the intervals.
    """
    return [
        judge_gain(
            correct,
            bridges,
            choosers,
            name,
            baseline,
            gain=verdict.gains[baseline][name],
            permutations=permutations,
            seed=seed,
        )
        for baseline in (RANDOM, ZERO_SHOT, ENGLISH)
        if baseline in verdict.gains
    ]


def _baseline_rule(
    correct: Sequence[Correct],
    bridges: Sequence[str],
    choosers: Mapping[str, Sequence[str]],
    baseline: str,
) -> Rule:
    if baseline in choosers:
        return [(pick,) for pick in choosers[baseline]]
    return random_rule(correct, bridges) if baseline == RANDOM else [(baseline,)] * len(correct)


def _word_scores(one: Correct, conditions: Sequence[str]) -> Float[np.ndarray, " W"]:
    return np.mean([np.float64(one[condition]) for condition in conditions], axis=0)


def sign_flip_test(
    differences: Float[np.ndarray, " n"], *, permutations: int = 10_000, seed: int = 0
) -> float:
    """Two-sided p of a sum of differences that are symmetric about 0 under the null (Fisher).

    All sign patterns of up to 14 differences that are not 0, else (1 + #{≥}) / (1 + permutations)
    of random ones. 1 where all differences are 0.
    """
    values = np.asarray(differences, np.float64)
    scale = np.abs(values).max(initial=0.0)
    values = values[np.abs(values) > _TIE * scale]
    n = len(values)
    if n == 0:
        return 1.0
    observed = abs(values.sum()) - _TIE * n * scale  # sums in another order round otherwise
    if n <= _EXACT_SIGNS:
        signs = 1 - 2 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
        return float((np.abs(signs @ values) >= observed).mean())
    rng = np.random.default_rng(seed)
    reached = 0
    for start in range(0, permutations, _AT_ONCE):
        rows = min(_AT_ONCE, permutations - start)
        signs = 1 - 2 * rng.integers(0, 2, size=(rows, n), dtype=np.int8)
        reached += int((np.abs(signs @ values) >= observed).sum())
    return (1 + reached) / (1 + permutations)


def rank_correlation_test(
    scores: Sequence[Mapping[str, float]],
    correct: Sequence[Correct],
    *,
    permutations: int = 10_000,
    seed: int = 0,
) -> RankTest:
    """Whether bridges with a higher score are more accurate, by permutation within pairs.

    The null permutes the scores over the bridges of every pair independently; the statistic is
    the mean Spearman correlation over pairs, of the pairs that `mean_rank_correlation` takes.
    p = (1 + #{≥}) / (1 + permutations), one-sided; where there are at most 5,040 orders, all are
    counted, the observed one among them, and p = #{≥} / orders.

    One pair has next to no power. Six bridges have 720 orders, so p is at least 1/720, which only
    the perfect order attains: ρ must be .83 for p < .05. k equal accuracies (or scores) are
    indistinguishable and make it k!/720; with five equal ones p is at least 1/6. Take many pairs.
    """
    ranked = ranked_pairs(scores, correct)
    if not ranked:
        return RankTest(math.nan, math.nan, 0, 0, exact=True)
    observed = float(np.mean([x @ y for x, y in ranked]))
    orders = math.prod(math.factorial(len(x)) for x, _ in ranked)
    exact = orders <= _EXACT_ORDERS
    null = np.zeros(1 if exact else permutations)
    rng = np.random.default_rng(seed)
    for x, y in ranked:
        if exact:
            null = np.add.outer(null, np.array(list(itertools.permutations(x))) @ y).ravel()
        else:
            null += rng.permuted(np.tile(x, (permutations, 1)), axis=1) @ y
    reached = int((null / len(ranked) >= observed - _TIE).sum())
    p = reached / orders if exact else (1 + reached) / (1 + permutations)
    return RankTest(observed, p, len(ranked), len(null), exact)


def win_rates(correct: Sequence[Correct], choosers: Mapping[str, Sequence[str]]) -> WinRates:
    """In how many pairs each chooser's pick beats each other's; picks may be ZERO_SHOT too.

    Raises KeyError for a pick that the pair does not have.
    """
    names = tuple(choosers)
    accuracy = np.array(
        [
            [np.float64(one[pick]).mean() for pick, one in zip(picks, correct, strict=True)]
            for picks in choosers.values()
        ]
    ).reshape(len(names), len(correct))
    lead = accuracy[:, None] - accuracy[None]
    tie = _TIE * np.abs(accuracy).max(initial=0.0)
    wins = (lead > tie).sum(axis=2)
    ties = (np.abs(lead) <= tie).sum(axis=2)
    p = np.array([[sign_test(int(w), int(x)) for w, x in zip(*rows, strict=True)]
                  for rows in zip(wins, wins.T, strict=True)])  # fmt: skip
    return WinRates(names, (wins + ties / 2) / len(correct), wins, ties, p, len(correct))


def sign_test(wins: int, losses: int) -> float:
    """Exact two-sided binomial p of wins against losses at even odds; 1 without any."""
    n, term, tail = wins + losses, 1, 0
    for k in range(min(wins, losses) + 1):
        tail += term  # the binomial coefficient n over k, exactly
        term = term * (n - k) // (k + 1)
    return min(1.0, 2 * tail / 2**n)


def mcnemar(a: Bool[np.ndarray, " W"], b: Bool[np.ndarray, " W"]) -> McNemar:
    """Exact McNemar test of two choosers on the same words, pooled over pairs (see `pooled`).

    It takes words as independent, so it speaks of these pairs alone. Raises ValueError for scores
    that are not right or wrong, and for different numbers of words.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype != np.bool_ or b.dtype != np.bool_:
        raise ValueError(f"McNemar needs right or wrong, not scores of {a.dtype} and {b.dtype}")
    if a.shape != b.shape:
        raise ValueError(f"McNemar needs the same words, not {a.shape} and {b.shape}")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return McNemar(only_a, only_b, sign_test(only_a, only_b))


def pooled(correct: Sequence[Correct], picks: Sequence[str]) -> np.ndarray:
    """Scores [W] of all words under a chooser's picks, pair after pair, of the scores' own type."""
    return np.concatenate([one[pick] for pick, one in zip(picks, correct, strict=True)])
