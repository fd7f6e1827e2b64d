"""Processes that vanish, and processes that work side by side, in one sweep.

BRIDGEX_KILLS=50 kills as often (some minutes); the suite kills a few times.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from bridgex_jax.pipelines.sweep.status import read_status
from bridgex_jax.store.manifest import verify_run
from bridgex_jax.store.sweeps import SweepDirectory
from tests.sweep_plans import write_evaluation, write_plan

KILLS = int(os.environ.get("BRIDGEX_KILLS", "3"))


def started(plan, out, cache, *more, answers=None):
    """answers: where models' answers are kept, if not where this process keeps them."""
    own = {"XDG_CACHE_HOME": str(answers)} if answers else {}
    return subprocess.Popen(
        [sys.executable, "-m", "bridgex_jax.cli", "sweep", str(plan), "--out", str(out), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ
        | {"BRIDGEX_CACHE": str(cache), "PYTHONPATH": os.pathsep.join(sys.path)}
        | own,
    )


def ended(process):
    """Exit status; the output is shown where a test fails."""
    print(process.communicate(timeout=300)[0])
    return process.returncode


def tables(out):
    return [(out / name).read_bytes() for name in ("results.parquet", "spectrum.parquet")]


def names(out):
    """All names below a directory that others change meanwhile."""
    return {f"{at}/{name}" for at, folders, files in os.walk(out) for name in folders + files}


@pytest.fixture(scope="module")
def place(tiny_directory, tmp_path_factory):
    """A plan, compiled programs, and the tables of a sweep that nothing disturbed."""
    place = tmp_path_factory.mktemp("sweep")
    plan = write_plan(place / "data", [str(tiny_directory)], pairs=["id-he", "he-id"])
    assert ended(started(plan, place / "whole", place / "cache")) == 0
    return place


def kill_after(process, out, changes, deadline):
    """SIGKILL once so many names have come or gone under `out`; False where it ends before."""
    seen, changed = names(out), 0
    while process.poll() is None and time.monotonic() < deadline:
        now = names(out)
        changed += len(now ^ seen)
        seen = now
        if changed >= changes:
            process.kill()
            break
        time.sleep(0.001)
    return process.wait(300) == -signal.SIGKILL


def test_kills_at_any_moment_leave_the_table_of_an_undisturbed_sweep(place, tmp_path):
    """SIGKILL at random changes of the directory; every whole sweep has the same bytes."""
    rng = random.Random(0)
    kills = sweeps = 0
    plan = place / "data" / "plan.yaml"
    while kills < KILLS:
        out = tmp_path / f"out-{sweeps}"
        complete = False
        while not complete and kills < KILLS:
            process = started(plan, out, place / "cache", "--quiet")
            killed = kill_after(process, out, rng.randint(1, 40), time.monotonic() + 120)
            process.stdout.close()
            kills += killed
            complete = not killed
            for unit in (out / "units").glob("[!.]*"):
                verify_run(unit)  # whatever has a unit's name is whole
        if not complete:
            assert ended(started(plan, out, place / "cache")) == 0
        sweeps += 1
        assert tables(out) == tables(place / "whole")
        assert not [path for path in (out / "units").iterdir() if path.name.startswith(".")]
        assert not list((out / "parts").iterdir()) and not list((out / "running").iterdir())


def test_sigterm_leaves_nothing_half_made_and_two_processes_finish_it(place, tmp_path):
    """Asked to end while it works: status 143. Two that make the same units then do no harm."""
    out, plan = tmp_path / "out", place / "data" / "plan.yaml"
    process = started(plan, out, place / "cache", "--grace", "0.1")
    while process.poll() is None and not list((out / "running").glob("*.json")):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert ended(process) == 143
    status = read_status(str(out))
    assert status.number("complete") < 3 and status.number("failed") == 0
    assert not list((out / "running").iterdir())
    both = [started(plan, out, place / "cache") for _ in range(2)]
    assert [ended(process) for process in both] == [0, 0]
    assert tables(out) == tables(place / "whole")
    units, expected = ({p.name for p in (at / "units").iterdir()} for at in (out, place / "whole"))
    assert units == expected


def test_kills_in_an_evaluation_leave_the_tables_of_an_undisturbed_sweep(tiny_directory, tmp_path):
    """SIGKILL while answers are being computed; those of whole portions are not asked again."""
    more = write_evaluation(tmp_path / "data")
    more["evaluate"] |= {"batch_size": 1, "limit": None}
    # Units of both seeds ask the same questions about texts, and many of the same words.
    plan = write_plan(tmp_path / "data", [str(tiny_directory)], grid={"seed": [0, 1]}, **more)
    whole, out, cache = tmp_path / "whole", tmp_path / "out", tmp_path / "cache"
    assert ended(started(plan, whole, cache, answers=tmp_path / "theirs")) == 0
    answers = tmp_path / "answers"
    for kill in range(KILLS):
        process = started(plan, out, cache, "--quiet", answers=answers)
        deadline, there = time.monotonic() + 120, len(list(answers.rglob("*.parquet")))
        while process.poll() is None and time.monotonic() < deadline:
            if len(list(answers.rglob("*.parquet"))) > there + kill:
                process.kill()
                break
            time.sleep(0.001)
        process.stdout.close()
        assert process.wait(300) == -signal.SIGKILL
        assert any(sign["unit"].startswith("evaluate") for sign in SweepDirectory(out).running())
        for unit in (out / "units").glob("[!.]*"):
            verify_run(unit)
    assert ended(started(plan, out, cache, answers=answers)) == 0
    for name in ("results.parquet", "spectrum.parquet", "evaluations.parquet"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert not [path for path in (out / "units").iterdir() if path.name.startswith(".")]
    assert not list((out / "running").iterdir())
