"""Nothing goes between host and device in the loops unless it is put there or fetched by name."""

import jax
import numpy as np
import pytest

from bridgex_jax.activations.run import count_activations, probe_prompts
from bridgex_jax.data.batching import bucketed, encode_prompts, pack_lines
from bridgex_jax.data.prompts import word_prompt
from bridgex_jax.icl.completion import complete
from bridgex_jax.icl.likelihood import score_continuations

PROMPTS = [word_prompt("de", "en", f"wort{n}") for n in range(20)]
TEXTS = [prompt.text for prompt in PROMPTS]


def count(model):
    rows = pack_lines(model.tokenizer, [f"Zeile {n}" for n in range(60)], 32)
    return count_activations(model, bucketed(rows, 4), model.mesh).positive


def probe(model):
    encoded = encode_prompts(model.tokenizer, PROMPTS, "from_word_mean")
    neurons = [np.arange(5)] * model.config.n_layers
    return probe_prompts(model, encoded, neurons, model.mesh)


def answer(model):
    return complete(model, TEXTS, model.mesh, batch_size=8, max_new_tokens=5)


def score(model):
    return score_continuations(model, TEXTS, ['"a"'] * 20, model.mesh, batch_size=8)


@pytest.mark.parametrize("job", [count, probe, answer, score])
def test_no_array_crosses_the_bus_unasked(tiny_model, job):
    with jax.transfer_guard("disallow"):
        job(tiny_model)
