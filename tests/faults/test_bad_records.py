"""Task files that cannot be meant are refused in one line with file, line and remedy."""

import json
import os
import re
from pathlib import Path

import pytest

from bridgex_jax.data.records import Record, Records, join
from bridgex_jax.data.task_files import READERS, read_belebele, read_xnli, read_xquad
from bridgex_jax.errors import InputError

DATA = os.environ.get("BRIDGEX_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="BRIDGEX_DATA is not set")

ROW = {
    "link": "https://example.org/tea", "question_number": 1, "flores_passage": "Tea is leaves.",
    "question": "What is tea?", "mc_answer1": "stones", "mc_answer2": "leaves",
    "mc_answer3": "wool", "mc_answer4": "rain", "correct_answer_num": "2", "dialect": "eng_Latn",
}  # fmt: skip
HEADER = "id\tpremise\thypothesis\tlabel\n"
OFFICIAL = "language\tgold_label\tsentence1\tsentence2\tpairID\n"


def refusal(read, path, code):
    with pytest.raises(InputError) as caught:
        read(path, code)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and message.startswith(str(path))
    assert caught.value.remedy and message.endswith(caught.value.remedy)
    return message.removeprefix(str(path))


def given(tmp_path, text):
    path = tmp_path / "given.txt"
    path.write_text(text, encoding="utf-8", newline="")
    return path


def row(**changed):
    return json.dumps(ROW | changed)


def without(*names):
    return json.dumps({name: value for name, value in ROW.items() if name not in names})


def squad(context="The fox 🦊 ran.", **changed):
    question = {"id": "q1", "question": "Who?", "answers": [{"text": "fox", "answer_start": 4}]}
    questions = [question, question | changed]
    return json.dumps({"data": [{"paragraphs": [{"context": context, "qas": questions}]}]})


def answer(text, start):
    return squad(id="q2", answers=[{"text": text, "answer_start": start}])


@pytest.mark.parametrize("task", READERS)
@pytest.mark.parametrize(
    "data, said",
    [
        (b"", ": is empty (0 bytes); download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", ": is a Git LFS pointer"),
        (b"PAR1rest", ": is a Parquet file"),
        (b"\n <!DOCTYPE HTML><html>", ": is a web page, not the data"),
        (b"{\n\xe9", ":2: is not UTF-8 (byte 0xe9)"),
        pytest.param(b"[" * 10**6, ":1: is no sensible JSON", id="endless nesting"),
        pytest.param(b"[" + b"9" * 5000, ":1: is no sensible JSON", id="endless number"),
        (b'{"data": [', ":1: is not JSON (Expecting value, column 11)"),
    ],
)
def test_what_is_no_text_or_no_json_is_refused(tmp_path, task, data, said):
    path = tmp_path / "given.json"
    path.write_bytes(data)
    assert refusal(READERS[task], path, "en").startswith(said)


@pytest.mark.parametrize("task", READERS)
def test_missing_files_and_unusable_places_are_refused(tmp_path, task):
    assert refusal(READERS[task], tmp_path / "none", "en") == ": no such file; check the path"
    assert ": http:// is no place" in refusal(READERS[task], "http://host/en.jsonl", "en")
    with pytest.raises(InputError, match="unknown language code 'qqq'"):
        READERS[task](tmp_path / "none", "qqq")


@pytest.mark.parametrize(
    "lines, said",
    [
        (["\n"], ": holds no question; download the official Belebele files"),
        ([row(), '{"link": "x"'], ":2: is not JSON (Expecting ',' delimiter, column 13); download"),
        (["the\tder"], ":1: is not JSON (Expecting value, column 1)"),
        ([f"[{row()}]"], ":1: is a list in JSON, not an object with the fields of one question"),
        (["", "7"], ":2: is a number in JSON, not an object"),
        ([row(), without("question", "dialect")], ":2: lacks question, dialect (it has link,"),
        ([json.dumps({"passage": "p", "questions": [ROW]})], ":1: lacks link, question_number, "
         "flores_passage, question, mc_answer1, mc_answer2, mc_answer3, mc_answer4, "
         "correct_answer_num, dialect (it has passage, questions); download the official Belebele"),
        ([without("mc_answer1", "mc_answer2", "mc_answer3", "mc_answer4")],
         ":1: lacks mc_answer1, mc_answer2, mc_answer3, mc_answer4"),
        ([row(mc_answer1=["a", "b"])], ":1: mc_answer1 is a list, not text"),
        ([row(flores_passage={"en": "x"})], ":1: flores_passage is an object, not text"),
        ([row(question=None)], ":1: question is nothing, not text"),
        ([row(question=" \ufeff ")], ":1: question is empty; complete the row"),
        ([row(flores_passage="")], ":1: flores_passage is empty"),
        ([row(), row(question_number=2, mc_answer3="\t")], ":2: mc_answer3 is empty"),
        ([row(question="\ud83e")], ":1: question holds half a surrogate pair"),
        ([row(correct_answer_num="5")], ":1: correct_answer_num is '5', not 1 to 4"),
        ([row(correct_answer_num=0)], ":1: correct_answer_num is '0', not 1 to 4"),
        ([row(correct_answer_num="B")], ":1: correct_answer_num is 'B', not 1 to 4"),
        ([row(correct_answer_num=True)], ":1: correct_answer_num is a truth value"),
        ([row(correct_answer_num=1.0)], ":1: correct_answer_num is a decimal number"),
        ([row(question_number="one")], ":1: question_number is 'one', not a number"),
        ([row(question_number="9" * 10)], ":1: question_number is '9999999999', not"),
        ([row(), row(dialect="deu_Latn")], ":2: is in deu_Latn and was given as en (eng_Latn); "
         "give the file eng_Latn.jsonl"),
        ([row(), "", row(question="What else?")], ":3: the key https://example.org/tea#1 already "
         "stands in line 1 with other content; keep one of the two"),
        ([row(), row(correct_answer_num="3")], ":2: the key https://example.org/tea#1 already"),
    ],
)  # fmt: skip
def test_a_belebele_file_that_cannot_be_meant_is_refused(tmp_path, lines, said):
    assert refusal(read_belebele, given(tmp_path, "\n".join(lines)), "en").startswith(said)


def test_belebele_in_another_script_than_it_claims_is_refused(tmp_path):
    path = given(tmp_path, row(dialect="heb_Hebr"))
    assert refusal(read_belebele, path, "he").startswith(": 100% of its letters are Latn, and")


@pytest.mark.parametrize(
    "text, said",
    [
        ("\n", ": holds no question; give columns id, premise, hypothesis, label"),
        (HEADER, ": holds no question"),
        ("0\tIt rains.\tWet.\t0\n", ":1: the header: lacks premise, hypothesis, label (it has 0,"),
        ("id\tpremise\tlabel\n", ":1: the header: lacks hypothesis"),
        ("gold_label\ttext\n", ":1: the header: lacks sentence1"),
        ("id\tid\tpremise\thypothesis\tlabel\n", ":1: has two columns of one name"),
        (HEADER + "0\tIt rains.\tWet.\t0\n1\tIt rains.\t0\n", ":3: 3 columns instead of the"),
        (HEADER + "0\tIt\trains.\tWet.\t0\n", ":2: 5 columns instead of the header's 4; part"),
        (HEADER + "0\t \tWet.\t0\n", ":2: premise is empty"),
        (HEADER + "\tIt rains.\tWet.\t0\n", ":2: id is empty"),
        (HEADER + "0\tIt rains.\tWet.\t-1\n", ":2: label is '-1', not 0 entailment, 1 neutral, 2"),
        (HEADER + "0\tIt rains.\tWet.\t3\n", ":2: label is '3'"),
        (HEADER + "0\tIt rains.\tWet.\tyes\n", ":2: label is 'yes'"),
        (HEADER + "0\tIt rains.\tWet.\t0\n\n0\tIt rains.\tDry.\t0\n", ":4: the key 0 already "
         "stands in line 2"),
        (OFFICIAL + "en\tneutral\tIt rains.\tWet.\t\n", ":2: pairID is empty"),
        (OFFICIAL + "fr\tneutral\tIl pleut.\tSec.\t1\n", ": has no row in English (en), only fr"),
        (OFFICIAL + "qqq\tneutral\tIt rains.\tWet.\t1\n", ":2: unknown language code 'qqq'"),
        (OFFICIAL + "en\tmaybe\tIt rains.\tWet.\t1\n", ":2: gold_label is 'maybe'"),
        ("gold_label\tsentence1\tsentence2\nneutral\tIt rains.\tWet.\n",
         ":2: lacks language, pairID (it has gold_label, sentence1, sentence2)"),
        ('{"premise": "a", "hypothesis": "b"}', ":1: lacks label"),
        ('{"premise": "a", "hypothesis": "b", "label": 1.0}', ":1: label is a decimal number"),
        ('{"premise": {"en": "a"}, "hypothesis": "b", "label": 1}', ":1: premise is an object"),
        ('{"premise": "a", "hypothesis": "b", "label": 1}\n'
         '{"id": 1, "premise": "a", "hypothesis": "c", "label": 1}', ":2: ids stand in some rows"),
        (HEADER + "0\tИдёт дождь.\tСухо.\t2\n", ": 100% of its letters are Cyrl, and English"),
        (row(), ":1: lacks premise, hypothesis, label (it has link, question_number"),
    ],
)  # fmt: skip
def test_an_xnli_file_that_cannot_be_meant_is_refused(tmp_path, text, said):
    assert refusal(read_xnli, given(tmp_path, text), "en").startswith(said)


@pytest.mark.parametrize(
    "text, said",
    [
        ("\n\n", ": is not JSON (Expecting value, column 1); download the official XQuAD"),
        ('{\n"data": [\n\n}', ":4: is not JSON (Expecting value, column 1)"),
        ("id\tpremise", ":1: is not JSON"),
        ("[]", ": the document lacks a list named data; download the official XQuAD files"),
        (row(), ": the document lacks a list named data"),
        (f"{row()}\n{row()}", ": holds several JSON objects, one a line, not one SQuAD document"),
        ('{"data": []}', ": holds no question"),
        ('{"data": {"a": 1}}', ": the document lacks a list named data"),
        ('{"data": [{"title": "t"}]}', ": article 1 lacks a list named paragraphs"),
        ('{"data": ["t"]}', ": article 1 lacks a list named paragraphs"),
        ('{"data": [{"paragraphs": [{"context": "c"}]}]}', ": article 1, paragraph 1 lacks a list "
         "named qas"),
        ('{"data": [{"paragraphs": [{"qas": [3]}]}]}', ": article 1, paragraph 1, question 1 "
         "lacks the fields of a question"),
        ('{"data": [{"paragraphs": [{"qas": [{"id": "q"}]}]}]}', ": question q: lacks context, "
         "question, answers"),
        ('{"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "?"}]}]}]}',
         ": question 1 of article 1, paragraph 1: lacks id, answers"),
        (squad(context=" "), ": question q1: context is empty"),
        (squad(id="q2", question="\ufeff"), ": question q2: question is empty"),
        (squad(id="q2", question=7), ": question q2: question is a number, not text"),
        (squad(id="q2", answers=[]), ": question q2: has no answer; leave"),
        (squad(id="q2", answers="fox"), ": question q2: answers is text, not a list"),
        (squad(id="q2", answers=["fox"]), ": question q2: an answer lacks its text or a whole"),
        (squad(id="q2", answers=[{"text": "fox"}]), ": question q2: an answer lacks its text or"),
        (answer("fox", "4"), ": question q2: an answer lacks its text or a whole answer_start"),
        (answer("fox", True), ": question q2: an answer lacks its text or a whole answer_start"),
        (answer("", 4), ": question q2: answer is empty"),
        (answer("fox", 5), ": question q2: at answer_start 5 stands 'ox ', not the answer 'fox'; "
         "count answer_start in code points"),
        (answer("ran", -5), ": question q2: at answer_start -5 stands '', not the answer 'ran'; "),
        (answer("ran", 11), ": question q2: at answer_start 11 stands 'an.', not the answer 'ran': "
         "its offsets are UTF-16 units, not code points; count"),
        (answer("ran", 13), ": question q2: at answer_start 13 stands '.', not the answer 'ran': "
         "its offsets are bytes, not code points; count"),
        (answer("fox", 10**30), ": question q2: at answer_start 1000"),
        (squad(question="What?"), ": question q1: the key q1 already stands with other content"),
    ],
)  # fmt: skip
def test_an_xquad_file_that_cannot_be_meant_is_refused(tmp_path, text, said):
    assert refusal(read_xquad, given(tmp_path, text), "en").startswith(said)


def of(language, **golds):
    records = tuple(Record(key, {"question": "?"}, (gold,), key) for key, gold in golds.items())
    return Records(language, records, (f"{language}.txt",), "", {})


@pytest.mark.parametrize(
    "source, target, said",
    [
        (of("en", a="A", b="B", c="C"), of("de", c="C", d="D"),
         "en.txt and de.txt: 2 of 3 questions in en are missing in de, 1 of 2 in de are missing in "
         "en; the first is a; give the same split of the task in both languages"),
        (of("en", a="A"), of("de", a="A", b="B"), "the first is b;"),
        (of("en", a="A", b="B"), of("de", a="A", b="C"), "en.txt and de.txt: the right answer of b "
         "is B in en and C in de; give files of the same release of the task"),
    ],
)  # fmt: skip
def test_languages_whose_questions_differ_are_not_joined(source, target, said):
    with pytest.raises(InputError, match=re.escape(said)):
        join(source, target, same_golds=True)


@needs_data
def test_real_files_given_as_another_language_are_refused_where_that_shows():
    path = Path(DATA, "belebele", "deu_Latn.jsonl")
    assert refusal(read_belebele, path, "en").startswith(":1: is in deu_Latn and was given as en")
    path = Path(DATA, "xnli", "xnli_validation_hi.tsv")
    assert "of its letters are Deva, and English" in refusal(read_xnli, path, "en")
    path = Path(DATA, "xquad", "xquad.ar.json")
    assert "of its letters are Arab, and Chinese" in refusal(read_xquad, path, "zh")


@needs_data
@pytest.mark.parametrize("task", READERS)
def test_real_bad_files_are_refused_as_tasks(task):
    for path in sorted(Path(DATA, "bad_inputs").iterdir()):
        assert refusal(READERS[task], path, "zh").startswith(":")
