"""Which rows of a file make questions of Belebele, XNLI and XQuAD.

A row is a mapping of field names to values, wherever it was found; `task_files` finds rows in files
and on the hub. A row that cannot be meant is refused with its place; what is mended or left out is
counted in `Records.notes`.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

from bridgex_jax.data.records import Record, Records
from bridgex_jax.data.text import letters_by_script
from bridgex_jax.errors import InputError
from bridgex_jax.languages import Language, language
from bridgex_jax.store.paths import AnyPath

LETTERS = ("A", "B", "C", "D")
XNLI_LABELS = ("entailment", "neutral", "contradiction")  # 0, 1, 2 in files
# Names and quotations in another script are common; most of a text is not foreign.
_LEAST_OWN_SCRIPT = 0.5
_BOM = "\ufeff"
_EDGES = re.compile(rf"\A[\s{_BOM}]+|[\s{_BOM}]+\Z")
_NUMBER = re.compile("[0-9]{1,9}")
_NO_MAJORITY = "-"  # XNLI's gold label where the annotators disagree

_BELEBELE = (
    "link", "question_number", "flores_passage", "question", "mc_answer1", "mc_answer2",
    "mc_answer3", "mc_answer4", "correct_answer_num", "dialect",
)  # fmt: skip
_XNLI = ("premise", "hypothesis", "label")
_XNLI_OFFICIAL = ("sentence1", "sentence2", "gold_label", "language", "pairID")
_XQUAD = ("id", "context", "question", "answers")
_GET_BELEBELE = (
    "download the official Belebele files: one JSON object a line, one for each question"
)
_GET_XNLI = "give columns id, premise, hypothesis, label, or the official XNLI file"
_GET_XQUAD = "download the official XQuAD files (SQuAD JSON)"
REMEDIES = {"belebele": _GET_BELEBELE, "xnli": _GET_XNLI, "xquad": _GET_XQUAD}


@dataclass(frozen=True)
class Row:
    """A question as it was found: its fields, its place, and where to count what is mended."""

    fields: Mapping[str, object]
    file: str | AnyPath
    line: int | None
    found: Counter[str]
    label: str = ""

    def refusal(self, what: str, remedy: str) -> InputError:
        """The error that names this row."""
        said = f"{self.label}: {what}" if self.label else what
        return InputError(said, file=self.file, line=self.line, remedy=remedy)

    def require(self, names: Iterable[str], remedy: str) -> None:
        """Raises InputError, naming them all, where fields are missing."""
        missing = [name for name in names if name not in self.fields]
        if missing:
            there = ", ".join(name[:30] for name in list(self.fields)[:12]) or "nothing"
            raise self.refusal(f"lacks {', '.join(missing)} (it has {there})", remedy)

    def text(self, name: str) -> str:
        """A field in NFC without spaces or byte order marks around it; InputError for no text."""
        given = self.fields[name]
        if not isinstance(given, str):
            raise self.refusal(f"{name} is {kind_of(given)}, not text", "write it as one string")
        if any("\ud800" <= char <= "\udfff" for char in given):
            raise self.refusal(f"{name} holds half a surrogate pair", "export the file again")
        text = unicodedata.normalize("NFC", _EDGES.sub("", given))
        if not text:
            raise self.refusal(f"{name} is empty", "complete the row or leave it out")
        edges = "".join(_EDGES.findall(given))
        self.found["bom"] += _BOM in edges
        self.found["outer_space"] += edges.strip(_BOM) != ""
        self.found["not_nfc"] += not unicodedata.is_normalized("NFC", given)
        return text

    def identifier(self, name: str) -> str:
        """A field that is a name or a whole number, as text."""
        given = self.fields[name]
        if isinstance(given, int) and not isinstance(given, bool):
            return str(given)
        return self.text(name)


def kind_of(value: object) -> str:
    """What a JSON value is, in words."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "a truth value"}
    kinds |= {int: "a number", float: "a decimal number", type(None): "nothing"}
    return kinds.get(type(value), f"a {type(value).__name__}")


# The tasks -------------------------------------------------------------------------------------

Rule: TypeAlias = Callable[[Iterable[Row], Language], Iterator[tuple[Row, Record]]]


def _belebele(rows: Iterable[Row], entry: Language) -> Iterator[tuple[Row, Record]]:
    """Questions keyed by link and number, and by passage where a link has that number twice.

    Passages of one link are told apart by their order, since their text differs by language.
    """
    of_link: dict[str, dict[str, int]] = {}
    of_question: dict[str, dict[str, int]] = {}
    for row in rows:
        row.require(_BELEBELE, _GET_BELEBELE)
        _check_dialect(row, entry)
        link, number = row.text("link"), row.identifier("question_number")
        if not _NUMBER.fullmatch(number):
            raise row.refusal(f"question_number is {number!r}, not a number", _GET_BELEBELE)
        names = [f"mc_answer{i}" for i in range(1, 5)]
        passage, question, *options = map(row.text, ["flores_passage", "question", *names])
        row.found["same_options"] += len(set(options)) < len(options)
        answer = row.identifier("correct_answer_num")
        if answer not in ("1", "2", "3", "4"):
            raise row.refusal(f"correct_answer_num is {answer!r}, not 1 to 4", _GET_BELEBELE)
        asked = f"{_numbered(of_question, f'{link}#{int(number)}', link, passage)}#{int(number)}"
        fields = {"passage": passage, "question": question}
        fields |= {letter.lower(): text for letter, text in zip(LETTERS, options, strict=True)}
        gold = LETTERS[int(answer) - 1]
        yield row, Record(asked, fields, (gold,), _numbered(of_link, link, link, passage))


def _numbered(seen: dict[str, dict[str, int]], group: str, name: str, text: str) -> str:
    """`name` for the first text of a group, `name (2)` for its second."""
    texts = seen.setdefault(group, {})
    number = texts.setdefault(text, len(texts) + 1)
    return name if number == 1 else f"{name} ({number})"


def _check_dialect(row: Row, entry: Language) -> None:
    dialect = row.text("dialect")
    if dialect != entry.flores:
        raise row.refusal(
            f"is in {dialect} and was given as {entry.code} ({entry.flores})",
            f"give the file {entry.flores}.jsonl, or the code of the language that it is in",
        )


def _xnli(rows: Iterable[Row], entry: Language) -> Iterator[tuple[Row, Record]]:
    """Pairs of sentences, of the official columns or ours; each is a passage of its own.

    Rows without an id are keyed by their place, from 0, as the hub and our files number them.
    """
    languages: set[str] = set()
    has_id: bool | None = None
    for place, row in enumerate(rows):
        official = "sentence1" in row.fields or "gold_label" in row.fields
        row.require(_XNLI_OFFICIAL if official else _XNLI, _GET_XNLI)
        if official:
            languages.add(code := _code_of(row))
            if code != entry.code:
                row.found["other_language"] += 1
                continue
        identifier = "pairID" if official else "id"
        if has_id is None:
            has_id = identifier in row.fields
        if has_id != (identifier in row.fields):
            raise row.refusal("ids stand in some rows and not in others", "give all rows an id")
        key = row.identifier(identifier) if has_id else str(place)
        first, second, label_name = (_XNLI_OFFICIAL if official else _XNLI)[:3]
        fields = {"premise": row.text(first), "hypothesis": row.text(second)}
        label = _label(row, label_name)
        if label is None:
            row.found["no_label"] += 1
            continue
        yield row, Record(key, fields, (label,), key)
    if languages and entry.code not in languages:
        raise InputError(
            f"has no row in {entry.name} ({entry.code}), only {', '.join(sorted(languages))}",
            file=row.file,
            remedy="check the language code",
        )


def _code_of(row: Row) -> str:
    try:
        return language(row.text("language")).code
    except InputError as error:
        if error.file is not None:
            raise
        raise row.refusal(error.what, error.remedy or _GET_XNLI) from None


def _label(row: Row, name: str) -> str | None:
    label = row.identifier(name)
    if label == _NO_MAJORITY:
        return None
    known = {str(number): text for number, text in enumerate(XNLI_LABELS)}
    known |= {text: text for text in XNLI_LABELS}
    if label not in known:
        wanted = ", ".join(f"{number} {text}" for number, text in enumerate(XNLI_LABELS))
        raise row.refusal(f"{name} is {label!r}, not {wanted}", "mend the row or leave it out")
    return known[label]


def _xquad(rows: Iterable[Row], _: Language) -> Iterator[tuple[Row, Record]]:
    """Questions on a context; answers must stand where their offset says.

    A row's `passage` names its context; without one, contexts are numbered as they come.
    """
    contexts: dict[str, int] = {}
    for row in rows:
        row.require(_XQUAD, _GET_XQUAD)
        key = row.identifier("id")
        fields = {"passage": row.text("context"), "question": row.text("question")}
        number = contexts.setdefault(fields["passage"], len(contexts) + 1)
        passage = str(row.fields.get("passage", number))
        answers = _answers(row)
        for text, start in answers:
            _check_offset(row, str(row.fields["context"]), text, start)
        spans = [
            Row({"answer": text}, row.file, row.line, row.found, row.label) for text, _ in answers
        ]
        golds = tuple(dict.fromkeys(span.text("answer") for span in spans))
        yield row, Record(key, fields, golds, passage)


def _answers(row: Row) -> list[tuple[str, int]]:
    """Texts and offsets, from a list of answers (files) or two lists in an object (the hub)."""
    given = row.fields["answers"]
    if isinstance(given, Mapping):
        texts, starts = given.get("text"), given.get("answer_start")
        if not (isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts)):
            raise row.refusal("answers lacks text and answer_start of one length", _GET_XQUAD)
        given = [{"text": t, "answer_start": s} for t, s in zip(texts, starts, strict=True)]
    if not isinstance(given, list):
        raise row.refusal(f"answers is {kind_of(given)}, not a list", _GET_XQUAD)
    if not given:
        raise row.refusal("has no answer", "leave questions without answers out")
    answers = []
    for answer in given:
        fields = answer if isinstance(answer, Mapping) else {}
        text, start = fields.get("text"), fields.get("answer_start")
        if not isinstance(text, str) or type(start) is not int:
            raise row.refusal("an answer lacks its text or a whole answer_start", _GET_XQUAD)
        answers.append((text, start))
    return answers


def _check_offset(row: Row, context: str, text: str, start: int) -> None:
    """Refuse an answer that is not at its offset, in code points, and say what the offset is."""
    if start >= 0 and context[start : start + len(text)] == text:
        return
    stands = context[start : start + len(text)] if start >= 0 else ""
    what = f"at answer_start {start} stands {_short(stands)}, not the answer {_short(text)}"
    remedy = "count answer_start in code points from the beginning of the context"
    for encoding, width, units in (("utf-16-le", 2, "UTF-16 units"), ("utf-8", 1, "bytes")):
        whole, part = (s.encode(encoding, "surrogatepass") for s in (context, text))
        if start >= 0 and whole[start * width :].startswith(part):
            what += f": its offsets are {units}, not code points"
            break
    raise row.refusal(what, remedy)


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")


RULES: Mapping[str, Rule] = MappingProxyType(
    {"belebele": _belebele, "xnli": _xnli, "xquad": _xquad}
)


def collect(
    task: str, rows: Iterable[Row], entry: Language, file: str | AnyPath, sha256: str,
    found: Counter[str],
) -> Records:  # fmt: skip
    """The records that the rows of one file make by the rule of a task.

    Raises InputError for rows that the rule refuses, for a key that stands twice with different
    content, for no record at all, and for text that is mostly in another script than `entry`'s.
    """
    kept: dict[str, tuple[Row, Record]] = {}
    for row, record in RULES[task](rows, entry):
        first, same = kept.setdefault(record.key, (row, record))
        if same != record:
            where = "" if first.line is None else f" in line {first.line}"
            raise row.refusal(
                f"the key {record.key} already stands{where} with other content",
                "keep one of the two",
            )
        found["duplicate"] += first is not row
    records = tuple(record for _, record in kept.values())
    if not records:
        raise InputError("holds no question", file=file, remedy=REMEDIES[task])
    _refuse_other_script(records, entry, file)
    notes = {name: n for name, n in found.items() if n}
    return Records(entry.code, records, (str(file),), sha256, notes)


def _refuse_other_script(records: Iterable[Record], entry: Language, file: str | AnyPath) -> None:
    letters = letters_by_script(text for record in records for text in record.fields.values())
    own = sum(letters[name] for name in entry.scripts)
    if own < _LEAST_OWN_SCRIPT * letters.total():
        other = next(name for name, _ in letters.most_common() if name not in entry.scripts)
        raise InputError(
            f"{letters[other] / letters.total():.0%} of its letters are {other}, and "
            f"{entry.name} ({entry.code}) is written in {', '.join(sorted(entry.scripts))}",
            file=file,
            remedy="check which file belongs to which language code",
        )
