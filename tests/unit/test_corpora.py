"""Monolingual corpora."""

import os
from pathlib import Path

import pytest

from bridgex_jax.data.corpora import read_corpus
from bridgex_jax.errors import InputError
from bridgex_jax.languages import PAPER_LANGUAGES, language

DATA = os.environ.get("BRIDGEX_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="BRIDGEX_DATA is not set")


def written(tmp_path, text):
    path = tmp_path / "corpus.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_merged_and_missing_verses_are_skipped_and_counted(tmp_path):
    corpus = read_corpus(written(tmp_path, "Erster Vers. \n<range>\n\n<range>\nZweiter\n"), "deu")
    assert corpus.language == "de"
    assert corpus.lines == ("Erster Vers.", "Zweiter")
    assert corpus.notes == {"blank": 1, "merged_verse": 2}


def test_foreign_lines_are_kept_and_counted(tmp_path):
    text = "שלום לכולם כאן\nCOVID-19 (SARS)\nעוד שורה של טקסט\n12\n"
    corpus = read_corpus(written(tmp_path, text), "he")
    assert len(corpus.lines) == 4
    assert corpus.notes == {"other_script": 1}


@pytest.mark.parametrize("code, script", [("he", "Latn"), ("en", "Hebr"), ("ru", "Latn")])
def test_text_in_another_script_is_refused_with_its_first_line(tmp_path, code, script):
    texts = {"Latn": "This is a long text in English.", "Hebr": "זה טקסט ארוך בעברית"}
    own = {"he": "שלום", "en": "Hi", "ru": "да"}[code]
    path = written(tmp_path, f"<range>\n{own}\n{texts[script]}\n")
    with pytest.raises(InputError, match=rf"corpus.txt:3: \d+% of its letters are {script}"):
        read_corpus(path, code)


@pytest.mark.parametrize("text", ["\n\n", "<range>\n", "12 34\n%\n"])
def test_a_file_without_text_is_refused(tmp_path, text):
    with pytest.raises(InputError, match="holds no text; give a corpus of German"):
        read_corpus(written(tmp_path, text), "de")


def test_unknown_language_is_refused_before_the_file_is_read(tmp_path):
    with pytest.raises(InputError, match="unknown language code 'xx'"):
        read_corpus(tmp_path / "missing", "xx")


@needs_data
def test_flores_is_read_whole_in_every_paper_language():
    for code in PAPER_LANGUAGES:
        corpus = read_corpus(Path(DATA, "flores200", f"{language(code).flores}.devtest"), code)
        assert len(corpus.lines) == 500


@needs_data
def test_flores_of_another_script_is_refused():
    with pytest.raises(InputError, match=r"heb_Hebr.devtest:1: .* of its letters are Hebr"):
        read_corpus(Path(DATA, "flores200", "heb_Hebr.devtest"), "en")


@needs_data
def test_files_from_the_wild_are_read_with_counts():
    bad = Path(DATA, "bad_inputs")
    assert read_corpus(bad / "crlf.ntrex_swa_first50.txt", "sw").notes == {"crlf": 50}
    ebible = read_corpus(bad / "range_tokens_and_blank.ebible_cmn.txt", "zh")
    assert (len(ebible.lines), ebible.notes["merged_verse"]) == (24, 1)
