"""The verdict in words and figures: no more than interval and p allow, no text cut or covered."""

from __future__ import annotations

import itertools
import warnings
import xml.etree.ElementTree as ET
from dataclasses import dataclass, replace
from typing import Literal

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Rectangle

from bridgex_jax.icl.conditions import ZERO_SHOT
from bridgex_jax.icl.significance import judge_gains
from bridgex_jax.icl.verdict import judge
from bridgex_jax.report import verdict_figures as figures
from bridgex_jax.report.content import NAN, Direction, Interval
from bridgex_jax.report.drawing import ACCENT, to_svg
from bridgex_jax.report.verdict_text import verdict_sentence

BRIDGES = ("en", "de", "fr", "it", "pt", "es")
POOR = ("id", "he", "sw", "tl", "fi")


def directions(n: int = 15) -> list[Direction]:
    rng = np.random.default_rng(0)
    pairs = [*itertools.permutations(POOR, 2)][: n - 1]
    found = []
    for source, target in [*pairs, ("en", "sw")]:
        values = {b: float(rng.uniform(0.1, 1)) for b in BRIDGES if b != source}
        chosen = list(values)[len(found) % len(values)]
        found.append(Direction(source, target, 80, 0.1, values, chosen))
    return found


def scores(rows: list[Direction]) -> list[dict[str, float]]:
    rng = np.random.default_rng(1)
    return [{b: v + rng.normal(0, 0.1) for b, v in row.bridges.items()} for row in rows]


REGRETS = {
    "chosen": Interval(0.021, 0.01, 0.035),
    "largest |Y|": Interval(0.051, 0.03, 0.07),
    "similarity of embeddings": Interval(0.03, -0.001, 0.05),
    "URIEL distance": Interval(NAN),
}


def all_figures(n: int = 15):
    rows = directions(n)
    both = [rows, scores(rows), Interval(0.43, 0.21, 0.62), 0.0021]
    return {
        "rank": figures.score_against_accuracy(*both),
        "z": figures.score_against_accuracy(*both, by="z"),
        "regret": figures.regret_by_chooser(REGRETS, "chosen", n_words=1200),
        "heat": figures.pair_by_bridge(rows),
    }


def texts(figure) -> list[str]:
    return [t.get_text() for axes in figure.axes for t in axes.texts]


def boxes(figure):
    """Where every text of the figure stands, in pixels, with its words."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    (axes,) = figure.axes
    shown = list(axes.texts)
    if axes.axison:
        shown.append(axes.xaxis.label)
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            places = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
            shown += [text for place, text in places if low <= place <= high]
    return [(t.get_text(), t.get_window_extent(renderer)) for t in shown if t.get_text()]


@pytest.mark.parametrize("n", [1, 2, 15])
def test_no_text_is_cut_and_none_lies_on_another(n):
    for key, figure in all_figures(n).items():
        found = boxes(figure)
        width, height = figure.bbox.width, figure.bbox.height
        for text, box in found:
            inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
            assert inside, (key, text)
        for (a, first), (b, second) in itertools.combinations(found, 2):
            assert not first.shrunk(0.98, 0.9).overlaps(second.shrunk(0.98, 0.9)), (key, a, b)


def test_equal_results_are_equal_bytes_and_leave_no_state():
    before = dict(matplotlib.rcParams)
    first, second = ({k: to_svg(f, k) for k, f in all_figures().items()} for _ in range(2))
    assert first == second and dict(matplotlib.rcParams) == before
    for svg in first.values():
        assert "dc:date" not in svg and ACCENT in svg
        ET.fromstring(svg)


def test_every_glyph_is_in_the_font_that_measures_the_text():
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a missing glyph
        for figure in all_figures().values():
            to_svg(figure, "x")


def test_points_stand_at_their_rank_and_at_their_distance_from_the_pair_s_mean():
    row = Direction("id", "he", 9, 0.1, {"en": 0.2, "de": 0.6, "fr": 0.4}, "fr")
    score = {"en": 5.0, "de": 7.0, "fr": 9.0}
    figure = figures.score_against_accuracy([row], [score], Interval(0.5))
    lines = [line for line in figure.axes[0].lines if line.get_transform().contains_branch(
        figure.axes[0].transData) and line.get_linestyle() == "None"]  # fmt: skip
    places = {round(float(x)): float(y) for line in lines for x, y in line.get_xydata()}
    assert places == pytest.approx({1: -0.2, 2: 0.2, 3: 0.0})
    ring = next(line for line in lines if line.get_markerfacecolor() == "none")
    assert len(ring.get_xdata()) == 1 and round(float(ring.get_xdata()[0])) == 3
    assert "Mean rank correlation 0.50" in texts(figure)


def test_z_scores_have_mean_zero_and_deviation_one_in_every_pair():
    np.testing.assert_allclose(figures._places(np.array([1.0, 2, 3]), "z") ** 2, [1.5, 0, 1.5])
    assert (figures._places(np.array([4.0, 4]), "z") == 0).all()
    assert figures._places(np.array([4.0, 4, 1]), "rank").tolist() == [2.5, 2.5, 1]


def test_more_bridges_than_colours_differ_by_their_mark():
    assert len({figures._series(g) for g in range(15)}) == 15


def test_a_bridge_without_a_score_is_no_point_and_an_unknown_correlation_is_said():
    row = Direction("id", "he", 9, 0.1, {"en": 0.2, "de": 0.6}, None)
    figure = figures.score_against_accuracy([row], [{"en": NAN}], Interval(NAN))
    assert "No pair has two different scores and two different accuracies" in texts(figure)
    assert "chosen" not in texts(figure)
    to_svg(figure, "empty")


def test_regrets_are_sorted_with_the_unknown_last_and_the_judged_one_in_blue():
    figure = figures.regret_by_chooser(REGRETS, "chosen")
    found = texts(figure)
    wanted = ["chosen", "similarity of embeddings", "largest |Y|", "URIEL distance"]
    assert [text for text in found if text in REGRETS] == wanted
    assert {"2.1", "3.0", "5.1", "–"} <= set(found)
    blue = [t.get_text() for t in figure.axes[0].texts if t.get_color() == ACCENT]
    assert blue == ["chosen", "2.1"]


def test_the_heat_map_outlines_the_chosen_cell_and_dots_all_that_are_best():
    rows = [
        Direction("id", "he", 9, 0.1, {"en": 0.25, "de": 0.5, "fr": 0.5}, "en"),
        Direction("en", "he", 9, NAN, {"de": 0.75, "fr": 0.5}, None),
    ]
    figure = figures.pair_by_bridge(rows)
    (axes,) = figure.axes
    outlined = [
        (int(p.get_x()), int(p.get_y()))
        for p in axes.patches
        if isinstance(p, Rectangle) and not p.get_fill() and p.get_y() < len(rows)
    ]
    assert outlined == [(1, 0)]
    dots = [tuple(int(v) for v in line.get_xydata()[0]) for line in axes.lines]
    assert [dot for dot in dots if dot[1] < len(rows)] == [(2, 0), (3, 0), (2, 1)]
    assert sorted(t for t in texts(figure) if t[0].isdigit()) == [
        "10.0", "25.0", "50.0", "50.0", "50.0", "75.0",
    ]  # fmt: skip


# Words -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    baseline: str
    gain: Interval
    p: float
    is_real: bool
    n_pairs: int = 12
    n_words: int = 960
    unit: Literal["pairs", "words"] = "pairs"


WORSE = Told("random", Interval(-0.019, -0.038, -0.002), 0.03, True)
UNSURE = Told("zero_shot", Interval(0.004, -0.01, 0.019), 0.412, False)
BETTER = Told("en", Interval(0.03, 0.01, 0.05), 0.0004, True, n_pairs=10, n_words=800)


def test_a_real_loss_is_told_with_its_interval_turned():
    assert verdict_sentence([WORSE], subject="the spectrum's bridges") == (
        "On 12 pairs and 960 words the spectrum's bridges are 1.9 points "
        "(95 % interval 0.2 to 3.8) worse than a random bridge."
    )


def test_what_is_not_real_is_not_told_as_a_difference():
    assert verdict_sentence([WORSE, UNSURE, BETTER]).split("; ")[1:] == [
        "they cannot be told from zero-shot "
        "(difference 0.4 points, 95 % interval −1.0 to 1.9, p = .412)",
        "on the 10 pairs with English as a bridge, they are 3.0 points "
        "(95 % interval 1.0 to 5.0) better than English on every pair.",
    ]
    clear = replace(UNSURE, gain=Interval(0.05, 0.01, 0.09), p=0.06)
    assert "better" not in verdict_sentence([clear])


@pytest.mark.parametrize(("n", "ends"), [
    (1, "One pair is too few to say anything of others: this holds for the words of this pair."),
    (3, "3 pairs are too few to say anything of others: this holds for the words of these pairs."),
])  # fmt: skip
def test_few_pairs_speak_of_their_own_words_alone(n, ends):
    few = replace(BETTER, baseline="random", n_pairs=n, n_words=1, unit="words")
    text = verdict_sentence([few])
    assert text.endswith(ends)
    assert text.startswith(f"On {n} pair{'s' if n > 1 else ''} and 1 word the chosen bridges are")


def test_log_probabilities_are_told_in_nats():
    told = replace(BETTER, gain=Interval(0.3, 0.1, 0.52), baseline="de")
    assert verdict_sentence([told], measure="nats") == (
        "On 10 pairs and 800 words the chosen bridges are 0.30 nats a word "
        "(95 % interval 0.10 to 0.52) better than German."
    )


def test_without_a_gain_nothing_is_said_of_one():
    assert "nothing can be said" in verdict_sentence([])
    unknown = Told("random", Interval(NAN), NAN, False)
    assert verdict_sentence([unknown]).endswith("a random bridge (difference – points).")


def test_what_the_tests_find_can_be_told_as_it_is():
    rng = np.random.default_rng(0)
    pairs = [
        {ZERO_SHOT: rng.random(40) < 0.3, "en": rng.random(40) < 0.9, "de": rng.random(40) < 0.3}
        for _ in range(8)
    ]
    ours = {"ours": ["en"] * 8}
    verdict = judge(pairs, ["en", "de"], ours, resamples=200)
    gains = judge_gains(pairs, ["en", "de"], ours, "ours", verdict)
    text = verdict_sentence(gains)
    assert "better than a random bridge" in text and "cannot be told from English" in text
