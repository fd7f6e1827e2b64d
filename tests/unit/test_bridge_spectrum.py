"""The spectrum over planted data: who wins, what is missing, and that sizes alone do not win."""

import dataclasses

import numpy as np
import pytest
from bridgex_jax.kernels.hsic import plan, reference, released_score, size_matched_score

from bridgex_jax.bridge.choice import choose_bridge
from bridgex_jax.bridge.spectrum import (
    ProbedPair,
    ProbeValues,
    SpectrumSettings,
    group_by_size,
    language_spectrum,
    score_pairs,
)

N = 64


def planted(seed, sizes, *, n_layers=3, n_shared=8, strength=1.5, share=0.75, planted="de"):
    """A probe with one block of neurons a set; most neurons of `planted` follow shared ones."""
    random = np.random.default_rng(seed)
    n_neurons = n_shared + sum(sizes.values())
    shared = np.zeros((n_layers, n_neurons), bool)
    shared[:, :n_shared] = True
    values = random.standard_normal((n_layers, n_neurons, N))
    bridges, start = {}, n_shared
    for name, size in sizes.items():
        bridges[name] = np.zeros((n_layers, n_neurons), bool)
        bridges[name][:, start : start + size] = True
        if name == planted:
            count = int(share * size)
            source = values[:, random.integers(0, n_shared, count)]
            values[:, start : start + count] += strength * source
        start += size
    lengths = random.integers(4, 7, N)
    values += 0.5 * lengths * random.standard_normal((n_layers, n_neurons, 1))
    ids = [np.arange(n_neurons)] * n_layers
    return ProbeValues(list(values.astype(np.float32)), ids, lengths), shared, bridges


def test_scores_are_those_of_the_float64_reference_for_each_bridge_alone():
    probe, shared, bridges = planted(0, {"en": 9, "de": 6, "fr": 5})
    plain = SpectrumSettings(length_control="none")
    spectrum = language_spectrum(probe, shared, bridges, plain)
    assert spectrum.matched.tolist() == [5, 5, 5]
    for layer, values in enumerate(probe.values):
        for row, name in enumerate(bridges):
            exact = reference.hsic(values[shared[layer]], values[bridges[name][layer]])
            assert spectrum.score[row, layer] == pytest.approx(
                size_matched_score(exact, 5), rel=1e-4, abs=1e-6
            )


@pytest.mark.parametrize(("compat", "estimator"), [("paper", "biased"), ("reference", "trace_khl")])
def test_compat_scores_are_those_of_the_published_form(compat, estimator):
    probe, shared, bridges = planted(0, {"en": 9, "de": 6})
    spectrum = language_spectrum(probe, shared, bridges, SpectrumSettings(compat=compat))
    assert spectrum.notes["ran_features"] == 3
    for row, name in enumerate(bridges):
        values = probe.values[1]
        exact = reference.hsic(
            values[shared[1]],
            values[bridges[name][1]],
            estimator=estimator,
            bandwidth="set_median",
        )
        assert spectrum.score[row, 1] == pytest.approx(released_score(exact), rel=1e-4)


def test_planted_bridge_is_chosen():
    for seed in range(3):
        spectrum = language_spectrum(*planted(seed, {"en": 12, "de": 8, "fr": 16}))
        assert choose_bridge(spectrum).bridge == "de"


def test_more_neurons_alone_do_not_win():
    sizes = {"small": 5, "large": 25}
    wins = {True: 0, False: 0}
    for seed in range(12):
        probe, shared, bridges = planted(seed, sizes, n_layers=1, planted=None)
        for matched in wins:
            settings = SpectrumSettings(size_matching=matched)
            score = language_spectrum(probe, shared, bridges, settings).score[:, 0]
            wins[matched] += int(score[1] > score[0])
    assert wins[False] >= 11  # the released score: the larger set, nearly always
    assert 2 <= wins[True] <= 10


def test_layers_without_neurons_are_missing_under_their_own_ids():
    probe, shared, bridges = planted(1, {"en": 6, "de": 5})
    shared[0] = False
    bridges["de"][2, np.flatnonzero(bridges["de"][2])[:2]] = False  # three neurons left
    spectrum = language_spectrum(probe, shared, bridges)
    assert np.isnan(spectrum.score).tolist() == [[True, False, False], [True, False, True]]
    assert spectrum.n_shared.tolist() == [0, 8, 8]
    assert spectrum.n_bridge[1].tolist() == [5, 5, 3]
    assert spectrum.matched.tolist() == [0, 5, 6]
    released = language_spectrum(probe, shared, bridges, SpectrumSettings(size_matching=False))
    assert np.isnan(released.score[1]).tolist() == [True, False, False]


def test_a_collapsed_set_median_is_missing_except_under_compat():
    probe, shared, bridges = planted(2, {"en": 6, "de": 2}, n_shared=2)
    loose = SpectrumSettings(bandwidth="set_median", size_matching=False)
    spectrum = language_spectrum(probe, shared, bridges, loose)
    assert np.isnan(spectrum.score[1]).all()
    assert not np.isnan(spectrum.score[0]).any()
    assert spectrum.notes["collapsed_bandwidths"] == 3
    kept = language_spectrum(probe, shared, bridges, SpectrumSettings(compat="reference"))
    assert kept.score[1] == pytest.approx(N - 1, rel=1e-5)


def test_spectrum_without_any_neurons_is_all_missing():
    probe, shared, bridges = planted(3, {"en": 6})
    spectrum = language_spectrum(probe, 0 * shared > 0, bridges)
    assert np.isnan(spectrum.score).all()
    assert choose_bridge(spectrum).bridge is None


def test_a_low_rank_that_is_not_certified_runs_again_exactly(monkeypatch):
    pair = ProbedPair(*planted(0, {"en": 9, "de": 6}))
    loose = SpectrumSettings(bandwidth="set_median", estimator="biased", size_matching=False)
    ticks = []
    first = score_pairs([pair, pair], loose, progress=ticks.append)[1].spectrum
    assert first.notes["ran_features"] == 3 and sum(ticks) == 6
    monkeypatch.setattr(plan, "relative_bound", lambda bound, values: float(bound > 0))
    again = score_pairs([pair, pair], loose)[1].spectrum
    assert again.notes["ran_exact"] == 3 and "ran_features" not in again.notes
    assert again.score == pytest.approx(first.score, rel=1e-5)
    asked = dataclasses.replace(loose, implementation="features")
    with pytest.raises(ValueError, match="no rank certifies features"):
        score_pairs([pair], asked)


def test_ragged_blocks_share_one_padded_size_unless_that_adds_more_than_a_compilation():
    small = [(40, 100, 500), (60, 120, 500), (50, 90, 500)]
    assert [sorted(group) for group in group_by_size(small)] == [[0, 1, 2]]
    large = [(143, 858, 1000), (30, 100, 1000)] * 40
    assert sorted(map(len, group_by_size(large))) == [40, 40]
    assert group_by_size([]) == []
