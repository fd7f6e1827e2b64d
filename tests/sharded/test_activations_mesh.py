"""Activations on a mesh: the same numbers, and every process writes what its devices hold."""

import json
import os
import socket
import subprocess
import sys

from bridgex_jax.activations.examples import TokenMean
from bridgex_jax.pipelines.capture import run_capture
from bridgex_jax.pipelines.capture_settings import CaptureSettings, line_text
from bridgex_jax.pipelines.console import Console
from bridgex_jax.store.named_arrays import ZarrReader

OBSERVE = """
import logging, sys
import jax, numpy as np
from bridgex_jax import runtime
from bridgex_jax.activations import observe as module
from bridgex_jax.activations.examples import Full, LastToken, TokenMean
from bridgex_jax.activations.observe import InMemory, observe
from bridgex_jax.activations.statistics import Count, Histogram, Sum, SumOfSquares
from bridgex_jax.data.batching import Encoded
from bridgex_jax.data.trees import tree_batches
from bridgex_jax.models import forward
from bridgex_jax.models.load import load_model

rng = np.random.default_rng(0)
encoded = [Encoded(tuple(rng.integers(2, 300, n)), (True,) * n) for n in rng.integers(3, 60, 60)]
counts = np.array([len(item.ids) for item in encoded])
reducers = {
    "count": Count(), "sum": Sum("z"), "squares": SumOfSquares("resid_post"),
    "bins": Histogram("mlp_act", 16, -2, 2), "mean": TokenMean("mlp_pre_linear"),
    "last": LastToken("final_norm"), "full": Full("mlp_act", layers=(0, 2)),
    "few": TokenMean("mlp_act", layers=(1,), neurons=((3, 60),)),
}
compiled = []
for name in ("dispatch", "interpreters.pxla"):
    logger = logging.getLogger("jax._src." + name)
    logger.addFilter(lambda record: compiled.append(record.getMessage()) or False)
first = None
for shape in (None, "data=8", "data=2,fsdp=1,tensor=4", "fsdp=2,tensor=4"):
    model = load_model(sys.argv[1], mesh=shape and runtime.make_mesh(shape), quiet=True)
    sink = InMemory(len(encoded), counts)
    compiled.clear()
    with jax.transfer_guard("disallow"), jax.log_compiles():
        found = observe(model, tree_batches(encoded, 20, 8), reducers, sink=sink)
    assert sum("Compiling jit(_step)" in text for text in compiled) == 1
    first = first or (found, sink)
    flips = np.abs(found.statistics["count"] - first[0].statistics["count"]).sum()
    moved = np.abs(found.statistics["bins"] - first[0].statistics["bins"]).sum() // 2
    assert flips <= 4 and moved <= 8, (flips, moved)
    for name in ("sum", "squares"):
        a, b = (f.statistics[name] for f in (found, first[0]))
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5 * np.abs(b).max())
    for name, values in sink.values.items():
        b = first[1].values[name]
        np.testing.assert_allclose(values, b, rtol=1e-4, atol=2e-5 * np.abs(b).max())
    print(shape, int(flips), "flips", int(moved), "moved")

model = load_model(sys.argv[1], mesh=runtime.make_mesh("data=2,tensor=4"), quiet=True)
plan, chosen = module._plan(model, reducers, model.mesh, "float32")
for name, split in (("count", 16), ("bins", 16), ("sum", 1), ("squares", 32)):
    leaf = jax.tree.leaves(plan.start()[name])[0]
    assert leaf.addressable_shards[0].data.shape[1] == split, (name, leaf.sharding)
print("ok")
"""

WRITE = """
import sys
from pathlib import Path
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from bridgex_jax.store.named_arrays import NamedArray, ZarrWriter

if len(sys.argv) > 2:
    jax.distributed.initialize(sys.argv[2], num_processes=2, process_id=int(sys.argv[3]))
kinds = (jax.sharding.AxisType.Auto,) * 2
mesh = jax.make_mesh((2, jax.device_count() // 2), ("data", "tensor"), kinds)
values = np.arange(2 * 24 * 16, dtype=np.float32).reshape(2, 24, 16)
arrays = [NamedArray(n, {"layer": 2, "token": 24, "neuron": 16}, values.dtype) for n in "abc"]
writer = ZarrWriter(Path(sys.argv[1]), arrays, {})
written = np.zeros((2, 24, 16), int)
specs = {"a": (None, "data", "tensor"), "b": (None, None, "tensor"), "c": ()}
for name, spec in specs.items():
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    array = jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])
    written[:] = 0
    for region in writer.write(name, (0, 0, 0), array):
        written[region] += 1
    assert written.max() <= 1
    print(name, int(written.sum()))
"""


READ = """
import sys
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from bridgex_jax.store.activations import open_activations
from bridgex_jax.store.named_arrays import ZarrReader

found = open_activations(sys.argv[1])
whole, sizes, read = found.numpy("x_token_mean"), [], ZarrReader.read

def counted(*args):
    values = read(*args)
    sizes.append(values.size)
    return values

ZarrReader.read = counted
mesh = jax.make_mesh((2, 4), ("data", "tensor"), (jax.sharding.AxisType.Auto,) * 2)
sharding = NamedSharding(mesh, PartitionSpec(None, "data", "tensor"))
array = found.jax("x_token_mean", sharding)
assert sizes == [whole.size // 8] * 8, sizes
np.testing.assert_array_equal(array, whole)
"""


def start(program, devices, *arguments):
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=os.environ | {"XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return out.splitlines()


def test_observations_are_the_same_on_any_mesh_and_stay_split(tiny_directory):
    assert finish(start(OBSERVE, 8, tiny_directory))[-1] == "ok"


def test_every_device_reads_its_part_of_an_array(tiny_model, tmp_path):
    text = line_text("de", [f"Zeile {n}" for n in range(8)], "0", "de.txt")
    settings = CaptureSettings({"x_token_mean": TokenMean()})
    run_capture(tiny_model, [text], settings, tmp_path / "run", Console(quiet=True))
    finish(start(READ, 8, tmp_path / "run"))


def read_all(directory):
    metadata = {n: json.loads((directory / n / "zarr.json").read_text()) for n in "abc"}
    group = {"attributes": {}, "consolidated_metadata": {"metadata": metadata}}
    reader = ZarrReader(directory, group)
    return {n: reader.read(n, [slice(None)] * 3) for n in "abc"}


def assert_whole(directory):
    for found in read_all(directory).values():
        assert (found.ravel() == range(found.size)).all()


def test_shards_are_written_once_each_and_make_the_whole_array(tmp_path):
    size = 2 * 24 * 16
    assert finish(start(WRITE, 8, tmp_path)) == [f"{n} {size}" for n in "abc"]
    assert_whole(tmp_path)


def test_two_processes_write_what_they_hold_and_no_element_twice(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    both = [finish(p) for p in [start(WRITE, 4, tmp_path, address, rank) for rank in (0, 1)]]
    size = 2 * 24 * 16
    for lines in zip(*both, strict=True):
        assert sum(int(line.split()[1]) for line in lines) == size
    assert_whole(tmp_path)
