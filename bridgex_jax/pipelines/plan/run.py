"""`bridgex plan`: does a model fit a slice, in what batches, and what would a selection cost there.

Every step is compiled for the slice as it would run; nothing runs. What does not fit is refused,
with the smallest slice of that chip that holds it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from jax.sharding import Mesh

from bridgex_jax.errors import InputError
from bridgex_jax.models import budget
from bridgex_jax.models.config import DecoderConfig
from bridgex_jax.models.weights import DTYPES, weight_table
from bridgex_jax.pipelines import programs
from bridgex_jax.pipelines.console import Console
from bridgex_jax.pipelines.plan import roofline
from bridgex_jax.pipelines.plan.chips import Chip, Slice, slice_mesh
from bridgex_jax.pipelines.plan.roofline import Times
from bridgex_jax.pipelines.plan.stages import (
    Job,
    Program,
    Stage,
    compile_program,
    make_stages,
)

TIMES_LARGER = 32  # than the batch of the job: larger ones are not looked for
Compile = Callable[[Any], Program | None]


@dataclass(frozen=True)
class StagePlan:
    """A stage on a slice: the program of `batch` units, how many fit, and `steps` of the job."""

    name: str
    unit: str
    batch: int
    largest: int
    steps: int
    beside: int
    program: Program
    times: Times

    @property
    def more_may_fit(self) -> bool:
        """Whether `largest` is only where the search ended."""
        return self.largest >= TIMES_LARGER * self.batch

    @property
    def bytes(self) -> int:
        """Of a chip: the program, and what lies beside it."""
        return self.program.bytes + self.beside

    @property
    def seconds(self) -> float:
        """Of the whole job."""
        return self.steps * self.times.step


@dataclass(frozen=True)
class Plan:
    """A model on a slice. price: dollars a chip-hour."""

    model: str
    dtype: str
    slice: Slice
    mesh: dict[str, int]
    job: Job
    stages: tuple[StagePlan, ...]
    parameters: int  # bytes a chip
    price: float

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    @property
    def dollars(self) -> float:
        return self.seconds / 3600 * self.slice.n_chips * self.price


@dataclass(frozen=True)
class Target:
    """What is planned for: a model, a slice, how it is split."""

    name: str
    config: DecoderConfig
    dtype: str
    slice: Slice
    mesh: str | None


def make_plan(
    target: Target,
    job: Job,
    console: Console,
    *,
    names: Sequence[str],
    price: float | None = None,
    compile_: Compile = compile_program,
) -> Plan:
    """Compiles the named stages for the slice.

    Raises InputError without libtpu, for a mesh that does not divide the model or the slice, and
    where a stage does not fit, naming the smallest slice of this chip that holds all of them.
    """
    mesh = slice_mesh(target.slice, target.mesh)
    model = programs.abstract_model(target.config, mesh, target.dtype)
    stages = [stage for stage in make_stages(model, mesh, job) if stage.name in names]
    planned = []
    with console.progress("compiling", len(stages), "stages") as progress:
        for stage in stages:
            console.say(f"compiling {stage.name} for {target.slice.name}")
            found = plan_stage(stage, target.slice.chip, compile_)
            if found is None:
                raise _does_not_fit(
                    target, stage, mesh, console, partial(fits, job, names, compile_)
                )
            planned.append(found)
            progress(1)
    chip = target.slice.chip
    return Plan(
        target.name,
        target.dtype,
        target.slice,
        dict(mesh.shape),
        job,
        tuple(planned),
        budget.held_bytes(model.params),
        chip.price if price is None else price,
    )


def plan_stage(stage: Stage, chip: Chip, compile_: Compile) -> StagePlan | None:
    """The largest batch of a stage and the program of the batch that a job takes; None: none fits.

    That batch is the stage's own, or the largest where it does not fit.
    """
    programs_of: dict[int, Program | None] = {}

    def program(batch: int) -> Program | None:
        if batch not in programs_of:
            programs_of[batch] = compile_(stage.lower(batch))
        return programs_of[batch]

    def bytes_for(batch: int) -> float:
        found = program(batch)
        return math.inf if found is None else found.bytes + stage.beside(batch)

    largest = budget.largest_batch(
        bytes_for,
        chip.usable,
        step=stage.step,
        start=stage.batch,
        most=TIMES_LARGER * stage.batch,
    )
    if not largest:
        return None
    batch = min(stage.batch, largest)
    taken = program(batch)
    assert taken is not None
    ici = roofline.collective_seconds(taken.collectives, chip)
    times = roofline.times(stage.work(batch), ici, chip)
    return StagePlan(
        stage.name,
        stage.unit,
        batch,
        largest,
        stage.steps(batch),
        stage.beside(batch),
        taken,
        times,
    )


def _does_not_fit(
    target: Target, stage: Stage, mesh: Mesh, console: Console, fits: Callable[[Target], bool]
) -> InputError:
    axes = ",".join(f"{axis}={n}" for axis, n in mesh.shape.items() if n > 1) or "data=1"
    chip = target.slice.chip
    what = (
        f"{target.name} in {target.dtype} does not fit {target.slice.name} with {axes}: "
        f"{stage.name} of {stage.step} {stage.unit} needs more than the "
        f"{chip.usable / 2**30:.2f} GiB of a chip"
    )
    for other in candidates(target):
        console.say(f"trying {other.slice.name} with {other.mesh}")
        if fits(other):
            remedy = f"the smallest that fits is --topology {other.slice.name} --mesh {other.mesh}"
            return InputError(what, remedy=remedy)
    return InputError(what, remedy=f"no slice of {chip.name} up to {chip.slices[-1]} holds it")


def candidates(target: Target) -> Iterator[Target]:
    """Slices and meshes that hold the parameters: the smallest first, then least `tensor`."""
    config, chip = target.config, target.slice.chip
    for shape, power in itertools.product(chip.slices, range(10)):
        slice_, tensor = Slice(chip, shape), 2**power
        if slice_.n_chips % tensor or parameter_bytes(config, target.dtype) / tensor > chip.usable:
            continue
        if config.n_heads % tensor == 0 and config.d_ff % tensor == 0:
            mesh = f"data={slice_.n_chips // tensor},tensor={tensor}"
            yield replace(target, slice=slice_, mesh=mesh)


def parameter_bytes(config: DecoderConfig, dtype: str) -> int:
    """Of the whole model."""
    numbers = sum(
        math.prod(leaf.shape) * (config.n_layers if leaf.stacked else 1)
        for leaf in weight_table(config)
    )
    return numbers * DTYPES[dtype].itemsize


def fits(job: Job, names: Sequence[str], compile_: Compile, target: Target) -> bool:
    """Whether the smallest batch of every stage fits."""
    mesh = slice_mesh(target.slice, target.mesh)
    model = programs.abstract_model(target.config, mesh, target.dtype)
    for stage in make_stages(model, mesh, job):
        if stage.name in names:
            found = compile_(stage.lower(stage.step))
            if found is None or found.bytes + stage.beside(stage.step) > target.slice.chip.usable:
                return False
    return True
