"""A batch that is picked fits by the compiler's own word, and few programs are compiled for it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridgex_jax import runtime
from bridgex_jax.errors import InputError
from bridgex_jax.models import budget
from bridgex_jax.pipelines import programs
from tests.conftest import TINY


class Compiler:
    """Bytes of a batch by a formula; remembers what was compiled."""

    def __init__(self, formula):
        self.formula, self.compiled = formula, []

    def __call__(self, batch):
        assert batch not in self.compiled, "compiled twice"
        self.compiled.append(batch)
        return self.formula(batch)


def affine(batch):
    return 1000.0 + 7 * batch


def bent(batch):  # what fuses differently from some size on
    return 1000.0 + 7 * batch + (5 * (batch - 400) if batch > 400 else 0)


def padded(batch):
    return 1000.0 + 7 * math.ceil(batch / 128) * 128


def refused(batch):  # a compiler that gives up long before the end
    return 1000.0 + 2 * batch if batch <= 333 else math.inf


@pytest.mark.parametrize("formula", [affine, bent, padded, refused])
@pytest.mark.parametrize("step", [1, 8, 24])
@pytest.mark.parametrize("start", [None, 64, 5000])
def test_the_largest_batch_fits_and_a_sixth_more_would_not(formula, step, start):
    compiler, limit = Compiler(formula), 6000.0
    found = budget.largest_batch(compiler, limit, step=step, start=start)
    assert found % step == 0
    assert found in compiler.compiled  # it was checked, not guessed
    assert formula(found) <= limit
    larger = math.ceil(found * 7 / 6 / step + 1) * step
    assert formula(larger) > limit
    assert len(compiler.compiled) <= (18 if formula is refused else 8)


def test_three_programs_are_enough_where_memory_is_linear():
    compiler = Compiler(affine)
    assert budget.largest_batch(compiler, 6000.0, start=64) == pytest.approx(714, rel=0.05)
    assert len(compiler.compiled) == 3


def test_a_model_that_does_not_fit_has_no_batch():
    compiler = Compiler(affine)
    assert budget.largest_batch(compiler, 1005.0, start=64) == 0
    assert compiler.compiled == [64, 1]
    assert budget.largest_batch(lambda batch: math.inf, 1e9, step=8) == 0


def test_memory_that_does_not_grow_gives_the_most_that_is_asked_for():
    assert budget.largest_batch(lambda batch: 10.0, 100.0, step=8, most=1000) == 1000


def test_a_wanted_batch_that_fits_costs_one_compilation():
    compiler = Compiler(affine)
    assert budget.fitting_batch(compiler, 6000.0, 96, step=8) == 96
    assert compiler.compiled == [96]
    assert budget.fitting_batch(Compiler(affine), 1500.0, 96, step=8) == 64


def test_bytes_are_those_of_arguments_results_and_temporaries():
    shape = jax.ShapeDtypeStruct((1000,), jnp.float32)

    def twice(x):
        return 2 * x, x + 1

    plain = budget.device_bytes(jax.jit(twice).lower(shape).compile())
    donated = budget.device_bytes(jax.jit(twice, donate_argnums=0).lower(shape).compile())
    assert 12_000 <= plain <= 12_100
    assert plain - donated == 4_000


def test_the_host_names_no_limit():
    assert budget.memory_limit(runtime.one_device()) is None


def test_rows_of_text_follow_the_memory_that_a_device_names(monkeypatch):
    mesh = runtime.one_device()
    model = programs.abstract_model(TINY, mesh, "float32")
    usual = programs.rows_that_fit(model, mesh, 64)
    assert usual == runtime.tokens_a_batch(mesh) // 64

    def bytes_of(rows):
        return budget.bytes_to_run(programs.lower_count(model, mesh, rows, 64))

    limit = int(bytes_of(5) / (1 - budget.RESERVE)) + 1
    monkeypatch.setattr(budget, "memory_limit", lambda mesh: limit)
    rows = programs.rows_that_fit(model, mesh, 64)
    assert 4 <= rows <= 5
    monkeypatch.setattr(budget, "memory_limit", lambda mesh: 1000)
    with pytest.raises(InputError, match=r"rows of 64 tokens do not fit .* smaller --row-length"):
        programs.rows_that_fit(model, mesh, 64)


def test_an_output_matrix_that_capture_does_not_take_is_counted():
    mesh = runtime.one_device()
    model = programs.abstract_model(TINY, mesh, "float32")
    assert budget.unused_bytes(model.params) == 0  # tied
    leaf = jax.ShapeDtypeStruct((32, 320), np.float32, sharding=runtime.replicated(mesh))
    assert budget.unused_bytes({"lm_head": {"kernel": leaf}}) == 32 * 320 * 4


def test_programs_are_dropped_before_a_process_has_too_many():
    step = jax.jit(lambda x: x + 1)
    step(jnp.ones(3))
    assert step._cache_size() == 1
    assert not runtime.drop_programs()
    assert step._cache_size() == 1
    assert runtime.drop_programs(at_most=1)
    assert step._cache_size() == 0
    assert float(step(jnp.ones(3))[0]) == 2
