"""A plan for people, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from bridgex_jax.pipelines.plan.collectives import Collective, summary
from bridgex_jax.pipelines.plan.roofline import EFFICIENCY
from bridgex_jax.pipelines.plan.run import Plan, StagePlan

SMALL = 1 << 20  # bytes a step of collectives that are shown together


def plan_json(plan: Plan) -> dict[str, Any]:
    """Everything that the table says, in bytes and seconds."""
    return {
        "model": plan.model,
        "dtype": plan.dtype,
        "topology": plan.slice.name,
        "chips": plan.slice.n_chips,
        "mesh": plan.mesh,
        "usable_bytes": plan.slice.chip.usable,
        "parameter_bytes": plan.parameters,
        "job": asdict(plan.job),
        "efficiency": EFFICIENCY,
        "stages": [_stage_json(stage) for stage in plan.stages],
        "seconds": plan.seconds,
        "price_chip_hour": plan.price,
        "dollars": plan.dollars,
    }


def _stage_json(stage: StagePlan) -> dict[str, Any]:
    program = stage.program
    return {
        "name": stage.name,
        "unit": stage.unit,
        "batch": stage.batch,
        "largest_batch": stage.largest,
        "more_may_fit": stage.more_may_fit,
        "compile_seconds": program.seconds,
        "argument_bytes": program.arguments,
        "temporary_bytes": program.temporaries,
        "output_bytes": program.outputs,
        "beside_bytes": stage.beside,
        "total_bytes": stage.bytes,
        "collectives": [one._asdict() for one in program.collectives],
        "step_seconds": {**asdict(stage.times), "bound": stage.times.bound},
        "steps": stage.steps,
        "seconds": stage.seconds,
    }


def plan_text(plan: Plan) -> str:
    """The table, the collectives below it, the job and what was assumed."""
    chips = plan.slice.n_chips
    mesh = ", ".join(f"{axis}={size}" for axis, size in plan.mesh.items() if size > 1) or "one chip"
    return "\n".join(
        [
            f"{plan.model}, {plan.dtype}, on {plan.slice.name} ({chips} chips; {mesh}): "
            f"{_gib(plan.parameters)} GiB parameters of {_gib(plan.slice.chip.usable)} GiB a chip",
            "",
            *_table(_rows(plan)),
            "",
            "collectives of a step (all of a kind together, bytes each time):",
            *(line for stage in plan.stages for line in _collective_lines(stage)),
            "",
            _job(plan),
            f"assumed: {_percent('compute')} of peak bfloat16, {_percent('hbm')} of HBM, "
            f"{_percent('ici')} of the interconnect; loading, compiling and the host not counted",
        ]
    )


def _rows(plan: Plan) -> Iterator[tuple[str, ...]]:
    yield (
        "stage", "batch", "largest", "GiB a chip", "arguments", "temporaries", "outputs", "beside",
        "of HBM", "compute ms", "HBM ms", "ICI ms", "bound by", "job", "compiled", "a batch counts",
    )  # fmt: skip
    for stage in plan.stages:
        program, times = stage.program, stage.times
        sizes = (program.arguments, program.temporaries, program.outputs, stage.beside)
        limits = (times.compute, times.hbm, times.ici)
        yield (
            stage.name,
            f"{stage.batch:,}",
            f"{stage.largest:,}{'+' if stage.more_may_fit else ''}",
            _gib(stage.bytes),
            *map(_gib, sizes),
            f"{stage.bytes / plan.slice.chip.usable:.0%}",
            *(f"{1e3 * seconds:,.3g}" for seconds in limits),
            {"compute": "compute", "hbm": "HBM", "ici": "ICI"}[times.bound],
            _duration(stage.seconds),
            f"{program.seconds:.0f} s",
            stage.unit,
        )


def _table(rows: Iterator[tuple[str, ...]]) -> list[str]:
    """Columns of numbers to the right; the first and the last to the left."""
    lines = list(rows)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    last = len(widths) - 1
    return [
        "  ".join(
            cell.ljust(width) if i in (0, last) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def _collective_lines(stage: StagePlan) -> list[str]:
    large = [one for one in stage.program.collectives if one.bytes * one.times >= SMALL]
    small = len(stage.program.collectives) - len(large)
    lines = [_describe(one) for one in summary(large)] or ["none above 1 MiB"]
    if small:
        lines.append(f"and {small} of less than 1 MiB a step")
    return [f"  {stage.name}: {lines[0]}", *(f"    {line}" for line in lines[1:])]


def _describe(one: Collective) -> str:
    return (
        f"{one.op} {one.kind} of {_size(one.bytes)} over {one.group} chips, "
        f"{one.times:,} times: {_size(one.bytes * one.times)}"
    )


def _job(plan: Plan) -> str:
    job, hours = plan.job, plan.seconds / 3600 * plan.slice.n_chips
    return (
        f"{job.languages} languages of {job.tokens:,} tokens, {job.pairs} pairs of {job.words:,} "
        f"words with {job.bridges} bridges: {_duration(plan.seconds)}, {hours:.3g} chip-hours, "
        f"${plan.dollars:,.2f} at ${plan.price:.2f} a chip-hour"
    )


def _percent(name: str) -> str:
    return f"{EFFICIENCY[name]:.0%}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:,.3g} h"


def _size(n_bytes: float) -> str:
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:,.3g} GB"


def _gib(n_bytes: float) -> str:
    return f"{n_bytes / 2**30:.2f}"
