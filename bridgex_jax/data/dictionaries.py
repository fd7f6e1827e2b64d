"""Bilingual dictionaries: reading them, turning them round, joining two through a third language.

Formats: MUSE (`source target`, a space or TAB), PanLex and FreeDict (TAB, entries of several
words), TICO-19 terminology (CSV). Nothing is lost silently: what is skipped, merged or odd is
counted in `Dictionary.notes`, and a file that cannot mean what it was given for is refused.

Case: words keep the spelling of the file (MUSE is lower case throughout), but `Polish` and
`polish` are one source word, spelled as it first occurs, and pairs that differ in case alone are
duplicates. Lower case is used and not case folding, which would make Maße and Masse one word.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from bridgex_jax.data.text import Lines, is_letter, read_lines, scripts_of
from bridgex_jax.errors import InputError
from bridgex_jax.languages import Language, language
from bridgex_jax.store.paths import AnyPath

_TICO_HEADER = ["id", "sourcelang", "targetlang", "sourcestring", "targetstring"]
_TWO_COLUMNS = "write `source TAB target` on every line"
# Words with these cannot stand in a prompt that quotes its words and joins them by arrows.
_PROMPT_SIGNS = re.compile('["\u201c\u201d\u201e\u201f\uff02\u2192]')
# What stands between columns in files that are neither MUSE nor TAB; blanks around count too.
_OTHER_DELIMITERS = re.compile(r"\s([@=|:/~>-]{1,3}|→)\s|([;|,=])")
# A column with fewer words than this in its language's script is in another language. Names in
# Latin letters are common in any dictionary (MUSE en-zh: 8 to 13 %).
_LEAST_OWN_SCRIPT = 0.3
# Fewer rows than this that fit the other order alone are slips, not reversed columns.
_LEAST_REVERSED = 0.05


@dataclass(frozen=True)
class WordPair:
    """A word and one translation; pivots are the words it was joined through, if it was."""

    source: str
    target: str
    pivots: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dictionary:
    """Distinct word pairs of two languages, in file order.

    notes: counts, by name, of what `read_lines` met and of rows that were skipped (`empty`,
    `no_letter`, `quote_or_arrow`, `reversed_row`, `duplicate`) or only noticed (`case_merged`,
    `mixed_case`, `identical`, `space_collapsed`). route: `direct`, `reversed` or `pivot:en`.
    sha256: of the file; of the files' hashes where there are several.
    """

    source: str
    target: str
    pairs: tuple[WordPair, ...]
    notes: dict[str, int]
    files: tuple[str, ...]
    sha256: str
    route: str = "direct"

    def translations(self) -> dict[str, tuple[str, ...]]:
        """Every source word, once, in file order, with all its translations."""
        found: dict[str, list[str]] = {}
        for pair in self.pairs:
            found.setdefault(pair.source, []).append(pair.target)
        return {word: tuple(targets) for word, targets in found.items()}

    def reversed(self) -> Dictionary:
        """The dictionary from `target` to `source`."""
        pairs = [WordPair(pair.target, pair.source, pair.pivots) for pair in self.pairs]
        turned = replace(self, source=self.target, target=self.source)
        return replace(_with_pairs(turned, pairs), route="reversed")


@dataclass(frozen=True)
class _Row:
    number: int  # line of the file
    words: tuple[str, str]
    scripts: tuple[frozenset[str], frozenset[str]]

    def direction(self, source: Language, target: Language) -> int:
        """1: only this order fits the scripts; -1: only the other does; 0: both or neither."""
        first, second = self.scripts
        as_given = first <= source.scripts and second <= target.scripts
        turned = first <= target.scripts and second <= source.scripts
        return as_given - turned


def _row(number: int, first: str, second: str) -> _Row:
    return _Row(number, (first, second), (scripts_of(first), scripts_of(second)))


def read_dictionary(path: str | AnyPath, source: str, target: str) -> Dictionary:
    """The dictionary in one file, whose first column is `source` and second `target`.

    The delimiter is found for the whole file: TICO-19's CSV header, else TAB if most lines have
    one, else spaces. A line with one empty column is skipped and counted. Raises InputError,
    naming the line, for a line without two columns or with more; for columns that are in the
    order `target` `source` or in other languages, as far as scripts tell; for no usable pair.
    """
    first, second = language(source), language(target)
    read = read_lines(path)
    rows = _rows(read, path, first, second)
    _check_scripts(rows, path, first, second)
    found: Counter[str] = Counter(read.notes)
    pairs = list(_usable(rows, first, second, found))
    if not pairs:
        counts = ", ".join(f"{name} {n}" for name, n in found.items())
        raise InputError(f"holds no usable word pair ({counts})", file=path, remedy=_TWO_COLUMNS)
    empty = Dictionary(first.code, second.code, (), dict(found), (str(path),), read.sha256)
    return _with_pairs(empty, pairs)


def merge(dictionaries: Sequence[Dictionary]) -> Dictionary:
    """Several dictionaries of the same two languages, such as train and test files, as one."""
    first, *others = dictionaries
    if any((d.source, d.target) != (first.source, first.target) for d in others):
        raise ValueError("dictionaries of different languages cannot be merged")
    if not others:
        return first
    notes: Counter[str] = Counter()
    for dictionary in dictionaries:
        notes.update(dictionary.notes)
    merged = replace(
        first,
        notes=dict(notes),
        files=tuple(file for d in dictionaries for file in d.files),
        sha256=_hash_of_hashes(dictionaries),
    )
    return _with_pairs(merged, [pair for d in dictionaries for pair in d.pairs])


def pivot(first: Dictionary, second: Dictionary) -> Dictionary:
    """source → pivot joined with pivot → target on the pivot word, case aside.

    notes: those of both, under `id-en.` and `en-he.`; `without_pivot`, the source words that no
    pivot word carries over; `duplicate`, the joins that gave a pair already there.
    Raises ValueError where the languages do not meet, InputError where no word does.
    """
    if first.target != second.source:
        raise ValueError(f"{first.source}-{first.target} does not meet {second.source}-…")
    onward: dict[str, list[WordPair]] = {}
    for pair in second.pairs:
        onward.setdefault(pair.source.lower(), []).append(pair)
    joined = [
        WordPair(there.source, on.target, (there.target,))
        for there in first.pairs
        for on in onward.get(there.target.lower(), ())
    ]
    if not joined:
        raise InputError(
            f"no {language(first.target).name} word is in both dictionaries",
            file=" and ".join(first.files + second.files),
            remedy=f"give a dictionary {first.source}-{second.target}",
        )
    words = {pair.source for pair in first.pairs}
    notes = {
        f"{d.source}-{d.target}.{name}": n for d in (first, second) for name, n in d.notes.items()
    }
    notes["without_pivot"] = len(words) - len({pair.source for pair in joined})
    sha256 = _hash_of_hashes([first, second])
    empty = Dictionary(first.source, second.target, (), notes, first.files + second.files, sha256)
    return replace(_with_pairs(empty, joined), route=f"pivot:{first.target}")


def find_dictionary(
    files: Mapping[tuple[str, str], Sequence[str | AnyPath]],
    source: str,
    target: str,
    pivot_language: str = "en",
) -> Dictionary:
    """The dictionary of a pair from the files that there are; `route` says how.

    Tried in this order: files for (source, target), files for (target, source) turned round, a
    join through `pivot_language`. Several files of a pair are merged. Raises InputError where
    none of the three exists.
    """
    by_codes = {(language(a).code, language(b).code): paths for (a, b), paths in files.items()}
    start, goal, middle = (language(code).code for code in (source, target, pivot_language))
    found = _read_either_way(by_codes, start, goal)
    if found is not None:
        return found
    legs = [(start, middle), (middle, goal)]
    halves = [_read_either_way(by_codes, *leg) for leg in legs]
    if halves[0] is not None and halves[1] is not None:
        return pivot(halves[0], halves[1])
    missing = [
        f"{a}-{b}=FILE"
        for (a, b), half in zip(legs, halves, strict=True)
        if half is None and a != b
    ]
    through = f", or {' and '.join(missing)}" if middle not in (start, goal) else ""
    raise InputError(
        f"no dictionary from {start} to {goal}",
        remedy=f"give --dictionary {start}-{goal}=FILE{through}",
    )


def _read_either_way(
    files: Mapping[tuple[str, str], Sequence[str | AnyPath]], source: str, target: str
) -> Dictionary | None:
    if paths := files.get((source, target)):
        return merge([read_dictionary(path, source, target) for path in paths])
    if paths := files.get((target, source)):
        return merge([read_dictionary(path, target, source) for path in paths]).reversed()
    return None


def _hash_of_hashes(dictionaries: Sequence[Dictionary]) -> str:
    return hashlib.sha256("\n".join(d.sha256 for d in dictionaries).encode()).hexdigest()


def _with_pairs(dictionary: Dictionary, pairs: Iterable[WordPair]) -> Dictionary:
    """`dictionary` with these pairs instead, each once, and the counts that follow from them."""
    found = Counter(dictionary.notes)
    spelling: dict[str, str] = {}
    kept: dict[tuple[str, str], WordPair] = {}
    for pair in pairs:
        source = spelling.setdefault(pair.source.lower(), pair.source)
        key = (source, pair.target.lower())
        found["case_merged"] += int(source != pair.source)
        found["duplicate"] += int(key in kept)
        same = kept.get(key, replace(pair, source=source))
        pivots = tuple(dict.fromkeys(same.pivots + pair.pivots))
        kept[key] = replace(same, pivots=pivots)
    words = [(pair.source, pair.target) for pair in kept.values()]
    found["identical"] = sum(a.lower() == b.lower() for a, b in words)
    found["mixed_case"] = sum((a + b).lower() != a + b for a, b in words)
    notes = {name: n for name, n in found.items() if n}
    return replace(dictionary, pairs=tuple(kept.values()), notes=notes)


def _rows(read: Lines, path: str | AnyPath, source: Language, target: Language) -> list[_Row]:
    numbered = list(zip(read.numbers, read.lines, strict=True))
    if not numbered:
        raise InputError("is an empty dictionary", file=path, remedy=_TWO_COLUMNS)
    if [cell.strip().lower() for cell in read.lines[0].split(",")] == _TICO_HEADER:
        return list(_tico_rows(read, path, source, target))
    if 2 * sum("\t" in line for line in read.lines) > len(read.lines):
        return [_tab_row(number, line, path) for number, line in numbered]
    return [_space_row(number, line, path) for number, line in numbered]


def _tab_row(number: int, line: str, path: str | AnyPath) -> _Row:
    cells = line.split("\t")
    while len(cells) > 2 and not cells[-1].strip():
        cells.pop()
    if len(cells) != 2:
        raise _not_two_columns(number, line, len(cells), path)
    return _row(number, *cells)


def _space_row(number: int, line: str, path: str | AnyPath) -> _Row:
    cells = re.split("[ \t]+", line.strip(" \t"))
    if len(cells) != 2:
        raise _not_two_columns(number, line, len(cells), path)
    return _row(number, *cells)


def _not_two_columns(number: int, line: str, found: int, path: str | AnyPath) -> InputError:
    shown = line.strip() if len(line) < 40 else line.strip()[:37] + "…"
    other = _OTHER_DELIMITERS.search(line.strip())
    remedy = _TWO_COLUMNS
    if other:
        remedy = f"the columns seem to be parted by {other[0]!r}: put a TAB there on every line"
    elif found > 2 and "\t" in line:
        remedy = "keep two of the columns"
    elif found > 2:
        remedy = f"{_TWO_COLUMNS}, a TAB also where entries have several words"
    columns = "one column" if found == 1 else f"{found} columns"
    return InputError(
        f"{columns} instead of two in {shown!r}", file=path, line=number, remedy=remedy
    )


def _tico_rows(
    read: Lines, path: str | AnyPath, source: Language, target: Language
) -> Iterable[_Row]:
    reader = csv.reader((line + "\n" for line in read.lines), strict=True)
    done = 0
    try:
        for cells in reader:
            number, done = read.numbers[done], reader.line_num
            if number == read.numbers[0]:
                continue
            if len(cells) != len(_TICO_HEADER):
                raise InputError(
                    f"{len(cells)} fields instead of 5",
                    file=path,
                    line=number,
                    remedy='write id,sourceLang,targetLang,"source","target"',
                )
            _check_tags(cells[1], cells[2], number, path, source, target)
            yield _row(number, cells[3], cells[4])
    except csv.Error as error:
        raise InputError(
            f"is not well-formed CSV ({error})",
            file=path,
            line=read.numbers[done],
            remedy='quote as in "a, b" and double a quote inside',
        ) from None


def _check_tags(
    first: str, second: str, number: int, path: str | AnyPath, source: Language, target: Language
) -> None:
    """Refuse a CSV row whose language columns are not the languages the file was given for."""
    try:
        tags = language(first).code, language(second).code
    except InputError as error:
        raise InputError(error.what, file=path, line=number, remedy=error.remedy) from None
    if tags != (source.code, target.code):
        raise InputError(
            f"is marked {first}-{second} and was given as {source.code}-{target.code}",
            file=path,
            line=number,
            remedy=f"give it as {tags[0]}-{tags[1]}=FILE",
        )


def _usable(
    rows: Iterable[_Row], source: Language, target: Language, found: Counter[str]
) -> Iterable[WordPair]:
    """The pairs of rows that can be prompted with, counting the others by what is wrong."""
    for row in rows:
        words = [" ".join(word.split()) for word in row.words]
        if words != [word.strip() for word in row.words]:
            found["space_collapsed"] += 1
        if not all(words):
            found["empty"] += 1
        elif not all(any(map(is_letter, word)) for word in words):
            found["no_letter"] += 1
        elif any(_PROMPT_SIGNS.search(word) for word in words):
            found["quote_or_arrow"] += 1
        elif row.direction(source, target) < 0:
            found["reversed_row"] += 1
        else:
            yield WordPair(words[0], words[1])


def _check_scripts(
    rows: Sequence[_Row], path: str | AnyPath, source: Language, target: Language
) -> None:
    """Refuse reversed columns and columns in another script; blind where scripts are shared."""
    directions = {row.number: row.direction(source, target) for row in rows}
    votes = Counter(directions.values())
    if votes[-1] > max(votes[1], _LEAST_REVERSED * len(rows)):
        line = next(number for number, vote in directions.items() if vote < 0)
        raise InputError(
            f"its columns are {target.code} {source.code}, not {source.code} {target.code}",
            file=path,
            line=line,
            remedy=f"give it as {target.code}-{source.code}=FILE",
        )
    for column, entry in enumerate((source, target)):
        foreign = [row.number for row in rows if not row.scripts[column] <= entry.scripts]
        if len(foreign) > (1 - _LEAST_OWN_SCRIPT) * len(rows):
            raise InputError(
                f"{len(foreign) / len(rows):.0%} of column {column + 1} is not in the script of "
                f"{entry.name} ({', '.join(sorted(entry.scripts))})",
                file=path,
                line=foreign[0],
                remedy="check which file belongs to which language codes",
            )
