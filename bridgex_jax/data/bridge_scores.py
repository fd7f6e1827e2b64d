"""A user's own scores of bridges: CSV or TSV with the columns source, target, bridge, score.

For any chooser that is not built in: the scores stand beside the others in the comparison.
"""

from __future__ import annotations

import csv
import math

from bridgex_jax.data.text import read_lines
from bridgex_jax.errors import InputError
from bridgex_jax.languages import language
from bridgex_jax.store.paths import AnyPath

_COLUMNS = ("source", "target", "bridge", "score")
_HEADER = f"begin with a line {','.join(_COLUMNS)} (commas or TABs)"

BridgeScores = dict[tuple[str, str], dict[str, float]]


def read_bridge_scores(path: str | AnyPath) -> BridgeScores:
    """(source, target) → bridge → score, in file order; higher is better, nan is not known.

    The first line names the columns, in any order; others are ignored. The delimiter is TAB where
    that line has one, else a comma. Codes are those of languages.py and come out as its `code`.

    Raises InputError, naming file and line, for a file that is not text or has no scores, for
    columns that are missing, a row with another number of fields, an unknown language, a bridge
    that is source or target, a score that is no finite number, and a row given twice.
    """
    read = read_lines(path)
    if not read.lines:
        raise InputError("holds no scores", file=path, remedy=_HEADER)
    delimiter = "\t" if "\t" in read.lines[0] else ","
    rows = [
        (number, _fields(line, delimiter, number, path))
        for number, line in zip(read.numbers, read.lines, strict=True)
    ]
    (first, header), *body = rows
    names = [name.lower() for name in header]
    if missing := [name for name in _COLUMNS if names.count(name) != 1]:
        raise InputError(
            f"has no column {', '.join(missing)}, or two", file=path, line=first, remedy=_HEADER
        )
    if not body:
        raise InputError("holds no scores", file=path, remedy="write a row for every bridge")
    scores: BridgeScores = {}
    lines: dict[tuple[str, str, str], int] = {}
    for number, fields in body:
        if len(fields) != len(names):
            raise InputError(
                f"{len(fields)} fields instead of {len(names)}",
                file=path,
                line=number,
                remedy=f"fill the columns {', '.join(names)}",
            )
        row = dict(zip(names, fields, strict=True))
        source, target, bridge = _codes(row, number, path)
        if (earlier := lines.setdefault((source, target, bridge), number)) != number:
            raise InputError(
                f"{bridge} from {source} to {target} has a score already, in line {earlier}",
                file=path,
                line=number,
                remedy="keep one of them",
            )
        scores.setdefault((source, target), {})[bridge] = _score(row["score"], number, path)
    return scores


def _fields(line: str, delimiter: str, number: int, path: str | AnyPath) -> list[str]:
    try:
        [fields] = csv.reader([line], delimiter=delimiter, strict=True)
    except csv.Error as error:
        raise InputError(
            f"is not well-formed CSV ({error})", file=path, line=number, remedy="mend its quotes"
        ) from None
    return [field.strip() for field in fields]


def _codes(row: dict[str, str], number: int, path: str | AnyPath) -> tuple[str, str, str]:
    try:
        source, target, bridge = (language(row[name]).code for name in _COLUMNS[:3])
    except InputError as error:
        raise InputError(error.what, file=path, line=number, remedy=error.remedy) from None
    if len({source, target, bridge}) < 3:
        raise InputError(
            f"{source}, {target} and {bridge} are not three languages",
            file=path,
            line=number,
            remedy="leave the row out",
        )
    return source, target, bridge


def _score(text: str, number: int, path: str | AnyPath) -> float:
    try:
        score = float(text)
    except ValueError:
        score = math.inf
    if math.isinf(score):
        raise InputError(
            f"score {text!r} is not a finite number",
            file=path,
            line=number,
            remedy="write a number such as 0.25, or nan where it is not known",
        )
    return score
