"""Taking the number of tokens out of probe activations.

A prompt's length alone creates dependence: constant tokens add c/T to every neuron's mean. Every
neuron is regressed on dummies of the token count, that is, centred within each stratum
(bridgex-icl, Stage 4). Axes: C neurons, W words.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from jaxtyping import Float, Int

FEWEST = 5  # words of a stratum; rarer token counts are pooled


def strata(n_tokens: Int[np.ndarray, " W"]) -> Int[np.ndarray, " W"]:
    """Stratum of every word, 0, 1, …; token counts with fewer than 5 words share one.

    Where the pool itself has fewer than 5, it joins the stratum whose count is nearest.
    """
    sizes = Counter(n_tokens.tolist())
    common = sorted(count for count, n in sizes.items() if n >= FEWEST)
    rare = [count for count, n in sizes.items() if n < FEWEST]
    label = {count: i for i, count in enumerate(common)}
    pooled = sum(sizes[count] for count in rare)
    if pooled >= FEWEST or not common:
        label |= dict.fromkeys(rare, len(common))
    else:
        for count in rare:
            nearest = int(np.abs(np.array(common) - count).argmin())
            label[count] = nearest
    return np.array([label[count] for count in n_tokens.tolist()], np.int64)


def within_strata(
    values: Float[np.ndarray, "C W"], stratum: Int[np.ndarray, " W"]
) -> Float[np.ndarray, "C W"]:
    """What the strata leave unexplained, float64: values less their stratum's mean."""
    left = values.astype(np.float64)
    for label in np.unique(stratum):
        members = stratum == label
        left[:, members] -= left[:, members].mean(axis=1, keepdims=True)
    return left


def permutations(
    stratum: Int[np.ndarray, " W"], n: int, rng: np.random.Generator
) -> Int[np.ndarray, "n W"]:
    """n orders of the words that move them within their strata only."""
    orders = np.tile(np.arange(len(stratum)), (n, 1))
    for label in np.unique(stratum):
        members = np.flatnonzero(stratum == label)
        orders[:, members] = rng.permuted(np.tile(members, (n, 1)), axis=1)
    return orders
