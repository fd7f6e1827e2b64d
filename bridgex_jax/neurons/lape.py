"""LAPE: the neurons of a language, found by the entropy of their activation over languages.

Tang et al. 2024, arXiv 2402.16438; the `quantile` rule is that of arXiv 2503.17456. A neuron that
is active in few languages has a low entropy. Float64, on the host. Axes: G language, L layer,
F neuron.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float

LapeRule = Literal["kthvalue", "quantile"]


@dataclass(frozen=True)
class LapeSets:
    """The language-specific neurons, and what they were chosen by.

    entropy: H of every neuron in nats, 0 <= H <= ln G; 0 for one that is never active.
    tau: the probability that a neuron must exceed in some language to be looked at at all.
    bar: the probability above which a chosen neuron belongs to a language.
    chosen: the neurons of every language; a neuron may belong to several.
    """

    entropy: Float[np.ndarray, "L F"]
    tau: float
    bar: float
    chosen: Bool[np.ndarray, "G L F"]


def lape(
    probability: Float[np.ndarray, "G L F"],
    *,
    rule: LapeRule = "kthvalue",
    rate: float = 0.01,
    activity: float = 0.95,
    membership: float = 0.95,
) -> LapeSets:
    """The neurons of lowest entropy among those that are often active in some language.

    probability is the share of a language's tokens on which a neuron is active (`sets.rates`);
    H = -sum_g q_g ln q_g of q = p / sum_g p. tau and bar lie at the shares `activity` and
    `membership` of all G·L·F probabilities, and a neuron without p > tau is left out.

    `kthvalue`  tau is the round(share·n)-th smallest p; the round(rate·L·F) neurons of lowest H
                are taken, the first on ties.
    `quantile`  tau is the interpolated quantile; neurons with H <= its quantile at `rate` are
                taken, where neurons left out count as H = +inf.

    The two differ on small inputs. What is specific depends on which languages are compared, and
    their order permutes the result and changes nothing else, to the last bit.

    Raises ValueError for a shape that is not [G, L, F] with G >= 2, for values outside [0, 1],
    for an unknown rule and for shares outside (0, 1).
    """
    _check(probability, rule, {"rate": rate, "activity": activity, "membership": membership})
    p = probability.astype(np.float64)
    tau, bar = (_threshold(p.ravel(), share, rule) for share in (activity, membership))
    entropy = _entropy(p)
    often = (p > tau).any(axis=0)  # [L, F]
    ranked = np.where(often, entropy, np.inf).ravel()
    if rule == "kthvalue":
        lowest = np.zeros(ranked.shape, bool)
        lowest[np.argsort(ranked, kind="stable")[: round(rate * ranked.size)]] = True
    else:
        lowest = ranked <= _quantile(ranked, rate)
    specific = lowest.reshape(entropy.shape) & often
    return LapeSets(entropy, tau, bar, specific & (p > bar))


def _check(probability: Float[np.ndarray, "G L F"], rule: str, shares: dict[str, float]) -> None:
    if rule not in get_args(LapeRule):
        raise ValueError(f"rule is {rule!r}, not one of {get_args(LapeRule)}")
    for name, share in shares.items():
        if not 0 < share < 1:
            raise ValueError(f"{name} is {share}, not between 0 and 1")
    if probability.ndim != 3 or len(probability) < 2 or probability.size == 0:
        raise ValueError(f"probability {probability.shape} is not [G, L, F] of 2 languages or more")
    if not (probability.min() >= 0 and probability.max() <= 1):  # also where there is a NaN
        raise ValueError("a probability is not in 0…1")


def _entropy(p: Float[np.ndarray, "G L F"]) -> Float[np.ndarray, "L F"]:
    """H of every neuron, summed in order of size: the order of the languages has no effect."""
    ordered = np.sort(p, axis=0)
    total = ordered.sum(axis=0)
    q = np.divide(ordered, total, out=np.zeros_like(ordered), where=total > 0)
    terms = q * np.log(np.where(q > 0, q, 1.0))
    return np.clip(0.0 - terms.sum(axis=0), 0.0, math.log(len(p)))


def _threshold(values: Float[np.ndarray, " n"], share: float, rule: LapeRule) -> float:
    if rule == "quantile":
        return _quantile(values, share)
    kth = max(1, round(share * values.size)) - 1
    return float(np.partition(values, kth)[kth])


def _quantile(values: Float[np.ndarray, " n"], share: float) -> float:
    """Linear interpolation between order statistics, towards +inf too (numpy makes that a NaN)."""
    position = share * (values.size - 1)
    below = math.floor(position)
    above = min(below + 1, values.size - 1)
    ordered = np.partition(values, (below, above))
    low, high = float(ordered[below]), float(ordered[above])
    if position == below or low == high:
        return low
    return low + (high - low) * (position - below)
