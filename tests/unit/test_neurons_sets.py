"""Sets of neurons."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bridgex_jax.neurons.sets import (
    pair_sets,
    rates,
    split_half_jaccard,
    strongest,
    top_rate_sets,
    without_common,
)

TOKENS = np.array([1000, 1000])
CODES = ("s", "t", "a", "b")


def distinct_counts(rng, n_languages, n_layers, n_neurons):
    ordered = np.arange(1, n_layers * n_neurons + 1)
    return np.stack([rng.permutation(ordered) for _ in range(n_languages)]).reshape(
        n_languages, n_layers, n_neurons
    )


def test_llama_3_8b_keeps_4589_neurons_of_its_458752():
    counts = distinct_counts(np.random.default_rng(0), 1, 32, 14336).astype(np.int32)
    sets = top_rate_sets(counts, np.array([500_000]))
    assert sets.sum() == 4589
    assert counts[sets].min() == 458752 - 4589 + 1


@given(
    hnp.arrays(np.int32, (2, 3, 7), elements=st.integers(0, 12)),
    st.floats(0.01, 0.99),
    st.sampled_from(["global", "layer"]),
)
def test_sets_are_those_of_the_definition(counts, rate, scope):
    """Against the k-th smallest rate taken by a plain sort, block by block."""
    sets = top_rate_sets(counts, np.array([12, 13]), rate=rate, scope=scope)
    p = rates(counts, np.array([12, 13]))
    for g in range(2):
        blocks = [slice(None)] if scope == "global" else list(range(3))
        for layer in blocks:
            values = np.sort(p[g, layer].ravel())
            k = max(1, round((1 - rate) * values.size))
            expected = (p[g, layer] >= values[k - 1]) & (p[g, layer] > 0)
            np.testing.assert_array_equal(sets[g, layer], expected)


def test_layer_scope_gives_every_layer_its_share():
    counts = distinct_counts(np.random.default_rng(1), 2, 5, 100)
    sets = top_rate_sets(counts, TOKENS, rate=0.1, scope="layer")
    assert (sets.sum(axis=2) == 11).all()


def test_ties_are_kept():
    counts = np.array([[[5, 5, 5, 1, 1, 1, 1, 1, 1, 1]]])
    assert top_rate_sets(counts, np.array([9]), rate=0.1).sum() == 3


def test_a_neuron_that_was_never_active_is_in_no_set():
    counts = np.zeros((1, 2, 4), dtype=np.int32)
    counts[0, 0, 0] = 1
    assert top_rate_sets(counts, np.array([9]), rate=0.5).sum() == 1


def test_token_budget_of_a_language_does_not_change_its_set():
    counts = distinct_counts(np.random.default_rng(2), 2, 4, 25)
    few = top_rate_sets(counts, np.array([100, 100]), rate=0.2)
    many = top_rate_sets(counts, np.array([100, 10**9]), rate=0.2)
    np.testing.assert_array_equal(few, many)


@pytest.mark.parametrize(
    "counts, tokens, settings, said",
    [
        (np.ones((1, 1, 4), int), [9], {"rate": 0.0}, "rate is 0.0"),
        (np.ones((1, 1, 4), int), [9], {"rate": 1.0}, "rate is 1.0"),
        (np.ones((1, 1, 4), int), [9], {"scope": "row"}, "scope is 'row'"),
        (np.ones((1, 1, 4), int), [0], {}, "no tokens"),
        (np.ones((1, 1, 4), int), [9, 9], {}, "are not"),
        (np.ones((1, 4), int), [9], {}, "are not"),
        (np.full((1, 1, 4), 10), [9], {}, "more than all tokens"),
        (np.full((1, 1, 4), -1), [9], {}, "fewer than 0"),
        (np.ones((1, 1, 4)), [9], {}, "not integers"),
    ],
)
def test_counts_that_cannot_be_are_refused(counts, tokens, settings, said):
    with pytest.raises(ValueError, match=said):
        top_rate_sets(counts, np.array(tokens), **settings)


def test_split_halves_of_one_rate_agree_more_with_more_tokens():
    rng = np.random.default_rng(3)
    p = rng.uniform(size=(1, 4, 500))
    stability = [
        split_half_jaccard(
            rng.binomial(n, p), rng.binomial(n, p), np.array([n]), np.array([n]), rate=0.1
        )[0]
        for n in (20, 2000)
    ]
    assert stability[0] < 0.8 < stability[1]


def test_equal_halves_are_fully_stable_and_disjoint_ones_not_at_all():
    counts = np.array([[[9, 1, 1, 1]], [[9, 1, 1, 1]]])
    other = np.array([[[9, 1, 1, 1]], [[1, 9, 1, 1]]])
    nine = np.array([9, 9])
    result = split_half_jaccard(counts, other, nine, nine, rate=0.01)
    assert result.tolist() == [1.0, 0.0]


masks = hnp.arrays(np.bool_, (4, 2, 6))


@given(masks, st.sampled_from(["exclusive", "not_shared", "all"]))
def test_shared_and_bridge_sets_are_disjoint_parts_of_their_languages(sets, definition):
    pair = pair_sets(sets, CODES, "s", "t", ["a", "b"], definition=definition)
    source, target, *others = sets
    assert not (pair.shared & ~(source & target)).any()
    for own, bridge in zip(others, pair.bridges.values(), strict=True):
        assert not (bridge & ~own).any()
        assert not (bridge & pair.shared).any()
    if definition == "exclusive":
        assert not any((bridge & (source | target)).any() for bridge in pair.bridges.values())
    if definition == "all":
        assert (pair.bridges["a"] == sets[2]).all()
    else:
        assert (pair.shared == source & target).all()


@given(masks)
def test_sets_of_a_pair_do_not_depend_on_its_direction(sets):
    there = pair_sets(sets, CODES, "s", "t", ["a"])
    back = pair_sets(sets, CODES, "t", "s", ["a"])
    assert (there.shared == back.shared).all() and (there.bridges["a"] == back.bridges["a"]).all()


@pytest.mark.parametrize(
    "source, target, bridges, said",
    [("s", "x", ["a"], "no neuron set of x"), ("s", "t", ["q", "r"], "no neuron set of q, r"),
     ("s", "s", ["a"], "not different"), ("s", "t", ["s"], "not different")],
)  # fmt: skip
def test_languages_that_make_no_pair_are_refused(source, target, bridges, said):
    with pytest.raises(ValueError, match=said):
        pair_sets(np.zeros((4, 1, 2), bool), CODES, source, target, bridges)


def test_unknown_definition_is_refused():
    with pytest.raises(ValueError, match="definition is 'some'"):
        pair_sets(np.zeros((4, 1, 2), bool), CODES, "s", "t", ["a"], definition="some")


@given(masks)
def test_without_common_removes_exactly_the_neurons_of_all(sets):
    left = without_common(sets)
    assert not left.all(axis=0).any()
    common = np.logical_and.reduce(sets)
    np.testing.assert_array_equal(left | (sets & common), sets)


def test_strongest_keeps_the_first_k_of_each_layer():
    members = np.array([[True, True, False, True], [False, True, False, False]])
    strength = np.array([[0.2, 0.7, 0.9, 0.7], [0.1, 0.1, 0.1, 0.1]])
    assert strongest(members, strength, 1).tolist() == [[False, True, False, False],
                                                        [False, True, False, False]]  # fmt: skip
    np.testing.assert_array_equal(strongest(members, strength, 9), members)
    with pytest.raises(ValueError, match="top_k is 0"):
        strongest(members, strength, 0)
