"""Reading lines of text as files are found in the wild, and telling scripts apart.

A line ends at LF (or CR LF) and nowhere else: U+0085, U+2028 and their like stand inside lines of
real dictionaries and corpora. Text is UTF-8 and comes out in NFC; whatever was done to a file is
counted in its notes, and whatever is not text is refused.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from bridgex_jax.errors import InputError
from bridgex_jax.store.paths import AnyPath, read_bytes

_DECOMPRESS = "unpack it and give the text file inside"
_EXPORT = "export it as UTF-8 text and give that file"
_CONVERT = "convert it to UTF-8 (iconv -t UTF-8)"
# What a file that is not plain text begins with: what it is, what helps.
_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs.github.com/spec", "a Git LFS pointer, not the data",
     "run `git lfs pull` where it came from"),
    (b"/annex/objects/", "a git-annex pointer, not the data", "run `git annex get` on it"),
    (b"PK\x03\x04", "a zip archive", _DECOMPRESS),
    (b"PK\x05\x06", "an empty zip archive", "download it again"),
    (b"\x1f\x8b", "a gzip file", _DECOMPRESS),
    (b"BZh", "a bzip2 file", _DECOMPRESS),
    (b"\xfd7zXZ\x00", "an xz file", _DECOMPRESS),
    (b"\x28\xb5\x2f\xfd", "a zstandard file", _DECOMPRESS),
    (b"ARROW1", "an Arrow file", _EXPORT),
    (b"PAR1", "a Parquet file", _EXPORT),
    (b"%PDF", "a PDF file", _EXPORT),
    (b"\x80\x02", "a Python pickle, which is never opened", _EXPORT),
    (b"\x80\x03", "a Python pickle, which is never opened", _EXPORT),
    (b"\x80\x04", "a Python pickle, which is never opened", _EXPORT),
    (b"\x80\x05", "a Python pickle, which is never opened", _EXPORT),
    (b"\xff\xfe", "UTF-16 text", _CONVERT),
    (b"\xfe\xff", "UTF-16 text", _CONVERT),
    (b"<!doctype html", "a web page, not the data", "download the raw file"),
    (b"<html", "a web page, not the data", "download the raw file"),
)  # fmt: skip

# What str.splitlines would break a line at, besides LF.
_INNER_SEPARATORS = re.compile("[\r\v\f\x1c\x1d\x1e\x85\u2028\u2029]")
_BOM = "\ufeff"


@dataclass(frozen=True)
class Lines:
    """The lines of a text file that are not blank, in NFC, without their line ends.

    numbers: the place of each in the file, from 1. notes: how many lines had `bom`, `crlf`,
    `inner_separator` or `not_nfc`, and how many were `blank`. sha256: of the file's bytes.
    """

    lines: list[str]
    numbers: list[int]
    notes: dict[str, int]
    sha256: str


def read_lines(path: str | AnyPath) -> Lines:
    """The lines of a UTF-8 text file, local or remote (store/paths.py).

    Raises InputError for a file that is missing, empty or not text, and for bytes that are not
    UTF-8 (naming the line).
    """
    data = read_bytes(path)
    if not data:
        raise InputError("is empty (0 bytes)", file=path, remedy="download it again")
    _refuse_binary(data, path)
    found: Counter[str] = Counter()
    lines, numbers = [], []
    text = _decode(data, path)
    for number, raw in enumerate(text.removesuffix("\n").split("\n"), 1):
        line = _clean(raw, found)
        if line.strip():
            lines.append(line)
            numbers.append(number)
        else:
            found["blank"] += 1
    return Lines(lines, numbers, dict(found), hashlib.sha256(data).hexdigest())


def _refuse_binary(data: bytes, path: str | AnyPath) -> None:
    start = data[:64].lstrip().lower()
    for signature, kind, remedy in _SIGNATURES:
        if data.startswith(signature) or start.startswith(signature):
            raise InputError(f"is {kind}", file=path, remedy=remedy)
    where = data.find(b"\0")
    if where >= 0:
        line = data.count(b"\n", 0, where) + 1
        raise InputError(
            "is binary (it holds a NUL byte)", file=path, line=line, remedy="give UTF-8 text"
        )
    if b"\r" in data.rstrip() and b"\n" not in data:
        raise InputError(
            "its lines end in CR alone (old Macintosh)",
            file=path,
            remedy="convert it (tr '\\r' '\\n')",
        )


def _decode(data: bytes, path: str | AnyPath) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start]
        raise InputError(
            f"is not UTF-8 (byte 0x{byte:02x})", file=path, line=line, remedy=_CONVERT
        ) from None


def _clean(line: str, found: Counter[str]) -> str:
    if line.startswith(_BOM):  # also inside, where files were joined
        found["bom"] += 1
        line = line.lstrip(_BOM)
    if line.endswith("\r"):
        found["crlf"] += 1
        line = line.removesuffix("\r")
    if _INNER_SEPARATORS.search(line):
        found["inner_separator"] += 1
    if not unicodedata.is_normalized("NFC", line):
        found["not_nfc"] += 1
        line = unicodedata.normalize("NFC", line)
    return line


# First word of a character's Unicode name → ISO 15924. Letters that several scripts use have None.
_SCRIPTS = {
    "ARABIC": "Arab", "ARMENIAN": "Armn", "BENGALI": "Beng", "CJK": "Hani", "CYRILLIC": "Cyrl",
    "DEVANAGARI": "Deva", "ETHIOPIC": "Ethi", "GEORGIAN": "Geor", "GREEK": "Grek",
    "GUJARATI": "Gujr", "GURMUKHI": "Guru", "HANGUL": "Hang", "HEBREW": "Hebr",
    "HIRAGANA": "Hira", "IDEOGRAPHIC": "Hani", "KANNADA": "Knda", "KATAKANA": "Kana",
    "KHMER": "Khmr", "LAO": "Laoo", "LATIN": "Latn", "MALAYALAM": "Mlym", "MYANMAR": "Mymr",
    "SINHALA": "Sinh", "TAMIL": "Taml", "TELUGU": "Telu", "THAI": "Thai",
    "KATAKANA-HIRAGANA": None, "MODIFIER": None,
}  # fmt: skip


def is_letter(char: str) -> bool:
    """Whether a character is a letter of any script; digits, marks and signs are not."""
    return char != "" and unicodedata.category(char)[0] == "L"


@cache
def script(char: str) -> str | None:
    """The script of a letter, None for what is no letter or belongs to several scripts.

    The ISO 15924 code for the scripts of our languages, the name for others (Tibetan).
    """
    char = unicodedata.normalize("NFKC", char)[:1]
    if not is_letter(char):
        return None
    first = unicodedata.name(char, "MODIFIER").split()[0]
    return _SCRIPTS.get(first, first.capitalize())


def scripts_of(text: str) -> frozenset[str]:
    """The scripts that the letters of a text are of."""
    return frozenset(name for char in text if (name := script(char)) is not None)


def letters_by_script(texts: Iterable[str]) -> Counter[str]:
    """How many letters of each script the texts hold."""
    chars: Counter[str] = Counter()
    for text in texts:
        chars.update(text)
    totals: Counter[str] = Counter()
    for char, n in chars.items():
        if (name := script(char)) is not None:
            totals[name] += n
    return totals
