"""How alike two languages' neuron sets are: common neurons, Jaccard, cosine of rates.

Stage 2 of arXiv 2508.17078, whose released code indexes the cosine wrongly; these are the
definitions. Axes: G language, L layer, F neuron.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int


def overlap(sets: Bool[np.ndarray, "G L F"]) -> Int[np.ndarray, "G G"]:
    """|T_a ∩ T_b|; the diagonal holds the sizes."""
    return np.array([[(a & b).sum() for b in sets] for a in sets], dtype=np.int64)


def jaccard(sets: Bool[np.ndarray, "G L F"]) -> Float[np.ndarray, "G G"]:
    """|T_a ∩ T_b| ÷ |T_a ∪ T_b|; NaN where both sets are empty."""
    common = overlap(sets)
    sizes = common.diagonal()
    union = sizes[:, None] + sizes[None, :] - common
    return np.where(union > 0, common / np.maximum(union, 1), np.nan)


def activation_cosine(
    p: Float[np.ndarray, "G L F"], sets: Bool[np.ndarray, "G L F"]
) -> Float[np.ndarray, "G G"]:
    """Cosine of the rates of a and b over T_a ∩ T_b; NaN where no neuron is common.

    It is near 1 for any two languages, since rates in these sets are all high; see `jaccard`.
    """
    result = np.full((len(sets), len(sets)), np.nan)
    for a in range(len(sets)):
        for b in range(a + 1):
            common = sets[a] & sets[b]
            x, y = p[a][common].astype(np.float64), p[b][common].astype(np.float64)
            norm = np.linalg.norm(x) * np.linalg.norm(y)
            if norm > 0:
                result[a, b] = result[b, a] = x @ y / norm
    return result
