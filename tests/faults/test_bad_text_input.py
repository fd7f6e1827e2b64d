"""Text that cannot be used is refused in one line with the file, the line and the remedy."""

import os
import re
from pathlib import Path

import pytest

from bridgex_jax.data.corpora import read_corpus
from bridgex_jax.data.dictionaries import read_dictionary
from bridgex_jax.data.prompts import parse_template
from bridgex_jax.errors import InputError

DATA = os.environ.get("BRIDGEX_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="BRIDGEX_DATA is not set")

TICO = "id,sourceLang,targetLang,sourceString,targetString\n"


def refusal(read, path, *languages):
    with pytest.raises(InputError) as caught:
        read(path, *languages)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and message.startswith(str(path))
    assert caught.value.remedy and message.endswith(caught.value.remedy)
    return message.removeprefix(str(path))


@pytest.mark.parametrize(
    "data, said",
    [
        (b"", ": is empty (0 bytes); download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", ": is a Git LFS pointer"),
        (b"/annex/objects/MD5E-s1--0.txt\n", ": is a git-annex pointer"),
        (b"PK\x03\x04rest", ": is a zip archive"),
        (b"PK\x05\x06" + bytes(18), ": is an empty zip archive"),
        (b"\x1f\x8b\x08rest", ": is a gzip file"),
        (b"ARROW1\0\0rest", ": is an Arrow file"),
        (b"PAR1rest", ": is a Parquet file"),
        (b"\x80\x04\x95rest", ": is a Python pickle, which is never opened"),
        (b"\xff\xfea\0 \0b\0", ": is UTF-16 text; convert it to UTF-8"),
        (b"\n <!DOCTYPE HTML><html>", ": is a web page, not the data"),
        (b"a b\nc\0d e\n", ":2: is binary (it holds a NUL byte)"),
        (b"a b\nc d\ncaf\xe9 kaffee\n", ":3: is not UTF-8 (byte 0xe9); convert it"),
        (b"a b\rc d\r", ": its lines end in CR alone"),
    ],
)
@pytest.mark.parametrize("read, codes", [(read_dictionary, ("en", "de")), (read_corpus, ("en",))])
def test_what_is_not_text_is_refused(tmp_path, data, said, read, codes):
    path = tmp_path / "given.txt"
    path.write_bytes(data)
    assert refusal(read, path, *codes).startswith(said)


@pytest.mark.parametrize("read, codes", [(read_dictionary, ("en", "de")), (read_corpus, ("en",))])
def test_missing_files_and_directories_are_refused(tmp_path, read, codes):
    assert refusal(read, tmp_path / "none.txt", *codes) == ": no such file; check the path"
    assert refusal(read, tmp_path, *codes) == ": is a directory; give a text file"
    assert refusal(read, f"{tmp_path}/{'x' * 300}", *codes).startswith(
        ": cannot be read (File name"
    )


@pytest.mark.parametrize(
    "text, said",
    [
        ("\n\n", ": is an empty dictionary; write `source TAB target`"),
        ("% %\n7 7\n", ": holds no usable word pair (no_letter 2)"),
        ("the der\nlonely\ncat katze\n", ":2: one column instead of two in 'lonely'"),
        ("the\tder\n\nice cream eis\nb\tc\n", ":3: one column instead of two in 'ice cream eis'"),
        ("the der\nice cream eis\n", ":2: 3 columns instead of two in 'ice cream eis'; write"),
        ("a\tb\tc\na\tb\n", ":1: 3 columns instead of two in 'a\\tb\\tc'; keep two"),
        ("year @ 年\nmoon @ 月\n", ":1: 3 columns instead of two in 'year @ 年'; the columns seem "
         "to be parted by ' @ ': put a TAB"),
        ("year;jahr\n", ":1: one column instead of two in 'year;jahr'; the columns seem to be "
         "parted by ';'"),
        ("year,jahr\n", ":1: one column instead of two in 'year,jahr'; the columns seem to be"),
        (TICO + "1,en,he_IL,flu,a\n", ":2: is marked en-he_IL and was given as en-de; give it as"),
        (TICO + "1,en,de,flu\n", ":2: 4 fields instead of 5; write id,sourceLang"),
        (TICO + '1,en,de,flu,Grippe\n2,en,de,"flu" x,y\n', ":3: is not well-formed CSV"),
        (TICO + '1,en,de,flu,Grippe\n2,en,de,flu,"y\n', ":3: is not well-formed CSV"),
        (TICO + "1,en,qqq,flu,y\n", ":2: unknown language code 'qqq'"),
    ],
)  # fmt: skip
def test_a_dictionary_that_cannot_be_meant_is_refused(tmp_path, text, said):
    path = tmp_path / "words.txt"
    path.write_text(text, encoding="utf-8")
    assert refusal(read_dictionary, path, "en", "de").startswith(said)


@pytest.mark.parametrize(
    "text, said",
    [
        ("{word}", "lacks {target_language}"),
        ("{target_language}", "has {word} 0 times"),
        ("{word} {word} {target_language}", "has {word} 2 times"),
        ("{wrod} {target_language}", "unknown field {wrod}; the fields are {source_language}"),
        ("{word!r} {target_language}", "unknown field {word!r}"),
        ("{word:>9} {target_language}", "unknown field {word:>9}"),
        ("{word.x} {target_language}", "unknown field {word.x}"),
        ("{} {target_language}", "unknown field {}"),
        ("{word {target_language}", "; write for example"),
        ("{word} } {target_language}", "; write for example"),
        ("", "has {word} 0 times"),
        ("two\nlines", "has {word} 0 times"),
    ],
)
def test_a_template_that_cannot_be_filled_is_refused(text, said):
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        parse_template(text)
    assert str(caught.value).startswith("template ") and len(str(caught.value).splitlines()) == 1


@needs_data
@pytest.mark.parametrize(
    "name, said",
    [
        ("zero_bytes.distances.zip", ": is empty (0 bytes)"),
        ("git_lfs_pointer_instead_of_data.arrow", ": is a Git LFS pointer"),
        ("reversed_columns_wrong_delimiter.muse_zh-en.dict", ":1: 3 columns instead of two"),
        ("range_tokens_and_blank.ebible_cmn.txt", ":1: one column instead of two"),
        ("crlf.ntrex_swa_first50.txt", ":1: 11 columns instead of two"),
    ],
)
def test_real_bad_files_are_refused_as_dictionaries(name, said):
    assert refusal(read_dictionary, Path(DATA, "bad_inputs", name), "zh", "en").startswith(said)


@needs_data
def test_the_real_reversed_file_is_refused_also_once_its_delimiter_is_mended(tmp_path):
    name = "reversed_columns_wrong_delimiter.muse_zh-en.dict"
    path = tmp_path / name
    text = Path(DATA, "bad_inputs", name).read_text(encoding="utf-8")
    path.write_text(text.replace(" @ ", "\t"), encoding="utf-8")
    assert refusal(read_dictionary, path, "zh", "en").endswith("give it as en-zh=FILE")
