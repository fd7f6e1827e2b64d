"""Low-rank factors of Gaussian Gram matrices by pivoted Cholesky.

K = F^T F + R with R positive semidefinite, so its trace bounds all of it; for bandwidths of the
order of the data a few rows do (spec hsic-core, regime 2). In float32 on the device as an
implementation of HSIC; in float64 on the host for the permutation null, where one factorisation
serves every permutation. Axes: n variables, r factors, N words.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .features import Source

EXHAUSTED = 1e-6  # of a diagonal of 1: below it a float32 remainder is rounding


def cholesky_factors(
    z: jax.Array, sigma: jax.Array, words: jax.Array, rank: int
) -> tuple[jax.Array, jax.Array]:
    """Factors [rank, n, N] of the Gram matrices of standardised z [n, N]; traces left [rank, n].

    All rows at once, each with its own pivots: n N rank^2 FLOPs. The traces, after each factor,
    are certain up to the rounding of float32 (about 1e-7 N).
    """
    n, size = z.shape
    row = jnp.arange(n)

    def step(
        state: tuple[jax.Array, jax.Array], k: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        factors, left = state
        pivot = jnp.argmax(left, axis=1)
        height = left[row, pivot]
        difference = (z - z[row, pivot][:, None]) / sigma[:, None]
        column = jnp.exp(-0.5 * difference * difference) * words[None, :]
        known = factors[:, row, pivot]  # [rank, n]
        column = column - jnp.einsum("rn,rnw->nw", known, factors, precision="highest")
        usable = height > EXHAUSTED
        root = jnp.sqrt(jnp.where(usable, height, 1.0))
        column = jnp.where(usable[:, None], column / root[:, None], 0.0)
        left = jnp.maximum(left - column * column, 0.0).at[row, pivot].set(0.0)
        return (factors.at[k].set(column), left), jnp.sum(left, axis=1)

    start = (jnp.zeros((rank, n, size), z.dtype), jnp.broadcast_to(words[None, :], (n, size)))
    (factors, _), traces = lax.scan(step, start, jnp.arange(rank))
    return factors, traces


def cholesky(z: jax.Array, sigma: jax.Array, words: jax.Array, rank: int) -> Source:
    """rank factors of the Gram matrices of standardised z [n, N], graded: their principal axes."""
    factors, traces = cholesky_factors(z, sigma, words, rank)
    mean = jnp.einsum("rnw,w->rn", factors, words) / jnp.sum(words)
    centred = (factors - mean[:, :, None]) * words[None, None, :]
    inner = jnp.einsum("rnw,snw->nrs", centred, centred, precision="highest")
    # Sums of squares do not change with the axes, so neither do derivatives.
    axes = lax.stop_gradient(jnp.linalg.eigh(inner)[1])[:, :, ::-1]
    graded = jnp.einsum("nrs,rnw->snw", axes, factors, precision="highest")
    return Source(list(graded), lambda parts, words: parts, np.zeros(rank), traces[-1])


class Factors(NamedTuple):
    """Centred factors A [n, r, N] of H K H, and how good they are."""

    centred: np.ndarray  # [n, r, N], in falling order of importance
    raw_rows: np.ndarray  # [n, N] H K 1, from the factors before they were cut
    lost: np.ndarray  # [n] share of the squared norm of H K H that was left out


def pivoted_cholesky(
    z: np.ndarray, sigma: np.ndarray, max_rank: int, tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Factors F [n, r, N] of the Gram matrices of rows z [n, N], and the traces left: [n].

    All rows together, each with its own pivots, until every remaining trace is below tolerance
    times N or the rank is max_rank.
    """
    n, size = z.shape
    factors = np.zeros((n, min(max_rank, size), size))
    left = np.ones((n, size))
    row = np.arange(n)
    for rank in range(factors.shape[1]):
        pivot = left.argmax(axis=1)
        height = left[row, pivot]
        if left.sum(axis=1).max() <= tolerance * size:
            return factors[:, :rank], left.sum(axis=1)
        column = np.exp(-0.5 * ((z - z[row, pivot][:, None]) / sigma[:, None]) ** 2)
        known = factors[:, :rank]
        column -= (known[row, :, pivot][:, None, :] @ known)[:, 0]
        column /= np.sqrt(np.maximum(height, 1e-300))[:, None]
        column[height <= 1e-14] = 0.0  # exhausted: rounding only
        factors[:, rank] = column
        left = np.maximum(left - column**2, 0.0)
    return factors, left.sum(axis=1)


def centred_factors(
    z: np.ndarray, sigma: np.ndarray, *, max_rank: int = 32, lost: float = 1e-3
) -> Factors:
    """Factors of H K H for rows z [n, N], of one rank, that lose little of its squared norm.

    On average at most the share `lost`, in no row more than ten times that; what the first,
    uncut factorisation leaves out is far below it.
    """
    factors, _ = pivoted_cholesky(z, sigma, max_rank, 0.01 * lost)
    centred = factors - factors.mean(axis=2, keepdims=True)
    raw_rows = np.einsum("nrw,nr->nw", centred, factors.sum(axis=2))
    values, vectors = np.linalg.eigh(centred @ centred.transpose(0, 2, 1))
    values, vectors = np.maximum(values[:, ::-1], 0.0), vectors[:, :, ::-1]
    energy = np.cumsum(values**2, axis=1)
    share = 1.0 - energy / np.maximum(energy[:, -1:], 1e-300)
    enough = (share.mean(axis=0) <= lost) & (share.max(axis=0) <= 10 * lost)
    rank = 1 + int(np.argmax(enough))
    rotated = vectors[:, :, :rank].transpose(0, 2, 1) @ centred
    return Factors(rotated, raw_rows, share[:, rank - 1])
