"""Reading the questions of Belebele, XNLI and XQuAD from files and from the Hugging Face hub.

A file is given to the reader of its task; a file of another task, or of another layout than the
published one, is refused in one line. What a row must hold is in `task_rows`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

from bridgex_jax.data.records import Records
from bridgex_jax.data.task_rows import REMEDIES, Row, collect, kind_of
from bridgex_jax.data.text import Lines, read_lines
from bridgex_jax.errors import InputError
from bridgex_jax.languages import language
from bridgex_jax.store.paths import AnyPath, read_bytes

Reader: TypeAlias = "Callable[[str | AnyPath, str], Records]"

# A cell that a CSV writer has quoted because it holds quotes; no plain text looks like this.
_CSV_QUOTED = re.compile(r'"(?=.*"")(?:[^"]|"")*"', re.DOTALL)


def read_belebele(path: str | AnyPath, language_code: str) -> Records:
    """The questions of an official Belebele file: JSON lines, one question each.

    Raises InputError, naming the line, for a missing or empty field, an answer outside 1 to 4,
    a `dialect` that is not the language, and for the nested layouts of some copies.
    """
    entry, read = language(language_code), read_lines(path)
    found = Counter(read.notes)
    rows = _json_rows(read, path, found, REMEDIES["belebele"])
    return collect("belebele", rows, entry, path, read.sha256, found)


def read_xnli(path: str | AnyPath, language_code: str) -> Records:
    """The sentence pairs of an XNLI file.

    TAB-separated with the header id, premise, hypothesis, label (0 entailment, 1 neutral,
    2 contradiction), the official file of all languages, whose other languages are left out, or
    JSON lines with the fields of either. Official rows labelled `-` are left out and counted.
    Raises InputError, naming the line, for other columns, labels and empty sentences.
    """
    entry, read = language(language_code), read_lines(path)
    found = Counter(read.notes)
    is_json = bool(read.lines) and read.lines[0].lstrip().startswith(("{", "["))
    rows = (
        _json_rows(read, path, found, REMEDIES["xnli"])
        if is_json
        else _tab_rows(read, path, found, REMEDIES["xnli"])
    )
    return collect("xnli", rows, entry, path, read.sha256, found)


def read_xquad(path: str | AnyPath, language_code: str) -> Records:
    """The questions of an XQuAD file: SQuAD JSON whose `answer_start` counts code points.

    A passage is named by article and paragraph, from 1, such as `3.1`. Raises InputError, naming
    the question, for an answer that is not where its offset says and for a question without one.
    """
    entry, read = language(language_code), read_lines(path)
    found = Counter(read.notes)
    text, numbers = "\n".join(read.lines), read.numbers
    if found.pop("not_nfc", 0):  # NFC moves offsets: `Row.text` applies it once they are checked
        text = read_bytes(path).decode("utf-8-sig")
        numbers = list(range(1, text.count("\n") + 2))
    if _is_json_lines(read):
        raise InputError(
            "holds several JSON objects, one a line, not one SQuAD document",
            file=path,
            remedy=REMEDIES["xquad"],
        )
    document = _parsed(text, path, numbers, REMEDIES["xquad"])
    return collect("xquad", _squad_rows(document, path, found), entry, path, read.sha256, found)


READERS: Mapping[str, Reader] = MappingProxyType(
    {"belebele": read_belebele, "xnli": read_xnli, "xquad": read_xquad}
)


def read_hub(dataset: str, config: str, split: str, reader: str) -> Records:
    """The questions of a dataset of the Hugging Face hub, by the rules of a reader's name.

    Such as `facebook/belebele` `eng_Latn` `test`, `xnli` `sw` `validation`, `google/xquad`
    `xquad.en` `validation`; the configuration gives the language. In errors the line is the row,
    from 1. Raises InputError also where the package `datasets` is missing or cannot load it.
    """
    name = f"{dataset} {config} {split}"
    if reader not in READERS:
        raise InputError(f"unknown task {reader!r}", remedy=f"use one of {', '.join(READERS)}")
    try:
        entry = language(config.rpartition(".")[2])
    except InputError as error:
        raise InputError(
            error.what, file=name, remedy="give a configuration of one language"
        ) from None
    given = _hub_rows(dataset, config, split, name)
    found: Counter[str] = Counter()
    rows = []
    for number, fields in enumerate(given, 1):
        if not isinstance(fields, Mapping):
            raise InputError(
                f"holds {kind_of(fields)} instead of a row",
                file=name,
                line=number,
                remedy="give one split",
            )
        rows.append(Row(fields, name, number, found))
    content = json.dumps([row.fields for row in rows], sort_keys=True, default=str)
    sha256 = hashlib.sha256(content.encode()).hexdigest()
    return collect(reader, rows, entry, name, sha256, found)


def _hub_rows(dataset: str, config: str, split: str, name: str) -> list[object]:
    try:
        import datasets
    except ImportError:
        raise InputError(
            "the package datasets is not installed",
            file=name,
            remedy="pip install 'bridgex_jax[hub]'",
        ) from None
    try:
        return list(datasets.load_dataset(dataset, config, split=split))
    except Exception as error:  # the package raises classes of its own and of its back ends
        raise InputError(
            f"cannot be loaded ({str(error) or type(error).__name__})",
            file=name,
            remedy="check dataset, configuration, split and network, or give a file",
        ) from error


# Layouts ---------------------------------------------------------------------------------------


def _parsed(text: str, path: str | AnyPath, numbers: Sequence[int], remedy: str) -> object:
    """A JSON value; `numbers` are the places in the file of the lines of `text`."""
    try:
        value: object = json.loads(text)
    except json.JSONDecodeError as error:
        line = numbers[min(error.lineno, len(numbers)) - 1] if numbers else None
        what = f"is not JSON ({error.msg}, column {error.colno})"
        raise InputError(what, file=path, line=line, remedy=remedy) from None
    except (ValueError, RecursionError):  # a number of thousands of digits, endless nesting
        line = numbers[0] if len(numbers) == 1 else None
        raise InputError("is no sensible JSON", file=path, line=line, remedy=remedy) from None
    return value


def _json_rows(read: Lines, path: str | AnyPath, found: Counter[str], remedy: str) -> Iterator[Row]:
    for number, line in zip(read.numbers, read.lines, strict=True):
        fields = _parsed(line, path, [number], remedy)
        if not isinstance(fields, dict):
            what = f"is {kind_of(fields)} in JSON, not an object with the fields of one question"
            raise InputError(what, file=path, line=number, remedy=remedy)
        yield Row(fields, path, number, found)


def _tab_rows(read: Lines, path: str | AnyPath, found: Counter[str], remedy: str) -> Iterator[Row]:
    if not read.lines:
        return
    header = [cell.strip() for cell in read.lines[0].split("\t")]
    Row(dict.fromkeys(header), path, read.numbers[0], found, "the header").require(
        ("sentence1",) if "gold_label" in header else ("premise", "hypothesis", "label"), remedy
    )
    if len(set(header)) < len(header):
        raise InputError(
            "has two columns of one name", file=path, line=read.numbers[0], remedy=remedy
        )
    for number, line in zip(read.numbers[1:], read.lines[1:], strict=True):
        cells = line.split("\t")
        if len(cells) != len(header):
            raise InputError(
                f"{len(cells)} columns instead of the header's {len(header)}",
                file=path,
                line=number,
                remedy="part the columns by one TAB and keep TABs out of sentences",
            )
        for place, cell in enumerate(cells):
            if _CSV_QUOTED.fullmatch(cell):
                cells[place] = cell[1:-1].replace('""', '"')
                found["csv_quoted"] += 1
        yield Row(dict(zip(header, cells, strict=True)), path, number, found)


def _is_json_lines(read: Lines) -> bool:
    """Whether the first two lines are JSON objects each."""
    if len(read.lines) < 2:
        return False
    try:
        values = [json.loads(line) for line in read.lines[:2]]
    except (ValueError, RecursionError):
        return False
    return all(isinstance(value, dict) for value in values)


def _squad_rows(document: object, path: str | AnyPath, found: Counter[str]) -> Iterator[Row]:
    for a, article in enumerate(_items(document, "data", "the document", path), 1):
        paragraphs = _items(article, "paragraphs", f"article {a}", path)
        for p, paragraph in enumerate(paragraphs, 1):
            where = f"article {a}, paragraph {p}"
            questions = _items(paragraph, "qas", where, path)
            shared = {"context": paragraph["context"]} if "context" in paragraph else {}
            for q, question in enumerate(questions, 1):
                if not isinstance(question, dict):
                    raise _no_list(f"{where}, question {q}", "the fields of a question", path)
                label = f"question {question.get('id', f'{q} of {where}')}"
                fields = question | shared | {"passage": f"{a}.{p}"}
                yield Row(fields, path, None, found, label)


def _items(holder: object, name: str, where: str, path: str | AnyPath) -> list[dict[str, object]]:
    if not isinstance(holder, dict) or not isinstance(holder.get(name), list):
        raise _no_list(where, f"a list named {name}", path)
    items: list[dict[str, object]] = holder[name]
    return items


def _no_list(where: str, missing: str, path: str | AnyPath) -> InputError:
    return InputError(f"{where} lacks {missing}", file=path, remedy=REMEDIES["xquad"])
