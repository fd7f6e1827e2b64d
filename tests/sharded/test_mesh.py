"""A model split over data, fsdp and tensor axes gives the numbers of one device."""

import os
import socket
import subprocess
import sys

import jax
import pytest

from bridgex_jax import runtime
from bridgex_jax.errors import InputError
from bridgex_jax.models.sharding import make_layout
from tests.conftest import TINY

PROGRAM = """
import sys
import jax, numpy as np
if len(sys.argv) > 3:
    jax.distributed.initialize(sys.argv[3], num_processes=2, process_id=int(sys.argv[4]))
from bridgex_jax import runtime
from bridgex_jax.activations.run import count_activations, probe_prompts
from bridgex_jax.data.batching import bucketed, encode_prompts, pack_lines
from bridgex_jax.data.prompts import word_prompt
from bridgex_jax.icl.completion import complete
from bridgex_jax.models.forward import forward
from bridgex_jax.models.load import load_model

path, meshes = sys.argv[1], sys.argv[2].split(";")
alone = load_model(path, quiet=True)
rows = pack_lines(alone.tokenizer, [f"Zeile {n}" for n in range(300)], 32)[:32]
prompts = [word_prompt("de", "en", f"wort{n}") for n in range(32)]
texts = [prompt.text for prompt in prompts]
encoded = encode_prompts(alone.tokenizer, prompts, "from_word_mean")
neurons = [np.arange(9), np.arange(4), np.arange(30), np.arange(1)]
tokens = np.array([row.ids for row in rows[:8]])
mask = np.ones(tokens.shape, bool)
logits, taps = forward(alone, tokens, mask, ("mlp_pre", "resid_post"))
pre = np.asarray(taps["mlp_pre"])

def results(model):
    counts = count_activations(model, bucketed(rows, 8), model.mesh)
    values = probe_prompts(model, encoded, neurons, model.mesh, batch_size=16)
    answers = complete(model, texts, model.mesh, batch_size=16, max_new_tokens=9)
    return counts, values, answers

first = results(alone)
everything = np.array([row.ids for row in rows])
_, whole = forward(alone, everything, np.ones((32, 32), bool), ("mlp_pre", "mlp_in"))
gate = np.asarray(alone.params["layers"]["gate"]["kernel"])
for shape in meshes:
    model = load_model(path, mesh=runtime.make_mesh(shape), quiet=True)
    batch = runtime.put((tokens, mask), runtime.over_data(model.mesh, 8))
    found, sites = runtime.fetch(forward(model, *batch, ("mlp_pre", "resid_post")))
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-4)
    for site, value in taps.items():
        np.testing.assert_allclose(sites[site], value, rtol=1e-5, atol=1e-5 * np.abs(value).max())
    counts, values, answers = results(model)
    flips = np.argwhere(counts.positive != first[0].positive)
    for layer, neuron in flips:  # only where a pre-activation is within rounding of 0
        x = np.asarray(whole["mlp_in"][layer]).reshape(-1, gate.shape[1])
        scale = np.abs(x) @ np.abs(gate[layer, :, neuron])
        near = np.abs(np.asarray(whole["mlp_pre"][layer]).reshape(len(x), -1)[:, neuron])
        limit = 64 * np.finfo(np.float32).eps * scale
        changed = abs(int(counts.positive[layer, neuron]) - int(first[0].positive[layer, neuron]))
        assert (near <= limit).sum() >= changed
    np.testing.assert_allclose(counts.total, first[0].total, rtol=1e-5, atol=1e-4)
    for a, b in zip(values, first[1]):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert answers == first[2]
    leaf = model.params["layers"]["gate"]["kernel"]
    parts = model.mesh.shape["tensor"] * model.mesh.shape["fsdp"]
    assert leaf.addressable_shards[0].data.size * parts == leaf.size
    print(shape, len(flips), "flips", model.layout.attention)
print("done", len(jax.devices()))
"""


def start(devices, *arguments):
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=os.environ | {"XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    with process:
        out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err[-3000:]
    return out.splitlines()


@pytest.mark.parametrize(
    ("devices", "meshes"),
    [
        (2, "tensor=2;fsdp=2"),
        (8, "data=8;data=4,tensor=2;data=2,fsdp=2,tensor=2;data=2,tensor=4;fsdp=8"),
    ],
)
def test_logits_counts_values_and_answers_are_those_of_one_device(tiny_directory, devices, meshes):
    lines = finish(start(devices, str(tiny_directory), meshes))
    assert lines[-1] == f"done {devices}"
    assert len(lines) == 1 + len(meshes.split(";"))


def test_two_processes_give_the_numbers_of_one_device(tiny_directory):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    arguments = str(tiny_directory), "data=2,tensor=2;data=4;fsdp=2,tensor=2", address
    for process in [start(2, *arguments, str(rank)) for rank in (0, 1)]:
        assert finish(process)[-1] == "done 4"


@pytest.mark.parametrize(
    ("shape", "complaint"),
    [
        ("data=3", "needs 3 devices, there are"),
        ("tensor=x", "is no axis=size"),
        ("model=2", "is no axis=size"),
        ("data=1,data=1", "is no axis=size"),
        ("tensor=0", "is no axis=size"),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(shape, complaint):
    with pytest.raises(InputError, match=complaint):
        runtime.make_mesh(shape)


def test_a_mesh_that_does_not_divide_the_model_is_refused():
    with pytest.raises(InputError, match="does not divide the model's attention heads"):
        make_layout(TINY, jax.sharding.AbstractMesh((8,), ("tensor",)), "xla")
    with pytest.raises(InputError, match="does not divide the model's hidden size"):
        make_layout(TINY, jax.sharding.AbstractMesh((5,), ("fsdp",)), "xla")
