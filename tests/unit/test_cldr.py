"""CLDR words: one plain word a language, no ambiguity, nothing of another locale's."""

import itertools

import pytest

from bridgex_jax.data import cldr
from bridgex_jax.errors import InputError

LANGUAGES = ("en", "zh", "sw", "he", "id")


def test_concepts_have_one_plain_word_in_every_language():
    concepts = cldr.read_concepts(LANGUAGES)
    assert len(concepts) > 700
    for concept in concepts:
        assert set(concept.words) == set(LANGUAGES)
        for word in concept.words.values():
            assert word == word.strip() and not set('(),"“”:→\n') & set(word)


def test_no_word_names_two_concepts_of_a_language():
    concepts = cldr.read_concepts(LANGUAGES)
    for code in LANGUAGES:
        folded = [cldr.fold(concept.words[code]) for concept in concepts]
        assert len(set(folded)) == len(folded)


def test_a_locale_read_after_chinese_keeps_its_own_months():
    # Babel 2.18 resolves aliases in tables that locales share.
    assert cldr.read_terms("zh")["month/2"] == "二月"
    assert cldr.read_terms("sw")["month/2"] == "Februari"
    assert cldr.read_terms("he")["month/2"] == "פברואר"


def test_sentences_depend_on_language_and_seed_alone():
    def first(code, seed):
        return list(itertools.islice(cldr.sentences(code, seed), 50))

    assert first("fi", 1) == first("fi", 1)
    assert first("fi", 1) != first("fi", 2)
    assert first("fi", 1) != first("sw", 1)


def test_no_sentence_shows_an_untranslated_unit():
    lines = itertools.islice(cldr.sentences("sw", 0), 2000)
    assert not [line for line in lines if "mass-" in line or "length-" in line]


def test_stable_fractions_are_uniform_and_repeatable():
    assert cldr.stable_fraction(1, "a") == cldr.stable_fraction(1, "a")
    draws = [cldr.stable_fraction(0, i) for i in range(2000)]
    assert 0.47 < sum(draws) / len(draws) < 0.53


def test_a_language_without_a_locale_is_refused_in_one_line():
    with pytest.raises(InputError, match="CLDR has no locale for language 'xx'"):
        cldr.read_terms("xx")
