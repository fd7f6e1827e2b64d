"""One unit, from its inputs to its run directory, or to the record of why it failed.

A unit that runs out of memory is tried again with half the batch, down to 1. The batch is part of
the key, so what comes out is another unit, which stands in for the planned one.
"""

from __future__ import annotations

import gc
import hashlib
import json
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax

from bridgex_jax import cluster, runtime
from bridgex_jax.errors import InputError
from bridgex_jax.pipelines.answering import ModelAnswerer
from bridgex_jax.pipelines.console import Console
from bridgex_jax.pipelines.count import ROW_LENGTH, run_count
from bridgex_jax.pipelines.evaluate import run_evaluate
from bridgex_jax.pipelines.select import Request, run_select
from bridgex_jax.pipelines.sweep.inputs import Inputs
from bridgex_jax.pipelines.sweep.units import (
    KEY_DIGITS,
    CountUnit,
    EvaluateUnit,
    SelectUnit,
    Unit,
    code_version,
)
from bridgex_jax.pipelines.task_inputs import EvaluateSettings, Exam
from bridgex_jax.store.files import json_bytes
from bridgex_jax.store.paths import cache_directory
from bridgex_jax.store.runs import create_run
from bridgex_jax.store.sweeps import SweepDirectory, now

BEAT_SECONDS = 10


@dataclass(frozen=True)
class Outcome:
    """What became of a unit, by the key of the planned one.

    reason: why it failed, None where it is complete. worked: whether there was anything to do.
    """

    key: str
    title: str
    reason: str | None = None
    worked: bool = False
    seconds: float = 0.0


class Worker:
    """Does units one after another, and keeps what several of them need.

    turn: how far into the list of languages this process begins to count, from 0 to 1: processes
    that count for the same model begin far from each other and take over each other's parts.

    Processes that do every unit together (cluster.py) all have a worker; the leader's looks into
    the directory and writes there, the others do as it says.
    """

    def __init__(self, sweep: SweepDirectory, inputs: Inputs, turn: float = 0.0):
        self._sweep = sweep
        self._inputs = inputs
        self._turn = turn
        self._attempts = 0

    def do(self, unit: Unit) -> Outcome:
        """Makes the unit unless it is whole; whatever is wrong with it is recorded, not raised.

        Raises InputError where the sweep's own directory cannot be written.
        """
        started = time.perf_counter()
        worked = not agreed(lambda: self._is_done(unit))
        reason = self._try(unit) if worked else None
        if reason is None:
            self._note_done(unit)
        runtime.drop_programs()  # a sweep of thousands of units runs in one process
        spent = time.perf_counter() - started
        return Outcome(unit.key, full_title(unit), reason, worked, spent)

    def _is_done(self, unit: Unit) -> bool:
        return self._sweep.is_whole(actual(unit, self._sweep.lowered()).key)

    def _note_done(self, unit: Unit) -> None:
        lowered = self._sweep.lowered()
        made = actual(unit, lowered)
        if made.key != unit.key:
            self._sweep.lower(unit.key, lowered.get(unit.key, {}).get("batch_size"), made.key)
        self._sweep.forget("failures", unit.key)
        self._sweep.drop_parts(made.key)
        self._sweep.end(unit.key, everyone=True)

    def _try(self, unit: Unit) -> str | None:
        """Makes the unit, with smaller batches where memory asks for it; why it failed."""
        while True:
            task = actual(unit, agreed(self._sweep.lowered))
            try:
                self._sweep.begin(unit.key)
                self._check(task)
                self._make(task, unit.key)
                return None
            except Exception as error:
                if _is_of_the_disk(error, self._sweep):
                    raise
                self._attempts += 1
                if not cluster.all_here(f"{unit.key} {self._attempts}"):
                    self._leave_word(unit, task, error)
                    raise  # the others still work at this unit: none can go on alone
                smaller = agreed(partial(self._smaller_batch, task, error))
                if smaller is None:
                    return self._record_failure(self._sweep, unit, task, error)
            finally:
                self._sweep.end(unit.key)
            gc.collect()  # the error's frames held what filled the memory
            self._sweep.lower(unit.key, smaller)

    def _check(self, task: Unit) -> None:
        """Raises InputError for what is known to be wrong before the work."""
        if task.reason:
            raise InputError(task.reason)
        if task.code != code_version():
            raise InputError(
                f"this worker runs bridgex_jax {code_version()}, the sweep {task.code}",
                remedy="install the same code everywhere",
            )
        if task.needs is None:
            return
        needed = task.needs.key
        if not agreed(lambda: self._sweep.is_whole(needed)):
            raise InputError(not_there(task.needs))

    def _make(self, task: Unit, planned: str) -> None:
        console = UnitConsole(partial(self._sweep.begin, planned, since=now()))
        shared: dict[str, Any] = {"open_run": partial(create_run, exclusive=False)}
        if isinstance(task, EvaluateUnit):
            self._evaluate(task, console, **shared)
            return
        if cluster.peers() is None:  # else the run's own parts, which are steps of all together
            shared["part"] = partial(self._sweep.part, task.key)
        out = self._sweep.unit(task.key)
        if isinstance(task, CountUnit):
            corpora = self._inputs.load_corpora(task)
            codes = list(corpora)
            first = int(self._turn * len(codes))
            model = self._inputs.load_model(task.model, task.model_pin)
            turned = {code: corpora[code] for code in codes[first:] + codes[:first]}
            run_count(model, turned, task.settings, out, console, **shared)
            return
        words = self._inputs.load_words(task)
        model = self._inputs.load_model(task.model, task.count.model_pin)
        pair = task.pair
        counts = self._sweep.unit(task.count.key)
        texts = self._inputs.load_corpora(task.count)  # for other choosers
        request = Request(pair.source, pair.target, pair.bridges, words, texts, counts)
        run_select(model, request, task.settings, out, console, **shared)

    def _evaluate(self, task: EvaluateUnit, console: Console, **shared: Any) -> None:
        exam = self._inputs.make_exam(task, self._sweep.unit(task.select.key), console)
        model = self._inputs.load_model(task.model, task.count.model_pin)
        answerer = ModelAnswerer(
            model, console, batch_size=task.batch_size, place=kept_answers(exam, task.settings)
        )
        out = self._sweep.unit(task.key)
        run_evaluate(model, exam, task.settings, out, console, answerer, **shared)

    def _smaller_batch(self, task: Unit, error: Exception) -> int | None:
        """Half the batch where memory ran out; None where it did not, or 1 was too much."""
        if not is_out_of_memory(error):
            return None
        size = task.batch_size or self._rows_a_batch(task)
        return size // 2 if size > 1 else None

    def _rows_a_batch(self, task: Unit) -> int:
        """The batch that counting takes by itself where the plan names none."""
        pin = task.model_pin if isinstance(task, CountUnit) else task.count.model_pin
        model = self._inputs.load_model(task.model, pin)
        length = task.settings.row_length if isinstance(task, CountUnit) else None
        length = length or min(ROW_LENGTH, model.config.max_position_embeddings)
        return max(1, runtime.tokens_a_batch(model.mesh) // length)

    def _leave_word(self, unit: Unit, task: Unit, error: Exception) -> None:
        """What the next start of this job has to know, from whichever process has the error."""
        sweep = SweepDirectory(self._sweep.root)
        smaller = self._smaller_batch(task, error)
        if smaller is None:
            self._record_failure(sweep, unit, task, error)
        else:
            sweep.lower(unit.key, smaller)

    def _record_failure(
        self, sweep: SweepDirectory, unit: Unit, task: Unit, error: Exception
    ) -> str:
        reason = str(error) if isinstance(error, InputError) else _one_line(error)
        facts: dict[str, Any] = {"title": full_title(unit), "batch_size": task.batch_size}
        if not isinstance(error, InputError):
            facts["traceback"] = "".join(traceback.format_exception(error))
        sweep.fail(unit.key, reason, **facts)
        if is_out_of_memory(error):  # even with 1: next time, on more memory, begin as planned
            sweep.forget("lowered", unit.key)
        return reason


def kept_answers(exam: Exam, settings: EvaluateSettings) -> Path:
    """Where in the user's cache a unit's answers are kept: those of equal questions together.

    Others are kept apart. A prompt's log-probability follows, by rounding, the prompts of its
    batch, and those would follow what happens to be known already; so a unit has the same bytes
    whoever makes it, after whatever, killed as often as may be.
    """
    asked = {
        "task": exam.form.facts(),
        "pair": [exam.task.source, exam.task.target],
        "bridges": list(exam.bridges),
        "settings": asdict(settings),
        **exam.hashes,
    }
    digest = hashlib.sha256(json_bytes(asked)).hexdigest()[:KEY_DIGITS]
    return cache_directory() / "answers" / "sweeps" / digest


def not_there(needed: Unit) -> str:
    """Why a unit fails that needs this one."""
    return f"its {needed.kind} unit is not complete; see why that failed"


def agreed(find: Callable[[], Any]) -> Any:
    """`find()`; the leader's answer where several processes work together."""
    peers = cluster.peers()
    if peers is None:
        return find()
    return json.loads(peers.share(json_bytes(find()) if peers.is_leader else None))


def actual(unit: Unit, lowered: Mapping[str, Mapping[str, Any]]) -> Unit:
    """The unit with the batches that memory allows; `lowered`: of SweepDirectory."""
    size = lowered.get(unit.key, {}).get("batch_size")
    if isinstance(unit, SelectUnit) and (count := actual(unit.count, lowered)) != unit.count:
        assert isinstance(count, CountUnit)
        unit = unit.with_count(count)
    if isinstance(unit, EvaluateUnit) and (select := actual(unit.select, lowered)) != unit.select:
        assert isinstance(select, SelectUnit)
        unit = unit.with_select(select)
    return unit.with_batch(size) if size else unit


def is_out_of_memory(error: BaseException) -> bool:
    """Whether host or device ran out of memory."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def full_title(unit: Unit) -> str:
    """`select id→he of builtin`."""
    return f"{unit.title} of {unit.model.title}"


def _is_of_the_disk(error: Exception, sweep: SweepDirectory) -> bool:
    """Whether the sweep's directory itself refuses: every other unit would fail as well."""
    place = str(getattr(error, "file", None) or "")
    return isinstance(error.__cause__, OSError) and place.startswith(str(sweep.root))


def _one_line(error: Exception) -> str:
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


class UnitConsole(Console):
    """Shows nothing itself; tells the sweep's directory now and then how far the unit is."""

    def __init__(self, beat: Callable[..., None]):
        super().__init__(quiet=True)
        self._beat = beat

    @contextmanager
    def progress(self, label: str, total: int, unit: str) -> Iterator[Callable[[int], object]]:
        done, told = 0, time.monotonic()
        self._beat(stage=label, done=0, total=total)

        def update(n: int) -> None:
            nonlocal done, told
            done += n
            if time.monotonic() - told > BEAT_SECONDS:
                told = time.monotonic()
                self._beat(stage=label, done=done, total=total)

        yield update
