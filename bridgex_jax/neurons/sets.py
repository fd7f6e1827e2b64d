"""Sets of neurons: the most often active of a language, those two share, those a bridge adds.

Stages 2 and 5 of arXiv 2508.17078. A neuron's rate is the share of a language's tokens on which
its activation is positive. Axes: G language, L layer, F neuron. A set is a mask over [L, F].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

Scope = Literal["global", "layer"]
BridgeSet = Literal["exclusive", "not_shared", "all"]


def top_rate_sets(
    counts: Int[np.ndarray, "G L F"],
    n_tokens: Int[np.ndarray, " G"],
    *,
    rate: float = 0.01,
    scope: Scope = "global",
) -> Bool[np.ndarray, "G L F"]:
    """T_k: the neurons whose rate is at least the k-th smallest, k = round((1 - rate)·n).

    n is L·F in scope `global` and F in scope `layer`, where every layer has its own k-th smallest.
    Ties are kept, so a set may exceed rate·n; a neuron that was never active is in no set. Counts
    are compared as integers: within a language they order neurons as rates do, without rounding.

    Raises ValueError for a rate outside (0, 1), no tokens, or counts above the number of tokens.
    """
    if not 0 < rate < 1:
        raise ValueError(f"rate is {rate}, not between 0 and 1")
    if scope not in get_args(Scope):
        raise ValueError(f"scope is {scope!r}, not one of {get_args(Scope)}")
    _check_counts(counts, n_tokens)
    n_languages, n_layers, n_neurons = counts.shape
    blocks = counts.reshape(n_languages, 1 if scope == "global" else n_layers, -1)  # [G, 1|L, n]
    n = blocks.shape[-1]
    kth = max(1, round((1 - rate) * n)) - 1
    threshold = np.partition(blocks, kth, axis=-1)[..., kth : kth + 1]  # [G, 1|L, 1]
    chosen = (blocks >= threshold) & (blocks > 0)
    return chosen.reshape(n_languages, n_layers, n_neurons)


def _check_counts(counts: Int[np.ndarray, "G L F"], n_tokens: Int[np.ndarray, " G"]) -> None:
    if counts.ndim != 3 or n_tokens.shape != counts.shape[:1]:
        raise ValueError(f"counts {counts.shape} and tokens {n_tokens.shape} are not [G,L,F], [G]")
    if not np.issubdtype(counts.dtype, np.integer):
        raise ValueError(f"counts are {counts.dtype}, not integers")
    if (n_tokens <= 0).any():
        raise ValueError("a language has no tokens")
    if (counts < 0).any() or (counts > n_tokens[:, None, None]).any():
        raise ValueError("a neuron was active on fewer than 0 or more than all tokens")


def rates(
    counts: Int[np.ndarray, "G L F"], n_tokens: Int[np.ndarray, " G"]
) -> Float[np.ndarray, "G L F"]:
    """p: the share of each language's tokens on which a neuron is active, float64."""
    _check_counts(counts, n_tokens)
    return counts / n_tokens[:, None, None].astype(np.float64)


def split_half_jaccard(
    counts_a: Int[np.ndarray, "G L F"],
    counts_b: Int[np.ndarray, "G L F"],
    n_tokens_a: Int[np.ndarray, " G"],
    n_tokens_b: Int[np.ndarray, " G"],
    *,
    rate: float = 0.01,
    scope: Scope = "global",
) -> Float[np.ndarray, " G"]:
    """|A ∩ B| ÷ |A ∪ B| of the sets found on two halves of each corpus: 1 is stable."""
    first = top_rate_sets(counts_a, n_tokens_a, rate=rate, scope=scope)
    second = top_rate_sets(counts_b, n_tokens_b, rate=rate, scope=scope)
    both = (first & second).sum(axis=(1, 2))
    either = (first | second).sum(axis=(1, 2))
    return np.where(either > 0, both / np.maximum(either, 1), np.nan)


def without_common(sets: Bool[np.ndarray, "G L F"]) -> Bool[np.ndarray, "G L F"]:
    """The sets without the neurons that all languages have."""
    return sets & ~sets.all(axis=0)


@dataclass(frozen=True)
class PairSets:
    """X, the neurons that source and target share, and Y_b of every bridge, disjoint from X."""

    shared: Bool[np.ndarray, "L F"]
    bridges: dict[str, Bool[np.ndarray, "L F"]]


def pair_sets(
    sets: Bool[np.ndarray, "G L F"],
    languages: Sequence[str],
    source: str,
    target: str,
    bridges: Sequence[str],
    *,
    definition: BridgeSet = "exclusive",
) -> PairSets:
    """X = T_s ∩ T_t and, for every bridge b,

    `exclusive`   Y_b = T_b \\ (T_s ∪ T_t)
    `not_shared`  Y_b = T_b \\ (T_s ∩ T_t)
    `all`         Y_b = T_b, and X loses the neurons of every bridge, so that one X serves all.

    X and Y_b are always disjoint: a neuron compared with itself raises the score (.043 to .101 for
    5 of 30). Raises ValueError for a language without a set and a bridge that is source or target.
    """
    if definition not in get_args(BridgeSet):
        raise ValueError(f"definition is {definition!r}, not one of {get_args(BridgeSet)}")
    of = dict(zip(languages, sets, strict=True))
    if missing := [code for code in (source, target, *bridges) if code not in of]:
        raise ValueError(f"no neuron set of {', '.join(missing)}")
    if source == target or {source, target} & set(bridges):
        raise ValueError("source, target and bridges are not different languages")
    shared = of[source] & of[target]
    if definition == "exclusive":
        return PairSets(shared, {b: of[b] & ~(of[source] | of[target]) for b in bridges})
    if definition == "not_shared":
        return PairSets(shared, {b: of[b] & ~shared for b in bridges})
    taken = np.logical_or.reduce([of[b] for b in bridges])
    return PairSets(shared & ~taken, {b: of[b] for b in bridges})


def strongest(
    members: Bool[np.ndarray, "L F"], strength: Float[np.ndarray, "L F"], top_k: int
) -> Bool[np.ndarray, "L F"]:
    """A set cut to its `top_k` neurons of greatest strength in each layer; first index on ties.

    Strength is a rate or a mean probe activation. By layer, because HSIC compares within layers.
    """
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}, not at least 1")
    order = np.argsort(np.where(members, -strength, np.inf), axis=1, kind="stable")
    best = np.zeros_like(members)
    np.put_along_axis(best, order[:, :top_k], True, axis=1)
    return best & members
