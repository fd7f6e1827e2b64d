"""Log-probabilities of continuations: those of full logits in float64, each prompt run once."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from bridgex_jax import runtime, score_continuations
from bridgex_jax.data.trees import row_arrays
from bridgex_jax.errors import InputError
from bridgex_jax.icl import likelihood
from bridgex_jax.models import Model, forward
from bridgex_jax.models.decoder import init_params
from tests.conftest import TINY

PROMPT = 'Deutsch:"wort"→English:'
PAIRS = [
    *((PROMPT, option) for option in (' "A"', ' "B"', " suomi kiswahili", " Indonesia")),
    ('Deutsch:"w"→suomi:', " a"),
    (PROMPT, ""),
    ("", "English"),
    *((f"{n}:", " Deutsch English") for n in range(40)),
]


@pytest.fixture(scope="module")
def mesh():
    return runtime.one_device()


def score(model, pairs, mesh, **options):
    return score_continuations(model, *zip(*pairs, strict=True), mesh, **options)


def log_prob(model, ids, n):
    """Of the last n tokens, from the logits of one text alone."""
    tokens = np.array([ids], np.int32)
    logits = np.asarray(forward(model, tokens, np.ones(tokens.shape, bool))[0], np.float64)[0]
    top = logits.max(-1, keepdims=True)
    log_p = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    return sum(log_p[i - 1, ids[i]] for i in range(len(ids) - n, len(ids)))


def test_log_probabilities_are_those_of_the_full_logits(tiny_model, mesh):
    found = score(tiny_model, PAIRS, mesh, batch_size=4)
    for (prompt, continuation), value, n in zip(PAIRS, *found, strict=True):
        before, ids = (
            tiny_model.tokenizer(t)["input_ids"] for t in (prompt, prompt + continuation)
        )
        assert ids[: len(before)] == before and n == len(ids) - len(before)
        assert value == pytest.approx(log_prob(tiny_model, ids, n), abs=1e-4 * max(1, n))
    assert found.n_tokens[5] == found.log_prob[5] == 0


def test_no_order_batch_or_chunk_changes_a_value(tiny_model, mesh, monkeypatch):
    whole = score(tiny_model, PAIRS, mesh)
    turned = score(tiny_model, PAIRS[::-1], mesh, batch_size=2)
    np.testing.assert_allclose(turned.log_prob[::-1], whole.log_prob, rtol=1e-5, atol=1e-4)
    monkeypatch.setattr(likelihood, "LOGITS_AT_ONCE", 1)
    jax.clear_caches()
    one = score(tiny_model, PAIRS, mesh)
    jax.clear_caches()
    np.testing.assert_allclose(one.log_prob, whole.log_prob, rtol=1e-5, atol=1e-4)


def test_continuations_of_one_prompt_share_it(tiny_model, mesh, monkeypatch):
    run = []

    def spy(rows, row_length):
        run.append(sum(len(row.tokens) for row in rows))
        return row_arrays(rows, row_length)

    monkeypatch.setattr(likelihood, "row_arrays", spy)
    score(tiny_model, PAIRS[:4], mesh)
    prompt, *texts = (
        tiny_model.tokenizer(text)["input_ids"] for text in (PROMPT, *(p + c for p, c in PAIRS[:4]))
    )
    assert sum(run) <= len(prompt) + sum(len(ids) - len(prompt) for ids in texts)


class Merging:
    """A tokenizer of characters that has a token for `:"`."""

    def __call__(self, texts, add_special_tokens=True):
        return {"input_ids": [[0, *map(ord, text.replace(':"', "\x7f"))] for text in texts]}


def test_a_token_across_the_boundary_counts_for_the_continuation(tiny_model, mesh):
    model = Model(tiny_model.config, tiny_model.params)
    model.__dict__["tokenizer"] = Merging()
    found = score(model, [("ab:", '"c'), ("ab", ':"c')], mesh)
    ids = [0, ord("a"), ord("b"), 0x7F, ord("c")]
    assert found.n_tokens.tolist() == [2, 2]
    np.testing.assert_allclose(found.log_prob, log_prob(model, ids, 2), rtol=1e-5)


def test_no_logits_of_all_tokens_are_in_memory():
    base = replace(TINY, vocab_size=60_000)
    params = jax.eval_shape(lambda: init_params(base, jax.random.key(0)))
    tokens = np.zeros((8, 128), np.int32)
    lowered = likelihood._log_probs.lower(
        Model(base, params), tokens, tokens, np.zeros((8, 128, 128), bool), tokens, tokens,
        np.zeros(8, np.int32), None,
    )  # fmt: skip
    temporary = lowered.compile().memory_analysis().temp_size_in_bytes
    assert temporary < 0.6 * 4 * tokens.size * base.vocab_size


def test_a_text_without_a_token_before_it_or_beyond_the_context_is_refused(tiny_model, mesh):
    model = Model(tiny_model.config, tiny_model.params)
    model.__dict__["tokenizer"] = lambda texts, add_special_tokens: {
        "input_ids": [[*map(ord, text)] for text in texts]
    }
    with pytest.raises(InputError, match="no token stands before"):
        score(model, [("", "a")], mesh)
    with pytest.raises(InputError, match="context of 128"):
        score(model, [("a", "b" * 128)], mesh)


def test_nothing_to_score_is_no_error(tiny_model, mesh):
    assert len(score_continuations(tiny_model, [], [], mesh).log_prob) == 0
