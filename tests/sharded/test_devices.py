"""The same numbers on 1, 2, 4 and 8 devices (virtual ones, in a process of their own)."""

import os
import socket
import subprocess
import sys

import pytest

PROGRAM = """
import sys
import jax, numpy as np
from bridgex_jax import runtime
from bridgex_jax.activations.run import count_activations, probe_values
from bridgex_jax.data.batching import bucketed, encode_prompts, pack_lines
from bridgex_jax.data.prompts import word_prompt
from bridgex_jax.icl.completion import complete
from bridgex_jax.models.load import load_model

model = load_model(sys.argv[1], quiet=True)
rows = pack_lines(model.tokenizer, [f"Zeile {n}" for n in range(300)], 32)[:32]
prompts = [word_prompt("de", "en", f"wort{n}") for n in range(32)]
encoded = encode_prompts(model.tokenizer, prompts, "from_word_mean")
neurons = [np.arange(9), np.arange(4), np.arange(30), np.arange(1)]
for n in (1, 2, 4, 8):
    mesh = jax.make_mesh((n,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:n])
    counts = count_activations(model, bucketed(rows, 8), mesh)
    values = probe_values(model, bucketed(encoded, 8), 32, neurons, mesh)
    answers = complete(model, [p.text for p in prompts], mesh, batch_size=16, max_new_tokens=12)
    if n == 1:
        first = counts, values, answers
    assert answers == first[2]
    flips = np.abs(counts.positive - first[0].positive)
    assert flips.sum() <= 4, flips.sum()
    np.testing.assert_allclose(counts.total, first[0].total, rtol=1e-5, atol=1e-4)
    for a, b in zip(values, first[1]):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    print(n, "devices", int(flips.sum()), "flips")
"""


SPECTRUM = """
import os, sys
import jax, numpy as np
if len(sys.argv) > 2:
    jax.distributed.initialize(sys.argv[2], num_processes=2, process_id=int(sys.argv[3]))
from bridgex_jax.bridge.spectrum import ProbedPair, ProbeValues, SpectrumSettings, score_pairs

def pair(seed, n_words):
    random = np.random.default_rng(seed)
    sizes = random.integers(5, 30, 4)
    ids = np.repeat(np.arange(4), sizes)
    sets = [np.tile(ids == k, (3, 1)) for k in range(4)]
    sets[1][2] = False  # a missing layer
    values = list(random.standard_normal((3, len(ids), n_words)))
    probe = ProbeValues(values, [np.arange(len(ids))] * 3, random.integers(3, 6, n_words))
    return ProbedPair(probe, sets[0], {"en": sets[1], "de": sets[2], "fr": sets[3]})

pairs = [pair(seed, n) for seed, n in enumerate((270, 264, 301))]
here = jax.process_count() == 1
shapes = [(2, 1), (1, 2), (2, 2), (8, 1), (2, 4)] if here else [(2, 2), (4, 1)]
for compat in (None, "reference"):
    settings = SpectrumSettings(compat=compat)
    alone = score_pairs(pairs, settings)
    for shape in shapes:
        kinds = (jax.sharding.AxisType.Auto,) * 2
        devices = jax.devices()[: shape[0] * shape[1]]
        mesh = jax.make_mesh(shape, ("pairs", "words"), kinds, devices=devices)
        for found, first in zip(score_pairs(pairs, settings, mesh), alone):
            np.testing.assert_allclose(
                found.spectrum.score, first.spectrum.score, rtol=2e-5, atol=2e-6
            )
            assert np.isnan(found.spectrum.score[0, 2])
    print(compat, len(jax.devices()), "devices")
"""


def run_here(program, devices, *arguments):
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-c", program, "-", *arguments],
        env=os.environ | {"XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_spectrum_is_the_same_on_any_mesh():
    out, err = (process := run_here(SPECTRUM, 8)).communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    assert out.splitlines()[-1] == "reference 8 devices"


def test_the_spectrum_is_the_same_on_two_processes_of_two_devices():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    both = [run_here(SPECTRUM, 2, address, str(rank)) for rank in (0, 1)]
    for process in both:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err[-3000:]
        assert out.splitlines()[-1] == "reference 4 devices"


@pytest.mark.parametrize("devices", [8])
def test_counts_values_and_answers_do_not_depend_on_the_number_of_devices(tiny_directory, devices):
    env = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tiny_directory)],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1].startswith("8 devices")
