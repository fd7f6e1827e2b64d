"""What a model answered to a translation prompt, and whether it is right.

Exact match with any gold translation after one normaliser for both (released code of
arXiv 2508.17078, corrected: the generated text alone is parsed, quotes go at the ends only).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

# Opening quotes and what closes them; German „ is closed by “, elsewhere by ”.
_CLOSING = {
    '"': '"', "“": "”“", "„": "“”", "”": "”", "«": "»", "»": "«", "'": "'", "‘": "’", "’": "’",
    "「": "」", "『": "』", "＂": "＂", "״": "״", "׳": "׳",
}  # fmt: skip
# Where an answer without quotes ends, in the forms of other scripts too.
_END = re.compile(r"[\n→,(?，、（？،؟]")
_SINGLE_QUOTES = re.compile("[‘’ʼ׳]")
_DOUBLE_QUOTES = re.compile("[“”„״]")
_END_QUOTES = "\"'‘’ʼ׳“”„״«»「」『』"


def opens_with_quote(generated: str) -> bool:
    """Whether a continuation begins with a quote, as a prompt of quoted words asks it to."""
    return generated.lstrip(" ")[:1] in _CLOSING


def parse_answer(generated: str) -> str:
    """The answer in a continuation (the prompt not included); "" if it holds none.

    Text in quotes up to the matching quote; without quotes, or where none matches, up to the
    first line end, arrow, comma, opening parenthesis or question mark.
    """
    text = generated.lstrip(" ")
    closing = _CLOSING.get(text[:1])
    if closing is not None:
        line = text[1:].partition("\n")[0]
        end = next((place for place in range(len(line)) if _closes(line, place, closing)), None)
        if end is not None:
            return line[:end].strip()
        text = line
    return _END.split(text, maxsplit=1)[0].strip()


def _closes(line: str, place: int, closing: str) -> bool:
    """Whether a quote ends here; a single one between letters is an apostrophe (l'eau)."""
    if line[place] not in closing:
        return False
    return line[place] not in "'’׳" or not line[place + 1 : place + 2].isalpha()


def normalise(text: str) -> str:
    """The form in which answer and gold are compared.

    NFKC, quotes stripped at the ends, apostrophes and double quotes (Hebrew geresh and gershayim
    among them) unified inside, niqqud removed, lower case, single spaces.
    """
    text = unicodedata.normalize("NFKC", text)
    text = " ".join(text.split()).strip(_END_QUOTES + " ")
    text = _DOUBLE_QUOTES.sub('"', _SINGLE_QUOTES.sub("'", text))
    return "".join(char for char in text if not _is_niqqud(char)).lower()


def _is_niqqud(char: str) -> bool:
    return "\u0591" <= char <= "\u05c7" and unicodedata.category(char) == "Mn"


def is_right(generated: str, golds: Sequence[str]) -> bool:
    """Exact match of a continuation with any gold, normalised; an empty answer is wrong."""
    answer = normalise(parse_answer(generated))
    return answer != "" and answer in {normalise(gold) for gold in golds}
