"""How the text of a plan's value is read. Each raises ValueError, saying what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_NOTHING = ("", "~", "null")


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ValueError("is not a positive whole number")
    return int(text)


def integer(text: str) -> int:
    """A whole number."""
    try:
        return int(text)
    except ValueError:
        raise ValueError("is not a whole number") from None


def natural(text: str) -> int:
    """A whole number from 0."""
    if not text.isascii() or not text.isdigit():
        raise ValueError("is not a whole number from 0")
    return int(text)


def rate(text: str) -> float:
    """A number between 0 and 1, without both."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise ValueError("is not a number between 0 and 1")
    return value


def switch(text: str) -> bool:
    """`true` or `false`."""
    if text.lower() not in ("true", "false"):
        raise ValueError("is neither true nor false")
    return text.lower() == "true"


def layers(text: str) -> tuple[int, int]:
    """FIRST-LAST, or one layer."""
    first, mark, last = text.partition("-")
    if not (first.isdigit() and (last.isdigit() if mark else not last)):
        raise ValueError("is not FIRST-LAST, such as 10-21")
    if int(last or first) < int(first):
        raise ValueError("ends before it begins")
    return int(first), int(last or first)


def one_of(*known: str) -> Callable[[str], str]:
    """One of these words."""

    def read(text: str) -> str:
        if text not in known:
            raise ValueError(f"is none of {', '.join(known)}")
        return text

    return read


def maybe(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """What `read` takes, or nothing: None."""
    return lambda text: None if text in _NOTHING else read(text)
