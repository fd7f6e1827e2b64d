"""The verdict: exact accuracies, paired intervals, rank correlation, and the tests of a gain."""

import itertools

import numpy as np
import pytest
import scipy.stats

from bridgex_jax.icl.conditions import ZERO_SHOT, Item, PairTask, evaluate_conditions
from bridgex_jax.icl.significance import (
    judge_gain,
    judge_gains,
    mcnemar,
    pooled,
    rank_correlation_test,
    sign_flip_test,
    sign_test,
    win_rates,
)
from bridgex_jax.icl.task import read_task
from bridgex_jax.icl.verdict import (
    Estimate,
    best_bridges,
    gain_estimate,
    judge,
    mean_rank_correlation,
    resampled_means,
    split_oracle,
    words_in_common,
)


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


class Table:
    """A model that answers from a table, and remembers what it was asked."""

    def __init__(self, table):
        self.table, self.asked = table, []

    def complete(self, what, prompts, max_new_tokens, *, quoted):
        self.asked.append(list(prompts))
        return [self.table.get(prompt, "") for prompt in prompts]

    def score(self, what, prompts, continuations):
        raise AssertionError("words are not scored")


def word_task(target, gold):
    item = Item("air", "air", (gold,), {"word": "air"})
    return PairTask("id", target, (item,))


def test_hop_two_sees_the_model_s_own_answer_and_hop_one_is_asked_once():
    model = Table(
        {
            'Indonesia:"air"→English:': '"water"',
            'Indonesia:"air"→kiswahili:': '"maji"',
            'Indonesia:"air"→עִברִית:': "?",
            'Indonesia:"air"→English:"water"→kiswahili:': '"maji',
            'Indonesia:"air"→English:"water"→עִברִית:': '"מים"',
        }
    )
    tasks = [word_task("sw", "maji"), word_task("he", "מים")]
    to_sw, to_he = evaluate_conditions(read_task("bli"), tasks, ["en"], model)
    assert len(model.asked) == 2 and len(set(model.asked[0])) == 1
    assert to_sw["en"].correct.all() and to_he["en"].correct.all()
    assert to_sw[ZERO_SHOT].correct.all() and not to_he[ZERO_SHOT].correct.any()


def test_a_word_without_a_usable_hop_one_answer_counts_as_wrong():
    (result,) = evaluate_conditions(read_task("bli"), [word_task("sw", "maji")], ["en"], Table({}))
    assert not result["en"].correct.any() and result["en"].prompts == ("",)


# Two levels, gains, oracles ----------------------------------------------------------------------


def simulated(rng, n_pairs, n_words, bridges=("en", "de", "fr"), effect=None, spread=0.0):
    """Pairs of right/wrong words; effect[bridge] is added to .4, spread varies it by pair."""
    found = []
    for _ in range(n_pairs):
        rate = {b: 0.4 + (effect or {}).get(b, 0) + rng.normal(0, spread) for b in bridges}
        one = {b: rng.random(n_words) < rate[b] for b in bridges}
        found.append({ZERO_SHOT: rng.random(n_words) < 0.4, **one})
    return found


def test_two_level_draws_are_those_of_a_loop_over_drawn_pairs_and_their_words():
    rng = np.random.default_rng(0)
    pairs = [{ZERO_SHOT: rng.random(n), "en": rng.random(n) + p} for p, n in enumerate((3, 8, 5))]
    rules = {"en": [("en",)] * 3, ZERO_SHOT: [(ZERO_SHOT,)] * 3}
    found = resampled_means(pairs, rules, levels="pairs_words", resamples=20_000, seed=1)
    gains = found["en"] - found[ZERO_SHOT]
    looped = np.empty(20_000)
    for r in range(len(looped)):
        drawn = []
        for p in rng.integers(3, size=3):
            words = rng.integers(len(pairs[p]["en"]), size=len(pairs[p]["en"]))
            drawn.append((pairs[p]["en"] - pairs[p][ZERO_SHOT])[words])
        looped[r] = np.concatenate(drawn).mean()
    everything = np.concatenate([one["en"] - one[ZERO_SHOT] for one in pairs])
    assert gains[0] == pytest.approx(everything.mean())
    steps = (0.025, 0.25, 0.5, 0.75, 0.975)
    np.testing.assert_allclose(
        np.quantile(gains[1:], steps), np.quantile(looped, steps), atol=0.04 * np.std(looped) + 0.01
    )


def test_equal_seeds_draw_equal_pairs_and_words_for_all_rules():
    pairs = simulated(np.random.default_rng(1), 6, 20)
    alone = {"en": [("en",)] * 6}
    kinds = {"levels": "pairs_words", "resamples": 50, "seed": 4}
    among = resampled_means(pairs, alone | {"de": [("de",)] * 6}, **kinds)
    np.testing.assert_array_equal(resampled_means(pairs, alone, **kinds)["en"], among["en"])


def test_two_levels_cover_the_gain_of_all_pairs_where_words_alone_do_not():
    rng = np.random.default_rng(2)
    covered = {"words": 0, "pairs_words": 0}
    for seed in range(150):
        pairs = simulated(rng, 15, 60, ("en", "de"), {"en": 0.1}, spread=0.15)
        for levels in covered:
            gain = gain_estimate(
                pairs, [("en",)] * 15, [("de",)] * 15, levels=levels, resamples=200, seed=seed
            )
            covered[levels] += gain.low <= 0.1 <= gain.high
    assert covered["pairs_words"] >= 132 and covered["words"] < 110


@pytest.mark.parametrize(("n_pairs", "levels"), [(1, "words"), (4, "words"), (5, "pairs_words")])
def test_two_levels_are_the_default_from_five_pairs_on(n_pairs, levels):
    pairs = simulated(np.random.default_rng(3), n_pairs, 10)
    verdict = judge(pairs, ["en", "de"], {"ours": ["en"] * n_pairs}, resamples=50)
    assert verdict.levels == levels
    named = judge(pairs, ["en", "de"], {"ours": ["en"] * n_pairs}, resamples=50, levels=levels)
    assert named == verdict


def test_gains_are_over_zero_shot_random_and_english():
    verdict = judge(DIRECTIONS, ["en", "de"], {"ours": ["en", "de"]}, resamples=20)
    values = {name: gain["ours"].value for name, gain in verdict.gains.items()}
    assert values == pytest.approx({ZERO_SHOT: 4 / 6, "random": 2 / 6, "en": 2 / 6})
    assert verdict.gain == verdict.gains["random"]


def test_english_is_a_baseline_on_the_pairs_that_have_it():
    pairs = [*DIRECTIONS, {ZERO_SHOT: right(0), "de": right(1)}]  # English is its source
    verdict = judge(pairs, ["en", "de"], {"ours": ["de", "de", "de"]}, resamples=20)
    assert verdict.gains["en"]["ours"].value == pytest.approx((-2 + 2) / 6)
    assert verdict.rules["ours"].value == pytest.approx(4 / 7)
    assert verdict.rules["random"].value == pytest.approx((2 + 1 + 1) / 7)
    assert "en" not in verdict.rules and "de" in verdict.rules


def test_the_split_oracle_averages_what_each_half_chooses_for_the_other():
    one = {ZERO_SHOT: right(0, 0), "en": np.array([0.0, 0.25]), "de": np.array([1.0, 0.0])}
    # Of two words each half is one: the first chooses de (scores 0), the second en (scores 0).
    np.testing.assert_array_equal(split_oracle([one], ["en", "de"])[0], [0.0, 0.0])
    single = {ZERO_SHOT: right(0), "en": right(1), "de": right(0)}
    np.testing.assert_array_equal(split_oracle([single], ["en", "de"])[0], [0.5])


def test_the_split_oracle_is_that_of_a_loop_over_all_halves():
    rng = np.random.default_rng(5)
    one = {ZERO_SHOT: rng.random(6), "en": rng.random(6), "de": rng.random(6), "fr": rng.random(6)}
    names = ["en", "de", "fr"]
    wanted = []
    for half in itertools.combinations(range(6), 3):
        other = [w for w in range(6) if w not in half]
        best = max(names, key=lambda b, half=half: one[b][list(half)].mean())
        wanted.append(one[best][other].mean())
    found = split_oracle([one], names, splits=20_000)[0].mean()
    assert found == pytest.approx(np.mean(wanted), abs=0.005)


def test_equal_bridges_look_unequal_to_the_oracle_but_not_to_the_split_one():
    rng = np.random.default_rng(6)
    pairs = simulated(rng, 40, 40, effect={"en": 0.1, "de": 0.1, "fr": 0.1})
    verdict = judge(pairs, ["en", "de", "fr"], {"ours": ["en"] * 40}, resamples=100)
    assert verdict.rules["oracle"].low > 0.5
    assert abs(verdict.oracle_split.value - 0.5) < 0.03
    assert verdict.regret_split["ours"].value < verdict.regret["ours"].value


def test_log_probabilities_are_judged_as_accuracies_are():
    rng = np.random.default_rng(7)
    pairs = [{name: -rng.exponential(size=9) for name in (ZERO_SHOT, "en", "de")} for _ in range(5)]
    picks = {"ours": ["en", "de", "en", "de", "de"]}
    verdict = judge(pairs, ["en", "de"], picks, resamples=50)
    chosen = np.concatenate([one[b] for one, b in zip(pairs, picks["ours"], strict=True)])
    zero = np.concatenate([one[ZERO_SHOT] for one in pairs])
    assert verdict.gains[ZERO_SHOT]["ours"].value == pytest.approx((chosen - zero).mean())
    assert verdict.regret["ours"].value >= 0
    scaled = [{k: 3 * v - 5 for k, v in one.items()} for one in pairs]
    again = judge(scaled, ["en", "de"], picks, resamples=50)
    assert again.regret["ours"].high == pytest.approx(3 * verdict.regret["ours"].high)
    assert again.oracle_split.value == pytest.approx(3 * verdict.oracle_split.value - 5)


def test_words_without_a_score_are_left_out_of_all_conditions_of_their_pair():
    nan = float("nan")
    pairs = [{ZERO_SHOT: np.array([-1.0, -2, -3]), "en": np.array([-1.0, nan, -5])}, DIRECTIONS[0]]
    first, second = words_in_common(pairs)
    assert first[ZERO_SHOT].tolist() == [-1, -3] and first["en"].tolist() == [-1, -5]
    assert second["en"].dtype == bool and len(second["en"]) == 4


def test_half_precision_scores_are_summed_in_double():
    third = np.full(3000, 1 / 3, np.float16)
    rules = judge([{ZERO_SHOT: third, "en": third}], ["en"], {}, resamples=2).rules
    assert rules["en"].value == pytest.approx(float(np.float16(1 / 3)), abs=1e-12)


def test_the_order_of_pairs_changes_nothing_but_the_draws():
    pairs = simulated(np.random.default_rng(8), 7, 30, effect={"en": 0.1}, spread=0.1)
    picks = ["en", "de", "fr", "en", "en", "de", "en"]
    order = [3, 0, 6, 2, 5, 1, 4]
    one = judge(pairs, ["en", "de", "fr"], {"ours": picks}, resamples=4000)
    turned = [pairs[i] for i in order], [picks[i] for i in order]
    two = judge(turned[0], ["en", "de", "fr"], {"ours": turned[1]}, resamples=4000)
    for name, gain in one.gains.items():
        other = two.gains[name]["ours"]
        assert gain["ours"].value == pytest.approx(other.value)
        assert gain["ours"].low == pytest.approx(other.low, abs=0.015)
        assert gain["ours"].high == pytest.approx(other.high, abs=0.015)


@pytest.mark.parametrize(
    ("pairs", "picks", "message"),
    [
        ([], [], "no pair"),
        ([{ZERO_SHOT: right(1)}], ["en"], "pair 0 lacks zero-shot or all bridges"),
        ([{ZERO_SHOT: right(), "en": right()}], ["en"], "pair 0 has no words"),
        ([{ZERO_SHOT: right(1), "en": right(1, 0)}], ["en"], "different lengths"),
        ([{ZERO_SHOT: np.array([-np.inf]), "en": right(1)}], ["en"], "not finite"),
        ([{ZERO_SHOT: right(1), "en": right(1)}], ["de"], "ours picks de in pair 0"),
    ],
)
def test_what_cannot_be_judged_is_refused(pairs, picks, message):
    with pytest.raises(ValueError, match=message):
        judge(pairs, ["en", "de"], {"ours": picks})


# Significance ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_sign_flips_are_those_of_all_sign_patterns(n):
    values = np.random.default_rng(n).normal(0.4, 1, n)
    sums = [abs(np.dot(s, values)) for s in itertools.product((1, -1), repeat=n)]
    wanted = np.mean([s >= abs(values.sum()) - 1e-12 for s in sums])
    assert sign_flip_test(values) == wanted == sign_flip_test(-values)
    assert sign_flip_test(np.append(values, [0, 0])) == wanted  # zeros say nothing


def test_random_sign_flips_agree_with_scipy_s():
    values = np.random.default_rng(0).normal(0.25, 1, 60)
    wanted = scipy.stats.permutation_test(
        (values,), np.sum, permutation_type="samples", n_resamples=20_000, rng=1
    ).pvalue
    assert sign_flip_test(values, permutations=20_000) == pytest.approx(wanted, abs=0.012)
    assert sign_flip_test(np.full(60, 1.0), permutations=999) == 1 / 1000


def test_the_rank_test_of_one_pair_counts_all_orders():
    accuracy = {b: np.array([0.1 * i]) for i, b in enumerate("abcdef")}
    score = {b: float(i) for i, b in enumerate("abcdef")}
    test = rank_correlation_test([score], [accuracy])
    assert (test.p, test.n, test.exact, test.n_pairs) == (1 / 720, 720, True, 1)
    assert test.correlation == pytest.approx(1)
    tied = accuracy | {"b": accuracy["a"], "c": accuracy["a"]}
    assert rank_correlation_test([score], [tied]).p == 6 / 720
    reverse = rank_correlation_test([{b: -s for b, s in score.items()}], [accuracy])
    assert reverse.p == 1


def test_one_pair_of_six_bridges_needs_a_correlation_of_83_percent():
    accuracy = {b: np.array([float(i)]) for i, b in enumerate("abcdef")}
    p = {}
    for order in itertools.permutations(range(6)):
        rho = round(1 - 6 * sum((i - o) ** 2 for i, o in enumerate(order)) / 210, 4)
        if 0.7 < rho < 0.9 and rho not in p:
            score = dict(zip("abcdef", map(float, order), strict=True))
            p[rho] = rank_correlation_test([score], [accuracy]).p
    assert min(rho for rho in p if p[rho] < 0.05) == 0.8286
    assert p[0.7714] > 0.05


def test_the_rank_test_of_two_pairs_is_that_of_all_pairs_of_orders():
    x, y = np.array([3.0, 1, 2]), [np.array([0.5, 0.2, 0.3]), np.array([0.1, 0.4, 0.4])]
    scores = [dict(zip("abc", x, strict=True))] * 2
    correct = [{b: np.array([v]) for b, v in zip("abc", one, strict=True)} for one in y]
    test = rank_correlation_test(scores, correct)
    null = [
        np.mean([scipy.stats.spearmanr(o, one).statistic for o, one in zip(orders, y, strict=True)])
        for orders in itertools.product(itertools.permutations(x), repeat=2)
    ]
    observed = np.mean([scipy.stats.spearmanr(x, one).statistic for one in y])
    assert test.correlation == pytest.approx(observed)
    assert test.p == pytest.approx(np.mean(np.array(null) >= observed - 1e-12)) and test.exact


def ranked_simulation(rng, n_pairs, slope):
    scores, correct = [], []
    for _ in range(n_pairs):
        score = rng.normal(size=6)
        accuracy = slope * score + rng.normal(size=6)
        scores.append(dict(zip("abcdef", score, strict=True)))
        correct.append({b: np.array([a]) for b, a in zip("abcdef", accuracy, strict=True)})
    return scores, correct


def test_a_score_that_follows_accuracy_is_found_and_chance_is_at_its_rate():
    rng = np.random.default_rng(9)
    found = rank_correlation_test(*ranked_simulation(rng, 12, 1.0), permutations=999)
    assert found.p == 1 / 1000 and not found.exact and found.n_pairs == 12
    below = sum(
        rank_correlation_test(*ranked_simulation(rng, 4, 0.0), permutations=199, seed=i).p <= 0.05
        for i in range(400)
    )
    low, high = scipy.stats.binom.interval(0.999, 400, 0.05)
    assert low <= below <= high


def test_the_rank_test_without_a_ranked_pair_is_no_number():
    test = rank_correlation_test([{"en": 1.0, "de": 1.0}], DIRECTIONS[:1])
    assert np.isnan(test.p) and test.n_pairs == 0


def test_its_correlation_is_the_mean_rank_correlation():
    scores, correct = ranked_simulation(np.random.default_rng(1), 5, 0.5)
    test = rank_correlation_test(scores, correct, permutations=9)
    assert test.correlation == pytest.approx(mean_rank_correlation(scores, correct).value)


def test_win_rates_count_ties_half_and_mirror_each_other():
    choosers = {"a": ["en", "en"], "b": ["de", "de"], "c": ["en", "de"], "none": [ZERO_SHOT] * 2}
    found = win_rates(DIRECTIONS, choosers)
    np.testing.assert_array_equal(
        found.share,
        [
            [0.5, 0.5, 0.25, 0.75],
            [0.5, 0.5, 0.25, 0.75],
            [0.75, 0.75, 0.5, 1],
            [0.25, 0.25, 0, 0.5],
        ],
    )
    np.testing.assert_array_equal(found.share + found.share.T, 1)
    np.testing.assert_array_equal(found.p, found.p.T)
    assert found.p[2, 3] == 0.5 and (np.diag(found.p) == 1).all()
    assert found.wins[2, 0] == 1 and found.ties[2, 0] == 1


def test_the_sign_test_is_scipy_s_binomial_test():
    for wins, losses in itertools.product(range(9), repeat=2):
        if wins + losses:
            wanted = scipy.stats.binomtest(wins, wins + losses).pvalue
            assert sign_test(wins, losses) == pytest.approx(wanted, rel=1e-12)
    assert sign_test(0, 0) == 1
    wanted = scipy.stats.binomtest(5200, 10_000).pvalue
    assert sign_test(5200, 4800) == pytest.approx(wanted, rel=1e-9)


def test_mcnemar_counts_discordant_words_and_forgets_the_others():
    a, b = right(1, 1, 1, 1, 0, 1, 0), right(0, 0, 0, 1, 1, 1, 0)
    found = mcnemar(a, b)
    assert (found.only_a, found.only_b) == (3, 1)
    assert found.p == scipy.stats.binomtest(3, 4).pvalue
    assert mcnemar(b, a).p == found.p and mcnemar(a, a).p == 1
    picked = pooled(DIRECTIONS, ["en", "de"]), pooled(DIRECTIONS, ["de", "de"])
    assert mcnemar(*picked).only_a == 2


def test_mcnemar_refuses_what_is_not_right_or_wrong():
    with pytest.raises(ValueError, match="right or wrong, not scores of float64"):
        mcnemar(np.array([1.0, 0.0]), right(1, 0))
    with pytest.raises(ValueError, match="same words"):
        mcnemar(right(1, 0), right(1))


def test_swapping_two_choosers_flips_the_sign_and_nothing_else():
    pairs = simulated(np.random.default_rng(10), 8, 20, effect={"en": 0.1})
    choosers = {"a": ["en"] * 8, "b": ["de"] * 8}
    ab = judge_gain(pairs, ["en", "de"], choosers, "a", "b", resamples=200)
    ba = judge_gain(pairs, ["en", "de"], choosers, "b", "a", resamples=200)
    assert (ab.gain.value, ab.gain.low) == pytest.approx((-ba.gain.value, -ba.gain.high))
    assert ab.p == ba.p and ab.is_real == ba.is_real


@pytest.mark.parametrize("n_pairs", [2, 8])
def test_identical_choosers_gain_nothing_at_p_one(n_pairs):
    pairs = simulated(np.random.default_rng(11), n_pairs, 20)
    choosers = {"a": ["en"] * n_pairs, "b": ["en"] * n_pairs}
    found = judge_gain(pairs, ["en", "de"], choosers, "a", "b", resamples=50)
    assert found.gain == Estimate(0, 0, 0) and found.p == 1 and not found.is_real
    assert win_rates(pairs, choosers).share.tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_the_gain_and_its_interval_are_those_of_the_verdict():
    pairs = simulated(np.random.default_rng(12), 7, 20)
    choosers = {"ours": ["en", "de", "fr", "de", "en", "fr", "de"]}
    verdict = judge(pairs, ["en", "de", "fr"], choosers, resamples=100, seed=5)
    found = judge_gains(pairs, ["en", "de", "fr"], choosers, "ours", verdict, seed=5)
    assert [one.baseline for one in found] == ["random", ZERO_SHOT, "en"]
    for one in found:
        alone = judge_gain(
            pairs, ["en", "de", "fr"], choosers, "ours", one.baseline, resamples=100, seed=5
        )
        assert one == alone
        assert one.gain == verdict.gains[one.baseline]["ours"]
        assert (one.n_pairs, one.n_words, one.unit) == (7, 140, "pairs")


def test_pairs_without_the_baseline_are_left_out_and_few_pairs_are_tested_by_words():
    pairs = simulated(np.random.default_rng(13), 6, 15, effect={"de": 0.4})
    del pairs[0]["en"]
    ours = {"ours": ["de"] * 6}
    against = judge_gain(pairs, ["en", "de"], ours, "ours", "en", resamples=100)
    assert (against.n_pairs, against.n_words, against.unit) == (5, 75, "words")
    assert judge_gain(pairs, ["en", "de"], ours, "ours", "random", resamples=9).unit == "pairs"
    differences = np.concatenate([one["de"] * 1.0 - one["en"] for one in pairs[1:]])
    assert against.p == sign_flip_test(differences)
    with pytest.raises(ValueError, match="no pair has xx"):
        judge_gain(pairs, ["en", "de"], ours, "ours", "xx")


def test_a_planted_good_chooser_is_real_and_a_planted_bad_one_is_a_real_loss():
    rng = np.random.default_rng(14)
    pairs = simulated(rng, 12, 60, effect={"en": 0.15}, spread=0.03)
    choosers = {"good": ["en"] * 12, "bad": ["de"] * 12}
    good = judge_gain(pairs, ["en", "de", "fr"], choosers, "good", "random", resamples=500)
    bad = judge_gain(pairs, ["en", "de", "fr"], choosers, "bad", "random", resamples=500)
    assert good.is_real and good.helps and good.p < 0.01
    assert bad.is_real and not bad.helps and bad.gain.high < 0


def test_a_gain_is_real_only_where_its_interval_agrees_with_its_p():
    words = np.tile([1.0, -0.98], 5)  # every pair gains a little, its words say nothing
    pairs = [{ZERO_SHOT: np.zeros(10), "en": words, "de": np.zeros(10)} for _ in range(6)]
    found = judge_gain(pairs, ["en", "de"], {"ours": ["en"] * 6}, "ours", "de", resamples=200)
    assert found.p == 2 / 64 and found.gain.low < 0 < found.gain.high and not found.is_real


@pytest.mark.parametrize("n_pairs", [3, 10])
def test_a_chooser_without_skill_is_significant_at_the_rate_of_chance(n_pairs):
    rng = np.random.default_rng(15)
    names, below, real = ["en", "de", "fr"], 0, 0
    for seed in range(400):
        pairs = [{name: rng.random(25) for name in (ZERO_SHOT, *names)} for _ in range(n_pairs)]
        ours = {"ours": [names[i] for i in rng.integers(3, size=n_pairs)]}
        found = judge_gain(pairs, names, ours, "ours", "random", resamples=60,
                           permutations=199, seed=seed)  # fmt: skip
        below += found.p <= 0.05
        real += found.is_real
    low, high = scipy.stats.binom.interval(0.999, 400, 0.05)
    assert low <= below <= high and real <= below
