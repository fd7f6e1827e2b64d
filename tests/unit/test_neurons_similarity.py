"""Similarity of neuron sets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bridgex_jax.neurons.similarity import activation_cosine, jaccard, overlap

masks = hnp.arrays(np.bool_, (3, 2, 5))
p_values = hnp.arrays(np.float64, (3, 2, 5), elements=st.floats(0.25, 1))


@given(masks)
def test_overlap_and_jaccard_are_those_of_python_sets(sets):
    members = [set(np.flatnonzero(one)) for one in sets]
    for a in range(3):
        for b in range(3):
            assert overlap(sets)[a, b] == len(members[a] & members[b])
            union = len(members[a] | members[b])
            expected = len(members[a] & members[b]) / union if union else np.nan
            np.testing.assert_equal(jaccard(sets)[a, b], expected)


@given(p_values, masks)
def test_cosine_is_symmetric_at_most_one_and_missing_without_common_neurons(p, sets):
    cosine = activation_cosine(p, sets)
    np.testing.assert_array_equal(cosine, cosine.T)
    np.testing.assert_array_equal(np.isnan(cosine), overlap(sets) == 0)
    assert np.nanmax(np.append(cosine, 0)) <= 1 + 1e-12


def test_cosine_uses_the_common_neurons_alone():
    p = np.array([[[0.6, 0.8, 0.9]], [[0.8, 0.6, 0.1]]])
    sets = np.array([[[True, True, True]], [[True, True, False]]])
    assert activation_cosine(p, sets)[0, 1] == pytest.approx(0.96)


@given(p_values)
def test_cosine_does_not_see_the_scale_of_a_language(p):
    sets = np.ones(p.shape, dtype=bool)
    scaled = p * np.array([1.0, 0.5, 3.0])[:, None, None]
    np.testing.assert_allclose(activation_cosine(p, sets), activation_cosine(scaled, sets))
