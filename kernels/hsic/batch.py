"""HSIC and scores of many pairs of sets in one jitted call, sharded over a mesh.

All pairs of a batch are padded alike. The mesh may have any axes: "words" splits the words within
a pair (the tiles, or the features' products, are summed over it), all others split the pairs. The
scores are those of score.py, on the device: only they have to come back. Axes: M pairs of sets,
n1, n2 variables, G groups of columns (bridges), c columns of a group, N words.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from .api import hsic_planned, hsic_standardised
from .bandwidth import Standardised, set_median, standardise
from .exact import Split
from .plan import LOW_RANK, Plan

WORDS = "words"
PAIRS_AT_ONCE = 16


class SetPairs(NamedTuple):
    """M pairs of raw sets. Rows of x from n_rows on and columns of -1 only fill up."""

    x: jax.Array  # [M, n1, N]
    y: jax.Array  # [M, n2, N]
    plan: Plan  # its arrays with M in front: sigma_x [M, n1], sigma_y [M, n2], words [M, N]
    n_rows: jax.Array  # [M]
    columns: jax.Array  # [M, G, c] rows of y that belong to a group
    weights: jax.Array  # [M, G, c] of a row's ordered values; `subset_maximum_weights`


class SetScores(NamedTuple):
    """Scores of every group, and what they were made from.

    score [M, G], NaN for empty groups; bound [M] as in `HsicResult`. values, if asked for:
    [M, n1, n2]; under the set-wide median, whose bandwidth sigma [M, G] is a group's own (else
    None), [M, G, n1, c].
    """

    score: jax.Array
    bound: jax.Array
    sigma: jax.Array | None
    values: jax.Array | None


def pair_axes(mesh: Mesh) -> tuple[str, ...]:
    """The axes of a mesh that split the pairs."""
    return tuple(name for name in mesh.axis_names if name != WORDS)


@partial(jax.jit, static_argnames=("mesh", "matched", "with_values"))
def score_set_pairs(
    pairs: SetPairs, mesh: Mesh | None = None, *, matched: bool, with_values: bool = False
) -> SetScores:
    """Score every group of columns of every pair; matched: with `weights`, else the maximum.

    On a CPU one pair after the other on each device, so memory is that of one pair beyond input
    and output; elsewhere low ranks, whose products are small, take PAIRS_AT_ONCE.
    M must be a multiple of the devices along `pair_axes`.
    """
    one = _each_group if pairs.plan.sigma_x is None else _all_groups

    def local(some: SetPairs, split: Split | None = None) -> SetScores:
        score = partial(one, split=split, matched=matched)
        scores = lax.map(score, some, batch_size=_at_once(some.plan))
        return scores if with_values else scores._replace(values=None)

    if mesh is None:
        return local(pairs)
    split = Split(WORDS, mesh.shape[WORDS]) if WORDS in mesh.axis_names else None
    over = P(pair_axes(mesh))
    return jax.shard_map(
        partial(local, split=split),
        mesh=mesh,
        in_specs=over,
        out_specs=over,
        check_vma=False,  # the scans inside begin with constants
    )(pairs)


def _at_once(plan: Plan) -> int | None:
    is_small = plan.implementation in LOW_RANK
    return PAIRS_AT_ONCE if is_small and jax.default_backend() != "cpu" else None


def _all_groups(pair: SetPairs, split: Split | None, matched: bool) -> SetScores:
    """All groups at once: a variable that is in several is computed once."""
    found = hsic_planned(pair.x, pair.y, pair.plan, split)
    score = jax.vmap(group_score, in_axes=(None, None, 0, 0, None))(
        found.values, pair.n_rows, pair.columns, pair.weights, matched
    )
    return SetScores(score, found.bound, None, found.values)


def _each_group(pair: SetPairs, split: Split | None, matched: bool) -> SetScores:
    """One group after the other, under the set-wide median of x and the group."""
    words, epsilon = jnp.asarray(pair.plan.words), pair.plan.epsilon
    left = standardise(pair.x, words, epsilon)
    right = standardise(pair.y, words, epsilon)
    is_own = pair.columns >= 0
    own = Standardised(
        jnp.take(right.z, jnp.maximum(pair.columns, 0), axis=0),
        jnp.take(right.ok, jnp.maximum(pair.columns, 0)) & is_own,
    )
    sigma = jax.vmap(set_median, in_axes=(None, 0, None))(left, own, words)
    places = jnp.where(is_own, jnp.arange(is_own.shape[1])[None, :], -1)

    def one(group: tuple) -> tuple[jax.Array, jax.Array, jax.Array]:
        rows, sigma, places, weights = group
        plan = dataclasses.replace(pair.plan, sigma_x=sigma, sigma_y=sigma)
        found = hsic_standardised(left, rows, plan, split)
        score = group_score(found.values, pair.n_rows, places, weights, matched)
        return score, found.bound, found.values

    groups = (own, sigma, places, pair.weights)
    score, bound, values = lax.map(one, groups, batch_size=_at_once(pair.plan))
    return SetScores(score, jnp.max(bound), sigma, values)


def group_score(
    values: jax.Array, n_rows: jax.Array, columns: jax.Array, weights: jax.Array, matched: bool
) -> jax.Array:
    """1/2 (mean_i of the best column + mean_j of the best row) over one group of columns [c].

    matched: the best of a random subset of the columns, which is `weights` over the row's ordered
    values. NaN in a row or column that is used gives NaN, and so does an empty group.
    """
    is_row = jnp.arange(values.shape[0]) < n_rows
    is_column = columns >= 0
    own = jnp.take(values, jnp.maximum(columns, 0), axis=1)
    own = jnp.where(is_row[:, None] & is_column[None, :], own, -jnp.inf)
    if matched:
        ordered = -jnp.sort(-own, axis=1)
        best = jnp.sum(jnp.where(weights[None, :] > 0, ordered * weights[None, :], 0.0), axis=1)
    else:
        best = jnp.max(own, axis=1)
    rows = jnp.sum(jnp.where(is_row, best, 0.0)) / n_rows.astype(jnp.float32)
    best_row = jnp.where(is_column, jnp.max(own, axis=0), 0.0)
    return 0.5 * (rows + jnp.sum(best_row) / jnp.sum(is_column, dtype=jnp.float32))
