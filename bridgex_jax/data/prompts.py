"""The prompts of word translation, and where in them the word stands.

The forms are those of the released code of arXiv 2508.17078: no spaces, U+2192 for the arrow,
every language under its own name. The place of the word is kept because a token scope begins at
the word: everything before it is the same for all words of a language pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from string import Formatter

from bridgex_jax.errors import InputError
from bridgex_jax.languages import language

_FIELDS = ("source_language", "target_language", "word")
_EXAMPLE = "write for example '{source_language}:\"{word}\"→{target_language}:'"


@dataclass(frozen=True)
class Prompt:
    """A prompt; text[start:end] is the source word (in characters, not bytes)."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Template:
    """A checked prompt form, as pairs of literal text and the field that follows it ("": none)."""

    parts: tuple[tuple[str, str], ...]

    def fill(self, source_language: str, target_language: str, word: str) -> Prompt:
        """The prompt; the languages are given by the names that are to appear."""
        values = {
            "source_language": source_language,
            "target_language": target_language,
            "word": word,
            "": "",
        }
        text, start = "", 0
        for literal, field in self.parts:
            text += literal
            if field == "word":
                start = len(text)
            text += values[field]
        return Prompt(text, start, start + len(word))


def parse_template(text: str) -> Template:
    """A user's prompt form with {word} once, {target_language} and perhaps {source_language}.

    Literal braces are doubled. Raises InputError for any other field, a format or conversion, and
    a field that is missing.
    """
    try:
        pieces = list(Formatter().parse(text))
    except ValueError as error:
        raise InputError(f"template {text!r}: {error}", remedy=_EXAMPLE) from None
    for _, field, form, conversion in pieces:
        if field is not None and (field not in _FIELDS or form or conversion):
            known = ", ".join(f"{{{name}}}" for name in _FIELDS)
            shown = field + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
            raise InputError(
                f"template {text!r}: unknown field {{{shown}}}", remedy=f"the fields are {known}"
            )
    parts = tuple((literal, field or "") for literal, field, _, _ in pieces)
    fields = [field for _, field in parts]
    if fields.count("word") != 1:
        raise InputError(
            f"template {text!r}: has {{word}} {fields.count('word')} times, not once",
            remedy=_EXAMPLE,
        )
    if "target_language" not in fields:
        raise InputError(f"template {text!r}: lacks {{target_language}}", remedy=_EXAMPLE)
    return Template(parts)


WORD_TEMPLATE = parse_template('{source_language}:"{word}"→{target_language}:')


def word_prompt(source: str, target: str, word: str, template: Template = WORD_TEMPLATE) -> Prompt:
    """`{S}:"{w}"→{T}:`, of probes and zero-shot; in hop 1 the bridge is the target.

    Languages are given by code. Raises InputError for an unknown one.
    """
    return template.fill(language(source).endonym, language(target).endonym, word)


def chain_prompt(source: str, bridge: str, target: str, word: str, bridged: str) -> Prompt:
    """`{S}:"{w}"→{B}:"{b}"→{T}:`, hop 2: the word, its translation into the bridge, the target."""
    first = word_prompt(source, bridge, word)
    text = f'{first.text}"{bridged}"→{language(target).endonym}:'
    return Prompt(text, first.start, first.end)
