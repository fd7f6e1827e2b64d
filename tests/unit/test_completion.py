"""Completions: each distinct prompt once, cut at the line's end, the same however it is batched."""

import importlib

import jax
import numpy as np
import pytest

from bridgex_jax import runtime
from bridgex_jax.icl import completion
from bridgex_jax.models import generate

generating = importlib.import_module("bridgex_jax.models.generate")


@pytest.fixture(scope="module")
def mesh():
    return runtime.data_mesh()


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


def test_narrower_batches_and_shared_beginnings_change_no_token(tiny_model, mesh, narrow):
    found = completion.complete(tiny_model, PROMPTS, mesh, batch_size=8, max_new_tokens=20)
    for prompt, answer in zip(PROMPTS[:7], found, strict=False):
        ids = np.array([tiny_model.tokenizer(prompt)["input_ids"]], np.int32)
        whole = np.asarray(
            generate(tiny_model, ids, np.ones(ids.shape, bool), max_new_tokens=20, stop_ids=())
        )[0].tolist()
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
