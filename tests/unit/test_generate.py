"""Generation with a cache: the tokens of full forward passes, drawn and read as they come."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridgex_jax.activations.reducers import CountPositive
from bridgex_jax.errors import InputError
from bridgex_jax.models import Model, forward, generate
from bridgex_jax.models.generate import check_room
from bridgex_jax.models.sampling import Sampling, row_keys, sample
from bridgex_jax.models.stopping import stop_at_ids

PROMPTS = [[0, 40, 41, 42, 43], [0, 99, 100], [0, 7, 8, 9, 10, 11, 12]]
NEVER = stop_at_ids((), 320)
F = 64


def padded(side="left", prompts=PROMPTS):
    length = max(map(len, prompts))
    tokens, mask = (
        np.zeros((len(prompts), length), np.int32),
        np.zeros((len(prompts), length), bool),
    )
    for row, ids in enumerate(prompts):
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


def answers(model, *arguments, n=9, stops=NEVER, **options):
    found = generate(model, *arguments, max_new_tokens=n, stops=stops, **options)
    return np.asarray(found.tokens)


def test_the_cache_changes_no_token_on_either_padding(tiny_model):
    expected = [one_by_one(tiny_model, prompt, 9) for prompt in PROMPTS]
    for side in ("left", "right"):
        np.testing.assert_array_equal(answers(tiny_model, *padded(side)), expected)


def test_a_row_stops_at_its_first_stop_token_and_repeats_it(tiny_model):
    free = answers(tiny_model, *padded())
    stop = int(free[0, 3])
    found = generate(tiny_model, *padded(), max_new_tokens=9, stops=stop_at_ids((stop,), 320))
    for row, n, whole in zip(np.asarray(found.tokens), found.n_tokens, free, strict=True):
        end = list(whole).index(stop) if stop in whole else len(whole) - 1
        assert n == end + 1
        np.testing.assert_array_equal(row[: end + 1], whole[: end + 1])
        assert (row[end:] == whole[end]).all()


def test_what_exceeds_the_context_is_refused_in_one_line(tiny_model):
    tokens, mask = padded()
    with pytest.raises(InputError, match=r"7 tokens and 122 new ones exceed .* context of 128"):
        generate(tiny_model, tokens, mask, max_new_tokens=122)
    config = tiny_model.config
    stretched = replace(config, rope=replace(config.rope, type="dynamic", factor=2.0))
    check_room(stretched, 7, 249)  # rescales beyond what it was trained on
    with pytest.raises(InputError):
        check_room(stretched, 7, 250)


# --- sampling ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cold", [Sampling(temperature=0.0), Sampling(temperature=1e-6), Sampling(2.0, top_k=1)]
)
def test_cold_draws_and_draws_among_one_are_greedy(tiny_model, cold):
    found = answers(tiny_model, *padded(), sampling=cold)
    np.testing.assert_array_equal(found, answers(tiny_model, *padded()))


def test_an_answer_depends_on_seed_and_number_but_not_on_its_batch(tiny_model):
    draw = Sampling(seed=3)
    together = answers(tiny_model, *padded(), sampling=draw, numbers=(5, 6, 7))
    turned = answers(tiny_model, *padded("right", PROMPTS[::-1]), sampling=draw, numbers=(7, 6, 5))
    np.testing.assert_array_equal(turned[::-1], together)
    alone = answers(tiny_model, *padded(prompts=PROMPTS[1:2]), sampling=draw, numbers=(6,))
    np.testing.assert_array_equal(alone[0], together[1])
    other = answers(tiny_model, *padded(), sampling=draw, numbers=(8, 9, 10))
    seed = answers(tiny_model, *padded(), sampling=replace(draw, seed=4), numbers=(5, 6, 7))
    assert (other != together).any() and (seed != together).any()


def reference_probabilities(logits, temperature, top_k, top_p):
    """Float64, token by token from the most probable on."""
    scaled = logits.astype(np.float64) / temperature
    p = np.exp(scaled - scaled.max())
    order = np.argsort(-p)
    if top_k is not None:
        p[order[top_k:]] = 0
    p /= p.sum()
    if top_p is not None:
        total, kept = 0.0, []
        for token in order:
            if total >= top_p:
                break
            kept.append(token)
            total += p[token]
        p = np.where(np.isin(np.arange(len(p)), kept), p, 0)
    return p / p.sum()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, None, None), (0.5, None, None), (1.5, 5, None), (1.0, None, 0.7), (0.8, 9, 0.6)],
)
def test_draws_have_the_probabilities_that_were_asked_for(temperature, top_k, top_p):
    logits = np.random.default_rng(0).normal(size=24).astype(np.float32) * 2
    expected = reference_probabilities(logits, temperature, top_k, top_p)
    n = 40_000
    keys = row_keys(1, jnp.arange(n, dtype=jnp.int32))
    rows = jnp.broadcast_to(jnp.asarray(logits), (n, 24))
    place, temperature = jnp.zeros((), jnp.int32), jnp.asarray(temperature, jnp.float32)
    drawn = np.asarray(sample(rows, keys, place, temperature, top_k, top_p))
    frequency = np.bincount(drawn, minlength=24) / n
    assert set(np.flatnonzero(frequency)) <= set(np.flatnonzero(expected))
    deviation = np.sqrt(expected * (1 - expected) / n)
    assert (np.abs(frequency - expected) <= 4.5 * deviation + 1e-9).all()


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"temperature": np.inf}, {"top_k": 0}, {"top_p": 0.0}]
)
def test_a_setting_out_of_range_is_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Sampling(**wrong)


# --- taps and edits ----------------------------------------------------------------------------


def whole_texts(prompts, found):
    return [
        [*prompt, *row[:n]]
        for prompt, row, n in zip(
            prompts, np.asarray(found.tokens).tolist(), found.n_tokens.tolist(), strict=True
        )
    ]


@pytest.mark.parametrize("side", ["left", "right"])
def test_counts_over_prompts_and_decoded_tokens_are_those_of_one_forward_pass(tiny_model, side):
    free = answers(tiny_model, *padded(side))
    stops = stop_at_ids((int(free[0, 3]), int(free[1, 5])), 320)
    found = generate(
        tiny_model, *padded(side), max_new_tokens=9, stops=stops, reduce=CountPositive()
    )
    assert len(set(found.n_tokens.tolist())) > 1  # rows end at different times
    tokens, mask = padded("right", whole_texts(PROMPTS, found))
    _, taps = forward(tiny_model, tokens, mask, taps=("mlp_gate_act",))
    values = np.asarray(taps["mlp_gate_act"], np.float64)[:, mask]  # [L, tokens, F]
    np.testing.assert_array_equal(found.taps.positive, (values > 0).sum(1))
    np.testing.assert_allclose(found.taps.total, values.sum(1), rtol=1e-4, atol=1e-4)


def last_value(taps, inputs, context):
    """The value at the last token that counts, and whether there is one; `inputs`: a neuron."""
    at = context.shape[1] - 1 - jnp.argmax(context[:, ::-1], axis=1)
    value = jnp.take_along_axis(taps["mlp_gate_act"], at[:, None, None], axis=1)[:, 0]
    return value[:, inputs], jnp.any(context, axis=1)


def later(first, second):
    return jnp.where(second[1], second[0], first[0]), first[1] | second[1]


def test_a_merge_that_keeps_the_last_value_ends_with_each_row(tiny_model):
    free = answers(tiny_model, *padded())
    stops = stop_at_ids((int(free[0, 3]),), 320)
    neurons = jnp.asarray([3, 5, 7, 9], jnp.int32)
    found = generate(
        tiny_model, *padded(), max_new_tokens=9, stops=stops, reduce=last_value, merge=later,
        layer_inputs=neurons,
    )  # fmt: skip
    for row, ids in enumerate(whole_texts(PROMPTS, found)):
        tokens = np.array([ids], np.int32)
        _, taps = forward(tiny_model, tokens, np.ones(tokens.shape, bool), taps=("mlp_gate_act",))
        expected = np.asarray(taps["mlp_gate_act"])[np.arange(4), 0, -1, np.asarray(neurons)]
        np.testing.assert_allclose(found.taps[0][:, row], expected, rtol=1e-4, atol=1e-5)


def zero_neurons(site, value, inputs, context):
    assert site == "mlp_gate_act"
    return jnp.where(inputs, 0, value)


def identity(site, value, inputs, context):
    return value


def test_zeroed_neurons_are_zeroed_weights_in_prompt_and_decoded_tokens(tiny_model):
    off = np.random.default_rng(0).random((4, F)) < 0.5
    layers = tiny_model.params["layers"]
    down = layers["down"]["kernel"] * jnp.asarray(~off, jnp.float32)[:, :, None]
    params = {**tiny_model.params, "layers": {**layers, "down": {"kernel": down}}}
    expected = answers(Model(tiny_model.config, params), *padded())
    found = answers(tiny_model, *padded(), edit=zero_neurons, layer_inputs=jnp.asarray(off))
    np.testing.assert_array_equal(found, expected)
    plain = answers(tiny_model, *padded())
    assert (plain != expected).any()
    np.testing.assert_array_equal(answers(tiny_model, *padded(), edit=identity), plain)


def test_an_edited_value_is_what_the_taps_see(tiny_model):
    found = generate(
        tiny_model, *padded(), max_new_tokens=4, stops=NEVER, edit=zero_neurons,
        layer_inputs=jnp.ones((4, F), bool), reduce=CountPositive(),
    )  # fmt: skip
    assert not np.asarray(found.taps.positive).any()


def test_another_rule_of_the_same_size_and_another_seed_compile_nothing(tiny_model):
    def run(stop, seed):
        stops = stop_at_ids((stop,), 320)
        generate(tiny_model, *padded(), max_new_tokens=3, stops=stops, sampling=Sampling(seed=seed))

    run(5, 0)
    with jax.log_compiles(False):
        before = compiled()
        run(6, 1)
        assert compiled() == before


def compiled():
    import importlib

    return importlib.import_module("bridgex_jax.models.generate")._generate._cache_size()
