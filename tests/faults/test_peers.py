"""Several processes of one job make one run: the leader alone writes, and all see the same.

Threads stand for the processes, with a mailbox for each follower.
"""

from __future__ import annotations

import errno
import os
import queue
import tempfile
import threading
from dataclasses import dataclass, field

import numpy as np
import pytest

from bridgex_jax.errors import InputError
from bridgex_jax.store.manifest import verify_run
from bridgex_jax.store.runs import create_run


@dataclass
class Member:
    """A process of the job; `share` as a job's broadcast has it, `collect` as its all-gather."""

    rank: int
    count: int
    barrier: threading.Barrier
    told: list[bytes]
    patience: float
    mail: list[queue.Queue] = field(default_factory=list)

    @property
    def is_leader(self) -> bool:
        return self.rank == 0

    def collect(self, data: bytes) -> list[bytes]:
        self.barrier.wait(self.patience)
        self.told[self.rank] = data
        self.barrier.wait(self.patience)
        found = list(self.told)
        self.barrier.wait(self.patience)
        return found

    def share(self, data: bytes | None) -> bytes:
        if self.is_leader:
            assert data is not None
            for box in self.mail:
                box.put(data)
            return data
        assert data is None
        return self.mail[0].get(timeout=self.patience)


def together(act, n=3, *, to_the_end=True, patience=10):
    """`act(member)` in `n` threads, the leader's first; results or exceptions.

    to_the_end: every process must have heard everything that the leader said.
    """
    boxes = [queue.Queue() for _ in range(n - 1)]
    shared = n, threading.Barrier(n), [b""] * n, patience
    members = [Member(i, *shared, [boxes[i - 1]] if i else boxes) for i in range(n)]
    found = [None] * n

    def call(i):
        try:
            found[i] = act(members[i])
        except BaseException as error:
            found[i] = error

    threads = [threading.Thread(target=call, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert not to_the_end or all(box.empty() for box in boxes)
    return found


def begin(out, peers, seed=0, **options):
    return create_run(
        out, kind="select", settings={"seed": seed}, command=[], peers=peers, **options
    )


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """Where followers put what nobody reads."""
    place = tmp_path / "scratch"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield place
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("exclusive", [True, False])
def test_only_the_leader_writes_and_all_read_its_parts(tmp_path, scratch, exclusive):
    out = tmp_path / "one"

    def act(peers):
        with begin(out, peers, exclusive=exclusive) as run:
            # What followers computed is not looked at: all go on with the leader's arrays.
            part = run.part("counts", lambda: {"x": np.arange(3) + 10 * (not peers.is_leader)})
            run.write_text("choice.json", "leader" if peers.is_leader else "follower")
            run.path("figures/a.svg").write_text("<svg/>")
            assert (scratch in run.directory.parents) == (not peers.is_leader)
        return part["x"].tolist(), run.complete, run.directory

    assert together(act) == [([0, 1, 2], True, out)] * 3
    assert set(verify_run(out)["files"]) == {"choice.json", "figures/a.svg"}
    assert (out / "choice.json").read_text() == "leader"


@pytest.mark.parametrize("exclusive", [True, False])
def test_followers_take_the_leader_s_branches(tmp_path, exclusive):
    def stopped(peers):
        with begin(tmp_path / "one", peers, exclusive=exclusive) as run:
            run.save_part("counts", {"x": np.arange(3)})
            raise KeyboardInterrupt

    def resumed(peers):
        with begin(tmp_path / "one", peers, exclusive=exclusive) as run:
            x = run.part("counts", lambda: pytest.fail("computed again"))["x"]
            return run.resumed, run.has_part("counts"), run.has_part("other"), x.tolist()

    def complete(peers):
        with begin(tmp_path / "one", peers, exclusive=exclusive) as run:
            return run.complete, run.directory, run.notice

    assert [type(error) for error in together(stopped)] == [KeyboardInterrupt] * 3
    assert together(resumed) == [(("counts",), True, False, [0, 1, 2])] * 3
    notice = f"{tmp_path / 'one'} already holds this run, complete"
    assert together(complete) == [(True, tmp_path / "one", notice)] * 3


def same_input_error(found, match):
    assert [type(error).__mro__[-4] for error in found] == [ValueError] * len(found)
    assert all(isinstance(error, InputError) for error in found)
    assert len({str(error) for error in found}) == 1 and match in str(found[0])


def test_an_error_at_entering_is_everybody_s(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "notes.txt").write_text("mine")

    def act(peers):
        with begin(tmp_path / "one", peers):
            pytest.fail("was entered")

    same_input_error(together(act), "is not empty")


def full(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["finish", "write", "part"])
def test_a_disk_that_fills_under_the_leader_stops_all(tmp_path, monkeypatch, where):
    def act(peers):
        with begin(tmp_path / "one", peers) as run:
            run.save_part("counts", {"x": np.arange(3)})
            if peers.is_leader:  # the disk of the others does not fill
                if where == "write":
                    monkeypatch.setattr(os, "fsync", full)
                run.write_text("choice.json", "{}")
            if where == "part" and peers.is_leader:
                monkeypatch.setattr(os, "fsync", full)
            run.save_part("probes", {"x": np.arange(3)})
            if peers.is_leader:
                monkeypatch.setattr(os, "fsync", full)

    same_input_error(together(act), "the disk is full")
    monkeypatch.undo()
    assert not (tmp_path / "one").exists()


def test_an_error_that_all_have_is_each_one_s_own(tmp_path):
    def act(peers):
        with begin(tmp_path / "one", peers) as run:
            run.part("counts", lambda: {"x": np.arange(3)})
            raise InputError("no words", file="leader" if peers.is_leader else "follower")

    assert [str(e) for e in together(act)] == ["leader: no words"] + ["follower: no words"] * 2


def test_a_follower_whose_own_disk_fills_does_not_wait_for_the_leader(tmp_path, scratch):
    def act(peers):
        with begin(tmp_path / "one", peers):
            if not peers.is_leader:
                raise OSError(errno.ENOSPC, "No space left on device")
            asked.wait(10)

    asked = threading.Event()

    def and_release(peers):
        try:
            act(peers)
        finally:
            asked.set()

    leader, follower = together(and_release, n=2, to_the_end=False)
    assert leader is None
    assert f"{scratch}" in str(follower) and "the disk is full; free some" in str(follower)


def test_a_fault_of_the_leader_s_is_told(tmp_path):
    def act(peers):
        with begin(tmp_path / "one", peers):
            if peers.is_leader:
                raise ZeroDivisionError("by zero")

    leader, *others = together(act)
    assert isinstance(leader, ZeroDivisionError)
    for error in others:
        assert isinstance(error, RuntimeError)
        assert "the first process failed: ZeroDivisionError: by zero" in str(error)


def test_processes_that_are_not_at_the_same_step_are_told_so(tmp_path):
    def act(peers):
        with begin(tmp_path / "one", peers) as run:
            name = "counts" if peers.is_leader else "probes"
            run.save_part(name, {"x": np.arange(3)})

    leader, follower = together(act, n=2, to_the_end=False)
    assert leader is None
    assert isinstance(follower, RuntimeError)
    assert "saves counts" in str(follower) and "saves probes" in str(follower)


def test_processes_with_other_settings_or_inputs_are_told_so(tmp_path):
    def act(peers):
        with begin(tmp_path / "one", peers, seed=0 if peers.is_leader else 1):
            pass

    leader, follower = together(act, n=2, to_the_end=False)
    assert leader is None
    assert isinstance(follower, InputError)
    assert "other settings or inputs than the first (seed: 0 there, 1 here)" in str(follower)


def write_own(peers, out, killed=False):
    """A run in which every process writes a file and keeps a part; what parts it computed."""
    computed = []

    def compute(name):
        computed.append(name)
        return {"x": np.full(3, peers.rank)}

    with begin(out, peers) as run:
        for name in ("one", "two"):
            found = run.own_part(name, lambda name=name: compute(name))["x"].tolist()
            assert found == [peers.rank] * 3
            if killed:
                raise KeyboardInterrupt
        run.own_path(f"data/{peers.rank}.bin").write_bytes(bytes([peers.rank]))
        if peers.is_leader:
            run.write_text("choice.json", "{}")
    return computed


def test_every_process_writes_files_of_its_own_into_one_run(tmp_path):
    out = tmp_path / "one"
    assert [type(e) for e in together(lambda p: write_own(p, out, killed=True))] == [
        KeyboardInterrupt
    ] * 3
    assert together(lambda p: write_own(p, out)) == [["two"]] * 3
    assert set(verify_run(out)["files"]) == {"choice.json", *(f"data/{i}.bin" for i in range(3))}
    assert (out / "data/2.bin").read_bytes() == b"\2"


def test_parts_of_another_number_of_processes_are_computed_again(tmp_path):
    together(lambda p: write_own(p, tmp_path / "one", killed=True))
    assert together(lambda p: write_own(p, tmp_path / "one"), n=2) == [["one", "two"]] * 2


def test_processes_that_do_not_see_the_disk_are_named_by_all(tmp_path, monkeypatch):
    monkeypatch.setattr("bridgex_jax.store.team_files.sees", lambda path, mark: False)
    found = together(lambda p: write_own(p, tmp_path / "one"))
    assert [str(error) for error in found] == [str(found[0])] * 3
    assert "process 1 on" in str(found[0])
    assert "share" in str(found[0])
    assert not (tmp_path / "one").exists()
