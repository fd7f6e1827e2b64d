"""The golden numbers of the specification, in the float64 reference and in float32.

A_i = sin((i + 1) 0.37 t), i = 0..4; B_j = cos((j + 2) 0.23 t) + 0.5 sin((j + 1) 0.37 t), j = 0..3,
t = 1..64. Each is given to seven digits.
"""

import numpy as np
import pytest
from bridgex_jax.kernels.hsic import (
    hsic,
    hsic_planned,
    make_plan,
    reference,
    released_score,
    size_matched_score,
)

T = np.arange(1, 65)
A = np.stack([np.sin((i + 1) * 0.37 * T) for i in range(5)])
B = np.stack([np.cos((j + 2) * 0.23 * T) + 0.5 * np.sin((j + 1) * 0.37 * T) for j in range(4)])
DIGITS = 5e-8  # half of the last digit given
FLOAT32 = 8 * np.finfo(np.float32).eps * np.sqrt(T.size)  # relative, over a sum of N terms

GOLDEN = [
    ("trace_khl", "set_median", 1.0, 0.0920492),
    ("biased", "set_median", 63.0**2, 0.0842717),  # tr(KHLH), not normalised
    ("cka", "variable_median", 1.0, 0.2881865),
    ("cka_debiased", "variable_median", 1.0, 0.2680982),
]
SIZE_MATCHED = 0.2396500  # of cka_debiased, m = 3


def test_released_bandwidth_in_float64_and_in_the_result():
    z = [reference.standardise(rows, reference.RELEASED_EPSILON) for rows in (A, B)]
    assert reference.set_median(*z) == pytest.approx(11.2253296, abs=DIGITS)
    plan = make_plan(A, B, estimator="trace_khl", bandwidth="set_median")
    result = hsic_planned(A.astype(np.float32), B.astype(np.float32), plan)
    assert np.asarray(result.sigma_x) == pytest.approx(11.2253296, rel=FLOAT32)
    assert np.asarray(result.sigma_y) == pytest.approx(11.2253296, rel=FLOAT32)


@pytest.mark.parametrize(("estimator", "bandwidth", "scale", "golden"), GOLDEN)
def test_scores_of_the_float64_reference(estimator, bandwidth, scale, golden):
    values = scale * reference.hsic(A, B, estimator=estimator, bandwidth=bandwidth)
    assert released_score(values) == pytest.approx(golden, abs=DIGITS)


@pytest.mark.parametrize("implementation", ["exact", "features"])
@pytest.mark.parametrize(("estimator", "bandwidth", "scale", "golden"), GOLDEN)
def test_scores_in_float32(estimator, bandwidth, scale, golden, implementation):
    if implementation == "features" and bandwidth == "variable_median":
        pytest.skip("no rank certifies features at a bandwidth of the order of the data")
    values = hsic(A, B, estimator=estimator, bandwidth=bandwidth, implementation=implementation)
    score = scale * released_score(np.asarray(values))
    assert score == pytest.approx(golden, rel=FLOAT32, abs=DIGITS)


def test_size_matched_score_in_float64_and_float32():
    exact = reference.hsic(A, B, estimator="cka_debiased")
    assert size_matched_score(exact, 3) == pytest.approx(SIZE_MATCHED, abs=DIGITS)
    score = size_matched_score(np.asarray(hsic(A, B)), 3)
    assert score == pytest.approx(SIZE_MATCHED, rel=FLOAT32, abs=DIGITS)
