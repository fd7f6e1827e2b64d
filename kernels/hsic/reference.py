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
    """Gaussian Gram matrices less 1, exp(-(z_ia - z_ib)^2 / 2 sigma_i^2) - 1, of z [n, N]: [n, N, N].

    No estimator sees the constant, and without it float64 serves any bandwidth.
    """
    sigma = np.broadcast_to(np.asarray(sigma, np.float64), z.shape[:1])
    difference = z[:, :, None] - z[:, None, :]
    return np.expm1(-(difference**2) / (2 * sigma[:, None, None] ** 2))


def biased(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741 (K and L, as in the sources)
    """tr(K H L H) / (N - 1)^2, Gretton et al. 2005, equation 9."""
    n = len(k)
    h = np.eye(n) - 1 / n
    return float(np.sum((h @ k @ h) * (h @ l @ h)) / (n - 1) ** 2)


def unbiased(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
    """Song et al. 2012, equation 5: K and L with their diagonals set to 0."""
    n = len(k)
    k = k - np.diag(np.diag(k))
    l = l - np.diag(np.diag(l))  # noqa: E741
    total = np.sum(k * l) + k.sum() * l.sum() / ((n - 1) * (n - 2))
    return float((total - 2 / (n - 2) * (k.sum(0) @ l.sum(0))) / (n * (n - 3)))


def trace_khl(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
    """tr((K H)(H L)), what the released code computes; neither normalised nor an HSIC."""
    h = np.eye(len(k)) - 1 / len(k)
    return float(np.trace((k @ h) @ (h @ l)))


def from_grams(k: np.ndarray, l: np.ndarray, estimator: str) -> np.ndarray:  # noqa: E741
    """All pairs of Gram matrices k [n1, N, N] and l [n2, N, N]: [n1, n2]."""
    base = {
        "biased": biased,
        "unbiased": unbiased,
        "cka": biased,
        "cka_debiased": unbiased,
        "trace_khl": trace_khl,
    }[estimator]
    values = np.array([[base(ki, lj) for lj in l] for ki in k])
    if estimator.startswith("cka"):
        own_k = np.array([base(ki, ki) for ki in k])
        own_l = np.array([base(lj, lj) for lj in l])
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
