"""What a verdict says of one task and model, as plain values, and its way to and from the disk.

`verdict.json` holds all of it. Accuracies are shares of 1; a number that does not exist is NaN here
and null in the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from bridgex_jax.report.content import Direction, Interval


@dataclass(frozen=True)
class GainRow:
    """A chooser against a baseline: see `icl.significance.GainVerdict`."""

    baseline: str
    gain: Interval
    p: float
    n_pairs: int
    n_words: int
    is_real: bool
    unit: Literal["pairs", "words"]


@dataclass(frozen=True)
class ChooserRow:
    """One way to choose. picks: its bridge for every pair.

    gains: over random, zero-shot, and English where it is a bridge. regret: the oracle minus it;
    regret_split: the oracle of the other half of the words minus it. log_probability: its gain over
    random in the log-probability of right answers, in nats. correlation: of its scores with
    accuracy, over the bridges of a pair, averaged over pairs, with its p. against_judged: words
    that only the judged chooser gets right, that only this one does, and McNemar's p.
    """

    name: str
    what: str
    picks: tuple[str, ...]
    accuracy: Interval
    gains: tuple[GainRow, ...]
    regret: Interval
    regret_split: Interval
    log_probability: GainRow | None = None
    correlation: Interval | None = None
    correlation_p: float = float("nan")
    against_judged: tuple[int, int, float] | None = None


@dataclass(frozen=True)
class VerdictReport:
    """All of a verdict. The first of `choosers` is the one that is judged.

    rules: accuracy of zero-shot, every fixed bridge that all pairs have, `random`, `oracle`.
    win_share: row beats column, over pairs. levels: of the bootstrap. dropped: what was left out,
    and why. scores: of the judged chooser, by pair and bridge.
    """

    task: str
    model: str
    n_words: int
    directions: tuple[Direction, ...]
    rules: Mapping[str, Interval]
    choosers: tuple[ChooserRow, ...]
    win_share: tuple[tuple[float, ...], ...]
    levels: str
    scores: tuple[Mapping[str, float], ...] = ()
    dropped: tuple[str, ...] = ()
    sentence: str = ""
    runs: tuple[str, ...] = ()
