"""The fused kernels for TPU and GPU: their numbers in interpret mode, and that they lower.

No device is needed. Errors are relative to the largest entry of the float64 reference.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bridgex_jax.kernels.hsic import ESTIMATORS, pallas_tpu, reference
from bridgex_jax.kernels.hsic.estimators import DEBIASED, combine
from bridgex_jax.kernels.hsic.exact import Form, exact_sums, exp_minus_one
from bridgex_jax.kernels.hsic.pallas_common import products, series_minus_one, split
from bridgex_jax.kernels.hsic.pallas_mosaic_gpu import pallas_mosaic_gpu_sums
from bridgex_jax.kernels.hsic.pallas_tpu import pallas_tpu_sums

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((6, 134))
Y = np.concatenate(
    [X[:3] + 0.5 * RANDOM.standard_normal((3, 134)), RANDOM.standard_normal((2, 134))]
)
SERIES, PLAIN = jnp.expm1, exp_minus_one
TPU, GPU = pallas_tpu_sums, pallas_mosaic_gpu_sums
ERRORS = {"highest": 2e-6, "high": 4e-6, "default": 2e-3}


def tolerance(n_words):
    return 8 * float(np.finfo(np.float32).eps) * np.sqrt(n_words)


def error(values, exact):
    return np.abs(np.asarray(values) - exact).max() / np.abs(exact).max()


def arguments(x, y, sigma, missing):
    """Standardised sets and bandwidths of each row, with `missing` words of padding."""
    sets = [reference.standardise(rows) for rows in (x, y)]
    sigmas = [reference.variable_median(z) if sigma is None else [sigma] * len(z) for z in sets]
    padded = [np.pad(z, ((0, 0), (0, missing))) for z in sets]
    words = np.pad(np.ones(x.shape[1]), (0, missing))
    return [jnp.asarray(part, jnp.float32) for part in (*padded, *sigmas, words)]


def interpreted(sums, form, precision="highest"):
    return jax.jit(functools.partial(sums, precision=precision, form=form, interpret=True))


def test_the_series_keeps_the_digits_of_small_exponents():
    exponents = -np.geomspace(1e-12, 80, 5001).astype(np.float32)
    exact = np.expm1(exponents.astype(np.float64))
    values = np.asarray(series_minus_one(jnp.asarray(exponents)))
    assert np.abs(values / exact - 1).max() < 3e-7
    assert np.asarray(series_minus_one(jnp.zeros(1))) == 0.0


def test_three_pieces_hold_all_bits_even_under_a_compiler():
    values = jnp.asarray(RANDOM.standard_normal(1000), jnp.float32)
    parts = jax.jit(split, static_argnums=1)(values, 3)
    assert {part.dtype for part in parts} == {jnp.dtype(jnp.bfloat16)}
    assert (sum(np.asarray(part, np.float64) for part in parts) == np.asarray(values)).all()
    assert [len(products(pieces)) for pieces in (1, 2, 3)] == [1, 3, 6]
    assert products(3)[-1] == (0, 0)


@pytest.mark.parametrize("off_diagonal", [False, True])
@pytest.mark.parametrize(("sums", "n_words"), [(TPU, 134), (GPU, 70)])
@pytest.mark.parametrize(("minus_one", "sigma"), [(PLAIN, None), (SERIES, 4.0)])
def test_ragged_sets_with_padding_agree_with_float64(sums, n_words, minus_one, sigma, off_diagonal):
    x, y = X[:, :n_words], Y[:, :n_words]
    given = arguments(x, y, sigma, missing=3)
    found = interpreted(sums, Form(minus_one, off_diagonal))(*given)
    bandwidth = "variable_median" if sigma is None else sigma
    for estimator in ESTIMATORS:
        if (estimator in DEBIASED) == off_diagonal:
            exact = reference.hsic(x, y, estimator=estimator, bandwidth=bandwidth)
            assert error(combine(estimator, *found, given[4]), exact) < tolerance(64)


@pytest.mark.parametrize("precision", ["highest", "high", "default"])
@pytest.mark.parametrize("sums", [TPU, GPU])
def test_cross_is_as_good_as_its_precision_says(sums, precision):
    given = arguments(X[:, :40], Y[:, :40], 4.0, missing=0)
    form = Form(SERIES, False)
    with jax.enable_x64(True):
        wide = [np.asarray(part, np.float64) for part in given]
        cross, *_ = exact_sums(*wide, tile=40, precision="highest", form=form)
        exact = np.asarray(cross)
    cross, *_ = interpreted(sums, form, precision)(*given)
    assert error(cross, exact) < ERRORS[precision]


def test_several_blocks_of_variables(monkeypatch):
    monkeypatch.setattr(pallas_tpu, "MAX_BLOCK", 128)
    x = RANDOM.standard_normal((130, 12))
    given = arguments(x, Y[:, :12], None, missing=0)
    values = combine("biased", *interpreted(TPU, Form(PLAIN, False), "high")(*given), given[4])
    assert error(values, reference.hsic(x, Y[:, :12], estimator="biased")) < tolerance(64)


def test_several_blocks_of_variables_on_a_gpu():
    x = RANDOM.standard_normal((66, 12))
    given = arguments(x, Y[:, :12], None, missing=0)
    values = combine("biased", *interpreted(GPU, Form(PLAIN, False), "high")(*given), given[4])
    assert error(values, reference.hsic(x, Y[:, :12], estimator="biased")) < tolerance(64)


@pytest.mark.parametrize("sums", [TPU, GPU])
def test_one_variable_and_four_words(sums):
    x, y = X[:1, :4], Y[:3, :4]
    given = arguments(x, y, None, missing=0)
    values = combine("unbiased", *interpreted(sums, Form(PLAIN, True))(*given), given[4])
    assert error(values, reference.hsic(x, y, estimator="unbiased")) < tolerance(64)


@pytest.mark.parametrize("precision", ["highest", "high", "default"])
@pytest.mark.parametrize(
    ("sums", "platform", "call"),
    [(TPU, "tpu", "tpu_custom_call"), (GPU, "cuda", "mosaic_gpu")],
)
def test_lowers_without_a_device(sums, platform, call, precision):
    given = arguments(RANDOM.standard_normal((300, 134)), Y, 4.0, missing=0)
    for form in (Form(SERIES, True), Form(PLAIN, False)):
        run = jax.jit(functools.partial(sums, precision=precision, form=form))
        assert call in jax.export.export(run, platforms=[platform])(*given).mlir_module()
