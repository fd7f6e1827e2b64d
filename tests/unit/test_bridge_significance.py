"""Bootstrap and permutation null: points inside intervals, uniform p-values, planted bridges."""

import numpy as np
import pytest
from bridgex_jax.kernels.hsic import released_score, size_matched_score

from bridgex_jax.bridge.choice import choose_bridge
from bridgex_jax.bridge.significance import (
    bootstrap,
    permutation_test,
    score_coefficients,
    stratified_permutations,
)
from bridgex_jax.bridge.spectrum import (
    ProbedPair,
    ProbeValues,
    SpectrumSettings,
    language_spectrum,
    score_pairs,
)

N = 64
SIZES = {"en": 7, "de": 5, "fr": 9}


def case(seed, strength, *, n_layers=2, n_shared=6):
    """Sets in consecutive neurons; the neurons of "de" follow shared ones with `strength`."""
    random = np.random.default_rng(seed)
    n_neurons = n_shared + sum(SIZES.values())
    values = random.standard_normal((n_layers, n_neurons, N))
    shared = np.zeros((n_layers, n_neurons), bool)
    shared[:, :n_shared] = True
    bridges, start = {}, n_shared
    for name, size in SIZES.items():
        bridges[name] = np.zeros_like(shared)
        bridges[name][:, start : start + size] = True
        if name == "de":
            values[:, start : start + size] += strength * values[:, :size]
        start += size
    lengths = random.integers(3, 6, N)
    values += lengths * random.standard_normal((n_layers, n_neurons, 1))
    return ProbeValues(list(values), [np.arange(n_neurons)] * n_layers, lengths), shared, bridges


def scored(probe, shared, bridges, settings=None):
    return score_pairs([ProbedPair(probe, shared, bridges)], settings)[0]


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_point_lies_inside_its_bootstrap_interval(strength):
    for seed in range(4):
        arguments = case(seed, strength)
        result = bootstrap(scored(*arguments), n=400, seed=seed)
        choice = choose_bridge(language_spectrum(*arguments))
        for name, point in zip(result.bridges, result.point, strict=True):
            low, high = result.intervals[name]
            assert low < point < high
            assert point == pytest.approx(choice.means[name], rel=1e-4, abs=1e-6)
            middle = (low + high) / 2
            assert abs(point - middle) < 0.25 * (high - low)


@pytest.mark.parametrize(
    "settings",
    [
        SpectrumSettings(compat="paper"),
        SpectrumSettings(compat="reference"),
        SpectrumSettings(estimator="unbiased", size_matching=False),
    ],
)
def test_point_lies_inside_its_interval_for_other_estimators(settings):
    arguments = case(0, 1.0)
    result = bootstrap(scored(*arguments, settings), n=200)
    choice = choose_bridge(language_spectrum(*arguments, settings), compat=settings.compat)
    for name, point in zip(result.bridges, result.point, strict=True):
        assert point == pytest.approx(choice.means[name], rel=1e-4)
        assert result.intervals[name][0] < point < result.intervals[name][1]


def test_planted_bridge_is_best_in_the_draws_and_significant():
    arguments = case(1, 1.5)
    draws = bootstrap(scored(*arguments), n=200)
    assert draws.p_best["de"] > 0.95
    assert draws.tied_with("de") == ()
    assert sum(draws.p_best.values()) == pytest.approx(1)
    test = permutation_test(scored(*arguments), n=99)
    assert test.p_values["de"] == pytest.approx(0.01)
    assert min(test.p_values["en"], test.p_values["fr"]) > 0.01
    assert test.lost < 0.01


def test_bridges_that_do_not_differ_are_not_told_apart():
    apart = 0
    for seed in range(4):
        draws = bootstrap(scored(*case(seed, 0.0)), n=200)
        best, second = (draws.bridges[g] for g in np.argsort(-draws.point)[:2])
        apart += second not in draws.tied_with(best)
    assert apart <= 1


def test_p_values_are_uniform_under_independence():
    smallest = np.array(
        [
            min(permutation_test(scored(*case(s, 0.0)), n=39, seed=s).p_values.values())
            for s in range(40)
        ]
    )
    # The bridge with the largest mean against the largest mean of each permutation.
    assert 0.35 < smallest.mean() < 0.65
    assert (smallest <= 0.1).sum() <= 10
    assert (smallest > 0.9).sum() <= 10


def test_length_alone_is_not_significant_when_it_is_not_taken_out():
    probe, shared, bridges = case(5, 0.0)
    louder = ProbeValues(
        [values + 3.0 * probe.strata for values in probe.values], probe.neurons, probe.strata
    )
    plain = SpectrumSettings(length_control="none")
    assert language_spectrum(louder, shared, bridges, plain).score.min() > 0.2
    test = permutation_test(scored(louder, shared, bridges, plain), n=39)
    assert min(test.p_values.values()) > 0.05


def test_low_rank_means_are_those_of_the_spectrum():
    arguments = case(2, 0.7)
    observed = permutation_test(scored(*arguments), n=9).observed
    means = choose_bridge(language_spectrum(*arguments)).means
    assert observed == pytest.approx(np.array(list(means.values())), rel=0.02)


def test_same_seed_gives_the_same_numbers_and_another_seed_others():
    arguments = case(3, 0.5)
    first, again, other = (bootstrap(scored(*arguments), n=50, seed=s).draws for s in (1, 1, 2))
    assert (first == again).all()
    assert not (first == other).any()


def test_permutations_keep_every_word_in_its_stratum():
    strata = np.repeat([0, 1, 2], [20, 11, 1])
    orders = stratified_permutations(strata, 30, seed=0)
    assert (strata[orders] == strata).all()
    assert (np.sort(orders, axis=1) == np.arange(32)).all()
    assert len({tuple(order) for order in orders}) == 30


@pytest.mark.parametrize("matched", [0, 3])
def test_fixed_matches_give_the_score_itself(matched):
    values = np.random.default_rng(0).standard_normal((5, 7))
    score = size_matched_score(values, matched) if matched else released_score(values)
    assert (score_coefficients(values, matched) * values).sum() == pytest.approx(score)


def test_bridges_that_are_not_comparable_have_no_interval():
    probe, shared, bridges = case(4, 0.0)
    bridges["fr"][:] = False
    result = bootstrap(scored(probe, shared, bridges), n=50)
    assert set(result.intervals) == {"en", "de"}
    assert np.isnan(result.draws[:, 2]).all()
    assert set(permutation_test(scored(probe, shared, bridges), n=9).p_values) == {"en", "de"}
    bridges = {name: 0 * neurons > 0 for name, neurons in bridges.items()}
    empty = bootstrap(scored(probe, shared, bridges), n=10)
    assert empty.intervals == {}
    assert set(empty.p_best.values()) == {0.0}
    assert permutation_test(scored(probe, shared, bridges), n=9).p_values == {}
