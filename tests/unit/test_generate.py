"""Generation with a cache: the tokens of a full forward pass at every step, on either padding."""

import numpy as np

from bridgex_jax.models import forward, generate

PROMPTS = [[0, 40, 41, 42, 43], [0, 99, 100], [0, 7, 8, 9, 10, 11, 12]]


def padded(side):
    length = max(map(len, PROMPTS))
    tokens, mask = np.zeros((3, length), np.int32), np.zeros((3, length), bool)
    for row, ids in enumerate(PROMPTS):
        at = slice(0, len(ids)) if side == "right" else slice(length - len(ids), length)
        tokens[row, at], mask[row, at] = ids, True
    return tokens, mask


def one_by_one(model, prompt, n):
    ids = list(prompt)
    for _ in range(n):
        tokens = np.array([ids], np.int32)
        logits, _ = forward(model, tokens, np.ones(tokens.shape, bool))
        ids.append(int(np.argmax(logits[0, -1])))
    return ids[len(prompt) :]


def test_the_cache_changes_no_token_on_either_padding(tiny_model):
    expected = [one_by_one(tiny_model, prompt, 9) for prompt in PROMPTS]
    for side in ("left", "right"):
        found = generate(tiny_model, *padded(side), max_new_tokens=9, stop_ids=())
        np.testing.assert_array_equal(np.asarray(found), expected)


def test_a_row_stops_at_its_first_stop_token_and_repeats_it(tiny_model):
    free = np.asarray(generate(tiny_model, *padded("left"), max_new_tokens=9, stop_ids=()))
    stop = int(free[0, 3])
    found = np.asarray(generate(tiny_model, *padded("left"), max_new_tokens=9, stop_ids=(stop,)))
    for row, whole in zip(found, free, strict=True):
        end = list(whole).index(stop) if stop in whole else len(whole)
        np.testing.assert_array_equal(row[: end + 1], whole[: end + 1])
        assert (row[end:] == stop).all()
