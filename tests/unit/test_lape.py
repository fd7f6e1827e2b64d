"""LAPE: the spec's golden numbers, an independent loop, and what must not change the answer."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bridgex_jax.neurons.lape import lape

# A row a neuron, a column a language (spec language-neurons, section A).
GOLDEN = np.array([[[0.9, 0.1], [0.5, 0.5], [0.0, 0.2], [0.3, 0.6]]]).transpose(2, 0, 1)
RULES = ("kthvalue", "quantile")

# Counts of 64 tokens: ties occur, and sums and halves of them are exact.
probabilities = hnp.arrays(np.int64, (3, 2, 7), elements=st.integers(0, 64)).map(lambda c: c / 64)


def test_entropies_and_thresholds_of_the_spec():
    kth, quantile = (lape(GOLDEN, rule=rule) for rule in RULES)
    for found in (kth, quantile):
        assert found.entropy[0] == pytest.approx([0.325083, 0.693147, 0, 0.636514], abs=5e-7)
        assert found.entropy.dtype == np.float64
    assert kth.tau == 0.9 and not kth.chosen.any()
    assert quantile.tau == pytest.approx(0.795)
    assert np.argwhere(quantile.chosen).tolist() == [[0, 0, 0]]


def slow(p, rule, rate, activity, membership):
    """Neuron by neuron, straight from the definition: (H, tau, bar, chosen)."""
    n_languages, n_layers, n_neurons = p.shape
    values = sorted(float(x) for x in p.ravel())

    def quantile(ordered, share):
        at = share * (len(ordered) - 1)
        low = math.floor(at)
        if at == low or ordered[low] == ordered[low + 1]:
            return ordered[low]
        return ordered[low] + (ordered[low + 1] - ordered[low]) * (at - low)

    def threshold(share):
        if rule == "quantile":
            return quantile(values, share)
        return values[max(1, round(share * len(values))) - 1]

    tau, bar = threshold(activity), threshold(membership)
    entropy, ranked = np.zeros((n_layers, n_neurons)), []
    for layer in range(n_layers):
        for neuron in range(n_neurons):
            own = [float(p[k, layer, neuron]) for k in range(n_languages)]
            shares = [x / sum(own) for x in own] if sum(own) > 0 else []
            entropy[layer, neuron] = -math.fsum(q * math.log(q) for q in shares if q > 0)
            h = entropy[layer, neuron] if max(own) > tau else math.inf
            ranked.append((h, layer, neuron))
    if rule == "kthvalue":
        taken = sorted(ranked)[: round(rate * len(ranked))]
    else:
        cutoff = quantile(sorted(h for h, _, _ in ranked), rate)
        taken = [one for one in ranked if one[0] <= cutoff]
    chosen = np.zeros(p.shape, bool)
    for h, layer, neuron in taken:
        for k in range(n_languages):
            chosen[k, layer, neuron] = h < math.inf and p[k, layer, neuron] > bar
    return entropy, tau, bar, chosen


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", [(2, 3, 40), (5, 4, 33)])
@pytest.mark.parametrize(("rate", "activity", "membership"), [(0.01, 0.95, 0.95), (0.3, 0.6, 0.8)])
def test_sets_are_those_of_a_loop_over_neurons(rule, shape, rate, activity, membership):
    p = np.random.default_rng(sum(shape)).beta(0.3, 1.5, size=shape)
    found = lape(p, rule=rule, rate=rate, activity=activity, membership=membership)
    entropy, tau, bar, chosen = slow(p, rule, rate, activity, membership)
    np.testing.assert_allclose(found.entropy, entropy, rtol=1e-12, atol=1e-15)
    assert (found.tau, found.bar) == pytest.approx((tau, bar), rel=1e-14)
    np.testing.assert_array_equal(found.chosen, chosen)
    assert rate < 0.1 or chosen.any()


shares = st.sampled_from([0.1, 0.4, 0.6, 0.9])
# Of 8 tokens, where two entropies are the same or differ by more than rounding.
tied = hnp.arrays(np.int64, (3, 2, 7), elements=st.integers(0, 8)).map(lambda counts: counts / 8)


@given(tied, st.sampled_from(RULES), shares, shares, shares)
def test_ties_and_thresholds_are_those_of_the_loop(p, rule, rate, activity, membership):
    found = lape(p, rule=rule, rate=rate, activity=activity, membership=membership)
    _, tau, bar, chosen = slow(p, rule, rate, activity, membership)
    assert (found.tau, found.bar) == (tau, bar)
    np.testing.assert_array_equal(found.chosen, chosen)


@given(probabilities, st.sampled_from(RULES), st.permutations(range(3)))
def test_the_order_of_languages_permutes_the_sets_and_changes_no_bit(p, rule, order):
    given_order = lape(p, rule=rule, rate=0.3, activity=0.5, membership=0.5)
    other = lape(p[order], rule=rule, rate=0.3, activity=0.5, membership=0.5)
    np.testing.assert_array_equal(other.chosen, given_order.chosen[order])
    np.testing.assert_array_equal(other.entropy, given_order.entropy)
    assert (other.tau, other.bar) == (given_order.tau, given_order.bar)


@given(probabilities, hnp.arrays(np.float64, (2, 7), elements=st.floats(1e-6, 1.0)))
def test_scaling_a_neuron_s_probabilities_keeps_its_entropy(p, scale):
    np.testing.assert_allclose(lape(p * scale).entropy, lape(p).entropy, rtol=1e-12, atol=1e-14)


@given(probabilities)
def test_entropy_lies_between_0_and_that_of_equal_languages(p):
    entropy = lape(p).entropy
    assert (entropy >= 0).all() and (entropy <= math.log(3)).all()
    even = lape(np.full((3, 1, 2), 0.1)).entropy
    np.testing.assert_allclose(even, math.log(3), rtol=1e-15)


def test_the_union_over_languages_is_the_rate_s_share_of_all_neurons():
    """As published: LLaMA-2-7B's 3523 are round(.01 * 32 * 11008)."""
    p = np.random.default_rng(0).beta(0.2, 2.0, size=(7, 8, 500))
    assert lape(p).chosen.any(axis=0).sum() == round(0.01 * 8 * 500)
    assert lape(p, rate=0.05).chosen.any(axis=0).sum() == round(0.05 * 8 * 500)


def test_planted_neurons_are_found_under_their_own_languages():
    rng = np.random.default_rng(1)
    p = rng.uniform(0.1, 0.2, size=(4, 5, 100))
    planted = np.zeros(p.shape, bool)
    for k in range(4):
        planted[k, 2, 3 * k : 3 * k + 3] = True
    planted[:2, 4, 50] = True  # of two languages
    p[:, planted.any(axis=0)] = 0.001
    p[planted] = 0.9
    for rule in RULES:
        np.testing.assert_array_equal(lape(p, rule=rule, rate=13 / 500).chosen, planted)


def test_neurons_that_are_rarely_active_everywhere_are_nobody_s():
    p = np.full((2, 1, 100), 0.4)
    p[:, 0, :6] = 0.9  # often active in both
    p[0, 0, 50], p[1, 0, 50] = 0.01, 0.0  # the lowest entropy of all, and hardly active
    p[:, 0, 60] = 0.0
    for rule in RULES:
        found = lape(p, rule=rule, rate=0.05)
        assert found.entropy[0, 50] == found.entropy[0, 60] == 0
        assert not found.chosen[:, 0, 6:].any()


@pytest.mark.parametrize(
    ("p", "settings", "said"),
    [
        (GOLDEN, {"rule": "top"}, "rule is 'top'"),
        (GOLDEN, {"rate": 0.0}, "rate is 0.0"),
        (GOLDEN, {"activity": 1.0}, "activity is 1.0"),
        (GOLDEN, {"membership": -1.0}, "membership is -1.0"),
        (GOLDEN[:1], {}, "2 languages or more"),
        (GOLDEN[0], {}, r"is not \[G, L, F\]"),
        (GOLDEN[:, :, :0], {}, r"is not \[G, L, F\]"),
        (GOLDEN * 2, {}, "not in 0…1"),
        (GOLDEN - 0.2, {}, "not in 0…1"),
        (np.where(GOLDEN == 0.9, np.nan, GOLDEN), {}, "not in 0…1"),
    ],
)
def test_what_are_no_probabilities_is_refused(p, settings, said):
    with pytest.raises(ValueError, match=said):
        lape(p, **settings)
