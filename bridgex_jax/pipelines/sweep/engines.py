"""Who does the units: this process, one after another, or the workers of a Ray cluster.

Results travel through the sweep's directory alone; an engine only says what became of each unit.
Ray knows which units wait for which, keeps its workers busy, and gives the unit of a worker that
died to another one.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any

from bridgex_jax.errors import InputError
from bridgex_jax.pipelines.sweep.inputs import Inputs
from bridgex_jax.pipelines.sweep.stopping import Stop
from bridgex_jax.pipelines.sweep.units import Unit
from bridgex_jax.pipelines.sweep.work import Outcome, Worker, agreed, full_title, not_there
from bridgex_jax.store.sweeps import SweepDirectory

WORKER_DEATHS = 3  # of one unit; then the unit itself is taken for the cause
_POLL_SECONDS = 1.0


def run_here(units: Sequence[Unit], worker: Worker, stop: Stop) -> Iterator[Outcome]:
    """One unit after another, until SIGTERM."""
    for unit in units:
        if agreed(lambda: stop.asked):
            return
        yield worker.do(unit)


def run_on_ray(
    units: Sequence[Unit], sweep: SweepDirectory, workers: int | None, stop: Stop
) -> Iterator[Outcome]:
    """Units on the Ray cluster of RAY_ADDRESS, or on one that is started here and ended after.

    workers: of a cluster started here (default: as many as there are CPUs). Raises InputError
    where Ray is not installed or cannot be reached.
    """
    ray = _import_ray()
    with _cluster(ray, workers):
        stop.listen()  # Ray's own handler would abort this process
        waiting = _submit(ray, units, sweep)
        try:
            while waiting and not stop.asked:
                ready, _ = ray.wait(list(waiting), num_returns=1, timeout=_POLL_SECONDS)
                for task in ready:
                    yield _outcome(ray, task, waiting.pop(task), sweep)
        finally:
            for task in waiting:
                ray.cancel(task)  # a KeyboardInterrupt in the worker: its parts stay


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        remedy = "pip install 'bridgex_jax[ray]'"
        raise InputError("--engine ray: Ray is not installed", remedy=remedy) from error
    return ray


class _cluster:
    """Connects to Ray for the `with`."""

    def __init__(self, ray: Any, workers: int | None):
        self._ray = ray
        self._workers = workers

    def __enter__(self) -> None:
        address = os.environ.get("RAY_ADDRESS")
        if address and self._workers:
            raise InputError(
                "--workers is for a cluster that is started here, and RAY_ADDRESS names one",
                remedy="leave out one of them",
            )
        own = {} if address else {"num_cpus": self._workers, "include_dashboard": False}
        try:
            self._ray.init(address or "local", log_to_driver=False, logging_level="ERROR", **own)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(
                f"Ray at {address or 'this machine'}: {str(error).splitlines()[0]}",
                remedy="check RAY_ADDRESS, or unset it to start a cluster here",
            ) from error

    def __exit__(self, *error: object) -> None:
        self._ray.shutdown()


def _submit(ray: Any, units: Sequence[Unit], sweep: SweepDirectory) -> dict[Any, Unit]:
    """All units as tasks; each waits for the unit that it needs."""
    resources: dict[str, Any] = {"num_cpus": 1}
    if ray.cluster_resources().get("GPU"):
        resources["num_gpus"] = 1
    do = ray.remote(max_retries=WORKER_DEATHS - 1, retry_exceptions=False, **resources)(do_unit)
    tasks: dict[Any, Unit] = {}
    by_key: dict[str, Any] = {}
    for unit in units:
        needed = by_key.get(unit.needs.key) if unit.needs else None
        task = do.remote(str(sweep.root), unit, needed)
        tasks[task] = unit
        by_key[unit.key] = task
    return tasks


def do_unit(root: str, unit: Unit, needed: Outcome | None) -> Outcome:
    """One task. needed: the unit before it, for which Ray has waited."""
    return _worker(root).do(unit)


@functools.lru_cache(maxsize=1)
def _worker(root: str) -> Worker:
    """The worker of this process: Ray gives it one unit after another, often of the same model."""
    from bridgex_jax import runtime

    runtime.quiet_libraries()
    runtime.use_compilation_cache()
    return Worker(SweepDirectory(root), Inputs())


def _outcome(ray: Any, task: Any, unit: Unit, sweep: SweepDirectory) -> Outcome:
    try:
        return ray.get(task)
    except ray.exceptions.RayError as error:
        kind = type(error).__name__
        reason = f"its worker died {WORKER_DEATHS} times ({kind})"
        if unit.needs and sweep.failure(unit.needs.key):
            reason = not_there(unit.needs)
        sweep.fail(unit.key, reason, title=full_title(unit), batch_size=unit.batch_size)
        return Outcome(unit.key, full_title(unit), reason)
