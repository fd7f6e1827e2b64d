"""The estimate before a run: it grows with what there is to do, and counts what is computed."""

import re
from dataclasses import replace

import numpy as np

from bridgex_jax import runtime
from bridgex_jax.data.corpora import Corpus
from bridgex_jax.data.dictionaries import Dictionary, WordPair
from bridgex_jax.pipelines.console import Console
from bridgex_jax.pipelines.estimate import estimate_select
from bridgex_jax.pipelines.select import Probe, Request, SelectSettings, read_probes

PAIRS = tuple(WordPair(f"kata{n}", f"מילה{n}") for n in range(300))
WORDS = Dictionary("id", "he", PAIRS, {}, ("d",), "0")
CORPORA = {code: Corpus(code, ("x" * 300,) * 50, {}, "0", "c") for code in ("id", "he", "en")}
REQUEST = Request("id", "he", ("en",), WORDS, CORPORA)


def tokens(model, settings, counts=None):
    line = estimate_select(model, REQUEST, settings, counts)
    assert "\n" not in line and "TFLOP" in line and "probe values" in line
    found = re.search(r"([\d,]+) tokens", line)
    assert found
    return int(found[1].replace(",", ""))


def test_the_estimate_counts_corpora_probes_and_the_filter(tiny_model):
    settings = SelectSettings(words=100, probe_filter="none")
    corpora = 3 * 50 * 300 // 3
    assert tokens(tiny_model, settings) == corpora + 100 * 16
    assert tokens(tiny_model, settings, counts={}) == 100 * 16
    assert tokens(tiny_model, replace(settings, words=200)) == corpora + 200 * 16
    assert tokens(tiny_model, replace(settings, probe_filter="correct")) > tokens(
        tiny_model, settings
    )


def test_length_control_sees_the_prompt_s_length_in_every_token_scope(tiny_model):
    probe = Probe("id", "he", ("a", "bb" * 9, "ccc"), {})
    neurons = [np.arange(3)] * tiny_model.config.n_layers
    found = []
    for scope in ("from_word_mean", "last_token", "prompt_mean"):
        settings = SelectSettings(token_scope=scope)
        (values,) = read_probes(
            tiny_model, [probe], neurons, settings, runtime.one_device(), Console(quiet=True)
        )
        found.append(values.strata)
    assert len(set(found[0])) > 1
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)
