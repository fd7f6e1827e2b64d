"""Prompts that share their beginnings: the same values as alone, with each token computed once."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from bridgex_jax import runtime
from bridgex_jax.activations.run import probe_prompts, probe_values
from bridgex_jax.data.batching import Encoded, bucketed, encode_prompts
from bridgex_jax.data.prompts import word_prompt
from bridgex_jax.data.trees import PROMPTS_PER_ROW, ROW_LENGTH, pack, tree_batches
from bridgex_jax.models.decoder import init_params
from bridgex_jax.models.load import Model

WORDS = ["rumah", "rumput", "rum", "nyumba", "nyumbani", "maji", "majira", "mtu", "watu"]
NEURONS = [np.array(chosen) for chosen in ([1, 5, 40], [], [63], [0, 2])]


def encode(model, scope="from_word_mean"):
    prompts = [word_prompt("sw", t, word) for word in WORDS for t in ("id", "he", "hu")]
    return encode_prompts(model.tokenizer, prompts, scope)


def alone(model, encoded):
    """Every prompt in a row of its own."""
    mesh = runtime.one_device()
    return probe_values(model, bucketed(encoded, 8, multiple=32), len(encoded), NEURONS, mesh)


def assert_same(found, expected):
    for ours, reference in zip(found, expected, strict=True):
        assert ours.shape == reference.shape
        scale = max(np.abs(layer).max(initial=0) for layer in expected)
        assert (np.abs(ours - reference) <= 64 * np.finfo(np.float32).eps * scale).all()


@pytest.mark.parametrize("scope", ["from_word_mean", "prompt_mean", "last_token"])
def test_values_are_those_of_prompts_in_rows_of_their_own(tiny_model, scope):
    encoded = encode(tiny_model, scope)
    found = probe_prompts(tiny_model, encoded, NEURONS, runtime.one_device(), batch_size=8)
    assert_same(found, alone(tiny_model, encoded))


def test_sliding_windows_count_tokens_of_the_prompt_not_of_the_row(tiny_model):
    config = replace(tiny_model.config, sliding_window=(None, 3, 5, 2))
    model = Model(config, init_params(config, jax.random.key(1)))
    encoded = encode(tiny_model)[:8]
    found = probe_prompts(model, encoded, NEURONS, runtime.one_device())
    assert_same(found, alone(model, encoded))


def test_order_and_repetition_of_prompts_do_not_change_a_value(tiny_model):
    encoded, mesh = encode(tiny_model), runtime.one_device()
    once = probe_prompts(tiny_model, encoded, NEURONS, mesh)
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(len(encoded)), 2))
    again = probe_prompts(tiny_model, [encoded[i] for i in order], NEURONS, mesh)
    assert_same(again, [layer[:, order] for layer in once])


def test_every_beginning_is_computed_once_a_row(tiny_model):
    encoded = encode(tiny_model) * 2
    for row in pack(encoded, ROW_LENGTH):
        prompts = [encoded[index].ids for index, _ in row.prompts]
        distinct = {ids[:n] for ids in prompts for n in range(1, len(ids) + 1)}
        assert len(row.tokens) == len(distinct) <= ROW_LENGTH
        assert len(row.prompts) <= PROMPTS_PER_ROW
        for index, path in row.prompts:
            assert tuple(row.tokens[slot] for slot in path) == encoded[index].ids


def test_every_prompt_is_in_one_batch_and_batches_have_one_shape(tiny_model):
    encoded = [*encode(tiny_model), Encoded(tuple(range(3, 203)), (True,) * 200)]
    for batch_size, n_devices in ((1, 1), (64, 1), (64, 4)):
        batches = list(tree_batches(encoded, batch_size, n_devices))
        index = np.concatenate([batch.index[batch.index >= 0] for batch in batches])
        assert sorted(index) == list(range(len(encoded)))
        assert len({batch.tokens.shape for batch in batches}) == 1
        assert batches[0].tokens.shape[0] % n_devices == 0


def test_one_program_serves_prompts_of_all_lengths(tiny_model):
    from bridgex_jax.activations.run import tree_step

    before = tree_step._cache_size()
    mesh = runtime.one_device()
    for n in (1, 9, 17):
        prompts = [word_prompt("sw", "id", "a" * n)]
        encoded = encode_prompts(tiny_model.tokenizer, prompts, "from_word_mean")
        probe_prompts(tiny_model, encoded, NEURONS, mesh)
    assert tree_step._cache_size() - before <= 1
