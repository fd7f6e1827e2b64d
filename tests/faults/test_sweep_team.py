"""Two processes that do every unit together: a bad unit is recorded, and both go on."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pyarrow.parquet as pq

from bridgex_jax.pipelines.sweep.status import read_status
from tests.sweep_plans import write_plan


def test_a_bad_model_does_not_part_processes_that_work_together(tiny_directory, tmp_path):
    out = tmp_path / "out"
    plan = write_plan(tmp_path / "data", [str(tmp_path / "gone"), str(tiny_directory)])
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "bridgex_jax.cli", "sweep", str(plan), "--out", str(out),
             "--distributed", "--coordinator", f"127.0.0.1:{port}", "--num-processes", "2",
             "--process-id", str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "BRIDGEX_CACHE": ""},
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [1, 1], said
    assert "2 units complete, 2 failed" in said[0] and "units complete" not in said[1]
    status = read_status(str(out))
    assert [status.number(s) for s in ("complete", "failed", "waiting")] == [2, 2, 0]
    assert pq.read_table(out / "results.parquet").num_rows == 2
