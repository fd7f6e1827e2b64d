"""Reading lines, and telling scripts apart."""

import hashlib
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgex_jax.data.text import letters_by_script, read_lines, script
from bridgex_jax.errors import InputError


def written(tmp_path, data):
    path = tmp_path / "text.txt"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_lines_keep_their_place_in_the_file_past_blank_ones(tmp_path):
    read = read_lines(written(tmp_path, "one\n\n  \nfour\nfive"))
    assert (read.lines, read.numbers) == (["one", "four", "five"], [1, 4, 5])
    assert read.notes == {"blank": 2}


def test_a_last_line_end_is_not_a_blank_line(tmp_path):
    assert read_lines(written(tmp_path, "one\n")).notes == {}


def test_crlf_and_bom_are_removed_and_counted(tmp_path):
    read = read_lines(written(tmp_path, "\ufeffone\r\ntwo\r\nthree\n\ufefffour"))
    assert read.lines == ["one", "two", "three", "four"]
    assert read.notes == {"bom": 2, "crlf": 2}


@pytest.mark.parametrize("separator", "\x85\u2028\u2029\x0b\x0c\x1c\x1d\x1e\r")
def test_only_lf_ends_a_line(tmp_path, separator):
    read = read_lines(written(tmp_path, f"a{separator}b\nc\n"))
    assert (read.lines, read.numbers) == ([f"a{separator}b", "c"], [1, 2])
    assert read.notes == {"inner_separator": 1}


def test_text_comes_out_in_nfc_and_is_counted(tmp_path):
    read = read_lines(written(tmp_path, "cafe\u0301\ncafé\n"))
    assert read.lines == ["café", "café"]
    assert read.notes == {"not_nfc": 1}


def test_hash_is_of_the_bytes_as_they_are(tmp_path):
    data = b"\xef\xbb\xbfa\r\n"
    assert read_lines(written(tmp_path, data)).sha256 == hashlib.sha256(data).hexdigest()


@given(st.lists(st.text(st.characters(exclude_characters="\n\r\ufeff\0", codec="utf-8"))))
def test_no_text_is_lost(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("lines") / "text.txt"
    path.write_bytes(("#\n" + "\n".join(lines)).encode())
    expected = [unicodedata.normalize("NFC", line) for line in lines if line.strip()]
    assert read_lines(path).lines[1:] == expected


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused_in_one_line(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("bytes") / "text.txt"
    path.write_bytes(data)
    try:
        read_lines(path)
    except InputError as error:
        assert str(error).startswith(str(path)) and len(str(error).splitlines()) == 1


@pytest.mark.parametrize(
    "char, code",
    [("a", "Latn"), ("ß", "Latn"), ("Ａ", "Latn"), ("я", "Cyrl"), ("ω", "Grek"), ("א", "Hebr"),
     ("ش", "Arab"), ("年", "Hani"), ("々", "Hani"), ("あ", "Hira"), ("ア", "Kana"), ("ｱ", "Kana"),
     ("ー", None), ("한", "Hang"), ("ก", "Thai"), ("ქ", "Geor"), ("հ", "Armn"), ("ཀ", "Tibetan"),
     ("7", None), ("%", None), ("\u05b4", None), ("ʼ", None), ("\ue000", None)],
)  # fmt: skip
def test_script_of_a_letter(char, code):
    assert script(char) == code


def test_letters_are_counted_over_all_texts():
    assert letters_by_script(["abc 12", "дом d"]) == {"Latn": 4, "Cyrl": 3}
