"""HSIC between one-dimensional variables, written straight from the definitions in float64.

The yardstick of every test and benchmark: Gretton et al. 2005 (biased), Song et al. 2012
(unbiased), Kornblith et al. 2019 (CKA), and the released BridgeX-ICL code (`trace_khl`,
`set_median`). Axes: n1, n2 variables (neurons), N words. Memory O(n N^2): small inputs only.
"""

from __future__ import annotations

import numpy as np

ESTIMATORS = ("biased", "unbiased", "cka", "cka_debiased", "trace_khl")


RELEASED_EPSILON = 1e-6


def standardise(x: np.ndarray, epsilon: float = 0.0) -> np.ndarray:
    """Rows of x [n, N] less their mean, over their standard deviation (ddof 1) + epsilon.

    The released code has epsilon 1e-6, which its bandwidth `set_median` shows in the seventh
    digit; all else here has 0. A constant row gives NaN.
    """
    x = np.asarray(x, np.float64)
    centred = x - x.mean(axis=1, keepdims=True)
    deviation = x.std(axis=1, ddof=1, keepdims=True)
    varies = np.ptp(x, axis=1, keepdims=True) > 0
    return np.divide(centred, deviation + epsilon, out=np.full_like(x, np.nan), where=varies)


def set_median(x: np.ndarray, y: np.ndarray) -> float:
    """The released bandwidth of a pair of standardised sets: one number for all rows.

    Lower median over all n1^2 + n2^2 distances between rows in R^N, the zero diagonals included,
    plus 1e-6. For n1, n2 <= 2 the median is 0.
    """
    distances = []
    for z in (x, y):
        difference = z[:, None, :] - z[None, :, :]
        distances.append(np.sqrt(np.sum(difference**2, axis=-1)).ravel())
    pooled = np.sort(np.concatenate(distances))
    return float(pooled[(pooled.size - 1) // 2] + 1e-6)


def variable_median(x: np.ndarray) -> np.ndarray:
    """Per row of x [n, N] the median of |x_a - x_b| over a < b: [n]."""
    a, b = np.triu_indices(x.shape[1], k=1)
    return np.array([np.median(np.abs(row[a] - row[b])) for row in x])


def gram(z: np.ndarray, sigma: np.ndarray | float) -> np.ndarray:
    """Gaussian Gram matrices of z [n, N], less 1: exp(-(z_a - z_b)^2 / 2 sigma^2) - 1, [n, N, N].

    No estimator sees the constant, and without it float64 serves any bandwidth.
    """
    sigma = np.broadcast_to(np.asarray(sigma, np.float64), z.shape[:1])
    difference = z[:, :, None] - z[:, None, :]
    return np.expm1(-(difference**2) / (2 * sigma[:, None, None] ** 2))


def _inner(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """sum_ab A_i[a, b] B_j[a, b] of a [n1, N, N] and b [n2, N, N]: [n1, n2]."""
    return a.reshape(len(a), -1) @ b.reshape(len(b), -1).T


def biased(k: np.ndarray, l: np.ndarray) -> np.ndarray:  # noqa: E741 (K and L, as in the sources)
    """tr(K H L H) / (N - 1)^2 for all pairs, Gretton et al. 2005, equation 9."""
    n = k.shape[1]
    h = np.eye(n) - 1 / n
    return _inner(h @ k @ h, h @ l @ h) / (n - 1) ** 2


def unbiased(k: np.ndarray, l: np.ndarray) -> np.ndarray:  # noqa: E741
    """Song et al. 2012, equation 5, for all pairs: K and L with their diagonals set to 0."""
    n = k.shape[1]
    k, l = k * (1 - np.eye(n)), l * (1 - np.eye(n))  # noqa: E741
    product = np.outer(k.sum(axis=(1, 2)), l.sum(axis=(1, 2)))
    rows = k.sum(axis=1) @ l.sum(axis=1).T
    total = _inner(k, l) + product / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows
    return total / (n * (n - 3))


def trace_khl(k: np.ndarray, l: np.ndarray) -> np.ndarray:  # noqa: E741
    """tr((K H)(H L)) for all pairs, the released code's; neither normalised nor an HSIC."""
    n = k.shape[1]
    h = np.eye(n) - 1 / n
    return _inner(k @ h, (h @ l).transpose(0, 2, 1))


def from_grams(k: np.ndarray, l: np.ndarray, estimator: str) -> np.ndarray:  # noqa: E741
    """All pairs of Gram matrices k [n1, N, N] and l [n2, N, N]: [n1, n2]."""
    if estimator == "trace_khl":
        return trace_khl(k, l)
    base = unbiased if estimator in ("unbiased", "cka_debiased") else biased
    values = base(k, l)
    if estimator.startswith("cka"):
        own_k = np.array([base(one[None], one[None])[0, 0] for one in k])
        own_l = np.array([base(one[None], one[None])[0, 0] for one in l])
        product = own_k[:, None] * own_l[None, :]
        valid = (own_k[:, None] > 0) & (own_l[None, :] > 0)
        values = np.where(valid, values / np.sqrt(np.where(valid, product, 1.0)), np.nan)
    return values


def hsic(
    x: np.ndarray,
    y: np.ndarray,
    *,
    estimator: str = "cka_debiased",
    bandwidth: str | float | np.ndarray | tuple = "variable_median",
) -> np.ndarray:
    """The same contract as `api.hsic`, in float64: x [n1, N], y [n2, N] -> [n1, n2]."""
    epsilon = RELEASED_EPSILON if isinstance(bandwidth, str) and bandwidth == "set_median" else 0.0
    x, y = standardise(x, epsilon), standardise(y, epsilon)
    if isinstance(bandwidth, str):
        if bandwidth == "set_median":
            sigma_x: np.ndarray | float = set_median(x, y)
            sigma_y = sigma_x
        else:
            sigma_x, sigma_y = variable_median(x), variable_median(y)
    elif isinstance(bandwidth, tuple):
        sigma_x, sigma_y = bandwidth
    else:
        sigma_x = sigma_y = np.asarray(bandwidth, np.float64)
    return from_grams(gram(x, sigma_x), gram(y, sigma_y), estimator)
