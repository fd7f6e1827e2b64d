"""Questions of Belebele, XNLI and XQuAD: read, keyed alike in all languages, joined."""

import json
import os
import sys
import types
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridgex_jax.data.records import Record, Records, join
from bridgex_jax.data.task_files import READERS, read_belebele, read_hub, read_xnli, read_xquad
from bridgex_jax.errors import InputError

DATA = os.environ.get("BRIDGEX_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="BRIDGEX_DATA is not set")

HEADER = "id\tpremise\thypothesis\tlabel\n"
OFFICIAL = "language\tgold_label\tsentence1_parse\tsentence1\tsentence2\tpromptID\tpairID\tmatch\n"


def written(tmp_path, text, name="given.txt"):
    path = tmp_path / name
    path.write_bytes(text.encode())
    return path


def asked(**changed):
    """A Belebele row."""
    row = {
        "link": "https://example.org/tea",
        "question_number": 1,
        "flores_passage": "Tea is made of leaves.",
        "question": "What is tea made of?",
        "mc_answer1": "stones",
        "mc_answer2": "leaves",
        "mc_answer3": "wool",
        "mc_answer4": "rain",
        "correct_answer_num": "2",
        "dialect": "eng_Latn",
        "ds": "2023-05-03",
    }
    return row | changed


def json_lines(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def squad(*paragraphs, escaped=False):
    """One article; a paragraph is a context and (id, question, [(answer, offset)…])…"""
    contexts = [
        {
            "context": context,
            "qas": [
                {
                    "id": key,
                    "question": question,
                    "answers": [{"text": text, "answer_start": start} for text, start in answers],
                }
                for key, question, answers in questions
            ],
        }
        for context, *questions in paragraphs
    ]
    document = {"version": "1.1", "data": [{"title": "t", "paragraphs": contexts}]}
    return json.dumps(document, ensure_ascii=escaped, indent=1)


# Belebele


def test_a_belebele_row_becomes_a_question_with_four_options_and_a_letter(tmp_path):
    read = read_belebele(written(tmp_path, json_lines(asked())), "eng_Latn")
    record = Record(
        "https://example.org/tea#1",
        {
            "passage": "Tea is made of leaves.",
            "question": "What is tea made of?",
            "a": "stones",
            "b": "leaves",
            "c": "wool",
            "d": "rain",
        },
        ("B",),
        "https://example.org/tea",
    )
    assert read.records == (record,)
    assert (read.language, read.notes) == ("en", {})
    assert len(read.sha256) == 64 and read.files[0].endswith("given.txt")


@pytest.mark.parametrize("answer, letter", [("1", "A"), (1, "A"), ("4", "D"), (3, "C")])
def test_the_right_answer_may_be_text_or_number(tmp_path, answer, letter):
    path = written(tmp_path, json_lines(asked(correct_answer_num=answer)))
    assert read_belebele(path, "en").records[0].golds == (letter,)


def test_passages_of_one_link_are_told_apart_alike_in_all_languages(tmp_path):
    numbers = [("One.", 1), ("One.", 2), ("Two.", 1), ("Two.", 2)]
    english = [asked(flores_passage=text, question_number=n) for text, n in numbers]
    german = [row | {"flores_passage": f"Ja {row['flores_passage']}", "dialect": "deu_Latn"}
              for row in english]  # fmt: skip
    first = read_belebele(written(tmp_path, json_lines(*english), "en"), "en")
    second = read_belebele(written(tmp_path, json_lines(*german), "de"), "de")
    link = asked()["link"]
    assert [r.passage for r in first.records] == [link, link, f"{link} (2)", f"{link} (2)"]
    assert len({r.key for r in first.records}) == 4
    for one, other in join(first, second, same_golds=True):
        assert one.passage == other.passage
        assert other.fields["passage"] == f"Ja {one.fields['passage']}"


def test_a_passage_spelled_twice_in_one_language_leaves_the_keys_alone(tmp_path):
    english = [asked(question_number=n) for n in (1, 2)]
    german = [asked(question_number=n, dialect="deu_Latn", flores_passage=text)
              for n, text in ((1, "Tee."), (2, "Der Tee."))]  # fmt: skip
    first = read_belebele(written(tmp_path, json_lines(*english), "en"), "en")
    second = read_belebele(written(tmp_path, json_lines(*german), "de"), "de")
    assert len(join(first, second, same_golds=True)) == 2


def test_what_is_mended_and_noticed_is_counted(tmp_path):
    rows = [
        asked(question=" cafe\u0301?", flores_passage="\ufeffTea is made of leaves."),
        asked(question_number=2, mc_answer4="wool"),
        asked(question_number=2, mc_answer4="wool"),
    ]
    text = "\ufeff" + "".join(json.dumps(row) + "\r\n" for row in rows) + "\r\n"
    read = read_belebele(written(tmp_path, text), "en")
    assert [r.fields["question"] for r in read.records] == ["café?", "What is tea made of?"]
    assert read.records[0].fields["passage"] == "Tea is made of leaves."
    assert read.notes == {
        "bom": 2, "crlf": 4, "blank": 1, "outer_space": 1, "not_nfc": 1, "same_options": 2,
        "duplicate": 1,
    }  # fmt: skip


# XNLI


def test_labels_are_words_whatever_they_are_in_the_file(tmp_path):
    text = HEADER + "7\tIt rains.\tIt is wet.\t0\n8\tIt rains.\tI sing.\t1\n9\tIt rains.\tDry.\t2\n"
    read = read_xnli(written(tmp_path, text), "en")
    assert [r.golds[0] for r in read.records] == ["entailment", "neutral", "contradiction"]
    assert [(r.key, r.passage) for r in read.records] == [("7", "7"), ("8", "8"), ("9", "9")]
    assert read.records[0].fields == {"premise": "It rains.", "hypothesis": "It is wet."}


def test_of_the_official_file_only_rows_of_the_language_with_a_label_are_kept(tmp_path):
    text = OFFICIAL + (
        "sw\tneutral\t\tMvua.\tNaimba.\t1\t1\tTrue\n"
        "en\tneutral\t\tIt rains.\tI sing.\t1\t1\tTrue\n"
        "en\t-\t\tIt rains.\tIt snows.\t1\t2\tFalse\n"
        "en\tcontradiction\t\tIt rains.\tIt is dry.\t1\t3\tTrue\n"
    )
    read = read_xnli(written(tmp_path, text), "en")
    assert [(r.key, r.golds) for r in read.records] == [
        ("1", ("neutral",)),
        ("3", ("contradiction",)),
    ]
    assert read.notes == {"other_language": 1, "no_label": 1}
    assert [r.key for r in read_xnli(written(tmp_path, text), "sw").records] == ["1"]


def test_all_layouts_of_xnli_give_the_same_records(tmp_path):
    rows = [("It rains.", "It is wet.", 0), ('"No," he said.', "He agreed.", 2)]
    tab = HEADER + "".join(f"{i}\t{p}\t{h}\t{n}\n" for i, (p, h, n) in enumerate(rows))
    lines = json_lines(*({"premise": p, "hypothesis": h, "label": n} for p, h, n in rows))
    names = ["entailment", "neutral", "contradiction"]
    official = json_lines(
        *({"language": "en", "gold_label": names[n], "sentence1": p, "sentence2": h, "pairID": i}
          for i, (p, h, n) in enumerate(rows))
    )  # fmt: skip
    bare = "premise\thypothesis\tlabel\n" + "".join(f"{p}\t{h}\t{names[n]}\n" for p, h, n in rows)
    read = [read_xnli(written(tmp_path, t), "en").records for t in (tab, lines, official, bare)]
    assert read[0] == read[1] == read[2] == read[3]
    assert [r.key for r in read[0]] == ["0", "1"]


def test_quotes_are_text_unless_a_csv_writer_has_doubled_them(tmp_path):
    text = HEADER + '0\t"No," he said.\tNo.\t0\n1\t"He said ""no"" to it"\t"All of it."\t1\n'
    read = read_xnli(written(tmp_path, text), "en")
    assert read.records[0].fields["premise"] == '"No," he said.'
    assert read.records[1].fields == {"premise": 'He said "no" to it', "hypothesis": '"All of it."'}
    assert read.notes == {"csv_quoted": 1}


# XQuAD


def test_answers_are_the_distinct_texts_at_their_code_points(tmp_path):
    text = squad(
        ("The fox 🦊 saw a fox.", ("q1", "Who?", [("fox", 4), ("fox", 16), ("a fox", 14)])),
        ("Rain fell.", ("q2", "What fell?", [("Rain", 0)])),
    )
    read = read_xquad(written(tmp_path, text), "en")
    assert [(r.key, r.golds, r.passage) for r in read.records] == [
        ("q1", ("fox", "a fox"), "1.1"),
        ("q2", ("Rain",), "1.2"),
    ]
    assert read.records[1].fields == {"passage": "Rain fell.", "question": "What fell?"}


@pytest.mark.parametrize("escaped", [True, False])
def test_offsets_are_checked_before_text_is_composed_and_its_ends_are_cut(tmp_path, escaped):
    context = "\ufeff Cafe\u0301 Ole\u0301 opens"
    start = context.index("Ole")
    text = squad((context, ("q", "Which? ", [("Ole\u0301", start)])), escaped=escaped)
    read = read_xquad(written(tmp_path, text), "en")
    assert read.records[0].fields == {"passage": "Café Olé opens", "question": "Which?"}
    assert read.records[0].golds == ("Olé",)
    assert read.notes == {"bom": 1, "outer_space": 2, "not_nfc": 2}


@given(st.text("ab é🦊", min_size=1, max_size=12), st.data())
def test_an_offset_is_taken_exactly_where_its_text_stands(tmp_path_factory, context, data):
    start = data.draw(st.integers(0, len(context) - 1))
    end = data.draw(st.integers(start + 1, len(context)))
    shown = data.draw(st.integers(-2, len(context) + 2))
    answer = context[start:end]
    path = written(
        tmp_path_factory.mktemp("q"), squad((f"{context}x", ("q", "?", [(answer, shown)])))
    )
    there = shown >= 0 and context[shown:].startswith(answer)
    if there and answer.strip():
        assert read_xquad(path, "en").records[0].golds == (answer.strip(),)
    else:
        with pytest.raises(InputError, match="question q: "):
            read_xquad(path, "en")


def test_a_question_given_twice_alike_is_read_once(tmp_path):
    question = ("q", "Who?", [("fox", 4)])
    read = read_xquad(written(tmp_path, squad(("The fox.", question, question))), "en")
    assert (len(read.records), read.notes) == (1, {"duplicate": 1})


# Joining


def of(language, *golds):
    records = tuple(Record(key, {"question": language}, (gold,), key) for key, gold in golds)
    return Records(language, records, (f"{language}.txt",), "", {})


def test_questions_are_joined_by_key_in_the_order_of_the_source():
    source, target = of("en", ("2", "A"), ("1", "B")), of("de", ("1", "B"), ("2", "A"))
    pairs = join(source, target, same_golds=True)
    assert [(s.key, t.key) for s, t in pairs] == [("2", "2"), ("1", "1")]
    assert {(s.fields["question"], t.fields["question"]) for s, t in pairs} == {("en", "de")}


def test_answers_may_differ_where_they_are_texts():
    source, target = of("en", ("1", "rain")), of("de", ("1", "Regen"))
    assert len(join(source, target, same_golds=False)) == 1


# The hub


@pytest.fixture
def hub(monkeypatch):
    """A package `datasets` that knows three datasets; its calls are noted."""
    english = {"id": "q1", "context": "The fox.", "question": "Who?"}
    tables = {
        ("facebook/belebele", "eng_Latn", "test"): [asked(), asked(question_number=2)],
        ("xnli", "sw", "validation"): [
            {"premise": "Mvua.", "hypothesis": "Naimba.", "label": 1},
            {"premise": "Mvua.", "hypothesis": "Kavu.", "label": 2},
        ],
        ("xnli", "sw", "train"): ["premise", "hypothesis"],
        ("google/xquad", "xquad.en", "validation"): [
            english | {"answers": {"text": ["fox"], "answer_start": [4]}},
            english | {"id": "q2", "answers": [{"text": "The fox", "answer_start": 0}]},
            english | {"id": "q3", "context": "A dog.",
                       "answers": {"text": ["dog", "A dog"], "answer_start": [2, 0]}},
        ],
        ("google/xquad", "xquad.de", "validation"): [
            english | {"answers": {"text": ["fox"], "answer_start": []}},
        ],
    }  # fmt: skip
    fake = types.ModuleType("datasets")
    fake.load_dataset = lambda path, name, *, split: tables[path, name, split]
    monkeypatch.setitem(sys.modules, "datasets", fake)


def test_hub_rows_make_the_records_that_files_make(hub, tmp_path):
    belebele = read_hub("facebook/belebele", "eng_Latn", "test", "belebele")
    path = written(tmp_path, json_lines(asked(), asked(question_number=2)))
    assert belebele.records == read_belebele(path, "en").records
    xnli = read_hub("xnli", "sw", "validation", "xnli")
    text = HEADER + "0\tMvua.\tNaimba.\t1\n1\tMvua.\tKavu.\t2\n"
    assert xnli.records == read_xnli(written(tmp_path, text), "sw").records
    assert (belebele.language, xnli.language) == ("en", "sw")
    assert xnli.files == ("xnli sw validation",) and len(xnli.sha256) == 64


def test_hub_contexts_are_numbered_as_they_come(hub):
    read = read_hub("google/xquad", "xquad.en", "validation", "xquad")
    assert [(r.key, r.golds, r.passage) for r in read.records] == [
        ("q1", ("fox",), "1"),
        ("q2", ("The fox",), "1"),
        ("q3", ("dog", "A dog"), "2"),
    ]


@pytest.mark.parametrize(
    "given, said",
    [
        (("xnli", "sw", "validation", "squad"), "unknown task 'squad'; use one of belebele, xnli"),
        (("xnli", "all_languages", "test", "xnli"), "unknown language code 'all_languages'; give"),
        (("xnli", "en", "test", "xnli"), "xnli en test: cannot be loaded (('xnli', 'en', 'test'))"),
        (("xnli", "sw", "train", "xnli"), "xnli sw train:1: holds text instead of a row; give one"),
        (("xnli", "sw", "validation", "xquad"), "xnli sw validation:1: lacks id, context,"),
        (("google/xquad", "xquad.de", "validation", "xquad"),
         "validation:1: answers lacks text and answer_start of one length"),
        (("facebook/belebele", "eng_Latn", "test", "xnli"), "test:1: lacks premise, hypothesis"),
    ],
)  # fmt: skip
def test_what_the_hub_cannot_give_is_refused_in_one_line(hub, given, said):
    with pytest.raises(InputError) as caught:
        read_hub(*given)
    assert said in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_a_missing_datasets_package_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"not installed; pip install 'bridgex_jax\[hub\]'"):
        read_hub("xnli", "sw", "test", "xnli")


# Real files

REAL = (
    [("belebele", f"{code}.jsonl", code) for code in ("eng_Latn", "deu_Latn")]
    + [("xnli", f"xnli_validation_{code}.tsv", code) for code in ("en", "sw", "vi", "hi")]
    + [("xquad", f"xquad.{code}.json", code) for code in ("en", "es", "de", "ar", "zh")]
)
SIZES = {"belebele": (900, 488), "xnli": (2490, 2490), "xquad": (1190, 240)}


@pytest.fixture(scope="module")
def real():
    return {(t, code): READERS[t](Path(DATA, t, name), code) for t, name, code in REAL}


@needs_data
@pytest.mark.parametrize("task, name, code", REAL)
def test_every_real_file_is_read_whole_and_in_composed_text(real, task, name, code):
    read = real[task, code]
    assert (len(read.records), len({r.passage for r in read.records})) == SIZES[task]
    for record in read.records:
        for text in (*record.fields.values(), *record.golds):
            assert text == text.strip() != "" and unicodedata.is_normalized("NFC", text)
        if task == "xquad":
            assert all(gold in record.fields["passage"] for gold in record.golds)


@needs_data
@pytest.mark.parametrize("task", READERS)
def test_all_languages_of_a_real_task_join(real, task):
    languages = [code for other, code in real if other == task]
    for source in languages:
        for target in languages:
            pairs = join(real[task, source], real[task, target], same_golds=task != "xquad")
            assert len(pairs) == SIZES[task][0]
            assert all(one.passage == other.passage for one, other in pairs)


@needs_data
@pytest.mark.parametrize("task, name, code", REAL)
def test_a_real_file_is_refused_by_the_readers_of_other_tasks(task, name, code):
    path = Path(DATA, task, name)
    for other in READERS.keys() - {task}:
        with pytest.raises(InputError) as caught:
            READERS[other](path, code)
        assert str(caught.value).startswith(str(path)) and caught.value.remedy
