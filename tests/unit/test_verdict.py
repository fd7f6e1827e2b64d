"""The verdict: exact accuracies, paired intervals, rank correlation."""

import numpy as np
import pytest

from bridgex_jax.icl.bli import ZERO_SHOT, Task, evaluate_conditions
from bridgex_jax.icl.verdict import best_bridges, judge, mean_rank_correlation


def right(*bits):
    return np.array(bits, bool)


DIRECTIONS = [
    {ZERO_SHOT: right(0, 0, 0, 1), "en": right(1, 1, 1, 0), "de": right(1, 0, 0, 0)},
    {ZERO_SHOT: right(0, 0), "en": right(0, 0), "de": right(1, 1)},
]


def test_pooled_accuracies_count_every_word_once():
    verdict = judge(DIRECTIONS, ["en", "de"], {"ours": ["en", "en"]})
    values = {name: estimate.value for name, estimate in verdict.rules.items()}
    assert values == pytest.approx(
        {
            ZERO_SHOT: 1 / 6,
            "en": 3 / 6,
            "de": 3 / 6,
            "random": 3 / 6,
            "ours": 3 / 6,
            "oracle": 5 / 6,
        }
    )
    assert verdict.regret["ours"].value == pytest.approx(2 / 6)
    assert verdict.gain["ours"].value == pytest.approx(0)
    assert best_bridges(DIRECTIONS, ["en", "de"]) == ["en", "de"]


def test_a_rule_compared_with_itself_has_no_width():
    verdict = judge(DIRECTIONS, ["en", "de"], {"best": ["en", "de"]})
    assert verdict.regret["best"].low == verdict.regret["best"].high == 0


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        words = rng.random((2, 120)) < np.array([[0.5], [0.7]])
        one = [{ZERO_SHOT: words[0], "en": words[0], "de": words[1]}]
        regret = judge(one, ["en", "de"], {"ours": ["en"]}, resamples=300, seed=seed).regret["ours"]
        covered += regret.low <= 0.2 <= regret.high
    assert 180 <= covered <= 200


def test_rank_correlation_is_one_for_the_order_of_accuracies_and_minus_one_for_its_reverse():
    scores = [{"en": 2.0, "de": 1.0}, {"en": -3.0, "de": 5.0}]
    assert mean_rank_correlation(scores, DIRECTIONS).value == pytest.approx(1)
    turned = [{k: -v for k, v in one.items()} for one in scores]
    assert mean_rank_correlation(turned, DIRECTIONS).value == pytest.approx(-1)


def test_hop_two_sees_the_model_s_own_answer_and_hop_one_is_asked_once():
    asked = []
    table = {
        'Indonesia:"air"→English:': '"water"',
        'Indonesia:"air"→kiswahili:': '"maji"',
        'Indonesia:"air"→עִברִית:': "?",
        'Indonesia:"air"→English:"water"→kiswahili:': '"maji',
        'Indonesia:"air"→English:"water"→עִברִית:': '"מים"',
    }

    def complete(prompts):
        asked.append(list(prompts))
        return [table[prompt] for prompt in prompts]

    tasks = [Task("id", "sw", {"air": ("maji",)}), Task("id", "he", {"air": ("מים",)})]
    to_sw, to_he = evaluate_conditions(tasks, ["en"], complete)
    assert len(asked) == 2 and len(set(asked[0])) == 3
    assert to_sw["en"].correct.all() and to_he["en"].correct.all()
    assert to_sw[ZERO_SHOT].correct.all() and not to_he[ZERO_SHOT].correct.any()


def test_a_word_without_a_usable_hop_one_answer_counts_as_wrong():
    tasks = [Task("id", "sw", {"air": ("maji",)})]
    (result,) = evaluate_conditions(tasks, ["en"], lambda prompts: [""] * len(prompts))
    assert not result["en"].correct.any() and result["en"].prompts == ("",)
