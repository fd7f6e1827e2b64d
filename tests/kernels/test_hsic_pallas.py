"""The fused kernels for TPU and GPU: their numbers in interpret mode, and that they lower.

No device is needed. Errors are relative to the largest entry in float64.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bridgex_jax.kernels.hsic import ESTIMATORS, pallas_mosaic_gpu, pallas_tpu, reference
from bridgex_jax.kernels.hsic.estimators import DEBIASED, combine
from bridgex_jax.kernels.hsic.exact import Form
from bridgex_jax.kernels.hsic.pallas_common import operand_of, products, split
from jax.experimental.pallas import mosaic_gpu as plgpu

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((18, 70))
Y = np.concatenate([X[:3] + 0.5 * RANDOM.standard_normal((3, 70)), RANDOM.standard_normal((2, 70))])
SERIES, PLAIN = True, False  # whether entries may cancel
TPU, GPU = pallas_tpu.pallas_tpu_sums, pallas_mosaic_gpu.pallas_mosaic_gpu_sums
ERRORS = {"highest": 2e-6, "high": 4e-6, "default": 2e-3}


def tolerance(n_words):
    return 8 * float(np.finfo(np.float32).eps) * np.sqrt(n_words)


def error(values, exact):
    return np.abs(np.asarray(values) - exact).max() / np.abs(exact).max()


def arguments(x, y, sigma, missing=0):
    """Standardised sets and bandwidths of each row, with `missing` words of padding."""
    sets = [reference.standardise(rows) for rows in (x, y)]
    sigmas = [reference.variable_median(z) if sigma is None else [sigma] * len(z) for z in sets]
    padded = [np.pad(z, ((0, 0), (0, missing))) for z in sets]
    words = np.pad(np.ones(x.shape[1]), (0, missing))
    return [jnp.asarray(part, jnp.float32) for part in (*padded, *sigmas, words)]


def compiled(run):
    """Under jit, with little optimisation: compiling takes longer here than running."""
    return jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})


def entries(z, sigma, words, form):
    """What the kernels sum, in float64 from the same float32 values and u: [n, N, N]."""
    operand = compiled(functools.partial(operand_of, form=form))(z, sigma, words)
    values, u = np.asarray(operand, np.float64)
    difference = values[:, :, None] - values[:, None, :]
    return np.expm1(-(difference**2)) - u[:, :, None] - u[:, None, :]


def test_three_pieces_hold_all_bits_even_under_a_compiler():
    values = jnp.asarray(RANDOM.standard_normal(1000), jnp.float32)
    parts = jax.jit(split, static_argnums=1)(values, 3)
    assert {part.dtype for part in parts} == {jnp.dtype(jnp.bfloat16)}
    assert (sum(np.asarray(part, np.float64) for part in parts) == np.asarray(values)).all()
    assert [len(products(pieces)) for pieces in (1, 2, 3)] == [1, 3, 6]
    assert products(3)[-1] == (0, 0)


@pytest.fixture
def small_tiles(monkeypatch):
    """Several tiles and blocks from few words and variables; the interpreters are slow."""
    for name, size in (("TILE", 32), ("CHUNK", 2), ("LANES", 8), ("MAX_BLOCK", 8)):
        monkeypatch.setattr(pallas_tpu, name, size)
    for name, size in (("TILE", 16), ("BLOCK", 16), ("BLOCKS_ON_DEVICE", 4)):
        monkeypatch.setattr(pallas_mosaic_gpu, name, size)
    monkeypatch.setattr(pallas_mosaic_gpu, "_shared", plgpu.SMEM)  # rows too short to swizzle


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("sums", "n1", "n_words", "cancels", "sigma", "off_diagonal"),
    [
        (TPU, 11, 40, PLAIN, None, True),
        (TPU, 6, 70, SERIES, 4.0, False),
        (GPU, 6, 22, PLAIN, None, True),
        (GPU, 17, 14, SERIES, 4.0, False),
    ],
)
def test_ragged_sets_with_padding_agree_with_float64(
    sums, n1, n_words, cancels, sigma, off_diagonal
):
    x, y = X[:n1, :n_words], Y[:, :n_words]
    given = arguments(x, y, sigma, missing=3)
    form = Form(cancels, off_diagonal)
    estimators = [name for name in ESTIMATORS if (name in DEBIASED) == off_diagonal]

    def values(*given):
        found = sums(*given, precision="highest", form=form, interpret=True)
        return {name: combine(name, *found, given[4]) for name in estimators}

    bandwidth = "variable_median" if sigma is None else sigma
    for name, value in compiled(values)(*given).items():
        exact = reference.hsic(x, y, estimator=name, bandwidth=bandwidth)
        assert error(value, exact) < tolerance(64)


def check_cross(sums, precision, n_words):
    form = Form(SERIES, False)
    given = x, y, sigma_x, sigma_y, words = arguments(X[:6, :n_words], Y[:, :n_words], 4.0)
    left, right = entries(x, sigma_x, words, form), entries(y, sigma_y, words, form)
    exact = left.reshape(len(x), -1) @ right.reshape(len(y), -1).T
    run = functools.partial(sums, precision=precision, form=form, interpret=True)
    cross, *_ = compiled(run)(*given)
    assert error(cross, exact) < ERRORS[precision]


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("sums", "precision"), [(TPU, "high"), (TPU, "default"), (GPU, "high"), (GPU, "default")]
)
def test_cross_is_as_good_as_its_precision_says(sums, precision):
    check_cross(sums, precision, 15)


def test_tiles_of_the_real_size_with_few_words():
    check_cross(GPU, "highest", 4)


@pytest.mark.parametrize(
    ("form", "precision"), [(Form(SERIES, True), "highest"), (Form(PLAIN, False), "default")]
)
@pytest.mark.parametrize(
    ("sums", "platform", "call"),
    [(TPU, "tpu", "tpu_custom_call"), (GPU, "cuda", "mosaic_gpu")],
)
def test_lowers_without_a_device(sums, platform, call, form, precision):
    shapes = [
        jax.ShapeDtypeStruct(s, jnp.float32) for s in ((300, 200), (9, 200), (300,), (9,), (200,))
    ]
    run = jax.jit(functools.partial(sums, precision=precision, form=form))
    module = jax.export.export(run, platforms=[platform])(*shapes).mlir_module()
    assert "hsic_cross" in module and module.count(call) >= 3
