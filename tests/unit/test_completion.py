"""Completions: each distinct prompt once, cut at the line's end, the same however it is batched."""

import importlib
import re

import jax
import numpy as np
import pytest

from bridgex_jax import runtime
from bridgex_jax.errors import InputError
from bridgex_jax.icl import completion
from bridgex_jax.models import generate
from bridgex_jax.models.stopping import stop_at_ids, stop_at_strings

NEVER = stop_at_ids((), 320)
generating = importlib.import_module("bridgex_jax.models.generate")


@pytest.fixture(scope="module")
def mesh():
    return runtime.one_device()


PROMPTS = [f'Deutsch:"wort{n % 7}"→English:' for n in range(12)]


def test_equal_prompts_have_equal_answers_and_no_answer_holds_a_line_end(tiny_model, mesh):
    answers = completion.complete(tiny_model, PROMPTS, mesh, batch_size=4, max_new_tokens=20)
    assert len(answers) == len(PROMPTS)
    assert answers[:5] == answers[7:]
    assert not any("\n" in answer for answer in answers)


def test_answers_do_not_depend_on_rounds_or_batch_size(tiny_model, mesh):
    once = completion.complete(tiny_model, PROMPTS, mesh, batch_size=16, max_new_tokens=20)
    assert once == completion.complete(tiny_model, PROMPTS, mesh, batch_size=16, max_new_tokens=20)
    assert once == completion.complete(tiny_model, PROMPTS, mesh, batch_size=2, max_new_tokens=20)


@pytest.fixture
def narrow(monkeypatch):
    """Batches that are halved down to one row and whose first room ends early."""
    monkeypatch.setattr(generating, "NARROWEST", 1)
    monkeypatch.setattr(generating, "FIRST_ROOM", 3)
    jax.clear_caches()
    yield
    jax.clear_caches()


def free(model, ids):
    """20 tokens, whatever they are."""
    found = generate(model, ids, np.ones(ids.shape, bool), max_new_tokens=20, stops=NEVER)
    return np.asarray(found.tokens)[0].tolist()


def test_narrower_batches_and_shared_beginnings_change_no_token(tiny_model, mesh, narrow):
    found = completion.complete(tiny_model, PROMPTS, mesh, batch_size=8, max_new_tokens=20)
    for prompt, answer in zip(PROMPTS[:7], found, strict=False):
        ids = np.array([tiny_model.tokenizer(prompt)["input_ids"]], np.int32)
        whole = free(tiny_model, ids)
        ends = [i for i, token in enumerate(whole) if token in tiny_model.line_end_ids]
        expected = whole[: ends[0]] if ends else whole
        assert answer == tiny_model.tokenizer.decode(expected, skip_special_tokens=True)


def test_an_answer_that_opens_with_a_quote_ends_with_the_next(
    tiny_model, mesh, narrow, monkeypatch
):
    """Any token may play the quote: the rule is about ids."""
    free = completion.complete_ids(tiny_model, encode(tiny_model), mesh, batch_size=4)
    opening = free[0][0]
    closing = free[0][4]
    monkeypatch.setitem(tiny_model.__dict__, "quote_ids", ((opening,), (opening, closing)))
    found = completion.complete_ids(tiny_model, encode(tiny_model), mesh, batch_size=4)
    assert found[0] != free[0]
    for ids, whole in zip(found, free, strict=True):
        ends = [i for i, t in enumerate(whole) if i and t in (opening, closing)]
        quoted = whole[:1] == [opening] and ends
        assert ids == (whole[: ends[0] + 1] if quoted else whole)


def encode(model):
    texts = list(dict.fromkeys(PROMPTS))
    return [
        completion.Encoded(tuple(ids), (False,) * len(ids))
        for ids in model.tokenizer(texts)["input_ids"]
    ]


def test_no_prompts_give_no_answers(tiny_model, mesh):
    assert completion.complete(tiny_model, [], mesh, batch_size=4) == []


def test_an_answer_is_cut_before_a_string_wherever_its_tokens_and_rounds_lie(
    tiny_model, mesh, narrow
):
    """Strings of three letters from the middle of what each prompt is answered with."""
    tokens, encoded = tiny_model.token_bytes, encode(tiny_model)
    free = completion.complete_ids(
        tiny_model, encoded, mesh, batch_size=8, max_new_tokens=20, stops=NEVER
    )
    texts = [b"".join(tokens[i] for i in ids) for ids in free]
    words = [re.search(rb"[A-Za-z]{3}", text[start:]) for start, text in enumerate(texts, 4)]
    strings = sorted({word[0].decode() for word in words if word})
    stops = stop_at_strings(strings, tokens)
    found = completion.complete(
        tiny_model, PROMPTS[:7], mesh, batch_size=8, max_new_tokens=20, stops=stops
    )
    expected = [re.split("|".join(strings).encode(), text)[0] for text in texts]
    assert found == [text.decode(errors="replace") for text in expected]
    assert len(strings) > 3 and len({len(text) for text in expected}) > 3


def test_a_prompt_too_long_for_its_answer_is_refused(tiny_model, mesh):
    with pytest.raises(InputError, match="context of 128"):
        completion.complete(tiny_model, ["x" * 120], mesh, batch_size=4, max_new_tokens=20)
