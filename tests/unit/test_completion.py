"""Completions: each distinct prompt once, cut at the line's end, the same in one round or two."""

import pytest

from bridgex_jax import runtime
from bridgex_jax.icl import completion


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


def test_no_prompts_give_no_answers(tiny_model, mesh):
    assert completion.complete(tiny_model, [], mesh, batch_size=4) == []
