"""A sweep whose directory is in an object store (an emulator on localhost)."""

from __future__ import annotations

import urllib.request

import pytest

from bridgex_jax.pipelines.console import Console
from bridgex_jax.pipelines.sweep import work
from bridgex_jax.pipelines.sweep.run import SweepSettings, run_sweep
from bridgex_jax.pipelines.sweep.status import read_status
from bridgex_jax.store import paths
from bridgex_jax.store.paths import as_path, file_system, files_below, read_bytes
from tests.sweep_plans import write_evaluation, write_plan

s3fs = pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """An empty bucket; the user's cache lies in `tmp_path / "cache"`."""
    server = moto_server.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    for forget in (paths._file_system.cache_clear, s3fs.S3FileSystem.clear_instance_cache):
        forget()
    # What another server of this process holds is in this one, too.
    urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/reset", data=b"").close()
    file_system(as_path("s3://bucket/x")).mkdir("bucket")
    yield "s3://bucket"
    server.stop()
    for forget in (paths._file_system.cache_clear, s3fs.S3FileSystem.clear_instance_cache):
        forget()


def sweep(plan, out):
    return run_sweep(plan, str(out), SweepSettings(), Console(quiet=True))


def test_a_sweep_in_a_bucket_has_the_bytes_of_one_on_a_disk(
    bucket, tiny_directory, tmp_path, monkeypatch
):
    models = [str(tiny_directory), str(tmp_path / "gone")]
    plan, out = write_plan(tmp_path / "data", models), f"{bucket}/runs/sweep"
    there, here = sweep(plan, out), sweep(plan, tmp_path / "out")
    assert there.status == here.status == 1 and there.failed == here.failed
    for name in ("results.parquet", "spectrum.parquet"):
        assert read_bytes(f"{out}/{name}") == (tmp_path / "out" / name).read_bytes()
    status = read_status(out)
    assert [status.number(s) for s in ("complete", "failed", "running")] == [2, 2, 0]
    names = {name.split("/")[0] for name in files_below(as_path(out))}
    assert names == {"sweep.json", "units", "failures", "results.parquet", "spectrum.parquet"}

    victim = next(name for name in files_below(as_path(out)) if name.endswith("choice.json"))
    file_system(as_path(out)).pipe_file(f"{out}/{victim}", b"{}")
    made = []
    run = work.run_select
    monkeypatch.setattr(work, "run_select", lambda *a, **k: made.append(1) or run(*a, **k))
    assert sweep(plan, out).status == 1 and made == [1]
    assert read_bytes(f"{out}/{victim}") != b"{}"
    assert (
        read_bytes(f"{out}/results.parquet") == (tmp_path / "out" / "results.parquet").read_bytes()
    )


def test_a_sweep_in_a_bucket_evaluates_as_one_on_a_disk(bucket, tiny_directory, tmp_path):
    more = write_evaluation(tmp_path / "data")
    plan = write_plan(tmp_path / "data", [str(tiny_directory)], **more)
    out = f"{bucket}/runs/evaluated"
    there, here = sweep(plan, out), sweep(plan, tmp_path / "out")
    assert there.status == here.status == 0 and there.complete == 4, there.failed
    found = read_bytes(f"{out}/evaluations.parquet")
    assert found == (tmp_path / "out" / "evaluations.parquet").read_bytes()
    assert sweep(plan, out).status == 0 and read_bytes(f"{out}/evaluations.parquet") == found
