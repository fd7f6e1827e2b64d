"""The layer window, the common layers, ties, coverage and both compatibility modes."""

import math

import numpy as np
import pytest

from bridgex_jax.bridge.choice import choose_bridge, layer_window
from bridgex_jax.bridge.spectrum import Spectrum
from bridgex_jax.errors import InputError

NAN = math.nan


def spectrum_of(**rows):
    score = np.array(list(rows.values()), float)
    counts = np.full(score.shape, 9)
    return Spectrum(tuple(rows), score, counts[0], counts, counts[0], {})


@pytest.mark.parametrize(
    ("depth", "window"),
    [
        (32, list(range(10, 22))),
        (28, list(range(9, 19))),
        (8, [2, 3, 4, 5]),
        (6, [2, 3]),
        (3, [1]),
        (2, [0, 1]),
        (1, [0]),
    ],
)
def test_window_of_known_depths(depth, window):
    assert layer_window(depth) == window


def test_every_depth_has_a_window_about_its_middle():
    for depth in range(1, 200):
        window = layer_window(depth)
        assert window
        assert window == list(range(window[0], window[-1] + 1))
        assert abs(window[0] + window[-1] + 1 - depth) <= 1


def test_best_mean_over_the_window_wins_and_layers_outside_do_not_count():
    spectrum = spectrum_of(en=[9, 9, 0.1, 0.1, 9, 9], de=[0, 0, 0.3, 0.2, 0, 0])
    choice = choose_bridge(spectrum)
    assert (choice.bridge, choice.runner_up, choice.layers) == ("de", "en", (2, 3))
    assert choice.margin == pytest.approx(0.15)
    assert choice.means == pytest.approx({"en": 0.1, "de": 0.25})
    assert choose_bridge(spectrum, window=[0, 1]).bridge == "en"


def test_ties_go_to_the_first_given():
    assert choose_bridge(spectrum_of(fr=[1, 1], en=[1, 1], de=[0, 0])).bridge == "fr"


def test_means_run_over_layers_that_all_compared_bridges_have():
    # Layer 3 has a high base level; de is missing there and must not lose by it.
    spectrum = spectrum_of(en=[0, 0, 0.1, 0.9, 0, 0], de=[0, 0, 0.2, NAN, 0, 0])
    choice = choose_bridge(spectrum)
    assert (choice.bridge, choice.layers) == ("de", (2,))
    assert choice.coverage == {"en": 1.0, "de": 0.5}


def test_a_bridge_in_under_half_of_the_window_is_not_comparable():
    spectrum = spectrum_of(
        en=[0.1, 0.1, 0.1], de=[0.2, 0.1, NAN], fr=[NAN, NAN, 9.0], it=[NAN, NAN, NAN]
    )
    choice = choose_bridge(spectrum, window=[0, 1, 2])
    assert choice.not_comparable == ("fr", "it")
    assert (choice.bridge, choice.layers) == ("de", (0, 1))
    assert set(choice.means) == {"en", "de"}


def test_without_a_common_layer_nothing_is_chosen():
    choice = choose_bridge(spectrum_of(en=[1, NAN], de=[NAN, 1]), window=[0, 1])
    assert choice.bridge is None
    assert choice.means == {}
    assert math.isnan(choice.margin)


def test_one_bridge_alone_is_chosen_without_a_margin():
    choice = choose_bridge(spectrum_of(en=[0.5, 0.5]))
    assert choice.bridge == "en"
    assert math.isnan(choice.margin)
    assert choice.runner_up is None


def test_compat_paper_skips_missing_layers_of_each_bridge():
    spectrum = spectrum_of(en=[0, 0, 0.1, 0.9, 0, 0], de=[0, 0, 0.2, NAN, 0, 0])
    choice = choose_bridge(spectrum, compat="paper")
    assert choice.means == pytest.approx({"en": 0.5, "de": 0.2})


def test_compat_reference_renumbers_the_layers_that_are_left():
    # Without layers 0 and 1, positions 2 and 3 of what is left are layers 4 and 5.
    spectrum = spectrum_of(en=[NAN, NAN, 0.1, 0.1, 0.7, 0.9], de=[0, 0, 0.2, 0.2, 0, 0])
    choice = choose_bridge(spectrum, compat="reference")
    assert choice.means == pytest.approx({"en": 0.8, "de": 0.2})
    short = spectrum_of(en=[NAN, NAN, NAN, 0.1, 0.7, 0.9], de=[0, 0, 0.2, 0.2, 0, 0])
    assert choose_bridge(short, compat="reference").means["en"] == pytest.approx(0.9)


def test_a_window_outside_the_model_is_refused():
    with pytest.raises(InputError, match="of a model with 2"):
        choose_bridge(spectrum_of(en=[1, 1]), window=[1, 2])
    with pytest.raises(ValueError, match="n_layers"):
        layer_window(0)
