"""Counting languages: equal budgets, whichever corpus turns out to be the smallest."""

import numpy as np
import pytest

from bridgex_jax.data.corpora import Corpus
from bridgex_jax.errors import InputError
from bridgex_jax.pipelines.console import Console
from bridgex_jax.pipelines.count import CountSettings, count_languages


def corpus(code, text, n):
    return Corpus(code, tuple(f"{text} {i}" for i in range(n)), {}, code, f"{code}.txt")


# Fewer characters than the English text, and more bytes, of which the tokenizer makes its tokens.
TEXTS = {"en": corpus("en", "zqj", 120), "he": corpus("he", "שלום עולם", 50)}


def count(model, texts, tokens=None, parts=None):
    settings = CountSettings(tokens, row_length=32)

    def part(name, compute):
        if parts is not None:
            parts.append(name)
        return compute()

    return count_languages(model, texts, settings, model.mesh, Console(quiet=True), part)


def test_the_smallest_corpus_in_tokens_is_the_budget_of_all(tiny_model):
    names = []
    found = count(tiny_model, TEXTS, parts=names)
    assert list(found) == ["en", "he"]
    n_tokens = {code: counts.n_tokens for code, counts in found.items()}
    assert len(set(n_tokens.values())) == 1
    # Hebrew was counted first, with too large a budget, and then again.
    assert [name.split("-")[1] for name in names] == ["he", "en", "he"]
    rows = n_tokens["en"] // 31
    again = count(tiny_model, TEXTS, tokens=32 * rows)
    for code in TEXTS:
        np.testing.assert_array_equal(found[code].halves, again[code].halves)


def test_a_corpus_that_is_too_short_is_named(tiny_model):
    texts = TEXTS | {"de": corpus("de", "kurz", 1)}
    with pytest.raises(InputError, match="corpus of de has fewer than two rows"):
        count(tiny_model, texts)
