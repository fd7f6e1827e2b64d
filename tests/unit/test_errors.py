"""The error for bad input."""

import pickle

import pytest

from bridgex_jax.errors import InputError


@pytest.mark.parametrize(
    "parts, text",
    [
        ({}, "is empty"),
        ({"file": "a.txt"}, "a.txt: is empty"),
        ({"file": "a.txt", "line": 3}, "a.txt:3: is empty"),
        ({"file": "a.txt", "line": 3, "remedy": "fill it"}, "a.txt:3: is empty; fill it"),
        ({"line": 3, "remedy": "fill it"}, "line 3: is empty; fill it"),
    ],
)
def test_names_what_is_known(parts, text):
    assert str(InputError("is empty", **parts)) == text


def test_is_one_line_whatever_the_input_holds():
    error = InputError("bad 'a\nb\u2028c\u0085d\te'", file="x\ny.txt", remedy="re\r\nmove it")
    assert str(error) == "x y.txt: bad 'a b c d e'; re move it"
    assert len(str(error).splitlines()) == 1


def test_survives_pickling():
    error = pickle.loads(pickle.dumps(InputError("bad", file="f", line=2, remedy="mend")))
    assert (str(error), error.line) == ("f:2: bad; mend", 2)
