"""Names, numbers and sentences of the reports: the same words in the terminal and in the HTML.

Languages are written as `name (code)` in Latin script, so that no font lacks a glyph.
"""

from __future__ import annotations

from bridgex_jax.languages import LANGUAGES
from bridgex_jax.report.content import Evaluation, Interval, PairReport, is_number

# Above this a permutation p-value is called chance.
SIGNIFICANCE = 0.05


def name(code: str) -> str:
    """`German` for de; the code itself when the table does not know it."""
    return LANGUAGES[code].name if code in LANGUAGES else code


def label(code: str) -> str:
    """`German (de)`."""
    return f"{LANGUAGES[code].name} ({code})" if code in LANGUAGES else code


def number(value: float | None, digits: int = 4) -> str:
    """A fixed number of digits, so that columns align; an en dash for a missing value."""
    if value is None or not is_number(value):
        return "–"
    return f"{value:.{digits}f}".replace("-", "−")


def percent(value: float | None, digits: int = 0) -> str:
    """`97 %`, of a share of 1."""
    if value is None or not is_number(value):
        return "–"
    return f"{100 * value:.{digits}f} %".replace("-", "−")


def points(interval: Interval) -> str:
    """`3.1 points (95 % interval 1.0 to 5.2)`, of shares of 1."""
    text = f"{number(100 * interval.value, 1)} points"
    if not is_number(interval.low):
        return text
    low, high = number(100 * interval.low, 1), number(100 * interval.high, 1)
    return f"{text} (95 % interval {low} to {high})"


def p_value(p: float) -> str:
    """`.012`, `< .001`: three digits without the leading zero."""
    if not is_number(p):
        return "–"
    if p < 0.001:
        return "< .001"
    return f"{p:.3f}".removeprefix("0")


def listed(codes: tuple[str, ...]) -> str:
    """`French (fr), Italian (it) and Spanish (es)`."""
    names = [label(code) for code in codes]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def choice_sentence(pair: PairReport) -> str:
    """The answer: which bridge, and how sure that is."""
    direction = f"from {label(pair.source)} to {label(pair.target)}"
    row = pair.chosen
    if row is None:
        return (
            f"No bridge can be chosen {direction}: "
            "no candidate is present in half of the layer window."
        )
    if is_number(row.p_value) and row.p_value >= SIGNIFICANCE:
        return (
            f"{label(row.bridge)} has the highest score {direction}, but no more than chance would "
            f"give (p {p_relation(row.p_value)}): take it as a guess."
        )
    resampled = ""
    if is_number(row.p_best):
        share = percent(row.p_best)
        resampled = f": it scores highest in {share} of {pair.resamples:,} resamples of the words"
    if pair.tied_with:
        return (
            f"{label(row.bridge)} has the highest score {direction}, but it cannot be told apart "
            f"from {listed(pair.tied_with)}{resampled}."
        )
    chance = f", p {p_relation(row.p_value)} against chance" if is_number(row.p_value) else ""
    evidence = resampled or ": it has the highest score"
    return f"Use {label(row.bridge)} as the bridge {direction}{evidence}{chance}."


def p_relation(p: float) -> str:
    """`= .012` or `< .001`."""
    text = p_value(p)
    return text if text.startswith("<") else f"= {text}"


def evaluation_sentence(evaluation: Evaluation) -> str:
    """What the accuracies say of the choice, against a random bridge and against the best one."""
    gain = evaluation.gain
    regret = f"The best bridge of every direction would give {points(evaluation.regret)} more."
    if is_number(gain.low) and gain.low > 0:
        return f"The chosen bridges translate {points(gain)} better than a random one. {regret}"
    if is_number(gain.high) and gain.high < 0:
        worse = points(Interval(-gain.value, -gain.high, -gain.low))
        return f"The chosen bridges translate {worse} worse than a random one. {regret}"
    here = "The choice cannot be told from random here"
    return f"{here}: chosen minus random is {points(gain)}. {regret}"
