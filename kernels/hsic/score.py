"""From the dependence of single variables to the score of two sets of them.

S [..., n1, n2] holds the dependence of every variable of X on every variable of Y. The released
score (BridgeX-ICL) is 1/2 (mean_i max_j S + mean_j max_i S). It rises with n2 whatever the
dependence; the size-matched score replaces the row maximum by its expectation over random
m-subsets of Y, so that sets Y of different sizes compare.
"""

from __future__ import annotations

import numpy as np


def subset_maximum_weights(n: int, m: int) -> np.ndarray:
    """Weights c [n] with sum_r c_r v_(r) = E[max of a random m-subset], v_(1) >= v_(2) >= ...

    c_r = C(n - r, m - 1) / C(n, m), by its recurrence, so that large n cannot overflow.
    Raises ValueError unless 1 <= m <= n.
    """
    if not 1 <= m <= n:
        raise ValueError(f"m: a subset of {m} cannot be drawn from {n} variables")
    rank = np.arange(1, n)
    ratio = np.maximum(n - rank - m + 1, 0) / (n - rank)
    return (m / n) * np.concatenate([[1.0], np.cumprod(ratio)])


def _check(s: np.ndarray) -> np.ndarray:
    s = np.asarray(s)
    if s.ndim < 2 or 0 in s.shape[-2:]:
        raise ValueError(f"s: needs at least one row and one column, got shape {s.shape}")
    return s


def released_score(s: np.ndarray) -> np.ndarray:
    """1/2 (mean_i max_j S + mean_j max_i S) of s [..., n1, n2]: [...]. NaN entries propagate."""
    s = _check(s)
    rows = s.max(axis=-1).mean(axis=-1, dtype=np.float64)
    return 0.5 * (rows + s.max(axis=-2).mean(axis=-1, dtype=np.float64))


def size_matched_score(s: np.ndarray, m: int) -> np.ndarray:
    """The score with every row maximum as over m random columns, of s [..., n1, n2]: [...].

    m is the size of the smallest set that is compared (hsic-core, size matching); with m = n2 it
    equals `released_score`. Raises ValueError unless 1 <= m <= n2. NaN entries propagate.
    """
    s = _check(s)
    weights = subset_maximum_weights(s.shape[-1], m)
    used = int(np.count_nonzero(weights > 1e-12 * weights[0]))
    ordered = np.sort(s, axis=-1)[..., ::-1][..., :used]
    rows = (ordered @ weights[:used].astype(s.dtype)).mean(axis=-1, dtype=np.float64)
    return 0.5 * (rows + s.max(axis=-2).mean(axis=-1, dtype=np.float64))
