"""Bandwidths, scores, low-rank factors and resampling, each against its definition."""

import itertools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bridgex_jax.kernels.hsic import (
    api,
    bandwidth,
    cholesky,
    features,
    hsic,
    reference,
    released_score,
    resampling,
    size_matched_score,
)
from bridgex_jax.kernels.hsic.exact import series_minus_one
from bridgex_jax.kernels.hsic.score import subset_maximum_weights
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

RANDOM = np.random.default_rng(0)
QUICK = hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
ROWS = stn.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(4, 20)),
    elements=st.floats(-100, 100, width=32),
)


def varied(rows):
    """Standardised rows that differ by more than float32 noise, or None."""
    spread = np.ptp(rows.astype(np.float64), axis=1)
    if (spread < 1e-3).any():
        return None
    return reference.standardise(rows)


@QUICK
@hypothesis.given(ROWS)
def test_median_distance_is_the_median_of_all_distances(rows):
    z = varied(rows)
    hypothesis.assume(z is not None)
    # The distances of the very float32 numbers that the search sees.
    exact = reference.variable_median(z.astype(np.float32).astype(np.float64))
    assert api.host_variable_median(z) == pytest.approx(exact, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("n_words", [2, 3, 31, 64, 65])
@pytest.mark.parametrize("kind", ["normal", "skewed", "rounded", "mostly one value"])
def test_median_distance_on_even_and_odd_numbers_of_pairs_and_ties(kind, n_words):
    rows = np.random.default_rng(n_words).standard_normal((8, n_words))
    if kind == "skewed":
        rows = np.exp(2 * rows)
    elif kind == "rounded":
        rows = np.round(rows + 0.01 * np.arange(n_words), 1)
    elif kind == "mostly one value":
        rows = np.where(np.arange(n_words) % 4 == 0, rows, 0.5)
    z = reference.standardise(rows)
    assert api.host_variable_median(z) == pytest.approx(
        reference.variable_median(z), rel=1e-6, abs=1e-6
    )
    words = jnp.pad(jnp.ones(n_words, jnp.float32), (0, 66 - n_words))
    padded = jnp.pad(jnp.asarray(z, jnp.float32), ((0, 0), (0, 66 - n_words)))
    assert np.asarray(jax.jit(bandwidth.variable_median)(padded, words)) == pytest.approx(
        reference.variable_median(z), rel=1e-6, abs=1e-6
    )


def set_median(x, y, missing=(0, 0)):
    """`bandwidth.set_median` with rows of padding at the end."""
    sets = [np.pad(z, ((0, more), (0, 0))) for z, more in zip((x, y), missing, strict=True)]
    ok = [np.arange(len(z)) < len(z) - more for z, more in zip(sets, missing, strict=True)]
    rows = (
        bandwidth.Standardised(jnp.asarray(z, jnp.float32), o)
        for z, o in zip(sets, ok, strict=True)
    )
    return float(bandwidth.set_median(*rows, jnp.ones(x.shape[1], jnp.float32)))


@pytest.mark.parametrize(("n1", "n2"), [(5, 7), (1, 6), (3, 3), (20, 40)])
def test_set_median_by_counting_is_the_median_of_row_distances(n1, n2):
    x, y = (reference.standardise(RANDOM.standard_normal((n, 40))) for n in (n1, n2))
    exact = reference.set_median(x, y)
    assert set_median(x, y) == pytest.approx(exact, rel=1e-6)
    assert set_median(x, y, missing=(3, 1)) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize(("n1", "n2"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_set_median_of_one_or_two_rows_collapses(n1, n2):
    x, y = (reference.standardise(RANDOM.standard_normal((n, 40))) for n in (n1, n2))
    assert set_median(x, y, missing=(2, 0)) == pytest.approx(reference.set_median(x, y), rel=1e-6)
    assert reference.set_median(x, y) == 1e-6


def test_rows_that_are_equal_are_at_distance_0():
    x = reference.standardise(np.repeat(RANDOM.standard_normal((1, 500)), 6, axis=0))
    y = reference.standardise(RANDOM.standard_normal((3, 500)))
    assert set_median(x, y) == pytest.approx(reference.set_median(x, y), rel=1e-6) == 1e-6


def test_graded_features_hold_the_kernel_and_fall():
    for count in (3, 4, 7, 12):
        rotation = features.grading(count)
        assert rotation @ rotation.T == pytest.approx(np.eye(count), abs=1e-12)
    z = jnp.asarray(reference.standardise(RANDOM.standard_normal((2, 200))), jnp.float32)
    source = features.taylor(z, jnp.full(2, 16.0), jnp.ones(200, jnp.float32), 6)
    made = np.asarray(source.make(source.parts, jnp.ones(200, jnp.float32)), np.float64)
    centred = made - made.mean(axis=2, keepdims=True)
    norms = (centred**2).sum(axis=2)
    assert (norms[1:5] < 0.05 * norms[:4]).all()  # a power of z/sigma each, squared
    h = np.eye(200) - 1 / 200
    exact = h @ reference.gram(np.asarray(z, np.float64), 16.0) @ h
    low_rank = np.einsum("rnw,rnv->nwv", centred, centred)
    assert low_rank == pytest.approx(exact, abs=1e-8)


def test_the_derivative_holds_where_the_polynomial_would_overflow():
    gradient = jax.grad(lambda t: jnp.sum(series_minus_one(t)))
    exponents = jnp.asarray([-1e12, -50.0, -0.1, 0.0], jnp.float32)
    assert np.asarray(gradient(exponents)) == pytest.approx(np.exp(np.asarray(exponents)), abs=1e-6)


def test_the_series_keeps_the_digits_of_small_exponents():
    exponents = -np.geomspace(1e-12, 80, 5001).astype(np.float32)
    exact = np.expm1(exponents.astype(np.float64))
    values = np.asarray(series_minus_one(jnp.asarray(exponents)))
    assert np.abs(values / exact - 1).max() < 3e-7
    assert np.asarray(series_minus_one(jnp.zeros(1, jnp.float32))) == 0.0


@QUICK
@hypothesis.given(ROWS, ROWS, st.randoms(use_true_random=False))
def test_properties_of_cka(x, y, random):
    n_words = min(x.shape[1], y.shape[1])
    x, y = x[:, :n_words], y[:, :n_words]
    hypothesis.assume(varied(x) is not None and varied(y) is not None)
    values = np.asarray(hsic(x, y, estimator="cka", bandwidth=1.0))
    assert (values > -1e-5).all()
    assert (values < 1 + 1e-5).all()
    order = list(range(n_words))
    random.shuffle(order)
    moved = np.asarray(hsic(x[:, order], y[:, order], estimator="cka", bandwidth=1.0))
    assert moved == pytest.approx(values, abs=1e-5)
    assert (
        pytest.approx(values, abs=1e-5) == np.asarray(hsic(y, x, estimator="cka", bandwidth=1.0)).T
    )
    exact = reference.hsic(x, y, estimator="cka", bandwidth=1.0)
    assert values == pytest.approx(exact, abs=1e-4)


def test_expected_maximum_of_a_subset_equals_the_mean_over_all_subsets():
    values = np.sort(RANDOM.standard_normal(7))[::-1]
    for m in range(1, 8):
        mean = np.mean([max(subset) for subset in itertools.combinations(values, m)])
        assert subset_maximum_weights(7, m) @ values == pytest.approx(mean)
    assert subset_maximum_weights(4000, 40).sum() == pytest.approx(1)
    with pytest.raises(ValueError, match="subset of 8"):
        subset_maximum_weights(7, 8)


def test_scores_take_leading_axes_and_agree_at_full_size():
    values = RANDOM.standard_normal((3, 5, 6))
    assert size_matched_score(values, 6) == pytest.approx(released_score(values))
    assert size_matched_score(values, 2)[1] == pytest.approx(size_matched_score(values[1], 2))
    by_hand = 0.5 * (values[0].max(axis=1).mean() + values[0].max(axis=0).mean())
    assert released_score(values[0]) == pytest.approx(by_hand)
    with pytest.raises(ValueError, match="at least one row"):
        released_score(np.zeros((0, 3)))


@pytest.mark.parametrize("sigma", [0.9, 20.0])
def test_cholesky_leaves_no_more_than_it_says(sigma):
    z = reference.standardise(RANDOM.standard_t(4, (5, 64)))
    sigmas = np.full(5, sigma)
    full = reference.gram(z, sigmas) + 1.0
    factors, left = cholesky.pivoted_cholesky(z, sigmas, 40, 1e-6)
    remainder = full - factors.transpose(0, 2, 1) @ factors
    assert np.trace(remainder, axis1=1, axis2=2) == pytest.approx(left, abs=1e-9)
    assert np.linalg.eigvalsh(remainder).min() > -1e-9
    found = cholesky.centred_factors(z, sigmas)
    h = np.eye(64) - 1 / 64
    centred = h @ full @ h
    low_rank = found.centred.transpose(0, 2, 1) @ found.centred
    # Top eigenpairs: what is lost of the squared norm is the remainder's squared norm.
    lost = ((centred - low_rank) ** 2).sum(axis=(1, 2)) / (centred**2).sum(axis=(1, 2))
    assert lost == pytest.approx(found.lost, abs=1e-6)
    assert found.raw_rows == pytest.approx((h @ full).sum(axis=2), abs=1e-3)


@pytest.mark.parametrize("estimator", ["cka_debiased", "biased", "trace_khl"])
def test_permuted_values_are_those_of_permuted_data(estimator):
    random = np.random.default_rng(0)
    x, y = random.standard_normal((6, 64)), random.standard_normal((5, 64))
    y[:3] += x[:3]
    orders = np.stack([np.arange(64), random.permutation(64)]).astype(np.int32)
    sets = []
    for rows in (x, y):
        z = reference.standardise(rows)
        found = cholesky.centred_factors(z, np.full(len(z), 1.0), lost=1e-9)
        sets.append(resampling.factor_set(found.centred, found.raw_rows))
    values = resampling.permuted_values(*sets, orders, estimator=estimator, precision="highest")
    for order, value in zip(orders, np.asarray(values), strict=True):
        exact = reference.hsic(x[:, order], y, estimator=estimator, bandwidth=1.0)
        assert np.abs(value - exact).max() < 1e-4 * np.abs(exact).max()


def weighted_by_hand(k, l, coefficients, weights, estimator):  # noqa: E741
    """sum C S of one replicate from whole Gram matrices: distinct words, exact denominators."""
    n = len(weights)
    h = np.eye(n) - 1 / n
    off = 1 - np.eye(n)
    if estimator in ("unbiased", "cka_debiased"):

        def centre(gram):
            gram = gram * off
            rows, total = gram.sum(axis=2), gram.sum(axis=(1, 2))
            gram = gram - (rows[:, :, None] + rows[:, None, :]) / (n - 2)
            return (gram + total[:, None, None] / ((n - 1) * (n - 2))) * off

        diagonal, scale = np.zeros((n, n)), 1 / (n * (n - 3))
    else:

        def centre(gram):
            return h @ gram @ h

        diagonal, scale = np.diag(weights), 1 / (n - 1) ** 2
    k, l = centre(k), centre(l)  # noqa: E741
    distinct = n * n - (weights**2).sum()
    pair = np.outer(weights, weights) * off * n * (n - 1) / distinct + diagonal
    values = scale * np.einsum("iab,jab,ab->ij", k, l, pair)
    if estimator.startswith("cka"):
        own = [scale * np.einsum("iab,iab,ab->i", m, m, pair) for m in (k, l)]
        values = values / np.sqrt(np.outer(*own))
    return (coefficients * values).sum()


@pytest.mark.parametrize("estimator", ["unbiased", "cka_debiased", "biased"])
def test_bootstrap_equals_reweighting_whole_gram_matrices(estimator):
    n_words, n_draws = 64, 40
    x, y = RANDOM.standard_normal((6, n_words)), RANDOM.standard_normal((5, n_words))
    y[:3] += x[:3]
    coefficients = RANDOM.random((6, 5)) / 30
    values = reference.hsic(x, y, estimator=estimator, bandwidth=1.0)
    draws = RANDOM.multinomial(n_words, np.full(n_words, 1 / n_words), size=n_draws)
    weights = np.concatenate([np.ones((1, n_words)), draws])
    got = resampling.bootstrap_scores(
        *(
            jnp.asarray(part, jnp.float32)
            for part in (
                x,
                y[None],
                np.ones(6),
                np.ones((1, 5)),
                np.ones(n_words),
                coefficients[None],
                values[None],
                weights.T,
            )
        ),
        estimator=estimator,
        tile=32,
        precision="highest",
        cancels=False,
        epsilon=0.0,
    )
    grams = [reference.gram(reference.standardise(rows), 1.0) for rows in (x, y)]
    by_hand = np.array([weighted_by_hand(*grams, coefficients, w, estimator) for w in weights])
    got = np.asarray(got)[0]
    assert got[0] == pytest.approx((coefficients * values).sum(), rel=1e-5)
    if estimator == "cka_debiased":  # denominators to first order
        assert np.corrcoef(got, by_hand)[0, 1] > 0.97
        assert got[1:].std() == pytest.approx(by_hand[1:].std(), rel=0.1)
        assert abs(got.mean() - by_hand.mean()) < 0.2 * by_hand.std()
    else:
        assert got == pytest.approx(by_hand, rel=1e-4)
