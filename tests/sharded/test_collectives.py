"""What compiled steps exchange on a mesh: two sums a layer, one layer's weights; never a table."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import TINY

ROWS, LENGTH = 8, 64
MESHES = ("data=8", "data=4,tensor=2", "fsdp=8", "data=2,fsdp=2,tensor=2")
PROGRAM = f"""
import json, sys
from dataclasses import replace
from bridgex_jax import runtime
from bridgex_jax.pipelines import programs
from bridgex_jax.pipelines.plan.collectives import collectives
from tests.conftest import TINY

config = replace(TINY, vocab_size=4096, tie_embeddings=False)
found = {{}}
for shape in sys.argv[1:]:
    mesh = runtime.make_mesh(shape)
    model = programs.abstract_model(config, mesh, "float32")
    steps = {{
        "count": programs.lower_count(model, mesh, {ROWS}, {LENGTH}),
        "probe": programs.lower_probe(model, mesh, {ROWS}, 16),
        "decode": programs.lower_decode(model, mesh, {ROWS}, 32, 30),
    }}
    found[shape] = {{name: collectives(low.compile().as_text()) for name, low in steps.items()}}
print(json.dumps(found))
"""
TABLE = 4096 * TINY.d_model * 4  # bytes of the embedding, and of the output matrix
LAYER = (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64) * 4  # bytes of the products of a layer


@pytest.fixture(scope="module")
def exchanged():
    """By mesh and step the collectives: kind, bytes, group, times, op."""
    flags = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *MESHES],
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def in_layers(found):
    return [one for one in found if one[3] % TINY.n_layers == 0 and one[1] > 64]


def test_tensor_parallel_layers_sum_the_residual_stream_twice(exchanged):
    steps = exchanged["data=4,tensor=2"]
    residual = ROWS // 4 * LENGTH * TINY.d_model * 4
    sums = [one for one in in_layers(steps["count"]) if one[2] == 2]
    assert {one[0] for one in sums} == {"all-reduce"}
    assert sum(one[1] for one in sums) == 2 * residual
    for name, found in steps.items():
        assert all(size < TABLE // 2 for _, size, _, _, _ in found), name


def test_data_parallel_layers_exchange_counts_alone(exchanged):
    steps = exchanged["data=8"]
    counts = 2 * TINY.d_ff * 4
    assert sum(one[1] for one in in_layers(steps["count"])) <= counts
    assert not in_layers(steps["probe"])
    assert not in_layers(steps["decode"])


@pytest.mark.parametrize("mesh", ["fsdp=8", "data=2,fsdp=2,tensor=2"])
def test_fsdp_gathers_one_layer_at_a_time_and_no_table(exchanged, mesh):
    steps = exchanged[mesh]
    tensor = 2 if "tensor" in mesh else 1
    for name, found in steps.items():
        gathered = [one for one in found if one[0] == "all-gather"]
        assert all(size < TABLE // tensor for _, size, _, _, _ in gathered), name
        weights = [one for one in in_layers(gathered) if one[2] > 1]
        assert sum(one[1] for one in weights if one[3] == TINY.n_layers) <= LAYER // tensor + 4096
        outside = [one for one in gathered if one[3] == 1]
        assert sum(one[1] for one in outside) < LAYER * TINY.n_layers // tensor, name
