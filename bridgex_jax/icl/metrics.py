"""Exact match and F1 of extracted answers, normalised as is usual for each language.

Lower case, no punctuation, no articles, single spaces (SQuAD, arXiv 1606.05250), with the articles
of each language and characters as tokens in scripts without spaces (MLQA, arXiv 1910.07475).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

# MLQA's lists. In Arabic the article is the beginning of a word.
_ARTICLES = {
    "en": r"\b(a|an|the)\b",
    "es": r"\b(un|una|unos|unas|el|la|los|las)\b",
    "de": r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    "vi": r"\b(của|là|cái|chiếc|những)\b",
    "ar": r"(?<!\w)ال",
}
_NO_SPACES = re.compile(
    "[\u2e80-\u9fff\uf900-\ufaff\uff66-\uff9d\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]"
)


def normalise_span(text: str, code: str) -> str:
    """The form in which an extracted answer is compared; code: of its language."""
    text = unicodedata.normalize("NFKC", text).lower()
    text = "".join(c for c in text if unicodedata.category(c)[0] != "P")
    if code in _ARTICLES:
        text = re.sub(_ARTICLES[code], " ", text)
    return " ".join(text.split())


def tokens(text: str, code: str) -> list[str]:
    """Words; single characters in scripts that have no spaces."""
    return _NO_SPACES.sub(lambda c: f" {c[0]} ", normalise_span(text, code)).split()


def exact_match(answer: str, gold: str, code: str) -> float:
    """1 where both are the same tokens, and there are any."""
    found = tokens(answer, code)
    return float(bool(found) and found == tokens(gold, code))


def f1(answer: str, gold: str, code: str) -> float:
    """Harmonic mean of the shares of tokens that answer and gold have in common."""
    found, wanted = tokens(answer, code), tokens(gold, code)
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted)) if common else 0.0


def best(
    metric: Callable[[str, str, str], float], answer: str, golds: Sequence[str], code: str
) -> float:
    """The largest value over the right answers."""
    return max((metric(answer, gold, code) for gold in golds), default=0.0)
