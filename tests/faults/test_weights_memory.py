"""Weights stream to their devices: the host never holds more than a shard beside them."""

import json
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from bridgex_jax.models.config import plain_llama
from bridgex_jax.models.weights import weight_table

CONFIG = plain_llama(
    vocab_size=4096,
    n_layers=12,
    d_model=768,
    d_ff=3072,
    n_heads=12,
    n_kv_heads=4,
    context=128,
    initializer_range=0.02,
    bos_token_id=0,
    eos_token_id=1,
)
# glibc would keep what was freed: with this it goes back to the system at once.
FREES = {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "0"}
PROGRAM = """
import sys
import jax, jax.numpy as jnp, orbax.checkpoint.experimental.v1
from bridgex_jax import runtime
from bridgex_jax.models import weights
from bridgex_jax.models.load import load_model

def memory(key):
    return 1024 * int(next(l for l in open("/proc/self/status") if l.startswith(key)).split()[1])

weights._AT_ONCE = 16 << 20
load_model(sys.argv[1], dtype="bfloat16", quiet=True)  # compiles
before = memory("VmRSS:")
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
model = load_model(sys.argv[1], dtype="bfloat16", quiet=True)
held = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
print(memory("VmHWM:") - before - held)
"""


def write_shards(directory, config, n_shards):
    """A model of zeros in so many shards; the size of the largest."""
    names = [(n, leaf) for leaf in weight_table(config) for n in leaf.names(config.n_layers)]
    directory.mkdir()
    places = {}
    for number in range(n_shards):
        file = f"model-{number:05d}.safetensors"
        part = names[number::n_shards]
        tensors = {name: np.zeros(leaf.stored, ml_dtypes.bfloat16) for name, leaf in part}
        save_file(tensors, directory / file)
        places |= dict.fromkeys(tensors, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (directory / "config.json").write_text(json.dumps(config.to_hf()))
    return max(file.stat().st_size for file in directory.glob("*.safetensors"))


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux")
def test_loading_holds_no_more_than_a_shard_beside_the_parameters(tmp_path):
    shard = write_shards(tmp_path / "model", CONFIG, 2)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "model")],
        env=os.environ | FREES,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) <= 1.1 * shard
