"""Reading and scoring answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgex_jax.icl.answers import is_right, normalise, opens_with_quote, parse_answer


@pytest.mark.parametrize(
    "generated, answer",
    [
        ('"Haus"', "Haus"),
        ('"Haus"→English:"house"', "Haus"),
        ('  "das Haus" (n.)', "das Haus"),
        ('"Wuhan, China"\n', "Wuhan, China"),
        ("“maison” ou", "maison"),
        ("„Haus“", "Haus"),
        ("«дом»", "дом"),
        ("「家」。", "家"),
        ("'l'eau' de", "l'eau"),
        ("‘l’eau’", "l’eau"),
        ('"Haus', "Haus"),
        ('"Haus\nEnglish:"', "Haus"),
        ("Haus\nEnglish", "Haus"),
        ("Haus→English", "Haus"),
        ("Haus, Gebäude", "Haus"),
        ("Haus (n.)", "Haus"),
        ("Haus? Ja", "Haus"),
        ("das große Haus", "das große Haus"),
        ("家（いえ）", "家"),
        ("بيت، منزل", "بيت"),
        ("'s avonds", "s avonds"),
        ("", ""),
        ("\nHaus", ""),
        ('""', ""),
        ("→x", ""),
    ],
)
def test_the_answer_ends_at_its_quote_or_at_the_first_sign_after_it(generated, answer):
    assert parse_answer(generated) == answer


@pytest.mark.parametrize(
    "a, b",
    [
        ("Haus", "haus"),
        ("“Haus”", "haus"),
        ("ﬁn", "fin"),
        ("ｶﾀｶﾅ", "カタカナ"),
        ("l’eau", "l'eau"),
        ("ג׳ירף", "ג'ירף"),
        ("צה״ל", 'צה"ל'),
        ("עִברִית", "עברית"),
        ("cafe\u0301", "café"),
        ("two\u00a0 words", "two words"),
        ("'haus'", "haus"),
    ],
)
def test_spellings_of_one_word_are_made_equal(a, b):
    assert normalise(a) == normalise(b)


@pytest.mark.parametrize("a, b", [("l'eau", "leau"), ("haus", "häuser"), ("haus.", "haus"),
                                  ("two words", "twowords"), ("שׁ", "ס"), ("é", "e")])  # fmt: skip
def test_different_words_stay_different(a, b):
    assert normalise(a) != normalise(b)


def test_maqaf_is_no_niqqud():
    assert normalise("בית־ספר") == "בית־ספר"


@given(st.text(st.characters(categories=("L", "M", "P", "Zs"))))
def test_answers_in_quotes_are_read_back(word):
    if not set(word) & set('"＂\n'):
        assert normalise(parse_answer(f'"{word}"')) == normalise(word)


def test_any_gold_is_right_and_nothing_else_is():
    golds = ("Haus", "Gebäude")
    assert is_right('"gebäude"', golds) and is_right("Haus, Häuser", golds)
    assert not is_right('"Hof"', golds) and not is_right("\n", golds)


def test_an_empty_answer_is_never_right():
    assert not is_right('""', ('"',))


@pytest.mark.parametrize("text, opens", [('"a', True), (' "a', True), ("„a", True), ("a\"", False),
                                         ("", False)])  # fmt: skip
def test_a_quote_at_the_start_is_seen(text, opens):
    assert opens_with_quote(text) is opens
