"""The same numbers on 1, 2, 4 and 8 devices (virtual ones, in a process of their own)."""

import os
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
    if n == 1:
        first = counts, values
    flips = np.abs(counts.positive - first[0].positive)
    assert flips.sum() <= 4, flips.sum()
    np.testing.assert_allclose(counts.total, first[0].total, rtol=1e-5, atol=1e-4)
    for a, b in zip(values, first[1]):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    print(n, "devices", int(flips.sum()), "flips")
"""


@pytest.mark.parametrize("devices", [8])
def test_counts_and_probe_values_do_not_depend_on_the_number_of_devices(tiny_directory, devices):
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
