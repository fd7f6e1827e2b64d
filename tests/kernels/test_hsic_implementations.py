"""Every implementation and estimator against the float64 reference, on easy and on nasty data.

Errors are relative to the largest entry; the tolerance follows from float32 and the number of
words that a sum runs over.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bridgex_jax.kernels.hsic import (
    ESTIMATORS,
    bench,
    hsic,
    hsic_planned,
    make_plan,
    plan,
    reference,
)

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((6, 64))
Y = np.concatenate([X[:3] + 0.5 * RANDOM.standard_normal((3, 64)), RANDOM.standard_normal((2, 64))])


def tolerance(n_words):
    return 8 * float(np.finfo(np.float32).eps) * np.sqrt(n_words)


def error(values, exact):
    return np.abs(np.asarray(values) - exact).max() / np.abs(exact).max()


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(
    ("implementation", "bandwidth"),
    [("exact", "variable_median"), ("features", "set_median")],
)
def test_agrees_with_float64(estimator, implementation, bandwidth):
    settings = {"estimator": estimator, "bandwidth": bandwidth}
    exact = reference.hsic(X, Y, **settings)
    assert error(hsic(X, Y, implementation=implementation, **settings), exact) < tolerance(64)


@pytest.mark.parametrize("n1", [1, 2, 5])
@pytest.mark.parametrize("n_words", [4, 5, 31, 33])
def test_tiny_and_ragged_sizes(n1, n_words):
    x, y = X[:, :n_words], Y[:3, :n_words]
    for estimator in ("unbiased", "trace_khl"):
        # One row's own entries may all be near 0, far below the terms that they are made of.
        exact = reference.hsic(x, y, estimator=estimator)
        found = np.asarray(hsic(x[:n1], y, estimator=estimator))
        assert np.abs(found - exact[:n1]).max() < tolerance(64) * np.abs(exact).max()


def test_two_words_are_fully_dependent():
    assert np.asarray(hsic(X[:, :2], Y[:, :2], estimator="cka")) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("bandwidth", [1e-6, 0.05, 3.0, 1e3, 1e7])
@pytest.mark.parametrize("estimator", ["biased", "cka_debiased"])
def test_tiny_and_huge_bandwidths_keep_their_digits(estimator, bandwidth):
    if bandwidth == 1e-6 and estimator == "cka_debiased":
        pytest.skip("every Gram matrix is the identity: nothing is left without the diagonal")
    exact = reference.hsic(X, Y, estimator=estimator, bandwidth=bandwidth)
    for implementation in ("exact", "features") if bandwidth == 1e7 else ("exact",):
        values = hsic(X, Y, estimator=estimator, bandwidth=bandwidth, implementation=implementation)
        assert error(values, exact) < tolerance(64)


@pytest.mark.parametrize("estimator", ["unbiased", "cka_debiased", "trace_khl"])
@pytest.mark.parametrize("bandwidth", ["variable_median", "set_median"])
def test_a_lone_outlier_does_not_cancel_the_digits(estimator, bandwidth):
    spike = np.where(np.arange(64) == 5, 20.0, 0.0)
    exact = reference.hsic(X + spike, Y + spike, estimator=estimator, bandwidth=bandwidth)
    values = hsic(X + spike, Y + spike, estimator=estimator, bandwidth=bandwidth)
    assert error(values, exact) < 2 * tolerance(64)


def test_integers_bfloat16_and_other_libraries_come_in_too():
    whole = np.round(100 * X).astype(np.int32)
    assert error(hsic(whole, Y), reference.hsic(whole, Y)) < tolerance(64)
    short = jnp.asarray(X, jnp.bfloat16)
    assert error(hsic(short, Y), reference.hsic(np.asarray(short, np.float64), Y)) < tolerance(64)
    assert error(hsic(X.tolist(), Y), reference.hsic(X, Y)) < tolerance(64)


def test_features_work_under_vmap():
    settings = {"estimator": "unbiased", "bandwidth": 6.0}
    stacked = jnp.stack([jnp.asarray(X, jnp.float32), jnp.asarray(X[::-1], jnp.float32)])
    both = jax.vmap(lambda x: hsic(x, Y, rank=6, **settings))(stacked)
    exact = reference.hsic(X, Y, **settings)
    assert error(both[0], exact) < tolerance(64) and error(both[1], exact[::-1]) < tolerance(64)


def test_raw_values_may_be_far_from_zero_and_of_any_size():
    exact = reference.hsic(X, Y)
    assert error(hsic(1e-30 * X, 1e30 * Y), exact) < tolerance(64)
    assert error(hsic(X + 1e4, Y), exact) < tolerance(64)


@pytest.mark.parametrize("estimator", ["biased", "unbiased", "cka_debiased"])
def test_transposing_the_sets_transposes_the_result(estimator):
    there = np.asarray(hsic(X, Y, estimator=estimator))
    assert error(np.asarray(hsic(Y, X, estimator=estimator)).T, there) < tolerance(64)


def test_the_order_of_the_words_does_not_matter():
    order = RANDOM.permutation(64)
    assert error(hsic(X[:, order], Y[:, order]), np.asarray(hsic(X, Y))) < tolerance(64)


def test_planted_dependence_is_found_and_independence_is_near_zero():
    values = np.asarray(hsic(X, Y))
    assert (values.argmax(axis=0)[:3] == np.arange(3)).all()
    independent = np.concatenate([values[:, 3:].ravel(), values[3:, :3].ravel()])
    assert abs(independent.mean()) < 0.02 < 0.2 < values[np.arange(3), np.arange(3)].min()


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("estimator", ["unbiased", "cka", "trace_khl"])
def test_the_certified_bound_holds_at_every_rank(estimator, scale):
    heavy = np.random.default_rng(1).standard_t(4, size=(11, 48))
    x, y = heavy[:6], heavy[6:]
    exact = reference.hsic(x, y, estimator=estimator, bandwidth=scale * 4)
    for rank in (3, 8) if estimator == "cka" else (5,):
        settings = {"estimator": estimator, "bandwidth": scale * 4.0}
        plan = make_plan(x, y, implementation="features", rank=rank, **settings)
        result = hsic_planned(jnp.asarray(x, jnp.float32), y.astype(np.float32), plan)
        rounding = tolerance(48) * np.abs(exact).max()
        assert np.abs(result.values - exact).max() <= result.bound + rounding


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_cholesky_agrees_with_float64_within_its_certificate(estimator):
    random = np.random.default_rng(2)
    x, y = random.uniform(-1, 1, (5, 150)), random.standard_normal((4, 150))
    y[:2] += x[:2]
    exact = reference.hsic(x, y, estimator=estimator)
    settings = {"estimator": estimator, "implementation": "cholesky"}
    for rank in (6, 24):
        result = hsic_planned(
            x.astype(np.float32), y.astype(np.float32), make_plan(x, y, rank=rank, **settings)
        )
        rounding = tolerance(150) * np.abs(exact).max()
        assert np.abs(result.values - exact).max() <= result.bound + rounding
    assert error(result.values, exact) < 2e-6
    assert error(hsic(x, y, tolerance=1e-4, **settings), exact) < 1e-4


def test_cholesky_is_taken_for_many_words_of_light_tails():
    x = RANDOM.uniform(-1, 1, (64, 1024))
    assert make_plan(x, x, tolerance=1e-4).implementation == "cholesky"
    assert make_plan(x, x).implementation == "exact"
    heavy = RANDOM.standard_t(1, (64, 1024))
    assert make_plan(heavy, x, tolerance=1e-4).implementation == "exact"
    assert make_plan(x[:, :256], x[:, :256], tolerance=1e-4).implementation == "exact"


def test_the_plan_takes_features_only_where_they_are_certified_and_cheaper():
    wide = RANDOM.standard_normal((40, 128))
    assert make_plan(wide, wide, bandwidth="set_median").implementation == "features"
    assert make_plan(wide, wide, bandwidth="variable_median").implementation == "exact"
    spike = wide + np.where(np.arange(128) == 5, 40.0, 0.0)
    assert make_plan(spike, spike, bandwidth="set_median").implementation == "exact"
    with pytest.raises(ValueError, match="certifies cholesky to 5e-07; take exact, or raise"):
        make_plan(X, Y, implementation="cholesky")
    with pytest.raises(ValueError, match="no rank certifies features"):
        make_plan(X, Y, bandwidth=0.5, implementation="features")


def test_two_bandwidths_may_be_given_apart():
    pair = (np.linspace(0.5, 2, 6), np.linspace(1, 3, 5))
    assert error(hsic(X, Y, bandwidth=pair), reference.hsic(X, Y, bandwidth=pair)) < tolerance(64)


def test_jit_and_vmap_give_the_eager_numbers():
    x, y = jnp.asarray(X, jnp.float32), jnp.asarray(Y, jnp.float32)
    settings = {"estimator": "biased", "bandwidth": "set_median"}
    traced = jax.jit(lambda x, y: hsic(x, y, **settings))(x, y)
    assert error(traced, np.asarray(hsic(X, Y, **settings))) < tolerance(64)
    both = jax.jit(jax.vmap(hsic, in_axes=(0, None)))(jnp.stack([x, x[::-1]]), y)
    eager = np.asarray(hsic(X, Y))
    assert error(both[0], eager) < tolerance(64)
    assert error(both[1], eager[::-1]) < tolerance(64)


@pytest.mark.parametrize(
    ("implementation", "rank"), [("exact", None), ("features", 6), ("cholesky", 24)]
)
def test_derivative_agrees_with_differences_in_float64(implementation, rank):
    def total(x):
        values = hsic(x, Y, bandwidth=4.0, implementation=implementation, rank=rank)
        return jnp.sum(values)

    gradient = np.asarray(jax.grad(total)(jnp.asarray(X, jnp.float32)))
    direction = RANDOM.standard_normal(X.shape)
    step = 1e-5 * direction
    difference = (
        reference.hsic(X + step, Y, bandwidth=4.0) - reference.hsic(X - step, Y, bandwidth=4.0)
    ).sum() / 2e-5
    assert (gradient * direction).sum() == pytest.approx(difference, rel=1e-3)


def test_bad_rows_give_nan_and_not_ok_under_jit():
    bad = X.copy()
    bad[1], bad[2, 7] = 3.0, np.nan
    result = hsic_planned(jnp.asarray(bad, jnp.float32), Y, make_plan(X, Y))
    assert result.ok_x.tolist() == [True, False, False, True, True, True]
    assert np.isnan(np.asarray(result.values)).all(axis=1).tolist() == [
        False,
        True,
        True,
        False,
        False,
        False,
    ]
    kept = np.asarray(result.values)[np.asarray(result.ok_x)]
    assert error(kept, np.asarray(hsic(X, Y))[[0, 3, 4, 5]]) < tolerance(64)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"x": X, "y": Y[:, :3]}, "words differ, 64 and 3"),
        ({"x": X[0], "y": Y}, "two axes"),
        ({"x": X[:0], "y": Y}, "no variables"),
        ({"x": X[:, :3], "y": Y[:, :3]}, "at least 4 words, got 3"),
        ({"x": X[:, :1], "y": Y[:, :1], "estimator": "biased"}, "at least 2 words, got 1"),
        ({"x": np.where(X > 2, np.nan, X), "y": Y}, "x: values that are not finite in rows"),
        ({"x": X, "y": 0 * Y}, r"y: rows \[0, 1, 2, 3, 4\] are constant"),
        ({"x": 1e60 * X, "y": Y, "bandwidth": 1.0}, "cannot be standardised in float32"),
        ({"x": np.round(0.3 * X), "y": Y}, "median distance of 0"),
        ({"x": X, "y": Y, "bandwidth": 0.0}, "bandwidth: 0.0 for x"),
        ({"x": X, "y": Y, "bandwidth": np.ones(3)}, r"6 variables, got shape \(3,\)"),
        ({"x": X, "y": Y, "bandwidth": "median"}, "bandwidth: 'median'"),
        ({"x": X, "y": Y, "estimator": "hsic"}, "estimator: 'hsic'"),
        ({"x": X, "y": Y, "implementation": "pallas"}, "implementation: 'pallas'"),
        ({"x": X, "y": Y, "implementation": "pallas_tpu"}, "pallas_tpu needs a TPU, here is cpu"),
        ({"x": X, "y": Y, "implementation": "pallas_mosaic_gpu"}, "needs a GPU of compute"),
        ({"x": X, "y": Y, "precision": "bf16"}, "precision: 'bf16'"),
        ({"x": X, "y": Y, "bandwidth": 1e-6}, "cka_debiased is undefined"),
    ],
)
def test_bad_input_names_the_argument_and_the_values(arguments, named):
    with pytest.raises(ValueError, match=named):
        hsic(**arguments)


def test_released_bandwidth_of_one_or_two_variables_gives_the_number_of_words_less_one():
    values = hsic(X[:2], Y[:2], estimator="trace_khl", bandwidth="set_median")
    assert np.asarray(values) == pytest.approx(63, rel=1e-5)


def test_sets_of_ragged_sizes_share_their_shapes():
    assert {plan.bucket(n) for n in range(1, 17)} == {16}
    assert [plan.bucket(n) for n in (33, 143, 257, 385, 858)] == [48, 144, 288, 416, 896]
    assert all(n <= plan.bucket(n) <= 1.125 * n + 16 for n in range(1, 2000))


def test_benchmark_measures_every_implementation_and_alternative(monkeypatch):
    monkeypatch.setattr(bench, "peak_gflops", lambda: 100.0)
    rows = bench.bench([(4, 3, 32)], repeats=1)
    assert [row.implementation for row in rows[-3:]] == ["features", "exact", "exact"]
    exact = reference.hsic(X, Y, estimator="trace_khl", bandwidth="set_median")
    for way in (bench.released, bench.numpy_product):
        assert error(way(X, Y), exact) < 1e-3
    assert all(row.ratio > 0 and row.error < 1e-3 for row in rows)
    assert all(row.error < tolerance(64) for row in rows[-3:])
