"""Scores on the device: those of score.py, and the whole call lowers for devices not at hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bridgex_jax.kernels.hsic import Plan, reference, released_score, size_matched_score
from bridgex_jax.kernels.hsic import batch as batch_module
from bridgex_jax.kernels.hsic.batch import SetPairs, group_score, score_set_pairs
from bridgex_jax.kernels.hsic.score import subset_maximum_weights

RANDOM = np.random.default_rng(0)
GROUPS = (np.array([0, 2, 3, 8]), np.array([1, 4, 5, 6, 7, 9]))


def padded_group(own, matched, width=8):
    columns, weights = np.full(width, -1, np.int32), np.zeros(width, np.float32)
    columns[: len(own)] = own
    weights[: len(own)] = subset_maximum_weights(len(own), matched or len(own))
    return columns, weights


@pytest.mark.parametrize("matched", [0, 3])
def test_a_group_scores_as_on_the_host(matched):
    values = RANDOM.standard_normal((7, 10)).astype(np.float32)
    values[5:] = np.nan  # rows of padding
    for own in GROUPS:
        columns, weights = padded_group(own, matched)
        score = group_score(values, jnp.int32(5), columns, weights, matched > 0)
        alone = values[:5][:, own]
        expected = size_matched_score(alone, matched) if matched else released_score(alone)
        assert float(score) == pytest.approx(float(expected), rel=1e-6)


def test_a_value_that_is_missing_and_an_empty_group_give_nan():
    values = RANDOM.standard_normal((3, 10)).astype(np.float32)
    columns, weights = padded_group(GROUPS[0], 2)
    values[1, 1] = np.nan  # in the other group
    assert np.isfinite(group_score(values, jnp.int32(3), columns, weights, True))
    values[1, 2] = np.nan
    assert np.isnan(group_score(values, jnp.int32(3), columns, weights, True))
    empty = 0 * columns - 1, 0 * weights
    assert np.isnan(group_score(values, jnp.int32(3), *empty, True))


def batch(n_pairs=3, n_words=40, released=False, **choices):
    """Pairs of 5 and 10 variables, in sets of 8 and 16, of 40 words in 64."""
    x, y = np.zeros((n_pairs, 8, 64)), np.zeros((n_pairs, 16, 64))
    x[:, :5, :n_words] = RANDOM.standard_normal((n_pairs, 5, n_words))
    y[:, :10, :n_words] = RANDOM.standard_normal((n_pairs, 10, n_words))
    groups = [padded_group(own, 3) for own in GROUPS]
    return SetPairs(
        x.astype(np.float32),
        y.astype(np.float32),
        Plan(
            None if released else np.ones((n_pairs, 8), np.float32),
            None if released else np.ones((n_pairs, 16), np.float32),
            np.tile(np.arange(64) < n_words, (n_pairs, 1)).astype(np.float32),
            tile=16,
            **choices,
        ),
        np.full(n_pairs, 5, np.int32),
        np.tile(np.stack([columns for columns, _ in groups]), (n_pairs, 1, 1)),
        np.tile(np.stack([weights for _, weights in groups]), (n_pairs, 1, 1)),
    )


def test_a_batch_scores_every_pair_as_the_reference_does():
    pairs = batch()
    found = score_set_pairs(pairs, matched=True, with_values=True)
    assert found.values is not None
    for m in range(3):
        x, y = pairs.x[m, :5, :40], pairs.y[m, :10, :40]
        exact = reference.hsic(x, y, estimator="cka_debiased", bandwidth=1.0)
        assert np.asarray(found.values)[m, :5, :10] == pytest.approx(exact, abs=2e-5)
        for g, own in enumerate(GROUPS):
            expected = size_matched_score(exact[:, own], 3)
            assert float(found.score[m, g]) == pytest.approx(expected, abs=2e-5)


def test_pairs_at_once_score_as_one_after_the_other(monkeypatch):
    pairs = batch(released=True, estimator="trace_khl", implementation="features", rank=6)
    run = [jax.jit(lambda some: score_set_pairs(some, matched=True).score) for _ in range(2)]
    alone = np.asarray(run[0](pairs))
    monkeypatch.setattr(batch_module, "_at_once", lambda plan: 2)
    jax.clear_caches()
    assert np.asarray(run[1](pairs)) == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_the_call_lowers_for_devices_that_are_not_here(released, platform):
    choices = {"estimator": "trace_khl", "implementation": "features", "rank": 6}
    pairs = batch(released=released, **choices if released else {})
    call = jax.jit(lambda pairs: score_set_pairs(pairs, matched=not released).score)
    assert jax.export.export(call, platforms=[platform])(pairs).mlir_module_serialized
