"""Length control and the cutting of probe values into the blocks that the kernel sees."""

import numpy as np
import pytest
from bridgex_jax.kernels.hsic import hsic

from bridgex_jax.bridge.sets import (
    ProbeValues,
    SpectrumSettings,
    layer_sets,
    pool_strata,
    remove_stratum_means,
)
from bridgex_jax.errors import InputError

RANDOM = np.random.default_rng(0)
N = 64
STRATA = np.repeat([3, 4, 5, 9], [30, 20, 10, 4])


def probe_of(values, strata=STRATA):
    return ProbeValues([values], [np.arange(len(values))], strata)


def masks(n_neurons, **sets):
    out = {}
    for name, ids in sets.items():
        out[name] = np.zeros((1, n_neurons), bool)
        out[name][0, ids] = True
    return out


def test_rare_token_counts_are_pooled_and_others_stand_alone():
    counts = np.array([3] * 6 + [4] * 5 + [7] * 4 + [8] + [2] * 2)
    labels = pool_strata(counts)
    assert len(np.unique(labels)) == 3
    assert len(np.unique(labels[counts == 3])) == 1
    assert len(np.unique(labels[np.isin(counts, [7, 8, 2])])) == 1
    assert labels[0] != labels[6] != labels[-1]


def test_residuals_are_those_of_the_regression_on_length_dummies():
    labels = pool_strata(STRATA)
    values = RANDOM.standard_normal((3, N)) + STRATA
    dummies = (labels[:, None] == np.arange(labels.max() + 1)).astype(float)
    fitted = dummies @ np.linalg.lstsq(dummies, values.T, rcond=None)[0]
    assert remove_stratum_means(values, labels) == pytest.approx(values - fitted.T)


def test_dependence_that_length_alone_makes_disappears():
    values = RANDOM.standard_normal((12, N)) + 4.0 / STRATA * 12
    before = np.asarray(hsic(values[:6], values[6:]))
    after = remove_stratum_means(values, pool_strata(STRATA))
    assert before.mean() > 0.3
    assert abs(np.asarray(hsic(after[:6], after[6:])).mean()) < 0.03


def test_neurons_that_carry_nothing_leave_and_are_counted():
    values = RANDOM.standard_normal((12, N)).astype(np.float32)
    values[1] = 0.25  # constant
    values[7] = STRATA  # nothing but length
    values[8] = np.where(np.arange(N) % 5 == 0, values[8], 0)  # most distances are 0
    sets = masks(12, shared=np.arange(6), de=np.arange(6, 12))
    settings = SpectrumSettings(size_matching=False)
    found = layer_sets(probe_of(values), sets["shared"], {"de": sets["de"]}, settings)
    assert found.notes["constant_neurons"] == 2
    assert found.n_shared.tolist() == [5]
    without_length = SpectrumSettings(size_matching=False, length_control="none")
    found = layer_sets(probe_of(values), sets["shared"], {"de": sets["de"]}, without_length)
    assert found.notes == {"constant_neurons": 1, "zero_median_neurons": 1}
    assert found.n_bridge.tolist() == [[5]]


def test_a_neuron_of_two_bridges_is_one_row_of_one_block():
    values = RANDOM.standard_normal((16, N))
    sets = masks(16, shared=np.arange(4), de=np.arange(4, 12), en=np.arange(8, 16))
    shared = sets.pop("shared")
    block = layer_sets(probe_of(values), shared, sets, SpectrumSettings()).blocks[0]
    assert block.y.shape == (12, N)
    assert block.member.sum(axis=1).tolist() == [8, 8]
    assert block.member.all(axis=0).sum() == 4


def test_neurons_are_found_by_id_whatever_their_order():
    values = RANDOM.standard_normal((10, N))
    order = RANDOM.permutation(10)
    probe = ProbeValues([values[order]], [order], STRATA)
    sets = masks(12, shared=[0, 3, 4], de=[1, 2, 5, 9])
    settings = SpectrumSettings(length_control="none")
    block = layer_sets(probe, sets["shared"], {"de": sets["de"]}, settings).blocks[0]
    assert block.x == pytest.approx(values[[0, 3, 4]])
    assert block.y == pytest.approx(values[[1, 2, 5, 9]])


def test_values_that_are_missing_or_sets_that_overlap_are_refused():
    values = RANDOM.standard_normal((10, N))
    sets = masks(12, shared=[0, 3], de=[3, 4, 5, 6], fr=[1, 2, 5, 11])
    with pytest.raises(InputError, match="bridge de: 1 neurons are in the shared set"):
        layer_sets(probe_of(values), sets["shared"], {"de": sets["de"]}, SpectrumSettings())
    with pytest.raises(ValueError, match=r"no probe values of neurons \[11\]"):
        layer_sets(probe_of(values), sets["shared"], {"fr": sets["fr"]}, SpectrumSettings())
    with pytest.raises(InputError, match="no bridge to compare"):
        layer_sets(probe_of(values), sets["shared"], {}, SpectrumSettings())
    with pytest.raises(ValueError, match="10 neurons"):
        ProbeValues([values[:, :5]], [np.arange(10)], STRATA)
    with pytest.raises(InputError, match="estimator 'hsic' is unknown; one of biased"):
        SpectrumSettings(estimator="hsic")


def test_compat_fixes_the_published_choices():
    assert SpectrumSettings(compat="paper").resolved() == SpectrumSettings(
        "biased", "set_median", False, "none", None, "paper"
    )
    reference = SpectrumSettings(compat="reference").resolved()
    assert reference.estimator == "trace_khl"
    assert SpectrumSettings().resolved() == SpectrumSettings()
