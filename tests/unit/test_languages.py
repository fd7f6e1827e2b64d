"""The table of languages."""

import unicodedata

import pytest

from bridgex_jax.data.text import script
from bridgex_jax.errors import InputError
from bridgex_jax.languages import LANGUAGES, PAPER_LANGUAGES, language


def test_paper_languages_have_the_endonyms_of_its_prompts():
    assert {code: LANGUAGES[code].endonym for code in PAPER_LANGUAGES} == {
        "en": "English", "de": "Deutsch", "sw": "kiswahili", "zh": "中文", "ja": "日本語",
        "tl": "Tagalog", "he": "עִברִית", "ar": "عربي", "id": "Indonesia", "pt": "Português",
        "fr": "Français", "it": "Italiano", "es": "Español", "fi": "suomi", "hu": "magyar",
    }  # fmt: skip


def test_paper_languages_are_of_its_seven_families():
    families = {LANGUAGES[code].family for code in PAPER_LANGUAGES}
    assert families == {"Sino-Tibetan", "Japonic", "Afro-Asiatic", "Austronesian", "Uralic",
                        "Niger-Congo", "Indo-European"}  # fmt: skip


@pytest.mark.parametrize("field", ["code", "iso3", "flores", "endonym", "name"])
def test_no_two_languages_share_a_code_or_name(field):
    values = [getattr(entry, field) for entry in LANGUAGES.values()]
    assert len(set(values)) == len(values)


def test_endonyms_are_nfc_and_in_the_scripts_of_the_table():
    for entry in LANGUAGES.values():
        assert unicodedata.is_normalized("NFC", entry.endonym)
        assert {script(char) for char in entry.endonym} - {None} <= entry.scripts, entry


@pytest.mark.parametrize(
    "given, code",
    [("sw", "sw"), ("swa", "sw"), ("swh", "sw"), ("swh_Latn", "sw"), ("SW", "sw"), ("he_IL", "he"),
     ("iw", "he"), ("zh-CN", "zh"), ("zho_Hant", "zh"), ("fil", "tl"), ("tl_XX", "tl"),
     ("pt-BR", "pt"), ("es-419", "es"), ("arb_Arab", "ar"), ("nob_Latn", "no")],
)  # fmt: skip
def test_codes_of_all_sources_name_the_same_language(given, code):
    assert language(given).code == code


def test_every_code_of_the_table_is_found():
    for entry in LANGUAGES.values():
        assert language(entry.code) is language(entry.iso3) is language(entry.flores) is entry


@pytest.mark.parametrize(
    "given, hint", [("English", "did you mean en (English)"), ("swahii", "sw (Swahili)"),
                    ("hebr", "he (Hebrew)"), ("", "such as sw, swa or swh_Latn"),
                    ("en_foo_bar", "such as sw"), ("7", "such as sw")],
)  # fmt: skip
def test_unknown_code_is_refused_with_the_nearest_matches(given, hint):
    with pytest.raises(InputError, match="unknown language code") as caught:
        language(given)
    assert hint in str(caught.value)
