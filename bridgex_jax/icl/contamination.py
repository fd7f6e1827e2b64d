"""Text that chose a bridge must not be in the test: long common passages, words that were probed.

A question is contaminated where its text and a corpus share a run of `WINDOW` characters (the
n-gram overlap of arXiv 2005.14165, over characters, so that it holds in scripts without spaces).
W = questions.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool

WINDOW = 40  # characters


def contaminated(texts: Sequence[str], lines: Iterable[str]) -> Bool[np.ndarray, " W"]:
    """Which texts share a run of WINDOW characters with any line; shorter texts, if they are one.

    Compared after NFKC, in lower case, spaces and punctuation left out.
    """
    owners: dict[str, list[int]] = {}
    whole: dict[str, list[int]] = {}
    for i, text in enumerate(texts):
        letters = _letters(text)
        if 0 < len(letters) < WINDOW:
            whole.setdefault(letters, []).append(i)
        for start in range(len(letters) - WINDOW + 1):
            owners.setdefault(letters[start : start + WINDOW], []).append(i)
    found = np.zeros(len(texts), bool)
    for line in lines:
        letters = _letters(line)
        found[whole.get(letters, [])] = True
        for start in range(len(letters) - WINDOW + 1):
            if hit := owners.get(letters[start : start + WINDOW]):
                found[hit] = True
    return found


def _letters(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in folded if unicodedata.category(c)[0] in "LMN")
