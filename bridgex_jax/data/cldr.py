"""Words and monolingual text of many languages from the Unicode CLDR, read through Babel.

CLDR names languages, territories, currencies, scripts, months, days and units in hundreds of
locales, so one concept (``territory/MX``) has a word in each language: a dictionary that comes
with a permissive licence and that every installation has. The locale's own formatters (dates,
amounts, units, lists, intervals) give monolingual text to count activations on.
"""

from __future__ import annotations

import copy
import datetime
import functools
import hashlib
import random
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bridgex_jax.errors import InputError

if TYPE_CHECKING:
    from babel import Locale

# CLDR's identifiers where they differ from the ISO 639-1 code.
_LOCALES = {"tl": "fil", "zh": "zh_Hans", "no": "nb"}

# Units with a plain name in CLDR (https://unicode.org/reports/tr35/tr35-general.html#Unit_Elements).
_UNITS = (
    "angle-degree", "angle-radian", "area-acre", "area-hectare", "area-square-kilometer",
    "area-square-meter", "area-square-mile", "concentr-karat", "concentr-percent",
    "consumption-liter-per-kilometer", "digital-bit", "digital-byte", "digital-gigabyte",
    "digital-kilobyte", "digital-megabyte", "digital-terabyte", "duration-century",
    "duration-day", "duration-decade", "duration-hour", "duration-microsecond",
    "duration-millisecond", "duration-minute", "duration-month", "duration-quarter",
    "duration-second", "duration-week", "duration-year", "electric-ampere", "electric-ohm",
    "electric-volt", "energy-calorie", "energy-joule", "energy-kilocalorie",
    "energy-kilowatt-hour", "force-newton", "frequency-hertz", "frequency-megahertz",
    "length-centimeter", "length-fathom", "length-foot", "length-furlong", "length-inch",
    "length-kilometer", "length-light-year", "length-meter", "length-mile", "length-millimeter",
    "length-nanometer", "length-nautical-mile", "length-parsec", "length-yard", "light-lux",
    "mass-carat", "mass-gram", "mass-kilogram", "mass-milligram", "mass-ounce",
    "mass-pound", "mass-stone", "mass-ton", "power-horsepower", "power-kilowatt", "power-megawatt",
    "power-watt", "pressure-atmosphere", "pressure-bar", "pressure-hectopascal",
    "speed-kilometer-per-hour", "speed-knot", "speed-meter-per-second", "speed-mile-per-hour",
    "temperature-celsius", "temperature-fahrenheit", "temperature-kelvin", "volume-barrel",
    "volume-bushel", "volume-cubic-meter", "volume-cup", "volume-gallon", "volume-liter",
    "volume-milliliter", "volume-pint", "volume-quart", "volume-tablespoon", "volume-teaspoon",
)  # fmt: skip

# Babel writes a unit's identifier where the locale lacks its name ("3 mass-gram").
_UNTRANSLATED = re.compile(
    "|".join(sorted({re.escape(u.split("-")[0]) + "-[a-z]" for u in _UNITS}))
)

# Parentheses, commas, quotes and the prompt's own marks cannot stand inside a prompt's word.
_FORBIDDEN = frozenset('()（）[],،、;:"“”„«»‹›「」→/\n')


@dataclass(frozen=True)
class Concept:
    """One CLDR entry: its identifier (``territory/MX``) and its word in each language."""

    id: str
    words: dict[str, str]


@functools.cache
def parse_locale(code: str) -> Locale:
    """Babel's locale of a language code. Raises InputError where CLDR has none."""
    from babel import Locale, UnknownLocaleError, localedata

    try:
        locale = Locale.parse(_LOCALES.get(code, code))
        # Locales share nested tables with their parents, and Babel 2.18 stores a resolved alias in
        # the shared table: after Chinese, Swahili's months would be Chinese. A copy of its own.
        data = localedata.load(str(locale))
        data.update(copy.deepcopy(data))
        return locale
    except (UnknownLocaleError, ValueError):
        raise InputError(
            f"CLDR has no locale for language {code!r}",
            remedy="choose another language or give a dictionary and a corpus of your own",
        ) from None


def read_terms(code: str) -> dict[str, str]:
    """All CLDR names in one language: {concept id: name as written}, in a fixed order.

    Raises InputError where CLDR has no such language.
    """
    from babel.units import get_unit_name

    locale = parse_locale(code)
    tables = {
        "language": locale.languages,
        "territory": locale.territories,
        "currency": locale.currencies,
        "script": locale.scripts,
        "month": locale.months["stand-alone"]["wide"],
        "day": locale.days["stand-alone"]["wide"],
    }
    terms = {
        f"{kind}/{key}": name
        for kind, table in tables.items()
        for key, name in sorted(table.items(), key=lambda item: str(item[0]))
    }
    for unit in _UNITS:
        if name := get_unit_name(unit, locale=locale):
            terms[f"unit/{unit}"] = name
    return {key: unicodedata.normalize("NFC", name.strip()) for key, name in terms.items()}


def fold(word: str) -> str:
    """The form in which two words count as the same: NFKC, lower case."""
    return unicodedata.normalize("NFKC", word).casefold()


def read_concepts(languages: Sequence[str]) -> list[Concept]:
    """Concepts that have one plain word in every language, sorted by identifier.

    Dropped: names with parentheses, commas, quotes or the prompt's marks, and a name that another
    concept already has in the same language (after NFKC and case folding), since a prompt would
    then have two answers. Raises InputError for a language that CLDR lacks.
    """
    terms = {code: read_terms(code) for code in languages}
    shared = set.intersection(*(set(table) for table in terms.values()))
    taken: dict[str, set[str]] = {code: set() for code in languages}
    concepts = []
    for key in sorted(shared):
        words = {code: terms[code][key] for code in languages}
        if not all(word and not _FORBIDDEN & set(word) for word in words.values()):
            continue
        if any(fold(word) in taken[code] for code, word in words.items()):
            continue
        for code, word in words.items():
            taken[code].add(fold(word))
        concepts.append(Concept(key, words))
    return concepts


def concepts_digest(concepts: Sequence[Concept]) -> str:
    """sha256 over identifiers and words: tells whether two Babel releases gave the same words."""
    digest = hashlib.sha256()
    for concept in concepts:
        line = "\t".join([concept.id, *(f"{c}={w}" for c, w in sorted(concept.words.items()))])
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def stable_fraction(*parts: object) -> float:
    """A reproducible number in [0, 1) from its arguments: a split that no other entry moves."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def sentences(code: str, seed: int) -> Iterator[str]:
    """Endless monolingual lines of one language: dates, amounts, units, lists and intervals.

    The stream depends on (code, seed) and on the installed CLDR alone. Raises InputError where
    CLDR has no such language.
    """
    locale = parse_locale(code)
    words = [word for word in read_terms(code).values() if not _FORBIDDEN & set(word)]
    rng = random.Random(f"{code}/{seed}")
    makers = (_date, _interval, _amount, _unit, _list, _list, _delta, _compound)
    while True:
        line = " ".join(rng.choice(makers)(rng, locale, words).split())
        if not _UNTRANSLATED.search(line):
            yield line


_Maker = Callable[[random.Random, "Locale", "list[str]"], str]


def _moment(rng: random.Random) -> datetime.datetime:
    return datetime.datetime(1900, 1, 1) + datetime.timedelta(minutes=rng.randrange(68_000_000))


def _date(rng: random.Random, locale: Locale, words: list[str]) -> str:
    from babel.dates import format_date, format_datetime

    form = rng.choice(("full", "long", "medium"))
    if rng.random() < 0.5:
        return format_date(_moment(rng), form, locale=locale)
    return format_datetime(_moment(rng), rng.choice(("long", "medium")), locale=locale)


def _interval(rng: random.Random, locale: Locale, words: list[str]) -> str:
    from babel.dates import format_interval

    start = _moment(rng)
    end = start + datetime.timedelta(days=rng.randrange(1, 900))
    return format_interval(start, end, rng.choice(("yMMMd", "yMMMM", "MMMEd")), locale=locale)


def _amount(rng: random.Random, locale: Locale, words: list[str]) -> str:
    from babel.numbers import format_currency

    currency = rng.choice(sorted(locale.currencies))
    amount = rng.choice((1, 2, 5, 10, 100, rng.randrange(1, 10_000)))
    return format_currency(amount, currency, locale=locale, format_type="name")


def _unit(rng: random.Random, locale: Locale, words: list[str]) -> str:
    from babel.units import format_unit

    return format_unit(rng.randrange(0, 120), rng.choice(_UNITS), locale=locale)


def _list(rng: random.Random, locale: Locale, words: list[str]) -> str:
    from babel.lists import format_list

    return format_list(
        rng.sample(words, rng.randrange(2, 6)), rng.choice(("standard", "or")), locale=locale
    )


def _delta(rng: random.Random, locale: Locale, words: list[str]) -> str:
    from babel.dates import format_timedelta

    delta = datetime.timedelta(seconds=rng.choice((1, 60, 3600, 86400, 604800)) * rng.randrange(30))
    return format_timedelta(delta, locale=locale, add_direction=rng.random() < 0.5)


def _compound(rng: random.Random, locale: Locale, words: list[str]) -> str:
    from babel.units import format_compound_unit

    numerator = rng.choice(("length-kilometer", "length-meter", "mass-gram", "volume-liter"))
    denominator = rng.choice(("duration-hour", "duration-second", "area-hectare"))
    line = format_compound_unit(
        rng.randrange(1, 90), numerator, denominator_unit=denominator, locale=locale
    )
    return line or _unit(rng, locale, words)
