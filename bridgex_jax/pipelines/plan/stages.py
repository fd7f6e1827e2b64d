"""The four steps that a selection runs on the chips, and what compiling one of them tells.

Counting text, probing dictionary prompts, generating answers, the spectrum: each with the batch
that the job would take, how it is lowered and how much work it is.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from bridgex_jax import runtime
from bridgex_jax.bridge.spectrum import BATCH_BYTES, SIZE_MULTIPLE
from bridgex_jax.data.batching import bucket_length
from bridgex_jax.data.trees import ROW_LENGTH
from bridgex_jax.icl.completion import MAX_NEW_TOKENS
from bridgex_jax.models import budget
from bridgex_jax.models.config import DecoderConfig
from bridgex_jax.models.generate import FIRST_ROOM
from bridgex_jax.models.load import Model
from bridgex_jax.pipelines import programs
from bridgex_jax.pipelines.estimate import PROMPT_TOKENS
from bridgex_jax.pipelines.plan import roofline
from bridgex_jax.pipelines.plan.collectives import Collective, collectives
from bridgex_jax.pipelines.plan.roofline import Parts, Work

STAGES = ("count", "probe", "generate", "spectrum")


@dataclass(frozen=True)
class Job:
    """How much is to be done. tokens: of text a language; words: probe words a pair.

    The defaults are those of the paper: 15 pairs of 6 languages, 6 bridges, 1,000 words.
    """

    languages: int = 12
    tokens: int = 100_000
    pairs: int = 15
    bridges: int = 6
    words: int = 1000
    row_length: int = 2048
    batch_size: int = 64  # prompts at once, as of `select`
    top_rate: float = 0.01


@dataclass(frozen=True)
class Stage:
    """One kind of step.

    unit: what a batch counts; batch: what the job takes, in multiples of step. Of a batch: steps,
    how many the whole job has; beside, bytes on a chip that the program does not take; work, on a
    chip.
    """

    name: str
    unit: str
    batch: int
    step: int
    steps: Callable[[int], int]
    beside: Callable[[int], int]
    lower: Callable[[int], jax.stages.Lowered]
    work: Callable[[int], Work]


@dataclass(frozen=True)
class Program:
    """What one compilation gave; bytes are those of one chip. None of them where it did not fit."""

    seconds: float
    arguments: int
    temporaries: int
    outputs: int  # beyond those that take the place of arguments
    collectives: tuple[Collective, ...]

    @property
    def bytes(self) -> int:
        return self.arguments + self.temporaries + self.outputs


def make_stages(model: Model, mesh: Mesh, job: Job) -> tuple[Stage, ...]:
    """The stages of a job with this model on this mesh."""
    config = model.config
    item = model.params["embed"]["embedding"].dtype.itemsize
    parts = Parts.of(config, mesh, item)
    unused = budget.unused_bytes(model.params)
    rows = runtime.batch_parts(mesh)
    chosen = _probed_neurons(config, job)
    length = min(job.row_length, config.max_position_embeddings)
    prompt_slots = bucket_length(2 * PROMPT_TOKENS)
    half = math.ceil(job.tokens / length / 2)  # rows of a language are counted in two halves
    of_text = min(runtime.tokens_a_batch(mesh) // length, 1 << (half - 1).bit_length())
    of_prompts = math.ceil(job.pairs * job.words * PROMPT_TOKENS / ROW_LENGTH)

    def wanted(n: int) -> int:
        return _round(max(1, n), rows)

    def generate_work(prompts: int) -> Work:
        prefilled = roofline.forward(parts, prompts, PROMPT_TOKENS, ROW_LENGTH)
        keys = prompt_slots + FIRST_ROOM
        return prefilled + roofline.decoding(parts, prompts, keys) * FIRST_ROOM

    return (
        Stage(
            "count",
            f"rows of {length} tokens",
            wanted(of_text),
            rows,
            lambda n: 2 * job.languages * math.ceil(half / n),
            lambda n: unused,
            partial(_count, model, mesh, length),
            lambda n: roofline.forward(parts, n, length),
        ),
        Stage(
            "probe",
            f"rows of {ROW_LENGTH} tokens",
            wanted(job.batch_size * PROMPT_TOKENS // ROW_LENGTH),
            rows,
            lambda n: math.ceil(of_prompts / n),
            lambda n: unused,
            partial(_probe, model, mesh, chosen),
            lambda n: roofline.forward(parts, n, ROW_LENGTH),
        ),
        Stage(
            "generate",
            f"prompts, {FIRST_ROOM} new tokens each",
            wanted(job.batch_size),
            rows,
            lambda n: math.ceil(job.pairs * job.words / n),
            partial(_other_pool, model, mesh),
            partial(_decode, model, mesh, prompt_slots),
            generate_work,
        ),
        _spectrum_stage(model, mesh, job),
    )


def _spectrum_stage(model: Model, mesh: Mesh, job: Job) -> Stage:
    n1 = _round(_probed_neurons(model.config, job) // job.bridges, SIZE_MULTIPLE)
    sizes = n1, n1 * job.bridges, _round(job.words, 32)
    devices = mesh.size
    most = max(1, BATCH_BYTES // (4 * sizes[2] * (sizes[0] + sizes[1]))) * devices
    total = job.pairs * model.config.n_layers
    calls = -(-total // most)
    held = budget.held_bytes(model.params)
    return Stage(
        "spectrum",
        f"layers of a pair, {sizes[0]} x {sizes[1]} neurons, {sizes[2]} words",
        _round(-(-total // calls), devices),
        devices,
        lambda n: math.ceil(total / n),
        lambda n: held,
        partial(programs.lower_spectrum, mesh, sizes=sizes, groups=job.bridges),
        lambda n: roofline.spectrum(n / devices, sizes),
    )


def _probed_neurons(config: DecoderConfig, job: Job) -> int:
    """Neurons of all bridges in a layer: the top of every language's rates."""
    return max(1, round(job.top_rate * config.d_ff)) * job.bridges


def _count(model: Model, mesh: Mesh, length: int, rows: int) -> jax.stages.Lowered:
    return programs.lower_count(model, mesh, rows, length)


def _probe(model: Model, mesh: Mesh, n_neurons: int, rows: int) -> jax.stages.Lowered:
    return programs.lower_probe(model, mesh, rows, n_neurons)


def _decode(model: Model, mesh: Mesh, prompt_slots: int, prompts: int) -> jax.stages.Lowered:
    return programs.lower_decode(model, mesh, prompts, prompt_slots, MAX_NEW_TOKENS)


def _other_pool(model: Model, mesh: Mesh, prompts: int) -> int:
    """Two batches are in flight: prompts of the next one are read while one is decoded."""
    return budget.held_bytes(programs.abstract_pool(model, mesh, prompts))


def _round(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def compile_program(lowered: jax.stages.Lowered) -> Program | None:
    """Compiles and reads memory and collectives; None where the compiler says that it cannot fit.

    The text is the compiler's own dump: a libtpu that is newer than jaxlib writes HLO that the
    latter cannot read back.
    """
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="bridgex-plan-") as place:
        options: dict[str, str | bool] = {"xla_dump_to": place, "xla_dump_hlo_as_text": True}
        try:
            compiled = lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            if budget.is_out_of_memory(error):
                return None
            raise
        seconds = time.perf_counter() - start
        dumps = Path(place).glob("*after_optimizations.txt")
        text = max(dumps, key=lambda file: file.stat().st_size).read_text()
    memory: Any = compiled.memory_analysis()
    return Program(
        seconds,
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.output_size_in_bytes - memory.alias_size_in_bytes,
        tuple(collectives(text)),
    )
