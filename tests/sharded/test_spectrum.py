"""The spectrum is the same on any mesh of 1 to 8 virtual devices, and on two processes."""

import os
import socket
import subprocess
import sys

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
