"""Whether a choice of bridges helped: pooled accuracies, gain over chance, regret, intervals.

Paired bootstrap over words within directions; the choice and the oracle are held at what they are
on the full sample, so the oracle's accuracy is optimistic and the regret an upper bound. Axes: W.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from bridgex_jax.icl.bli import ZERO_SHOT

Correct = Mapping[str, Bool[np.ndarray, " W"]]  # by condition: ZERO_SHOT or a bridge


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Verdict:
    """Pooled over directions, a word counting once.

    rules: accuracy of zero-shot, of every fixed bridge, `random` (the mean over bridges), `oracle`
    (each direction's best) and every chooser. gain: chooser − random. regret: oracle − chooser.
    """

    rules: dict[str, Estimate]
    gain: dict[str, Estimate]
    regret: dict[str, Estimate]


def best_bridges(correct: Sequence[Correct], bridges: Sequence[str]) -> list[str]:
    """The most accurate bridge of every direction, the first on ties."""
    accuracies = [{bridge: float(one[bridge].mean()) for bridge in bridges} for one in correct]
    return [max(one, key=one.__getitem__) for one in accuracies]


def judge(
    correct: Sequence[Correct],
    bridges: Sequence[str],
    choosers: Mapping[str, Sequence[str]],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Verdict:
    """Compares ways to choose a bridge.

    Args:
      correct: for every direction, which words were answered right under each condition.
      choosers: name -> the bridge it picks for every direction.
    """
    rng = np.random.default_rng(seed)
    picks = {**choosers, "oracle": best_bridges(correct, bridges)}
    fixed = [ZERO_SHOT, *bridges, "random", *picks]
    right = dict.fromkeys(fixed, np.zeros(resamples + 1))
    total = 0
    for index, one in enumerate(correct):
        n_words = len(one[ZERO_SHOT])
        total += n_words
        weights = _weights(rng, n_words, resamples)
        sums = {name: weights @ one[name].astype(np.float64) for name in (ZERO_SHOT, *bridges)}
        sums["random"] = np.mean([sums[bridge] for bridge in bridges], axis=0)
        sums |= {name: sums[chosen[index]] for name, chosen in picks.items()}
        right = {name: right[name] + sums[name] for name in fixed}
    shares = {name: values / total for name, values in right.items()}
    return Verdict(
        rules={name: _estimate(values) for name, values in shares.items()},
        gain={name: _estimate(shares[name] - shares["random"]) for name in choosers},
        regret={name: _estimate(shares["oracle"] - shares[name]) for name in choosers},
    )


def _weights(rng: np.random.Generator, n_words: int, resamples: int) -> Float[np.ndarray, "R W"]:
    """How often each word is drawn; the first row is the sample itself."""
    drawn = rng.multinomial(n_words, np.full(n_words, 1 / n_words), size=resamples)
    return np.concatenate([np.ones((1, n_words)), drawn.astype(np.float64)])


def _estimate(values: Float[np.ndarray, " R"]) -> Estimate:
    low, high = np.quantile(values[1:], (0.025, 0.975))
    return Estimate(float(values[0]), float(low), float(high))


def mean_rank_correlation(
    scores: Sequence[Mapping[str, float]],
    correct: Sequence[Correct],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Spearman correlation of score and accuracy over bridges, averaged over directions.

    The interval resamples directions. Bridges without a score are left out of their direction;
    NaN where no direction has two different scores and two different accuracies.
    """
    found = []
    for score, one in zip(scores, correct, strict=True):
        names = [name for name, value in score.items() if np.isfinite(value)]
        x = _ranks(np.array([score[name] for name in names]))
        y = _ranks(np.array([one[name].mean() for name in names]))
        if len(names) > 1 and np.ptp(x) > 0 and np.ptp(y) > 0:
            found.append(float(np.corrcoef(x, y)[0, 1]))
    if not found:
        return Estimate(float("nan"), float("nan"), float("nan"))
    values = np.array(found)
    rng = np.random.default_rng(seed)
    draws = values[rng.integers(len(values), size=(resamples, len(values)))].mean(axis=1)
    return _estimate(np.concatenate([[values.mean()], draws]))


def _ranks(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Ranks from 0, ties sharing their mean."""
    below = (values[None, :] < values[:, None]).sum(axis=1)
    equal = (values[None, :] == values[:, None]).sum(axis=1)
    return below + (equal - 1) / 2
