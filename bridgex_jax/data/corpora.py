"""Monolingual text, a sentence a line: FLORES-200, eBible, news, any UTF-8 file.

A corpus counts the activations of a language, so text in another script is refused. eBible marks
a verse that is missing by a blank line and one merged with the verse before by `<range>`.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from bridgex_jax.data.text import letters_by_script, read_lines, script
from bridgex_jax.errors import InputError
from bridgex_jax.languages import Language
from bridgex_jax.languages import language as look_up
from bridgex_jax.store.paths import AnyPath

_MERGED_VERSE = "<range>"
# Names and quotations in another script are common; most of a text is not foreign.
_LEAST_OWN_SCRIPT = 0.5


@dataclass(frozen=True)
class Corpus:
    """Text of one language. notes counts what was skipped or changed; sha256 is of the file."""

    language: str
    lines: tuple[str, ...]
    notes: dict[str, int]
    sha256: str
    file: str


def read_corpus(path: str | AnyPath, language: str) -> Corpus:
    """The lines of a corpus, spaces at their ends removed, blank and `<range>` lines skipped.

    notes: those of `read_lines`, `merged_verse`, and `other_script`: lines that are kept though
    most of their letters are foreign. Raises InputError for a file without text and for one with
    under half of its letters in the language's script.
    """
    entry = look_up(language)
    read = read_lines(path)
    kept = {
        number: line.strip()
        for number, line in zip(read.numbers, read.lines, strict=True)
        if line.strip() != _MERGED_VERSE
    }
    foreign = _foreign_lines(kept, entry)
    _refuse_other_script(kept, foreign, entry, path)
    counted = {"merged_verse": len(read.lines) - len(kept), "other_script": len(foreign)}
    notes = read.notes | {name: n for name, n in counted.items() if n}
    return Corpus(entry.code, tuple(kept.values()), notes, read.sha256, str(path))


def _own_share(letters: Counter[str], entry: Language) -> float:
    """The share of letters in the language's scripts; 1 where there are no letters."""
    return sum(letters[name] for name in entry.scripts) / letters.total() if letters else 1.0


def _foreign_lines(kept: dict[int, str], entry: Language) -> list[int]:
    """The numbers of the lines that are mostly in other scripts."""
    chars = set().union(*kept.values())
    others = [char for char in chars if script(char) not in {None, *entry.scripts}]
    if not others:
        return []
    # Few lines hold a foreign letter at all, and only those are counted out.
    other = re.compile("[" + re.escape("".join(others)) + "]")
    return [
        number
        for number, line in kept.items()
        if other.search(line) and _own_share(letters_by_script([line]), entry) < _LEAST_OWN_SCRIPT
    ]


def _refuse_other_script(
    kept: dict[int, str], foreign: list[int], entry: Language, path: str | AnyPath
) -> None:
    letters = letters_by_script(kept.values())
    if not letters:
        raise InputError("holds no text", file=path, remedy=f"give a corpus of {entry.name}")
    if _own_share(letters, entry) < _LEAST_OWN_SCRIPT:
        other = next(name for name, _ in letters.most_common() if name not in entry.scripts)
        raise InputError(
            f"{letters[other] / letters.total():.0%} of its letters are {other}, and "
            f"{entry.name} ({entry.code}) is written in {', '.join(sorted(entry.scripts))}",
            file=path,
            line=foreign[0],
            remedy="check which file belongs to which language code",
        )
