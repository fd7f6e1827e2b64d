"""Token scopes by character offsets, buckets of one shape, packed rows."""

import numpy as np
import pytest

from bridgex_jax.data.batching import bucketed, encode_prompts, pack_lines
from bridgex_jax.data.prompts import word_prompt
from bridgex_jax.errors import InputError

PROMPT = word_prompt("de", "en", "Haus")  # Deutsch:"Haus"→English:


def in_scope(tokenizer, scope):
    item = encode_prompts(tokenizer, [PROMPT], scope)[0]
    kept = [i for i, counts in zip(item.ids, item.scope, strict=True) if counts]
    return tokenizer.decode(kept)


def test_scopes_cover_the_text_that_they_name(tiny_model):
    tokenizer = tiny_model.tokenizer
    assert in_scope(tokenizer, "word_tokens") == "Haus"
    assert in_scope(tokenizer, "from_word_mean") == 'Haus"→English:'
    assert in_scope(tokenizer, "prompt_mean") == PROMPT.text
    assert in_scope(tokenizer, "last_token") == ":"


def test_the_first_token_is_never_in_scope(tiny_model):
    item = encode_prompts(tiny_model.tokenizer, [PROMPT], "prompt_mean")[0]
    assert item.ids[0] == tiny_model.tokenizer.bos_token_id and not item.scope[0]


def test_every_row_comes_back_once_whatever_the_batch_size(tiny_model):
    words = ["a" * n for n in range(1, 40)]
    prompts = [word_prompt("de", "en", word) for word in words]
    encoded = encode_prompts(tiny_model.tokenizer, prompts, "word_tokens")
    for size in (1, 4, 64):
        batches = list(bucketed(encoded, size))
        rows = np.concatenate([batch.index for batch in batches])
        assert sorted(rows[rows >= 0]) == list(range(len(words)))
        for batch in batches:
            assert len(batch.tokens) <= size
            for row, index in enumerate(batch.index):
                ids = encoded[index].ids if index >= 0 else ()
                assert tuple(batch.tokens[row][batch.mask[row]]) == ids
                assert not (batch.scope[row] & ~batch.mask[row]).any()


def test_a_bucket_has_one_shape(tiny_model):
    prompts = [word_prompt("de", "en", "a" * (1 + n % 9)) for n in range(50)]
    encoded = encode_prompts(tiny_model.tokenizer, prompts, "word_tokens")
    shapes = {}
    for batch in bucketed(encoded, 8):
        shapes.setdefault(batch.tokens.shape[1], set()).add(batch.tokens.shape)
    assert all(len(of_length) == 1 for of_length in shapes.values())


def test_packed_rows_hold_the_text_in_order_and_drop_the_remainder(tiny_model):
    tokenizer = tiny_model.tokenizer
    lines = [f"line {n}" for n in range(60)]
    rows = pack_lines(tokenizer, lines, 32)
    text = "".join(tokenizer.decode(row.ids[1:]) for row in rows)
    whole = "\n".join(lines) + "\n"
    assert whole.startswith(text) and 0 < len(whole) - len(text) < 3 * 32
    assert all(row.ids[0] == tokenizer.bos_token_id and not row.scope[0] for row in rows)
    assert all(sum(row.scope) == 31 for row in rows)


def test_an_unknown_scope_is_no_other_scope(tiny_model):
    with pytest.raises(ValueError, match="scope is 'prompt'"):
        encode_prompts(tiny_model.tokenizer, [PROMPT], "prompt")


def test_a_word_without_tokens_is_refused_by_name(tiny_model):
    prompt = word_prompt("de", "en", "x")
    empty = type(prompt)(prompt.text, prompt.start, prompt.start)
    with pytest.raises(InputError, match="gives no tokens"):
        encode_prompts(tiny_model.tokenizer, [empty], "word_tokens")
