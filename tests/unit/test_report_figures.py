"""Figures: gaps stay gaps, nothing overlaps, no state is left, equal results are equal bytes."""

from __future__ import annotations

import subprocess
import sys
import warnings
import xml.etree.ElementTree as ET
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgex_jax.report import drawing, figures
from bridgex_jax.report.content import (
    NAN,
    Accuracy,
    BridgeRank,
    Direction,
    Evaluation,
    Interval,
    PairReport,
)
from bridgex_jax.store.tables import OverlapMatrix, PairSpectrum

BRIDGES = ("en", "de", "fr")


def spectrum(score) -> PairSpectrum:
    score = np.asarray(score, np.float64)
    sizes = np.full(score.shape, 9, np.int32)
    return PairSpectrum("id", "he", BRIDGES[: len(score)], score, sizes[0], sizes)


def pair() -> PairReport:
    ranking = (
        BridgeRank("de", Interval(0.2, 0.15, 0.24), 0.9, 0.01, 4, 90),
        BridgeRank("en", Interval(0.1, 0.05, 0.14), 0.1, 0.2, 4, 80),
        BridgeRank("fr", Interval(NAN), layers=1, neurons=5, comparable=False),
    )
    return PairReport("id", "he", "de", ranking, (2, 3, 4, 5), (2, 3, 4, 5), resamples=100)


def evaluation() -> Evaluation:
    pooled = (
        Accuracy("zero-shot", "baseline", Interval(0.2, 0.1, 0.3)),
        Accuracy("German (de)", "bridge", Interval(0.5, 0.4, 0.6)),
        Accuracy("chosen", "chosen", Interval(0.6)),
        Accuracy("oracle", "oracle", Interval(0.7, 0.6, 0.8)),
    )
    directions = (
        Direction("id", "he", 50, 0.2, {"de": 0.5, "en": 0.6}, "de"),
        Direction("he", "id", 50, NAN, {"de": 0.5}, None),
        Direction("he", "sw", 0, NAN, {}, None),
    )
    return Evaluation("bli", 100, pooled, directions, Interval(0.1, 0, 0.2), Interval(0.1, 0, 0.2))


def overlap() -> OverlapMatrix:
    jaccard = np.array([[1, 0.5, NAN], [0.5, 1, 0.1], [NAN, 0.1, 1]])
    return OverlapMatrix(
        ("en", "he", "xx"), np.array([[9, 6, 0], [6, 9, 1], [0, 1, 9]]), jaccard, jaccard
    )


def all_figures():
    score = [[0.1, 0.2, NAN, 0.3, 0.2], [NAN, 0.1, NAN, 0.2, NAN], [NAN] * 5]
    return {
        "spectrum": figures.spectrum_figure(spectrum(score), (1, 2, 3), "de", "score"),
        "ranking": figures.ranking_figure(pair(), "score"),
        "overlap": figures.overlap_figure(overlap()),
        "accuracy": figures.accuracy_figure(evaluation()),
        "directions": figures.directions_figure(evaluation()),
    }


def texts(figure) -> list[str]:
    return [t.get_text() for axes in figure.axes for t in axes.texts]


def test_equal_results_are_equal_bytes_and_hold_no_date():
    first, second = (
        {key: drawing.to_svg(figure, key) for key, figure in all_figures().items()}
        for _ in range(2)
    )
    assert first == second
    for svg in first.values():
        assert "dc:date" not in svg
        ET.fromstring(svg)


def test_missing_layers_are_gaps_and_a_lone_layer_is_a_dot():
    figure = all_figures()["spectrum"]
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 5]
    np.testing.assert_array_equal(lines[0].get_ydata(), [0.1, 0.2, NAN, 0.3, 0.2])
    np.testing.assert_array_equal(lines[1].get_ydata(), [NAN, 0.1, NAN, 0.2, NAN])
    assert all(line.get_marker() == "o" for line in lines)
    assert {"English (en)", "German (de)", "layer window"} <= set(texts(figure))
    assert "French (fr)" not in texts(figure)  # it has no layer to stand beside


def test_a_spectrum_without_any_score_says_so():
    figure = figures.spectrum_figure(spectrum([[NAN] * 3]), (), None, "score")
    assert "no bridge is present in any layer" in texts(figure)
    drawing.to_svg(figure, "empty")


@pytest.mark.parametrize("n_layers", [1, 2, 6, 32, 126])
def test_layers_of_any_model_get_readable_ticks(n_layers):
    figure = figures.spectrum_figure(spectrum(np.ones((2, n_layers))), (0,), "en", "score")
    ticks = figure.axes[0].get_xticks()
    assert ticks[0] == 0 and len(ticks) <= 17 and ticks[-1] < n_layers


def test_the_chosen_bridge_has_the_one_accent_in_every_figure():
    svg = {key: drawing.to_svg(figure, key) for key, figure in all_figures().items()}
    for key in ("spectrum", "ranking", "accuracy", "directions"):
        assert drawing.ACCENT in svg[key]
    assert drawing.ACCENT not in drawing.SERIES


@given(st.lists(st.floats(-50, 300), min_size=1, max_size=12))
def test_labels_at_the_line_ends_never_touch(places):
    spread = figures._spread(sorted(places), gap=12.0, top=200.0)
    assert all(b - a >= 12.0 - 1e-9 for a, b in pairwise(spread))
    assert spread[-1] <= 200.0 + 1e-9


def test_every_glyph_is_in_the_font_that_measures_the_text():
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a missing glyph
        for figure in all_figures().values():
            drawing.to_svg(figure, "x")


def test_figures_leave_no_state_and_heed_no_matplotlibrc():
    before = dict(matplotlib.rcParams)
    wanted = drawing.to_svg(all_figures()["ranking"], "x")
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert drawing.to_svg(all_figures()["ranking"], "x") == wanted


def test_pyplot_is_never_imported():
    code = "import bridgex_jax.report.html, sys; assert 'matplotlib.pyplot' not in sys.modules"
    code += "; assert 'jax' not in sys.modules"
    path = "import sys; sys.path[:0] = " + repr([p for p in sys.path if p]) + "; "
    subprocess.run([sys.executable, "-c", path + code], check=True)
