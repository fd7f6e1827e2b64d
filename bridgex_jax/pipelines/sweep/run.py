"""`bridgex sweep PLAN --out DIR`: plan → units → work → tables. Reads top to bottom.

Any number of processes may sweep into one directory at the same time; none waits for another.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridgex_jax import cluster
from bridgex_jax.errors import InputError
from bridgex_jax.pipelines.console import Console
from bridgex_jax.pipelines.sweep.engines import run_here, run_on_ray
from bridgex_jax.pipelines.sweep.estimates import Work, estimate_unit
from bridgex_jax.pipelines.sweep.gather import gather, gather_evaluations
from bridgex_jax.pipelines.sweep.inputs import Inputs
from bridgex_jax.pipelines.sweep.plan import Plan, read_plan
from bridgex_jax.pipelines.sweep.shards import Shard
from bridgex_jax.pipelines.sweep.status import Status, describe, status_of
from bridgex_jax.pipelines.sweep.stopping import TERMINATED, Stop, until_terminated
from bridgex_jax.pipelines.sweep.units import (
    EvaluateUnit,
    SelectUnit,
    Unit,
    code_version,
    in_order,
    list_evaluations,
    list_selects,
)
from bridgex_jax.pipelines.sweep.work import Outcome, Worker, actual, agreed, full_title
from bridgex_jax.store.files import plain
from bridgex_jax.store.sweeps import RESULTS, SweepDirectory

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class SweepSettings:
    """How the units are done; nothing here changes a result.

    workers: of a Ray cluster that is started here. grace: seconds after SIGTERM in which the
    current unit may still end. mesh: see `runtime.make_mesh`.
    """

    engine: str = "local"
    shard: Shard = field(default_factory=Shard)
    workers: int | None = None
    grace: float = 20.0
    mesh: str | None = None


@dataclass(frozen=True)
class SweepResult:
    """What one call did. failed: (title, reason) of its own units; table: of all units, if made.

    waiting: units of the plan that are neither complete nor failed.
    """

    place: str
    complete: int
    failed: tuple[tuple[str, str], ...]
    waiting: int
    table: str | None
    terminated: bool

    @property
    def status(self) -> int:
        """The exit status: 143 stopped by SIGTERM, 1 with failed units, 0 otherwise."""
        return TERMINATED if self.terminated else int(bool(self.failed))

    def to_json(self) -> dict[str, Any]:
        return plain(self) | {"failed": [{"unit": u, "reason": r} for u, r in self.failed]}

    def text(self) -> str:
        lines = [f"failed: {title}: {reason}" for title, reason in self.failed]
        lines.append(
            f"{self.complete} units complete, {len(self.failed)} failed, {self.waiting} of the "
            "plan still to be done"
        )
        if self.failed:
            lines.append("the same command tries failed units again")
        lines.append(f"Table: {self.table}" if self.table else "no table yet")
        return "\n".join(lines)


@dataclass(frozen=True)
class Sweep:
    """A plan and its directory, with hashes of everything that the plan names."""

    directory: SweepDirectory
    inputs: Inputs
    selects: tuple[SelectUnit, ...]  # in the plan's order, one of them for each item of the plan
    evaluations: tuple[EvaluateUnit, ...]  # of every select unit each task, in the same order
    units: tuple[Unit, ...]  # each once, after those that it needs
    index: dict[str, Any]  # sweep.json

    @property
    def last(self) -> Sequence[Unit]:
        """The units that no other needs: those that shards share out."""
        return self.evaluations or self.selects


def open_sweep(plan_file: str | Path, out: str, console: Console, mesh: str | None = None) -> Sweep:
    """Reads the plan, the directory's state, and inputs that no call has read; writes nothing.

    Raises InputError for a plan that is wrong and for a directory of a sweep with other code.
    """
    plan = read_plan(plan_file)
    directory = SweepDirectory(out, writes=cluster.is_leader())
    code = code_version()
    there = agreed(directory.read) or {}
    if there and there["code"] != code:
        raise InputError(
            f"holds a sweep of bridgex_jax {there['code']}, this is {code}",
            file=out,
            remedy="choose another --out, or run the other code",
        )
    if not there:
        console.say("reading models and data once, for their hashes")
    inputs = Inputs(mesh)
    inputs.adopt(agreed(lambda: _settled_pins(directory, there)))
    if cluster.is_leader():
        _list_units(plan, inputs, code)  # reads what is not settled
    inputs.adopt(agreed(lambda: inputs.pins))
    selects, evaluations = _list_units(plan, inputs, code)
    units = in_order([*(evaluations or selects)])
    known = {unit["key"]: Work(unit["tokens"], unit["flops"]) for unit in there.get("units", ())
             if unit["flops"] is not None}  # fmt: skip
    works = [known.get(unit.key) or estimate_unit(unit) for unit in units]
    index = {
        "code": code,
        "plan": plain(plan),
        "pins": inputs.pins,
        "units": describe(units, works),
    }
    return Sweep(directory, inputs, tuple(selects), tuple(evaluations), tuple(units), index)


def _list_units(
    plan: Plan, inputs: Inputs, code: str
) -> tuple[list[SelectUnit], list[EvaluateUnit]]:
    selects = list_selects(plan, inputs, code)
    return selects, list_evaluations(plan, selects, inputs)


def _settled_pins(directory: SweepDirectory, there: Mapping[str, Any]) -> dict[str, Any]:
    """Hashes of the inputs of complete units, which the rest of the sweep must have as well.

    Others are read anew: a file that was mended after its first failure is a new input.
    """
    finished, lowered = directory.finished(), directory.lowered()
    used: set[str] = set()
    for unit in there.get("units", ()):
        if (lowered.get(unit["key"], {}).get("made") or unit["key"]) in finished:
            used |= set(unit["inputs"])
    return {name: pin for name, pin in there.get("pins", {}).items() if name in used}


def plan_sweep(plan_file: str | Path, out: str, console: Console) -> Status:
    """The dry run: all units, what each will cost, and which are there already."""
    sweep = open_sweep(plan_file, out, console)
    return status_of(sweep.directory, sweep.index["units"])


def run_sweep(
    plan_file: str | Path, out: str, settings: SweepSettings, console: Console
) -> SweepResult:
    """Does the units of this process's shard that are not complete, and gathers what there is.

    Units that failed, or at which a process died, come last. Raises InputError for a wrong plan,
    a directory of other code, and a disk that refuses; the rest is the failure of one unit.
    """
    with until_terminated(settings.grace) as stop:
        sweep = open_sweep(plan_file, out, console, settings.mesh)
        sweep.directory.write(sweep.index)
        mine = _mine(sweep, settings.shard)
        outcomes: dict[str, Outcome] = {}
        with stop.dropping(), _shown(console, len(mine)) as show:
            for outcome in _work(sweep, mine, settings, stop):
                outcomes[outcome.key] = outcome
                show(outcome)
        return _finish(sweep, mine, outcomes, stop)


def _mine(sweep: Sweep, shard: Shard) -> list[Unit]:
    directory = sweep.directory
    doubtful = agreed(
        lambda: [*directory.failures(), *(sign["unit"] for sign in directory.running())]
    )
    return in_order(shard.part(sweep.last), frozenset(doubtful))


def _work(
    sweep: Sweep, units: Sequence[Unit], settings: SweepSettings, stop: Stop
) -> Iterator[Outcome]:
    if settings.engine == "local":
        shard = settings.shard
        worker = Worker(sweep.directory, sweep.inputs, turn=shard.index / shard.count)
        yield from run_here(units, worker, stop)
        return
    lowered = sweep.directory.lowered()
    todo = []
    for unit in units:
        if sweep.directory.is_whole(actual(unit, lowered).key):
            yield Outcome(unit.key, full_title(unit))
        else:
            todo.append(unit)
    if todo:
        yield from run_on_ray(todo, sweep.directory, settings.workers, stop)


@contextmanager
def _shown(console: Console, total: int) -> Iterator[Any]:
    """One bar for all units on a terminal; elsewhere a line for every unit that took work."""
    lines = not sys.stderr.isatty()
    with console.progress("sweep", total, "units") as bar:
        done = 0

        def show(outcome: Outcome) -> None:
            nonlocal done
            done += 1
            bar(1)
            if outcome.reason:
                console.say(f"[{done}/{total}] {outcome.title} failed: {outcome.reason}")
            elif lines and outcome.worked:
                console.say(f"[{done}/{total}] {outcome.title}: {outcome.seconds:.1f} s")

        yield show


def _finish(
    sweep: Sweep, mine: Sequence[Unit], outcomes: dict[str, Outcome], stop: Stop
) -> SweepResult:
    """Gathers where no unit of the plan is open any more, whoever did it."""
    status = status_of(sweep.directory, sweep.index["units"])
    state = {row["key"]: row["state"] for row in status.rows}
    gone = [unit.key for unit in mine if unit.key not in outcomes]
    open_ = [key for key, is_ in state.items() if is_ not in ("complete", "failed")]
    table = None
    if not open_ and not gone and cluster.is_leader():
        complete = {key for key, is_ in state.items() if is_ == "complete"}
        gather(sweep.directory, sweep.selects, complete)
        if sweep.evaluations:
            gather_evaluations(sweep.directory, sweep.evaluations, complete)
        sweep.directory.tidy()
        table = str(sweep.directory.root / RESULTS)
    failed = [(o.title, o.reason) for o in outcomes.values() if o.reason]
    return SweepResult(
        str(sweep.directory.root),
        complete=sum(not outcome.reason for outcome in outcomes.values()),
        failed=tuple(failed),
        waiting=len(open_),
        table=table,
        terminated=bool(stop.asked and gone),
    )
