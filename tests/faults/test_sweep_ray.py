"""A sweep on a real local Ray cluster, one of whose workers is killed in the middle of a unit."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from bridgex_jax.errors import InputError
from bridgex_jax.pipelines.console import Console
from bridgex_jax.pipelines.sweep import engines
from bridgex_jax.pipelines.sweep.run import SweepSettings, run_sweep
from bridgex_jax.store.sweeps import SweepDirectory
from tests.sweep_plans import write_evaluation, write_plan

PAIRS = ["id-he", "he-id"]
# Ray's own processes and sockets, and what it says of fork.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def tables(out):
    return [(out / name).read_bytes() for name in ("results.parquet", "spectrum.parquet")]


def kill_one(out, killed):
    """Kills the first process that says it works at a select unit."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not killed:
        for sign in SweepDirectory(out).running():
            if sign["unit"].startswith("select") and sign["pid"] != os.getpid():
                os.kill(sign["pid"], signal.SIGKILL)
                killed.append(sign)
                return
        time.sleep(0.002)


def test_the_unit_of_a_killed_worker_goes_to_another(tiny_directory, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("BRIDGEX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    models = [str(tiny_directory), str(tmp_path / "gone")]
    plan = write_plan(tmp_path / "data", models, pairs=PAIRS)
    whole = run_sweep(plan, str(tmp_path / "whole"), SweepSettings(), Console(quiet=True))
    out, killed = tmp_path / "out", []
    killer = threading.Thread(target=kill_one, args=(out, killed))
    killer.start()
    settings = SweepSettings(engine="ray", workers=3)
    result = run_sweep(plan, str(out), settings, Console(quiet=True))
    killer.join()
    assert len(killed) == 1
    assert result.status == 1 and result.complete == 3 and len(result.failed) == 3
    assert sorted(result.failed) == sorted(whole.failed)
    assert tables(out) == tables(tmp_path / "whole")


def test_evaluations_wait_for_their_choices_and_fail_with_them(
    tiny_directory, tmp_path, monkeypatch
):
    pytest.importorskip("ray")
    monkeypatch.setenv("BRIDGEX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    models = [str(tiny_directory), str(tmp_path / "gone")]
    plan = write_plan(tmp_path / "data", models, **write_evaluation(tmp_path / "data"))
    whole = run_sweep(plan, str(tmp_path / "whole"), SweepSettings(), Console(quiet=True))
    settings = SweepSettings(engine="ray", workers=2)
    result = run_sweep(plan, str(tmp_path / "out"), settings, Console(quiet=True))
    assert result.status == 1 and result.complete == 4 and len(result.failed) == 4
    assert sorted(result.failed) == sorted(whole.failed)
    mine, others = (tmp_path / name / "evaluations.parquet" for name in ("out", "whole"))
    assert tables(tmp_path / "out") == tables(tmp_path / "whole")
    assert mine.read_bytes() == others.read_bytes()


def test_ray_that_is_not_installed_is_bad_input(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(InputError, match=r"Ray is not installed; pip install .*\[ray\]"):
        engines._import_ray()
