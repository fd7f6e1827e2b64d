"""Several processes of one command: what they write is one run, and none waits for a dead one."""

import json
import os
import re
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from bridgex_jax.data.corpora import read_corpus
from bridgex_jax.pipelines.console import Console
from bridgex_jax.pipelines.count import CountSettings, run_count
from bridgex_jax.store.activations import open_activations
from bridgex_jax.store.manifest import verify_run

# The command line with quicker signs of life, so that the test need not wait.
BRIDGEX = """
import sys
from bridgex_jax import cluster
cluster._EVERY, cluster._SILENCE = 0.5, 6.0
from bridgex_jax.cli.main import main
main()
"""


@pytest.fixture
def corpora(tmp_path):
    files = []
    for code in ("id", "en"):
        file = tmp_path / f"{code}.txt"
        file.write_text("".join(f"{code} {n} dan {n + 1}\n" for n in range(4000)))
        files.append(f"{code}={file}")
    return files


def start(n, *arguments):
    """The same command in n processes of two devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    together = ("--distributed", "--coordinator", address, "--num-processes", str(n))
    return [launch((*arguments, *together, "--process-id", str(i))) for i in range(n)]


def launch(arguments, env=None):
    """One process of the command, with two devices."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    return subprocess.Popen(
        [sys.executable, "-c", BRIDGEX, *map(str, arguments)],
        env=os.environ | flags | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(processes):
    """(status, standard output, standard error) of each; Gloo's own notices are left out."""
    found = []
    for process in processes:
        with process:
            out, err = process.communicate(timeout=240)
        # They are written piece by piece, so that those of two threads may be mixed.
        lines = out.splitlines(True)
        out = "".join(line for line in lines if not re.search(r"\[Gloo\]|peer ranks", line))
        found.append((process.returncode, out, err))
    return found


def test_two_processes_write_one_run_with_the_counts_of_one(tmp_path, tiny_model, corpora):
    options = ("count", tiny_model.source.path, "--corpus", *corpora, "--mesh", "data=2,tensor=2")
    out = tmp_path / "together"
    leader, follower = finish(start(2, *options, "--out", out))
    assert (leader[0], follower[0]) == (0, 0), leader[2][-2000:] + follower[2][-2000:]
    assert leader[1] == f"{out}\n"
    assert follower[1] == ""
    texts = {code: read_corpus(file, code) for code, file in (c.split("=") for c in corpora)}
    alone = run_count(tiny_model, texts, CountSettings(), tmp_path / "alone", Console(quiet=True))
    for code in texts:
        ours, theirs = (load_file(d / "counts" / f"{code}.safetensors") for d in (out, alone))
        assert np.abs(ours["halves"] - theirs["halves"]).sum() <= 8  # flips within rounding of 0
        np.testing.assert_allclose(ours["sums"], theirs["sums"], rtol=1e-5, atol=1e-3)


def test_each_of_two_processes_writes_its_layers_of_one_capture(tmp_path, tiny_model, corpora):
    sites = ("--site", "mlp_gate_act=count,token_mean,full", "--site", "final_norm=last_token")
    options = ("capture", tiny_model.source.path, "--corpus", *corpora, "--examples", 20, *sites,
               "--layers", "0-2")  # fmt: skip
    together, alone = tmp_path / "together", tmp_path / "alone"
    found = finish(start(2, *options, "--mesh", "data=2,tensor=2", "--out", together))
    assert [status for status, _, _ in found] == [0, 0], found[0][2][-2000:] + found[1][2][-2000:]
    ((status, _, err),) = finish([launch((*options, "--mesh", "data=2", "--out", alone))])
    assert status == 0, err[-2000:]
    ours, theirs = open_activations(together), open_activations(alone)
    assert ours.names == theirs.names
    for name in ours.names:
        a, b = ours.numpy(name), theirs.numpy(name)
        if a.dtype.kind == "i":
            assert np.abs(a - b).sum() <= 8  # flips within rounding of 0
        else:
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5 * np.abs(b).max())
    files = verify_run(together)["files"]
    assert len([n for n in files if n.startswith("activations.zarr/mlp_gate_act_full/c/")]) == 3


def test_slurm_tells_the_processes_of_each_other(tmp_path, tiny_model, corpora):
    first = 65535 - 2**12 + 1  # of the ports among which JAX takes one by the number of the job
    port = next(p for p in range(first, 65535) if is_free(p))
    step = {"SLURM_JOB_ID": str(port - first), "SLURM_STEP_NODELIST": "localhost",
            "SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "1"}  # fmt: skip
    out = tmp_path / "run"
    options = ("count", tiny_model.source.path, "--corpus", *corpora, "--out", out, "--distributed")
    both = [
        launch(options, step | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}) for i in (0, 1)
    ]
    assert [status for status, _, _ in finish(both)] == [0, 0]
    assert json.loads((out / "manifest.json").read_text())["devices"]["processes"] == 2


def is_free(port):
    with socket.socket() as trial:
        return trial.connect_ex(("localhost", port)) != 0


def test_a_process_that_dies_ends_the_others_with_its_rank(tmp_path, tiny_model, corpora):
    out = tmp_path / "run"
    both = start(2, "count", tiny_model.source.path, "--corpus", *corpora, "--out", out)
    work = tmp_path / ".run.partial"
    while not work.exists() and all(process.poll() is None for process in both):
        time.sleep(0.05)
    both[1].kill()
    (status, printed, err), _ = finish(both)
    assert status == 3
    last = [line for line in err.splitlines() if line.startswith("bridgex: error")][-1]
    assert "process 1 on " in last
    assert "no sign of life" in last
    assert printed == ""
    assert not out.exists()


def test_bad_input_ends_all_processes_at_once(tmp_path, tiny_model, corpora):
    out = tmp_path / "run"
    out.mkdir()
    (out / "other.txt").write_text("mine")
    both = start(2, "count", tiny_model.source.path, "--corpus", *corpora, "--out", out)
    for status, printed, err in finish(both):
        assert status in (2, 3)
        assert printed == ""
        assert "is not empty and holds no complete run" in err
        assert len([line for line in err.splitlines() if "bridgex: error" in line]) == 1


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--distributed",), "cannot join the other processes"),
        (("--process-id", "1"), "--distributed is missing"),
    ],
)
def test_what_a_cluster_needs_is_said_in_one_line(
    tmp_path, tiny_model, corpora, options, complaint
):
    arguments = ["count", tiny_model.source.path, "--corpus", *corpora, "--out", tmp_path / "run"]
    done = subprocess.run(
        [sys.executable, "-m", "bridgex_jax.cli", *map(str, arguments), *options],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) == 1
