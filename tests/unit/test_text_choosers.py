"""Choosers that look at text: tokens in common, hidden states of parallel lines."""

import jax.numpy as jnp
import numpy as np
import pytest

from bridgex_jax.data.corpora import Corpus
from bridgex_jax.errors import InputError
from bridgex_jax.models import forward
from bridgex_jax.pipelines.text_choosers import sentence_means, text_choosers, token_counts


def corpus(code, n=20):
    lines = tuple(f"{code} {i} und {i * i} {code * (i % 3)}" for i in range(n))
    return Corpus(code, lines, {}, "0", f"{code}.txt")


def choose(model, corpora, parallel=None, part=lambda name, compute: compute()):
    return text_choosers(
        model, corpora, "id", "he", ["en", "de"], parallel=parallel, batch_size=8,
        mesh=model.mesh, part=part,
    )  # fmt: skip


CODES = ("id", "he", "en", "de")


def test_every_line_has_the_mean_of_a_forward_pass_over_it(tiny_model):
    lines = corpus("de").lines[:6]
    found = sentence_means(tiny_model, lines, 4, tiny_model.mesh)
    middle = tiny_model.config.n_layers // 2
    for i, line in enumerate(lines):
        ids = jnp.array([tiny_model.tokenizer(line)["input_ids"]], jnp.int32)
        _, taps = forward(tiny_model, ids, jnp.ones(ids.shape, bool), taps=("resid_post",))
        ordinary = np.asarray(taps["resid_post"][middle, 0])[1:]  # without BOS
        np.testing.assert_allclose(found[i], ordinary.mean(0), rtol=1e-4, atol=1e-5)


def test_tokens_are_counted_without_special_ones(tiny_model):
    counts = token_counts(tiny_model, {"de": corpus("de")})["de"]
    ids = [i for line in corpus("de").lines for i in tiny_model.tokenizer(line)["input_ids"]]
    assert counts.sum() == len(ids) - len(corpus("de").lines)
    assert counts[tiny_model.tokenizer.bos_token_id] == 0


def test_a_language_that_says_the_same_is_closest(tiny_model):
    corpora = {code: corpus(code) for code in CODES}
    corpora["de"] = Corpus("de", corpora["id"].lines, {}, "0", "de.txt")
    corpora["he"] = corpora["de"]
    scores = choose(tiny_model, corpora, parallel=16)
    assert set(scores) == {"tokenizer", "embedding", "cka"}
    for of_bridges in scores.values():
        assert of_bridges["de"] > of_bridges["en"]
    assert scores["cka"]["de"] == pytest.approx(1, abs=1e-6)


def test_text_that_is_not_parallel_is_refused(tiny_model):
    corpora = {code: corpus(code, 20 + (code == "en")) for code in CODES}
    assert set(choose(tiny_model, corpora)) == {"tokenizer"}
    with pytest.raises(InputError, match="different numbers of lines"):
        choose(tiny_model, corpora, parallel=16)
    with pytest.raises(InputError, match="12 lines are too few"):
        choose(tiny_model, {code: corpus(code) for code in CODES}, parallel=12)


def test_hidden_states_are_kept_language_by_language(tiny_model):
    kept = []
    choose(
        tiny_model, {code: corpus(code) for code in CODES}, parallel=16,
        part=lambda name, compute: (kept.append(name), compute())[1],
    )  # fmt: skip
    assert kept == [f"hidden-{code}" for code in CODES]
