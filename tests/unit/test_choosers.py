"""The simpler choosers: definitions by other routes, planted bridges, and what cannot be said."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bridgex_jax.bridge import choosers
from bridgex_jax.bridge.choosers import CHOOSERS, Similarities, between, pick
from bridgex_jax.neurons import similarity
from bridgex_jax.neurons.lape import lape
from bridgex_jax.neurons.sets import pair_sets

NAN = math.nan
CODES = ("s", "t", "a", "b")
masks = hnp.arrays(np.bool_, (4, 2, 6))


def by_code(rows):
    return dict(zip(CODES, rows, strict=False))


# One interface ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ({"en": 0.1, "de": 0.3, "fr": 0.2}, "de"),
        ({"fr": 1.0, "en": 1.0}, "fr"),
        ({"en": NAN, "de": -2.0, "fr": math.inf}, "de"),
        ({"en": NAN, "de": -math.inf}, None),
        ({}, None),
    ],
)
def test_the_largest_finite_score_is_picked_and_the_first_on_ties(scores, best):
    assert pick(scores) == best


def test_between_is_the_mean_of_both_halves_in_the_order_of_the_bridges():
    values = np.array([[1, 0.5, 0.2, 0.4], [0.5, 1, 0.6, NAN], [0.2, 0.6, 1, 0], [0.4, NAN, 0, 1]])
    found = between(Similarities(CODES, values), "s", "t", ["b", "a"])
    assert list(found) == ["b", "a"]
    assert found["a"] == pytest.approx(0.4) and math.isnan(found["b"])


@given(hnp.arrays(np.float64, (4, 4), elements=st.floats(-1, 1)))
def test_between_does_not_depend_on_the_pair_s_direction(values):
    sim = Similarities(CODES, values + values.T)
    assert between(sim, "s", "t", ["a", "b"]) == between(sim, "t", "s", ["a", "b"])


@pytest.mark.parametrize(
    ("source", "target", "bridges", "said"),
    [("s", "x", ["a"], "nothing is known of x"), ("s", "t", ["q", "r"], "known of q, r"),
     ("s", "s", ["a"], "not different"), ("s", "t", ["a", "t"], "not different")],
)  # fmt: skip
def test_languages_that_make_no_pair_are_refused(source, target, bridges, said):
    with pytest.raises(ValueError, match=said):
        between(Similarities(CODES, np.eye(4)), source, target, bridges)
    with pytest.raises(ValueError, match=said):
        choosers.overlap_count(by_code(np.zeros((4, 1, 2), bool)), source, target, bridges)


def test_every_chooser_is_described_in_one_line():
    names = "hsic overlap jaccard cosine set_size lape embedding cka typology tokenizer english "
    assert list(CHOOSERS) == (names + "random table oracle").split()
    assert all(line and "\n" not in line for line in CHOOSERS.values())
    with pytest.raises(TypeError):
        CHOOSERS["hsic"] = ""


def test_arrays_of_different_shapes_are_refused_by_name():
    with pytest.raises(ValueError, match=r"not one shape for all languages: s \(3,\), t \(4,\)"):
        choosers.embedding_similarity({"s": np.ones(3), "t": np.ones(4)})
    with pytest.raises(ValueError, match="there is none"):
        choosers.tokenizer_overlap({})


# Neuron sets -----------------------------------------------------------------------------------


@given(masks)
def test_overlap_counts_neurons_that_all_three_have(sets):
    found = choosers.overlap_count(by_code(sets), "s", "t", ["b", "a"])
    members = [{tuple(at) for at in np.argwhere(one)} for one in sets]
    expected = {"b": members[0] & members[1] & members[3], "a": set.intersection(*members[:3])}
    assert found == {bridge: len(shared) for bridge, shared in expected.items()}


@given(masks)
def test_set_size_is_that_of_the_bridge_s_own_set(sets):
    pair = pair_sets(sets, CODES, "s", "t", ["b", "a"])
    found = choosers.set_size(pair.bridges)
    assert found == {b: int(members.sum()) for b, members in pair.bridges.items()}
    assert list(found) == ["b", "a"]


@given(masks, hnp.arrays(np.float64, (4, 2, 6), elements=st.floats(0.1, 1)))
def test_jaccard_and_cosine_are_those_of_the_overlap_table(sets, rates):
    order = ["b", "s", "a", "t"]
    mixed = {code: by_code(rates)[code] for code in order}
    jaccard = choosers.jaccard(by_code(sets))
    cosine = choosers.cosine(mixed, by_code(sets))
    assert jaccard.languages == cosine.languages == CODES
    np.testing.assert_array_equal(jaccard.values, similarity.jaccard(sets))
    np.testing.assert_array_equal(cosine.values, similarity.activation_cosine(rates, sets))


def test_rates_and_sets_of_different_languages_are_refused():
    with pytest.raises(ValueError, match="rates of s and sets of t"):
        choosers.cosine({"s": np.ones((1, 2))}, {"t": np.ones((1, 2), bool)})


def test_lape_overlap_is_the_jaccard_of_language_specific_neurons():
    rng = np.random.default_rng(0)
    p = rng.uniform(0.1, 0.2, size=(4, 2, 50))
    p[:, 1, :7] = 0.001
    p[:3, 1, :4] = 0.9  # s, t and a share four specific neurons, b has three of its own
    p[3, 1, 4:7] = 0.9
    found = choosers.lape_overlap(by_code(p), rate=0.07)
    sets = lape(p, rate=0.07).chosen
    np.testing.assert_array_equal(found.values, similarity.jaccard(sets))
    assert between(found, "s", "t", ["b", "a"]) == {"b": 0.0, "a": 1.0}


# Representations -------------------------------------------------------------------------------


def test_centring_reveals_the_planted_bridge_under_a_large_common_component():
    rng = np.random.default_rng(1)
    own = rng.normal(size=(4, 64))
    own[2] = own[0] + own[1] + 0.1 * own[2]  # a lies between s and t
    common = 1000 * rng.normal(size=64)
    means = by_code((own + common).astype(np.float32))
    plain = choosers.embedding_similarity(means, centred=False)
    assert (plain.values > 0.999).all()
    scores = between(choosers.embedding_similarity(means), "s", "t", ["b", "a"])
    assert pick(scores) == "a" and scores["a"] > scores["b"] + 0.2


def test_embedding_similarity_is_the_cosine_of_the_definition():
    x = np.random.default_rng(2).normal(size=(4, 8))
    centred = x - x.mean(axis=0)
    for given_rows, flag in ((x, False), (centred, True)):
        found = choosers.embedding_similarity(by_code(x), centred=flag).values
        for a in range(4):
            for b in range(4):
                u, v = given_rows[a], given_rows[b]
                cosine = math.fsum(u * v) / math.sqrt(math.fsum(u * u) * math.fsum(v * v))
                assert found[a, b] == pytest.approx(cosine, abs=1e-12)


def test_a_language_without_an_embedding_has_no_similarity():
    found = choosers.embedding_similarity({"s": np.zeros(3), "t": np.ones(3)}, centred=False)
    assert np.isnan(found.values[0]).all() and found.values[1, 1] == pytest.approx(1)


def hsic_by_loop(x, y, estimator):
    """HSIC of linear kernels, sum by sum, from Song et al. 2012 and Gretton et al. 2005."""
    n = len(x)
    k = [[math.fsum(x[i] * x[j]) for j in range(n)] for i in range(n)]
    m = [[math.fsum(y[i] * y[j]) for j in range(n)] for i in range(n)]
    everyone = range(n)
    if estimator == "biased":
        kc, mc = ([[g[i][j] - sum(g[i]) / n - sum(g[j]) / n + sum(map(sum, g)) / n**2
                    for j in everyone] for i in everyone] for g in (k, m))  # fmt: skip
        return math.fsum(kc[i][j] * mc[i][j] for i in everyone for j in everyone)
    for g in (k, m):
        for i in everyone:
            g[i][i] = 0.0
    trace = math.fsum(k[i][j] * m[j][i] for i in everyone for j in everyone)
    totals = math.fsum(map(math.fsum, k)) * math.fsum(map(math.fsum, m))
    rows = math.fsum(k[i][j] * m[j][q] for i in everyone for j in everyone for q in everyone)
    return (trace + totals / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows) / (n * (n - 3))


@pytest.mark.parametrize("estimator", ["debiased", "biased"])
def test_cka_is_that_of_the_sums_of_the_definition(estimator):
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(9, 4)) + 2, rng.normal(size=(9, 6)) - 1
    y[:, :4] += x
    own = [hsic_by_loop(z, z, estimator) for z in (x, y)]
    expected = hsic_by_loop(x, y, estimator) / math.sqrt(own[0] * own[1])
    found = choosers.cka({"s": x, "t": y}, estimator=estimator)
    assert found.languages == ("s", "t")
    np.testing.assert_allclose(found.values, [[1, expected], [expected, 1]], rtol=1e-10)


@pytest.mark.parametrize("estimator", ["debiased", "biased"])
def test_rotation_scaling_and_shift_do_not_change_cka(estimator):
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(30, 8)), rng.normal(size=(30, 8))
    y[:, :3] += 2 * x[:, :3]
    turn, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    moved = {"s": 1e-200 * (x @ turn) + 1e-199, "t": 1e150 * y - 3e150}
    plain = choosers.cka({"s": x, "t": y}, estimator=estimator).values
    np.testing.assert_allclose(choosers.cka(moved, estimator=estimator).values, plain, rtol=1e-9)
    alike = choosers.cka({"s": x, "t": 5 * x @ turn + 1}, estimator=estimator).values
    np.testing.assert_allclose(alike, np.ones((2, 2)), rtol=1e-12)


def test_debiased_cka_of_independent_representations_is_about_0_and_biased_is_not():
    rng = np.random.default_rng(5)
    draws = [{"s": rng.normal(size=(40, 200)), "t": rng.normal(size=(40, 200))} for _ in range(20)]
    debiased = [choosers.cka(one).values[0, 1] for one in draws]
    biased = [choosers.cka(one, estimator="biased").values[0, 1] for one in draws]
    assert abs(np.mean(debiased)) < 0.02
    assert np.mean(biased) > 0.7


def test_sentences_in_another_order_are_not_alike():
    rng = np.random.default_rng(6)
    x = rng.normal(size=(100, 20))
    found = choosers.cka({"s": x, "t": x[rng.permutation(100)], "a": x})
    assert abs(found.values[0, 1]) < 0.1 and found.values[0, 2] == pytest.approx(1)


@pytest.mark.parametrize("estimator", ["debiased", "biased"])
def test_representations_that_do_not_vary_have_no_cka(estimator):
    x = np.random.default_rng(7).normal(size=(6, 3))
    constant = np.full((6, 3), 0.1)
    found = choosers.cka({"s": x, "t": constant}, estimator=estimator).values
    assert np.isnan(found[1]).all() and found[0, 0] == pytest.approx(1)


@pytest.mark.parametrize(
    ("shapes", "settings", "said"),
    [
        ([(5, 2), (5, 2)], {"estimator": "plain"}, "estimator is 'plain'"),
        ([(5, 2), (6, 2)], {}, r"s \(5, 2\), t \(6, 2\)"),
        ([(3, 2), (3, 2)], {}, "at least 4"),
        ([(1, 2), (1, 2)], {"estimator": "biased"}, "at least 2"),
        ([(5,), (5,)], {}, r"not \[n, D\]"),
        ([], {}, r"not \[n, D\]"),
    ],
)
def test_sentences_that_are_not_parallel_are_refused(shapes, settings, said):
    with pytest.raises(ValueError, match=said):
        choosers.cka(by_code([np.ones(shape) for shape in shapes]), **settings)


# Languages apart from the model ----------------------------------------------------------------


def test_typological_distance_is_the_share_of_unequal_features_known_of_both():
    features = {
        "s": np.array([1.0, 0, 1, -1, 1]),
        "t": np.array([0.0, 0, -1, -1, 1]),
        "a": np.array([-1.0, -1, -1, 1, -1]),
        "b": np.array([0.5, 0, 1, 1, 1]),
    }
    found = choosers.typological(features).values
    assert found[0, 1] == pytest.approx(-1 / 3)
    assert found[0, 3] == pytest.approx(-0.5 / 4)  # sources of b disagree on the first feature
    assert np.isnan(found[0, 2])  # nothing is known of both
    assert found[0, 0] == 0 and not np.signbit(found[0, 0])
    cosine = choosers.typological(features, distance="cosine").values
    assert cosine[0, 1] == pytest.approx(-(1 - 1 / math.sqrt(2)))
    assert cosine[1, 3] == pytest.approx(-(1 - 1 / math.sqrt(1.25)))
    zeros = {"s": np.zeros(2), "t": np.ones(2)}
    assert np.isnan(choosers.typological(zeros, distance="cosine").values[0, 1])
    with pytest.raises(ValueError, match="distance is 'far'"):
        choosers.typological(features, distance="far")


features = hnp.arrays(np.float64, (3, 6), elements=st.sampled_from([-1.0, 0.0, 1.0]))


@given(features, st.sampled_from(["unequal", "cosine"]))
def test_what_a_missing_feature_would_be_does_not_matter(values, distance):
    """Where one language misses a feature, the other's value is free."""
    plain = choosers.typological({"s": values[0], "t": values[1]}, distance=distance)
    other = np.where(values[0] < 0, values[2], values[1])
    changed = choosers.typological({"s": values[0], "t": other}, distance=distance)
    assert plain.values[0, 1] == changed.values[0, 1] or np.isnan(plain.values[0, 1])


@given(features)
def test_features_known_to_all_are_those_without_a_gap(values):
    found = choosers.known_to_all({"s": values[0], "t": values[1], "a": values[2]})
    kept = [at for at in range(6) if all(row[at] >= 0 for row in values)]
    np.testing.assert_array_equal(np.stack(list(found.values())), values[:, kept])


@given(hnp.arrays(np.int64, (3, 9), elements=st.integers(0, 50)))
def test_tokenizer_overlap_is_what_total_variation_leaves(counts):
    found = choosers.tokenizer_overlap({"s": counts[0], "t": counts[1], "a": counts[2]}).values
    for a in range(3):
        for b in range(3):
            if 0 in (counts[a].sum(), counts[b].sum()):
                assert np.isnan(found[a, b])
                continue
            p, q = counts[a] / counts[a].sum(), counts[b] / counts[b].sum()
            assert found[a, b] == pytest.approx(1 - np.abs(p - q).sum() / 2)


def test_more_text_of_a_language_does_not_change_its_tokenizer_overlap():
    counts = {"s": np.array([4, 2, 0, 2]), "t": np.array([1, 0, 3, 4])}
    more = {"s": 1000 * counts["s"], "t": counts["t"]}
    found, again = choosers.tokenizer_overlap(counts), choosers.tokenizer_overlap(more)
    assert found.values[0, 1] == again.values[0, 1] == pytest.approx(0.125 + 0.25)
    with pytest.raises(ValueError, match="fewer than 0"):
        choosers.tokenizer_overlap({"s": np.array([-1, 3])})


# Without looking at anything -------------------------------------------------------------------


def test_a_fixed_bridge_is_picked_where_it_is_a_candidate():
    assert choosers.fixed("en", ["de", "en"]) == {"de": 0.0, "en": 1.0}
    assert pick(choosers.fixed("en", ["de", "en"])) == "en"
    assert pick(choosers.fixed("en", ["de", "fr"])) is None


def test_a_table_scores_the_bridges_that_it_has():
    given_scores = {("id", "he"): {"de": 0.4, "fr": 0.9, "en": 0.1}}
    found = choosers.table(given_scores, "id", "he", ["en", "de", "it"])
    assert found == {"en": 0.1, "de": 0.4, "it": pytest.approx(NAN, nan_ok=True)}
    assert pick(found) == "de"
    assert pick(choosers.table(given_scores, "he", "id", ["en"])) is None
