"""The sentences of a report say what the numbers say, no more."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bridgex_jax.report.content import (
    NAN,
    BridgeRank,
    Evaluation,
    Interval,
    PairReport,
)
from bridgex_jax.report.text import (
    choice_sentence,
    evaluation_sentence,
    label,
    name,
    number,
    p_value,
    percent,
)

PAIR = PairReport(
    "id",
    "he",
    "de",
    (BridgeRank("de", Interval(0.2, 0.1, 0.3), p_best=0.97, p_value=0.004),),
    window=(2, 3, 4),
    compared=(2, 3),
    resamples=1000,
)


def with_p(p: float) -> PairReport:
    return replace(PAIR, ranking=(replace(PAIR.ranking[0], p_value=p),))


def test_a_clear_choice_is_recommended():
    assert choice_sentence(PAIR) == (
        "Use German (de) as the bridge from Indonesian (id) to Hebrew (he): it scores highest in "
        "97 % of 1,000 resamples of the words, p = .004 against chance."
    )
    assert "p < .001 against chance" in choice_sentence(with_p(0.0005))


def test_a_tie_is_called_a_tie():
    sentence = choice_sentence(replace(PAIR, tied_with=("fr", "it", "es")))
    assert "cannot be told apart from French (fr), Italian (it) and Spanish (es)" in sentence
    assert not sentence.startswith("Use")


def test_chance_is_called_chance_even_where_one_bridge_leads():
    assert "no more than chance would give (p = .210): take it as a guess" in choice_sentence(
        with_p(0.21)
    )


def test_without_a_comparable_bridge_none_is_chosen():
    sentence = choice_sentence(replace(PAIR, bridge=None, ranking=()))
    assert sentence.startswith("No bridge can be chosen from Indonesian (id) to Hebrew (he)")


def test_without_resampling_nothing_is_claimed_about_certainty():
    row = BridgeRank("de", Interval(0.2))
    sentence = choice_sentence(replace(PAIR, ranking=(row,), resamples=0))
    assert (
        sentence == "Use German (de) as the bridge from Indonesian (id) to Hebrew (he): "
        "it has the highest score."
    )
    tied = choice_sentence(replace(PAIR, ranking=(row,), resamples=0, tied_with=("fr",)))
    assert tied.endswith("cannot be told apart from French (fr).")


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        (
            Interval(0.032, 0.011, 0.053),
            "translate 3.2 points (95 % interval 1.1 to 5.3) better than a random",
        ),
        (Interval(0.01, -0.02, 0.04), "cannot be told from random here"),
        (
            Interval(-0.03, -0.05, -0.01),
            "translate 3.0 points (95 % interval 1.0 to 5.0) worse than a random",
        ),
        (Interval(0.03), "cannot be told from random here"),
    ],
)
def test_the_evaluation_is_read_off_its_interval(gain, words):
    evaluation = Evaluation("bli", 100, (), (), gain=gain, regret=Interval(0.1, 0.05, 0.15))
    assert words in evaluation_sentence(evaluation)


def test_missing_numbers_are_dashes_and_minus_is_a_minus():
    assert number(NAN) == number(None) == percent(NAN) == p_value(NAN) == "–"
    assert number(-0.5, 1) == "−0.5"
    assert percent(0.123, 1) == "12.3 %"
    assert (p_value(0.0123), p_value(0.0009), p_value(1.0)) == (".012", "< .001", "1.000")


def test_languages_without_an_entry_keep_their_code():
    assert (label("zh"), name("zh")) == ("Chinese (zh)", "Chinese")
    assert (label("xx"), name("xx")) == ("xx", "xx")
