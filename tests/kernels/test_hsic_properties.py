"""What must hold of every implementation alike, on data that hypothesis makes up.

All run through `hsic_planned` in one compiled shape each; fewer words are words masked out. The
fused kernels run in their interpreters, on small tiles. Values of the biased and the unbiased form
are of order 1 at most, so tolerances are absolute.
"""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bridgex_jax.kernels.hsic import (
    Plan,
    api,
    hsic,
    hsic_planned,
    pallas_mosaic_gpu,
    pallas_tpu,
    reference,
)
from hypothesis import strategies as st
from jax.experimental.pallas import mosaic_gpu as plgpu

ROWS, WORDS = 3, 24
FLOAT32 = 8 * float(np.finfo(np.float32).eps) * np.sqrt(WORDS)
# bandwidth, rank, what the rank leaves out at most
IMPLEMENTATIONS = {
    "exact": (0.8, None, 0.0),
    "features": (6.0, 8, 1e-7),
    "cholesky": (1.5, 24, 1e-6),
    "pallas_tpu": (0.8, None, 0.0),
    "pallas_mosaic_gpu": (0.8, None, 0.0),
}
KINDS = {
    "normal": lambda random, shape: random.standard_normal(shape),
    "heavy": lambda random, shape: random.standard_t(2, shape),
    "skewed": lambda random, shape: np.exp(2 * random.standard_normal(shape)),
    "ties": lambda random, shape: random.integers(0, 4, shape) + 1e-2 * np.arange(shape[1]),
    "a spike": lambda random, shape: np.eye(1, shape[1], 2) + 1e-2 * random.random(shape),
}


@st.composite
def sets(draw):
    """A set of one kind, somewhere, of some size."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = KINDS[draw(st.sampled_from(list(KINDS)))](random, (ROWS, WORDS))
    scale = draw(st.sampled_from([1e-20, 1e-3, 1.0, 1e10]))
    return (scale * (rows + draw(st.integers(-50, 50)))).astype(np.float32)


def quick(examples):
    return hypothesis.settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
    )


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """Several tiles from few words, and no device."""
    for name, size in (("TILE", 16), ("CHUNK", 2), ("LANES", 8), ("MAX_BLOCK", 8)):
        monkeypatch.setattr(pallas_tpu, name, size)
    for name, size in (("TILE", 16), ("BLOCK", 16), ("BLOCKS_ON_DEVICE", 2)):
        monkeypatch.setattr(pallas_mosaic_gpu, name, size)
    monkeypatch.setattr(pallas_mosaic_gpu, "_shared", plgpu.SMEM)
    for module, name in (
        (pallas_tpu, "pallas_tpu_sums"),
        (pallas_mosaic_gpu, "pallas_mosaic_gpu_sums"),
    ):
        run = functools.partial(getattr(module, name), interpret=True)
        monkeypatch.setattr(module, name, run)
    monkeypatch.setattr(api, "check_platform", lambda implementation: None)


def plan(implementation, estimator, n_words=WORDS):
    sigma, rank, _ = IMPLEMENTATIONS[implementation]
    return Plan(
        np.full(ROWS, sigma, np.float32),
        np.full(ROWS, sigma, np.float32),
        (np.arange(WORDS) < n_words).astype(np.float32),
        estimator=estimator,
        implementation=implementation,
        rank=rank,
        tile=16,
    )


def values(x, y, how):
    """Of sets whose words from `how.words` on are anything at all."""
    masked = [np.where(how.words > 0, part, 7.0).astype(np.float32) for part in (x, y)]
    result = hsic_planned(*masked, how)
    return np.asarray(result.values), np.asarray(result.ok_x), np.asarray(result.ok_y)


def check_properties(implementation, estimator, x, y, n_words, random):
    how = plan(implementation, estimator, n_words)
    sigma, _, left_out = IMPLEMENTATIONS[implementation]
    near = functools.partial(pytest.approx, abs=2 * FLOAT32 + left_out, rel=0)
    found, ok_x, ok_y = values(x, y, how)
    assert ok_x.all() and ok_y.all()
    settings = {"estimator": estimator, "bandwidth": sigma}
    assert found == near(reference.hsic(x[:, :n_words], y[:, :n_words], **settings))
    assert near(found) == values(y, x, how)[0].T  # transposition
    order = list(range(n_words))
    random.shuffle(order)
    order += list(range(n_words, WORDS))
    assert values(x[:, order], y[:, order], how)[0] == near(found)  # order of the words
    assert values(-4 * x, 0.25 * y, how)[0] == near(found)  # units of the variables
    assert values(x[::-1], y, how)[0][::-1] == near(found)  # variables are apart


GIVEN = {"x": sets(), "y": sets(), "n_words": st.integers(4, WORDS), "random": st.randoms()}


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("implementation", ["exact", "features", "cholesky", "pallas_tpu"])
@quick(20)
@hypothesis.given(**GIVEN)
def test_properties(implementation, estimator, x, y, n_words, random):
    check_properties(implementation, estimator, x, y, n_words, random)


@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@quick(1)  # its interpreter takes a second a call
@hypothesis.given(**GIVEN)
def test_properties_of_the_slow_interpreter(estimator, x, y, n_words, random):
    check_properties("pallas_mosaic_gpu", estimator, x, y, n_words, random)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bad_rows_are_nan_and_leave_the_others_alone(implementation):
    random = np.random.default_rng(0)
    x, y = random.standard_normal((2, ROWS, WORDS))
    how = plan(implementation, "unbiased")
    whole, _, _ = values(x, y, how)
    x[0], y[1, 3] = 4.0, np.inf
    found, ok_x, ok_y = values(x, y, how)
    assert ok_x.tolist() == [False, True, True] and ok_y.tolist() == [True, False, True]
    used = ok_x[:, None] & ok_y[None, :]
    assert np.isnan(found[~used]).all()
    assert found[used] == pytest.approx(whole[used], abs=FLOAT32)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_dependence_is_found_and_two_words_are_fully_dependent(implementation):
    random = np.random.default_rng(0)
    x, y = random.standard_normal((2, ROWS, WORDS))
    y[0] = 2 * x[1]
    found, _, _ = values(x, y, plan(implementation, "biased"))
    assert found.argmax() == 3  # row 1, column 0
    pair, _, _ = values(x, y, plan(implementation, "biased", n_words=2))
    sigma, _, _ = IMPLEMENTATIONS[implementation]
    exact = reference.hsic(x[:, :2], y[:, :2], estimator="biased", bandwidth=sigma)
    assert pair == pytest.approx(exact, abs=1e-6)
    assert np.ptp(pair) < 1e-6


@pytest.mark.parametrize("implementation", ["pallas_tpu", "pallas_mosaic_gpu"])
def test_fused_kernels_have_the_derivative_of_the_tiles(implementation):
    random = np.random.default_rng(0)
    x, y = random.standard_normal((2, ROWS, WORDS)).astype(np.float32)

    def total(x, implementation):
        return jnp.sum(hsic_planned(x, y, plan(implementation, "cka_debiased")).values)

    gradient = jax.grad(total)(jnp.asarray(x), implementation)
    assert np.asarray(gradient) == pytest.approx(
        np.asarray(jax.grad(total)(jnp.asarray(x), "exact")), abs=1e-5
    )


@pytest.mark.parametrize("implementation", ["pallas_tpu", "pallas_mosaic_gpu"])
def test_hsic_takes_a_fused_kernel_by_name(implementation):
    random = np.random.default_rng(0)
    x, y = random.standard_normal((2, ROWS, WORDS))
    found = hsic(x, y, implementation=implementation)
    assert np.asarray(found) == pytest.approx(reference.hsic(x, y), abs=1e-5)
