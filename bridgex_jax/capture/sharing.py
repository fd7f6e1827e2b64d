"""What probe prompts have in common: the tokens that all begin with, and prompts that repeat.

All prompts of a language pair begin with BOS and `{S}:"`, outside the scope of Stage 4 by default;
under causal attention these tokens do not see the word, so their keys and values are the same in
every row. A dictionary line for each translation makes the same prompt several times. Axes: W.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from bridgex_jax.data.batching import Encoded


@dataclass(frozen=True)
class Shared:
    """Prompts taken apart: prompt w is `distinct[row_of[w]]` = prefix + `remainders[row_of[w]]`."""

    prefix: tuple[int, ...]
    distinct: tuple[Encoded, ...]
    row_of: Int[np.ndarray, " W"]

    @property
    def remainders(self) -> tuple[Encoded, ...]:
        """The distinct prompts without the prefix."""
        n = len(self.prefix)
        return tuple(Encoded(item.ids[n:], item.scope[n:]) for item in self.distinct)


def share(encoded: Sequence[Encoded]) -> Shared:
    """The distinct prompts and the longest beginning of all that is in no scope.

    At least one token of every prompt is left.
    """
    rows: dict[Encoded, int] = {}
    row_of = np.asarray([rows.setdefault(item, len(rows)) for item in encoded], np.int32)
    return Shared(_common_prefix(tuple(rows)), tuple(rows), row_of)


def _common_prefix(distinct: Sequence[Encoded]) -> tuple[int, ...]:
    if not distinct:
        return ()
    n, first = 0, distinct[0].ids
    shortest = min(len(item.ids) for item in distinct)
    while n < shortest - 1 and all(i.ids[n] == first[n] and not i.scope[n] for i in distinct):
        n += 1
    return first[:n]
