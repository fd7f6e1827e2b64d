"""The prompts of word translation."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgex_jax.data.prompts import chain_prompt, parse_template, word_prompt
from bridgex_jax.errors import InputError
from bridgex_jax.languages import PAPER_LANGUAGES


@pytest.mark.parametrize(
    "source, target, word, text",
    [("id", "en", "rumah", 'Indonesia:"rumah"→English:'), ("en", "sw", "house",
     'English:"house"→kiswahili:'), ("he", "zh", "בית", 'עִברִית:"בית"→中文:'),
     ("fra", "hun_Latn", "l'eau de vie", "Français:\"l'eau de vie\"→magyar:")],
)  # fmt: skip
def test_word_prompt_is_that_of_the_paper(source, target, word, text):
    assert word_prompt(source, target, word).text == text


def test_hop_two_is_hop_one_with_its_answer_quoted():
    hop_one = word_prompt("id", "en", "rumah")
    hop_two = chain_prompt("id", "en", "he", "rumah", "house")
    assert hop_two.text == 'Indonesia:"rumah"→English:"house"→עִברִית:'
    assert hop_two.text.startswith(hop_one.text)
    assert hop_two.text[hop_two.start : hop_two.end] == "rumah"


@given(
    st.sampled_from(PAPER_LANGUAGES),
    st.sampled_from(PAPER_LANGUAGES),
    st.text(min_size=1),
    st.sampled_from(["{source_language}:\"{word}\"→{target_language}:", "{word}{target_language}",
                     "In {target_language}, {{{word}}} of {source_language} is"]),
)  # fmt: skip
def test_offsets_point_at_the_word_in_any_template(source, target, word, form):
    prompt = word_prompt(source, target, word, parse_template(form))
    assert prompt.text[prompt.start : prompt.end] == word


def test_braces_of_a_word_are_not_fields():
    assert word_prompt("en", "de", "{word}").text == 'English:"{word}"→Deutsch:'


def test_doubled_braces_are_literal():
    prompt = word_prompt("en", "de", "cat", parse_template("{{x}} {word}→{target_language}"))
    assert prompt.text == "{x} cat→Deutsch"


def test_unknown_language_is_refused():
    with pytest.raises(InputError, match="unknown language code 'qq'"):
        word_prompt("qq", "en", "x")
