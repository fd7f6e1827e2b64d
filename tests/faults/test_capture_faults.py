"""`bridgex capture` killed or on a full disk: nothing looks finished, parts are kept."""

import os
import resource
import signal
import subprocess
import sys
import urllib.request

import numpy as np
import pytest

from bridgex_jax.activations.examples import TokenMean
from bridgex_jax.activations.statistics import Count
from bridgex_jax.errors import InputError
from bridgex_jax.pipelines import capture as job
from bridgex_jax.pipelines.capture import run_capture
from bridgex_jax.pipelines.capture_settings import CaptureSettings, line_text
from bridgex_jax.pipelines.console import Console
from bridgex_jax.store import paths
from bridgex_jax.store.activations import open_activations
from bridgex_jax.store.paths import as_path

TEXT = line_text("de", [f"Zeile {n} mit {n * n} Worten" for n in range(60)], "0", "de.txt")
SETTINGS = CaptureSettings({"mean": TokenMean(), "count": Count()}, batch_size=4)
QUIET = Console(quiet=True)

KILLED = """
import os, signal, sys
from pathlib import Path
from bridgex_jax.models.load import load_model
from bridgex_jax.pipelines import capture as job
from tests.faults.test_capture_faults import QUIET, SETTINGS, TEXT

job.PART_BYTES = 1  # a part a batch
part, done = job._part, []

def killed(*args):
    if len(done) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(None)
    return part(*args)

job._part = killed
job.run_capture(load_model(sys.argv[1], quiet=True), [TEXT], SETTINGS, Path(sys.argv[2]), QUIET)
"""


def test_a_killed_run_looks_unfinished_and_continues_after_its_last_part(
    tiny_model, tiny_directory, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tiny_directory), str(out)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert not out.exists()
    with pytest.raises(InputError):
        open_activations(out)

    monkeypatch.setattr(job, "PART_BYTES", 1)
    part, computed = job._part, []
    monkeypatch.setattr(job, "_part", lambda *args: computed.append(len(args[1])) or part(*args))
    found = open_activations(run_capture(tiny_model, [TEXT], SETTINGS, out, QUIET))
    assert len(found.manifest["resumed_parts"]) == 2
    assert 0 < sum(computed) < len(TEXT.prompts)
    monkeypatch.setattr(job, "_part", part)
    undisturbed = run_capture(tiny_model, [TEXT], SETTINGS, tmp_path / "other", QUIET)
    for name in found.names:
        other = open_activations(undisturbed).numpy(name)
        np.testing.assert_array_equal(found.numpy(name), other)


def test_a_disk_that_fills_under_the_arrays_is_one_line_and_keeps_the_parts(
    tiny_model, tmp_path, monkeypatch
):
    write = job._write_examples

    def on_a_full_disk(*args):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            write(*args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr(job, "_write_examples", on_a_full_disk)
    out = tmp_path / "run"
    with pytest.raises(InputError, match=r"the disk is full.*finished parts are kept") as caught:
        run_capture(tiny_model, [TEXT], SETTINGS, out, QUIET)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == [".run.partial"]
    monkeypatch.setattr(job, "_write_examples", write)
    run_capture(tiny_model, [TEXT], SETTINGS, out, QUIET)
    assert os.listdir(tmp_path) == ["run"]
    assert open_activations(out).manifest["resumed_parts"]


def test_a_run_in_an_object_store_is_read_from_there(tiny_model, tmp_path, monkeypatch):
    pytest.importorskip("s3fs")
    moto_server = pytest.importorskip("moto.server")
    server = moto_server.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    address = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    try:
        urllib.request.urlopen(f"{address}/moto-api/reset", data=b"").close()
        for name, value in {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        }.items():
            monkeypatch.setenv(name, value)
        paths._file_system.cache_clear()
        paths.file_system(as_path("s3://bucket/x")).mkdir("bucket")
        remote = run_capture(tiny_model, [TEXT], SETTINGS, as_path("s3://bucket/run"), QUIET)
        local = run_capture(tiny_model, [TEXT], SETTINGS, tmp_path / "run", QUIET)
        found, expected = open_activations(remote), open_activations(local)
        for name in expected.names:
            np.testing.assert_array_equal(found.numpy(name), expected.numpy(name))
    finally:
        server.stop()
        paths._file_system.cache_clear()
