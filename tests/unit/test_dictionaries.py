"""Bilingual dictionaries."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgex_jax.data.dictionaries import (
    WordPair,
    find_dictionary,
    merge,
    pivot,
    read_dictionary,
)
from bridgex_jax.errors import InputError

DATA = os.environ.get("BRIDGEX_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="BRIDGEX_DATA is not set")


def written(tmp_path, text, name="words.txt"):
    path = tmp_path / name
    path.write_bytes(text.encode())
    return path


def words(dictionary):
    return [(pair.source, pair.target) for pair in dictionary.pairs]


# Layouts


@pytest.mark.parametrize("delimiter", [" ", "\t", "  ", " \t"])
def test_muse_is_read_with_spaces_or_tab(tmp_path, delimiter):
    text = f"the{delimiter}der\nthe{delimiter}die\ncat{delimiter}katze\n"
    dictionary = read_dictionary(written(tmp_path, text), "en", "de")
    assert dictionary.translations() == {"the": ("der", "die"), "cat": ("katze",)}


def test_tab_files_keep_entries_of_several_words(tmp_path):
    path = written(tmp_path, "baba mdogo\tyounger uncle \nhao\tthese\t\n")
    dictionary = read_dictionary(path, "sw", "en")
    assert words(dictionary) == [("baba mdogo", "younger uncle"), ("hao", "these")]


def test_one_line_with_tab_does_not_make_a_tab_file(tmp_path):
    assert len(read_dictionary(written(tmp_path, "a b\nc\td\ne f\n"), "en", "de").pairs) == 3


def test_tico_terms_are_read_with_quoted_commas(tmp_path):
    text = (
        "id,sourceLang,targetLang,sourceString,targetString\r\n"
        "1,en,tl_XX,acute bronchitis,talamak na brongkitis\r\n"
        '2,en,tl_XX,Wuhan,"Wuhan, China"\r\n'
    )
    dictionary = read_dictionary(written(tmp_path, text), "en", "tl")
    assert words(dictionary) == [
        ("acute bronchitis", "talamak na brongkitis"),
        ("Wuhan", "Wuhan, China"),
    ]
    assert dictionary.notes["crlf"] == 3


# What is counted


def test_every_skipped_row_is_counted(tmp_path):
    text = '%\tpersen\nair\tמים\nair\tמים\nkosong\t\n\tריק\ndia\tצה"ל\npanah\t→ חץ\nsatu\tאחת\n'
    dictionary = read_dictionary(written(tmp_path, text), "id", "he")
    assert words(dictionary) == [("air", "מים"), ("satu", "אחת")]
    assert dictionary.notes == {"no_letter": 1, "duplicate": 1, "empty": 2, "quote_or_arrow": 2}


@given(
    st.lists(st.sampled_from(["a\tb", "A\tb", "a\tB", "1\tb", "a\t", "a b\tc", 'a\t"b"', "c\tc"]))
)
def test_pairs_and_skipped_rows_add_up_to_the_lines(tmp_path_factory, rows):
    path = written(tmp_path_factory.mktemp("d"), "\n".join(["x\ty", *rows]))
    dictionary = read_dictionary(path, "en", "de")
    skipped = ("empty", "no_letter", "quote_or_arrow", "reversed_row", "duplicate")
    lost = sum(dictionary.notes.get(name, 0) for name in skipped)
    assert len(dictionary.pairs) + lost == 1 + len(rows)


def test_case_keeps_the_first_spelling_and_makes_no_second_word(tmp_path):
    text = "Polish\tpolnisch\npolish\tpolieren\npolish\tPolnisch\nmass\tMasse\nmass\tMaße\n"
    dictionary = read_dictionary(written(tmp_path, text), "en", "de")
    assert dictionary.translations() == {
        "Polish": ("polnisch", "polieren"),
        "mass": ("Masse", "Maße"),
    }
    assert dictionary.notes == {"case_merged": 2, "duplicate": 1, "mixed_case": 4}


def test_words_that_differ_in_composition_alone_are_duplicates(tmp_path):
    dictionary = read_dictionary(written(tmp_path, "cafe\u0301 kaffee\ncafé kaffee\n"), "fr", "de")
    assert words(dictionary) == [("café", "kaffee")]
    assert dictionary.notes == {"not_nfc": 1, "duplicate": 1}


def test_odd_spaces_inside_an_entry_become_one_space(tmp_path):
    path = written(tmp_path, "ice\u00a0cream\tglace\u0085à l'eau\n")
    dictionary = read_dictionary(path, "en", "fr")
    assert words(dictionary) == [("ice cream", "glace à l'eau")]
    assert dictionary.notes == {"inner_separator": 1, "space_collapsed": 1}


def test_identical_pairs_are_kept_and_counted(tmp_path):
    dictionary = read_dictionary(written(tmp_path, "hotel hotel\nthe der\n"), "en", "de")
    assert (len(dictionary.pairs), dictionary.notes) == (2, {"identical": 1})


# What the scripts tell


def test_reversed_columns_are_refused_with_the_right_order(tmp_path):
    path = written(tmp_path, "MHz\tMHz\nמים\tair\nאחת\tsatu\n")
    with pytest.raises(InputError, match=r"words.txt:2: its columns are he id, not id he; give it"):
        read_dictionary(path, "id", "he")
    assert len(read_dictionary(path, "he", "id").pairs) == 3


def test_kana_tells_reversed_columns_of_chinese_and_japanese(tmp_path):
    path = written(tmp_path, "日本 日本\nねこ 猫\n食べる 吃\n")
    with pytest.raises(InputError, match="its columns are ja zh"):
        read_dictionary(path, "zh", "ja")


def test_a_column_in_a_third_script_is_refused(tmp_path):
    path = written(tmp_path, "water мир\none один\nhouse дом\n")
    with pytest.raises(InputError, match=r"words.txt:1: 100% of column 2 is not in .*Hebr"):
        read_dictionary(path, "en", "he")


def test_a_few_swapped_rows_are_skipped_and_counted(tmp_path):
    rows = "".join(f"kata{chr(97 + i)} מילה\n" for i in range(26)) + "מים air\n"
    dictionary = read_dictionary(written(tmp_path, rows), "id", "he")
    assert (len(dictionary.pairs), dictionary.notes) == (26, {"reversed_row": 1})


def test_mixed_scripts_in_a_column_are_kept(tmp_path):
    path = written(tmp_path, "angela angela\nyear 年\nday 日\nmonth 月\n")
    assert len(read_dictionary(path, "en", "zh").pairs) == 4


# Turning round, merging, pivoting


def test_reversing_regroups_words_and_reversing_twice_restores_them(tmp_path):
    path = written(tmp_path, "the der\nthe die\nwho die\n")
    dictionary = read_dictionary(path, "en", "de")
    turned = dictionary.reversed()
    assert (turned.source, turned.target, turned.route) == ("de", "en", "reversed")
    assert turned.translations() == {"der": ("the",), "die": ("the", "who")}
    assert turned.reversed().pairs == dictionary.pairs


def test_train_and_test_files_merge_with_leaks_counted(tmp_path):
    train = read_dictionary(written(tmp_path, "a b\nc d\n", "train"), "en", "de")
    test = read_dictionary(written(tmp_path, "e f\nC d\n", "test"), "en", "de")
    both = merge([train, test])
    assert words(both) == [("a", "b"), ("c", "d"), ("e", "f")]
    assert both.notes == {"duplicate": 1, "case_merged": 1}
    assert both.files == train.files + test.files
    assert both.sha256 not in (train.sha256, test.sha256)


def test_pivot_joins_on_the_word_between_and_remembers_it(tmp_path):
    first = read_dictionary(
        written(tmp_path, "air water\nbank Bank\nxyz lonely\n", "a"), "id", "en"
    )
    second = read_dictionary(
        written(tmp_path, "water מים\nbank בנק\nbank גדה\nother אחר\n", "b"), "en", "he"
    )
    joined = pivot(first, second)
    assert joined.translations() == {"air": ("מים",), "bank": ("בנק", "גדה")}
    assert joined.pairs[0] == WordPair("air", "מים", ("water",))
    assert joined.notes["without_pivot"] == 1
    assert joined.notes["id-en.identical"] == 1
    assert (joined.source, joined.target, joined.route) == ("id", "he", "pivot:en")


def test_a_pair_reached_twice_keeps_both_pivots(tmp_path):
    first = read_dictionary(written(tmp_path, "air water\nair waters\n", "a"), "id", "en")
    second = read_dictionary(written(tmp_path, "water מים\nwaters מים\n", "b"), "en", "he")
    joined = pivot(first, second)
    assert joined.pairs == (WordPair("air", "מים", ("water", "waters")),)
    assert joined.notes["duplicate"] == 1


def test_dictionaries_that_do_not_meet_are_refused(tmp_path):
    first = read_dictionary(written(tmp_path, "air water\n", "a"), "id", "en")
    second = read_dictionary(written(tmp_path, "sky שמיים\n", "b"), "en", "he")
    with pytest.raises(InputError, match=r"a and .*b: no English word is in both"):
        pivot(first, second)
    with pytest.raises(ValueError, match="does not meet"):
        pivot(first, first)
    with pytest.raises(ValueError, match="cannot be merged"):
        merge([first, second])


@pytest.fixture
def files(tmp_path):
    return {
        ("id", "en"): [written(tmp_path, "air water\n", "id-en")],
        ("en", "he"): [written(tmp_path, "water מים\n", "en-he"), written(tmp_path, "a א\n", "x")],
        ("ja", "id"): [written(tmp_path, "水 air\n", "ja-id")],
    }


@pytest.mark.parametrize(
    "source, target, route",
    [("id", "en", "direct"), ("en", "id", "reversed"), ("id", "ja", "reversed"),
     ("id", "he", "pivot:en"), ("he", "id", "pivot:en"), ("heb", "ind_Latn", "pivot:en")],
)  # fmt: skip
def test_a_dictionary_is_found_directly_reversed_or_through_english(files, source, target, route):
    assert find_dictionary(files, source, target).route == route


def test_several_files_of_a_pair_are_merged(files):
    assert len(find_dictionary(files, "en", "he").pairs) == 2


@pytest.mark.parametrize(
    "source, target, remedy",
    [("id", "fi", "id-fi=FILE, or en-fi=FILE"), ("fi", "hu", "fi-en=FILE and en-hu=FILE"),
     ("en", "fi", "give --dictionary en-fi=FILE$")],
)  # fmt: skip
def test_a_missing_dictionary_is_named_with_what_would_do(files, source, target, remedy):
    with pytest.raises(InputError, match=f"no dictionary from {source} to {target}; .*{remedy}"):
        find_dictionary(files, source, target)


# Real files


@needs_data
def test_every_real_dictionary_is_read_without_loss():
    skipped = ("empty", "no_letter", "quote_or_arrow", "reversed_row", "duplicate")
    paths = sorted(Path(DATA, "dictionaries").iterdir())
    assert len(paths) >= 30
    for path in paths:
        source, target = path.name[:5].split("-")
        dictionary = read_dictionary(path, source, target)
        lines = path.read_bytes().count(b"\n") - path.name.endswith(".csv")
        lost = sum(dictionary.notes.get(name, 0) for name in skipped)
        assert len(dictionary.pairs) + lost == lines, path


@needs_data
@pytest.mark.parametrize("name", ["en-he.0-5000.txt", "id-he.panlex.train.txt", "zh-en.0-5000.txt"])
def test_real_dictionaries_given_the_wrong_way_round_are_refused(name):
    source, target = name[:5].split("-")
    with pytest.raises(InputError, match=f"give it as {source}-{target}=FILE"):
        read_dictionary(Path(DATA, "dictionaries", name), target, source)


@needs_data
def test_real_pivot_through_english():
    folder = Path(DATA, "dictionaries")
    files = {
        ("en", "id"): [folder / "en-id.0-5000.txt", folder / "en-id.5000-6500.txt"],
        ("en", "he"): [folder / "en-he.txt"],
    }
    joined = find_dictionary(files, "id", "he")
    assert joined.route == "pivot:en"
    assert len(joined.translations()) > 5000
    assert "מים" in joined.translations()["air"]


@needs_data
def test_real_file_with_empty_translations_is_read_and_counted():
    name = "empty_translation_and_multiword.freedict_swh-eng.tsv"
    dictionary = read_dictionary(Path(DATA, "bad_inputs", name), "sw", "en")
    assert (len(dictionary.pairs), dictionary.notes) == (13, {"empty": 8})
