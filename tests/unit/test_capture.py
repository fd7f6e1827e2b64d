"""Capture against whole activations: counts exact, sums and means within float32 rounding."""

import jax
import numpy as np
import pytest

from bridgex_jax import runtime
from bridgex_jax.activations.run import count_activations, probe_values
from bridgex_jax.data.batching import bucketed, encode_prompts, pack_lines
from bridgex_jax.data.prompts import word_prompt
from bridgex_jax.models import forward

LINES = [f"Zeile {n} mit {n * n} Wörtern" for n in range(80)]


@pytest.fixture(scope="module")
def rows(tiny_model):
    return pack_lines(tiny_model.tokenizer, LINES, 48)


@pytest.fixture(scope="module")
def encoded(tiny_model):
    prompts = [word_prompt("de", "en", "w" * (1 + n % 7) + str(n)) for n in range(20)]
    return encode_prompts(tiny_model.tokenizer, prompts, "from_word_mean")


def whole(model, item, site="mlp_gate_act"):
    tokens = np.array([item.ids], np.int32)
    _, taps = forward(model, tokens, np.ones(tokens.shape, bool), taps=(site,))
    return np.asarray(taps[site], np.float64)[:, 0][:, np.array(item.scope)]  # L T F


def test_counts_are_those_of_the_whole_activations(tiny_model, rows):
    found = count_activations(tiny_model, bucketed(rows, 4), runtime.one_device())
    reference = [whole(tiny_model, row) for row in rows]
    # Another batch shape may flip the sign of a value within rounding of 0, and no other.
    before = [whole(tiny_model, row, "mlp_pre") for row in rows]
    nearly_zero = sum(
        (np.abs(a) <= 64 * np.finfo(np.float32).eps * np.abs(a).max(2, keepdims=True)).sum(1)
        for a in before
    )
    flips = np.abs(found.positive - sum((a > 0).sum(1) for a in reference))
    assert (flips <= nearly_zero).all() and flips.sum() <= 4
    total, scale = (sum(f(a).sum(1) for a in reference) for f in (np.asarray, np.abs))
    # 8 eps: the longest chain of float32 additions is one batch, then the sums are compensated.
    assert (np.abs(found.total - total) <= 8 * np.finfo(np.float32).eps * scale).all()
    assert found.tokens == sum(sum(row.scope) for row in rows)


def test_counts_do_not_depend_on_order_or_grouping_of_batches(tiny_model, rows):
    mesh = runtime.one_device()
    batches = list(bucketed(rows, 4))
    at_once = count_activations(tiny_model, batches, mesh)
    backwards = count_activations(tiny_model, batches[::-1], mesh)
    parts = [count_activations(tiny_model, batches[i::3], mesh) for i in range(3)]
    merged = parts[0] + parts[1] + parts[2]
    for other in (backwards, merged):
        np.testing.assert_array_equal(at_once.positive, other.positive)
        assert at_once.tokens == other.tokens


@pytest.mark.parametrize("site", ["mlp_gate_act", "mlp_act", "mlp_pre"])
def test_probe_values_are_means_over_the_tokens_in_scope(tiny_model, encoded, site):
    rng = np.random.default_rng(0)
    neurons = [np.sort(rng.choice(64, n, replace=False)) for n in (5, 0, 17, 1)]
    mesh = runtime.one_device()
    values = probe_values(tiny_model, bucketed(encoded, 8), 20, neurons, mesh, site=site)
    assert [v.shape for v in values] == [(len(n), 20) for n in neurons]
    for word, item in enumerate(encoded):
        reference = whole(tiny_model, item, site).mean(1)
        scale = np.abs(whole(tiny_model, item, site)).max()
        for layer, chosen in enumerate(neurons):
            error = np.abs(values[layer][:, word] - reference[layer][chosen])
            assert (error <= 64 * np.finfo(np.float32).eps * scale).all()


def test_no_array_of_layers_by_neurons_by_words_is_made(tiny_model, encoded):
    from bridgex_jax.activations.reducers import CountPositive
    from bridgex_jax.activations.run import _count_step, _Running, put_batch

    batch = next(iter(bucketed(encoded, 16)))
    shape = (tiny_model.config.n_layers, tiny_model.config.d_ff)
    zeros = _Running(*(np.zeros(shape, t) for t in (np.int32, np.float32, np.float32)))
    args = (*put_batch(batch, runtime.one_device()), zeros, CountPositive())
    jaxpr = str(jax.make_jaxpr(lambda m, *a: _count_step(m, *a, CountPositive()))(
        tiny_model, *args[:-1]))  # fmt: skip
    rows, length = batch.tokens.shape
    layers, neurons = shape
    assert f"f32[{rows},{length},{neurons}]" in jaxpr  # one layer at a time
    assert f"[{layers},{rows},{length},{neurons}]" not in jaxpr
