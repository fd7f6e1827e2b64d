"""Whether a choice of bridges helped: pooled accuracies, gains, regrets and their intervals.

A pair is a direction source → target; its words are the items. Scores of words are right/wrong, a
share such as F1, or the log-probability of the gold: all count as float64. Everything is pooled
over pairs, a word counting once. The tests of what is estimated here are in significance.py.

Intervals are percentile bootstraps, paired: a resample draws the same pairs and words for all
rules, whose picks are held at what they are on the full sample. Two levels are on offer:

* "words": words within every pair. It speaks of these pairs alone.
* "pairs_words": pairs first, then words inside every drawn pair. It speaks of pairs like these,
  which is what a user of a chooser asks: whether the *next* pair gains. Whether a bridge helps
  differs more between pairs than between words, and a bootstrap of words alone does not see that.
  It is the default of gains and regrets from 5 pairs on. Under 5 there are at most 35 different
  draws of pairs, and the interval is too narrow to be called one: then it is "words". It errs on
  the wide side, since the noise of words enters at both levels (Davison & Hinkley, Bootstrap
  Methods, 3.8), and takes pairs as independent, which pairs that share a language are not quite.

Axes: W words of a pair, G bridges, R resamples with the sample itself in front, S splits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from bridgex_jax.icl.conditions import ZERO_SHOT

# By condition: ZERO_SHOT or a bridge. A pair may lack bridges, such as its own source.
Correct = Mapping[str, Bool[np.ndarray, " W"] | Float[np.ndarray, " W"]]
Levels = Literal["words", "pairs_words"]
# For every pair the conditions that a rule averages over: one for a chooser, all for "random".
Rule = Sequence[tuple[str, ...]]

RANDOM, ORACLE, ENGLISH = "random", "oracle", "en"
PAIRS_FOR_TWO_LEVELS = 5
_SPLIT = "oracle_split"
_TIE = 1e-12  # means that differ by rounding are equal


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Verdict:
    """Pooled over pairs, a word counting once.

    rules: accuracy of zero-shot, of every fixed bridge that all pairs have, `random` (the mean
      over bridges), `oracle` (each pair's best) and every chooser, with "words" intervals.
    gain: chooser − random. gains: baseline -> chooser − baseline, for zero-shot, `random` and, on
      the pairs that have it as a bridge, English.
    regret: oracle − chooser. The oracle is chosen on the words it is scored on, so it is too good
      and the regret an upper bound.
    oracle_split: accuracy of the best bridge of one half of the words on the other half, see
      `split_oracle`; regret_split: that − chooser. On average the truth lies between the two.
    levels: of gain, gains and the regrets.
    """

    rules: dict[str, Estimate]
    gain: dict[str, Estimate]
    regret: dict[str, Estimate]
    gains: dict[str, dict[str, Estimate]]
    oracle_split: Estimate
    regret_split: dict[str, Estimate]
    levels: Levels


def best_bridges(correct: Sequence[Correct], bridges: Sequence[str]) -> list[str]:
    """The most accurate bridge of every pair, the first on ties."""
    accuracies = [
        {bridge: float(np.mean(one[bridge])) for bridge in bridges if bridge in one}
        for one in correct
    ]
    return [max(one, key=one.__getitem__) for one in accuracies]


def split_oracle(
    correct: Sequence[Correct], bridges: Sequence[str], *, splits: int = 50, seed: int = 0
) -> list[Float[np.ndarray, " W"]]:
    """What every word scores under the best bridge of the half of the words that it is not in.

    Halves are drawn anew for every split; both serve, and splits are averaged. Equally good
    bridges share the choice. A bridge chosen so is at most as good as the truly best one, and one
    chosen and scored on the same words looks at least as good: the two bracket it, on average.
    """
    found = []
    for index, one in enumerate(correct):
        values = np.stack([np.float64(one[b]) for b in bridges if b in one])  # [G, W]
        n_words = values.shape[1]
        rng = np.random.default_rng((seed, index))
        order = rng.permuted(np.tile(np.arange(n_words), (splits, 1)), axis=1)
        first = order < n_words // 2  # [S, W]
        by_first, by_second = (_shared_best(half, values) for half in (first, ~first))  # [S, G]
        found.append(np.where(first, by_second @ values, by_first @ values).mean(axis=0))
    return found


def _shared_best(
    half: Bool[np.ndarray, "S W"], values: Float[np.ndarray, "G W"]
) -> Float[np.ndarray, "S G"]:
    """Weights of the best bridges of each half, adding up to 1; all of them where it is empty."""
    means = half @ values.T / np.maximum(half.sum(axis=1, keepdims=True), 1)
    best = means >= means.max(axis=1, keepdims=True) - _TIE * np.abs(values).max()
    return best / best.sum(axis=1, keepdims=True)


def judge(
    correct: Sequence[Correct],
    bridges: Sequence[str],
    choosers: Mapping[str, Sequence[str]],
    *,
    levels: Levels | None = None,
    resamples: int = 2000,
    splits: int = 50,
    seed: int = 0,
) -> Verdict:
    """Compares ways to choose a bridge.

    Args:
      correct: for every pair, condition -> score of every word, [W].
      bridges: the candidates; "random" is the mean over those that a pair has.
      choosers: name -> the bridge it picks for every pair.
      levels: of gains and regrets, see above; None: "pairs_words" from 5 pairs on.

    Raises ValueError for a pair without words or bridges, for scores that are not finite or of
    different lengths, and for a pick that the pair does not have.
    """
    check(correct, bridges, choosers)
    levels = levels or default_levels(len(correct))
    halves = split_oracle(correct, bridges, splits=splits, seed=seed)
    extended = [{**one, _SPLIT: half} for one, half in zip(correct, halves, strict=True)]
    everywhere = [bridge for bridge in bridges if all(bridge in one for one in correct)]
    picks = {**choosers, ORACLE: best_bridges(correct, bridges)}
    rules: dict[str, Rule] = {
        name: [(name,)] * len(correct) for name in (ZERO_SHOT, *everywhere, _SPLIT)
    }
    rules[RANDOM] = random_rule(correct, bridges)
    rules |= {name: [(pick,) for pick in chosen] for name, chosen in picks.items()}

    shares = resampled_means(extended, rules, levels="words", resamples=resamples, seed=seed)
    wide = shares
    if levels != "words":
        wide = resampled_means(extended, rules, levels=levels, resamples=resamples, seed=seed)
    gains = {
        baseline: {name: _estimate(wide[name] - wide[baseline]) for name in choosers}
        for baseline in (ZERO_SHOT, RANDOM, ENGLISH)
        if baseline in wide
    }
    with_english = [i for i, one in enumerate(correct) if ENGLISH in one and ENGLISH in bridges]
    if with_english and ENGLISH not in wide:
        gains[ENGLISH] = {
            name: gain_estimate(
                [correct[i] for i in with_english],
                [(chosen[i],) for i in with_english],
                [(ENGLISH,)] * len(with_english),
                resamples=resamples,
                seed=seed,
            )
            for name, chosen in choosers.items()
        }
    shown = (ZERO_SHOT, *everywhere, RANDOM, ORACLE, *choosers)
    return Verdict(
        rules={name: _estimate(shares[name]) for name in shown},
        gain=gains[RANDOM],
        regret={name: _estimate(wide[ORACLE] - wide[name]) for name in choosers},
        gains=gains,
        oracle_split=_estimate(shares[_SPLIT]),
        regret_split={name: _estimate(wide[_SPLIT] - wide[name]) for name in choosers},
        levels=levels,
    )


def default_levels(n_pairs: int) -> Levels:
    """The bootstrap of gains and regrets over so many pairs."""
    return "pairs_words" if n_pairs >= PAIRS_FOR_TWO_LEVELS else "words"


def random_rule(correct: Sequence[Correct], bridges: Sequence[str]) -> Rule:
    """The mean over the bridges that each pair has."""
    return [tuple(bridge for bridge in bridges if bridge in one) for one in correct]


def gain_estimate(
    correct: Sequence[Correct],
    rule: Rule,
    baseline: Rule,
    *,
    levels: Levels | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """rule − baseline with a paired interval; `levels` as in `judge`."""
    means = resampled_means(
        correct,
        {"rule": rule, "baseline": baseline},
        levels=levels or default_levels(len(correct)),
        resamples=resamples,
        seed=seed,
    )
    return _estimate(means["rule"] - means["baseline"])


def resampled_means(
    correct: Sequence[Correct],
    rules: Mapping[str, Rule],
    *,
    levels: Levels,
    resamples: int,
    seed: int,
) -> dict[str, Float[np.ndarray, " R"]]:
    """Mean over words of every rule: of the sample, then of every resample.

    Equal seeds and sizes of pairs draw equal pairs and words, whatever the rules. A pair drawn
    m times draws its words anew each time: one multinomial of m·W words.
    """
    rng = np.random.default_rng(seed)
    n_pairs = len(correct)
    drawn = np.ones((resamples + 1, n_pairs), np.int64)
    if levels == "pairs_words":
        drawn[1:] = rng.multinomial(n_pairs, np.full(n_pairs, 1 / n_pairs), size=resamples)
    sums = {name: np.zeros(resamples + 1) for name in rules}
    total = np.zeros(resamples + 1)
    for index, one in enumerate(correct):
        n_words = len(one[ZERO_SHOT])
        weights = _weights(rng, drawn[1:, index], n_words)
        total += drawn[:, index] * n_words
        used = sorted({condition for rule in rules.values() for condition in rule[index]})
        of = {condition: weights @ np.float64(one[condition]) for condition in used}
        for name, rule in rules.items():
            sums[name] += np.mean([of[condition] for condition in rule[index]], axis=0)
    return {name: values / total for name, values in sums.items()}


def _weights(
    rng: np.random.Generator, drawn: Int[np.ndarray, " R"], n_words: int
) -> Float[np.ndarray, "R W"]:
    """How often each word is drawn; the first row is the sample itself."""
    counts = rng.multinomial(drawn * n_words, np.full(n_words, 1 / n_words))
    return np.concatenate([np.ones((1, n_words)), counts.astype(np.float64)])


def _estimate(values: Float[np.ndarray, " R"]) -> Estimate:
    low, high = np.quantile(values[1:], (0.025, 0.975))
    return Estimate(float(values[0]), float(low), float(high))


def words_in_common(correct: Sequence[Correct]) -> list[Correct]:
    """The words that have a finite score under every condition of their pair.

    For log-probabilities, which are NaN where a bridge gave nothing to go on with. The words that a
    bridge fails on are left out for all, so what is left flatters the bridges: say how many.
    """
    kept: list[Correct] = []
    for one in correct:
        finite = np.logical_and.reduce([np.isfinite(values) for values in one.values()])
        kept.append({condition: values[finite] for condition, values in one.items()})
    return kept


def check(
    correct: Sequence[Correct], bridges: Sequence[str], choosers: Mapping[str, Sequence[str]]
) -> None:
    """ValueError for what no verdict can be given on, see `judge`."""
    if not correct:
        raise ValueError("there is no pair to judge")
    for index, one in enumerate(correct):
        if ZERO_SHOT not in one or not any(bridge in one for bridge in bridges):
            raise ValueError(f"pair {index} lacks zero-shot or all bridges")
        if len({np.shape(values) for values in one.values()}) > 1 or not len(one[ZERO_SHOT]):
            raise ValueError(f"pair {index} has no words or scores of different lengths")
        if not all(np.isfinite(values).all() for values in one.values()):
            raise ValueError(f"pair {index} has a score that is not finite")
    for name, picks in choosers.items():
        if name in (ZERO_SHOT, RANDOM, ORACLE, _SPLIT, *bridges):
            raise ValueError(f"a chooser cannot be called {name}, which is a rule of its own")
        for index, (pick, one) in enumerate(zip(picks, correct, strict=True)):
            if pick not in one:
                raise ValueError(f"{name} picks {pick} in pair {index}, which was not evaluated")


def mean_rank_correlation(
    scores: Sequence[Mapping[str, float]],
    correct: Sequence[Correct],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Spearman correlation of score and accuracy over bridges, averaged over pairs.

    The interval resamples pairs. Bridges without a score are left out of their pair; NaN where no
    pair has two different scores and two different accuracies.
    """
    found = [float(x @ y) for x, y in ranked_pairs(scores, correct)]
    if not found:
        return Estimate(float("nan"), float("nan"), float("nan"))
    values = np.array(found)
    rng = np.random.default_rng(seed)
    draws = values[rng.integers(len(values), size=(resamples, len(values)))].mean(axis=1)
    return _estimate(np.concatenate([[values.mean()], draws]))


def ranked_pairs(
    scores: Sequence[Mapping[str, float]], correct: Sequence[Correct]
) -> list[tuple[Float[np.ndarray, " G"], Float[np.ndarray, " G"]]]:
    """Ranks of scores and of accuracies, centred and of length 1: their product is Spearman's.

    Pairs without two different scores and two different accuracies are left out.
    """
    found = []
    for score, one in zip(scores, correct, strict=True):
        names = [name for name, value in score.items() if np.isfinite(value)]
        x = _ranks(np.array([score[name] for name in names]))
        y = _ranks(np.array([np.float64(one[name]).mean() for name in names]))
        if len(names) > 1 and np.ptp(x) > 0 and np.ptp(y) > 0:
            x, y = x - x.mean(), y - y.mean()
            found.append((x / np.linalg.norm(x), y / np.linalg.norm(y)))
    return found


def _ranks(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Ranks from 0, ties sharing their mean."""
    below = (values[None, :] < values[:, None]).sum(axis=1)
    equal = (values[None, :] == values[:, None]).sum(axis=1)
    return below + (equal - 1) / 2
