"""What the tests say of the judged chooser, in one or two sentences that claim no more than they.

A difference is told as one only where its interval and its p-value agree on it. Under 6 pairs the
p-value counts words, and the sentence says that it holds for these pairs alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from bridgex_jax.report.content import Bounds, Interval, is_number
from bridgex_jax.report.text import name, number, p_relation, points

Measure = Literal["points", "nats"]
_BASELINES = {"random": "a random bridge", "zero_shot": "zero-shot", "en": "English on every pair"}


class Gain(Protocol):
    """A chooser against a baseline, as `GainVerdict` in icl/significance.py."""

    @property
    def baseline(self) -> str: ...
    @property
    def gain(self) -> Bounds: ...
    @property
    def p(self) -> float: ...
    @property
    def n_pairs(self) -> int: ...
    @property
    def n_words(self) -> int: ...
    @property
    def is_real(self) -> bool: ...
    @property
    def unit(self) -> Literal["pairs", "words"]: ...


def subject(chooser: str) -> str:
    """What the sentence calls the bridges of a chooser."""
    return "the bridges that HSIC chose" if chooser == "hsic" else f"the bridges of {chooser}"


def verdict_sentence(
    gains: Sequence[Gain], *, subject: str = "the chosen bridges", measure: Measure = "points"
) -> str:
    """Whether the gains of one chooser are real, in the order given.

    Args:
      gains: over its baselines, the one with most pairs first; a baseline that fewer pairs have
        (English, which is the source of some) is told with its number of pairs.
      subject: the chooser, in the plural.
      measure: "points" for shares of 1, "nats" for log-probabilities.
    """
    if not gains:
        return "No choice was evaluated, so nothing can be said of its gain."
    first = gains[0]
    clauses = [
        _clause(gain, measure, subject if gain is first else "they", first.n_pairs)
        for gain in gains
    ]
    sentence = f"On {_sample(first)} {'; '.join(clauses)}."
    if any(gain.unit == "words" for gain in gains):
        return f"{sentence} {_few_pairs(gains)}"
    return sentence


def _clause(gain: Gain, measure: Measure, subject: str, n_pairs: int) -> str:
    than = _BASELINES.get(gain.baseline, name(gain.baseline))
    where = ""
    if gain.n_pairs != n_pairs:
        where = f"on the {_pairs(gain.n_pairs)} with {name(gain.baseline)} as a bridge, "
    bounds = Interval.of(gain.gain)
    if not gain.is_real:
        chance = f", p {p_relation(gain.p)}" if is_number(gain.p) else ""
        return (
            f"{where}{subject} cannot be told from {than} "
            f"(difference {_plain(bounds, measure)}{chance})"
        )
    if bounds.value < 0:
        worse = Interval(-bounds.value, -bounds.high, -bounds.low)
        return f"{where}{subject} are {_size(worse, measure)} worse than {than}"
    return f"{where}{subject} are {_size(bounds, measure)} better than {than}"


def _few_pairs(gains: Sequence[Gain]) -> str:
    """For whom the sentence does not speak."""
    few = min(gain.n_pairs for gain in gains if gain.unit == "words")
    which = "One pair is" if few == 1 else f"{few} pairs are"
    these = "this pair" if few == 1 else "these pairs"
    return f"{which} too few to say anything of others: this holds for the words of {these}."


def _sample(gain: Gain) -> str:
    words = "1 word" if gain.n_words == 1 else f"{gain.n_words:,} words"
    return f"{_pairs(gain.n_pairs)} and {words}"


def _pairs(n: int) -> str:
    return "1 pair" if n == 1 else f"{n:,} pairs"


def _size(bounds: Interval, measure: Measure) -> str:
    """`1.9 points (95 % interval 0.2 to 3.8)`, `0.12 nats a word (…)`."""
    if measure == "points":
        return points(bounds)
    text = f"{number(bounds.value, 2)} nats a word"
    if not is_number(bounds.low):
        return text
    return f"{text} (95 % interval {number(bounds.low, 2)} to {number(bounds.high, 2)})"


def _plain(bounds: Interval, measure: Measure) -> str:
    """The same without brackets, to stand in some."""
    return _size(bounds, measure).replace(" (", ", ").removesuffix(")")
