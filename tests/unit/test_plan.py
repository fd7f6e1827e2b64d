"""`bridgex plan`: what it reads from compiled programs, what it computes of it, what it refuses."""

import dataclasses
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridgex_jax import runtime
from bridgex_jax.cli.main import build_parser
from bridgex_jax.errors import InputError
from bridgex_jax.models.decoder import init_params, run_decoder
from bridgex_jax.pipelines.console import Console
from bridgex_jax.pipelines.plan import chips, roofline, run, shapes, stages, text
from bridgex_jax.pipelines.plan.collectives import Collective, collectives, summary
from bridgex_jax.pipelines.plan.roofline import Parts, Work
from tests.conftest import TINY

GIB = 2**30

# Shortened from what XLA writes for TPUs: a loop over layers in a loop over tokens; the gather of a
# weight runs beside products, in three computations of one channel; an asynchronous reduction.
HLO = """\
HloModule jit_step, is_scheduled=true

%gather_starts (p: bf16[512,14336]) -> bf16[4096,14336] {
  %all-gather.1 = bf16[4096,14336]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=5, replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}, metadata={op_name="jit(step)/while/body/gate"}
  ROOT %custom-call.1 = bf16[4096,14336]{1,0} custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%gather_goes_on (p: bf16[512,14336]) -> bf16[4096,14336] {
  ROOT %all-gather.2 = bf16[4096,14336]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=5, replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
}

%reduction (p: f32[8,16]) -> f32[8,16] {
  ROOT %all-reduce.7 = (f32[8,16]{1,0}, bf16[4]{0}) all-reduce(%p, %q), channel_id=7, replica_groups=[4,2]<=[8], to_apply=%add
}

%layers_go_on (state: (s32[], bf16[2,4])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(32)
  %state = (s32[], bf16[2,4]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %constant.1), direction=LT
}

%layer (state: (s32[], bf16[2,4])) -> (s32[], bf16[2,4]) {
  %state = (s32[], bf16[2,4]{1,0}) parameter(0)
  %start = bf16[4096,14336]{1,0} fusion(%state), kind=kCustom, calls=%gather_starts
  %step = bf16[4096,14336]{1,0} fusion(%start), kind=kOutput, calls=%gather_goes_on
  %async = ((f32[8,16]{1,0}), f32[8,16]{1,0}) async-start(%step), calls=%reduction
  %update = ((f32[8,16]{1,0}), f32[8,16]{1,0}) async-update(%async), calls=%reduction
  %done = f32[8,16]{1,0} async-done(%update), calls=%reduction
  ROOT %next = (s32[], bf16[2,4]{1,0}) tuple(%state, %done)
}

%tokens_go_on (state: (s32[], bf16[2,4])) -> pred[] {
  %state = (s32[], bf16[2,4]{1,0}) parameter(0)
  ROOT %and = pred[] and(%state, %state)
}

%token (state: (s32[], bf16[2,4])) -> (s32[], bf16[2,4]) {
  %state = (s32[], bf16[2,4]{1,0}) parameter(0)
  %while.1 = (s32[], bf16[2,4]{1,0}) while(%state), condition=%layers_go_on, body=%layer
  ROOT %all-to-all.1 = bf16[8,2]{1,0} all-to-all(%while.1), channel_id=2, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
}

ENTRY %main (p: bf16[2,4]) -> bf16[2,4] {
  %p = bf16[2,4]{1,0} parameter(0)
  %alone = f32[9]{0} all-reduce(%p), channel_id=9, replica_groups={{0},{1}}, to_apply=%add
  %ags = (bf16[2,4]{1,0}, bf16[16,4]{1,0}) all-gather-start(%p), channel_id=3, replica_groups=[1,8]<=[8], dimensions={0}
  %rs = f32[4]{0} reduce-scatter(%p), channel_id=4, replica_groups=[4,2]<=[4,2]T(1,0), dimensions={0}, to_apply=%add
  %cp = f32[10]{0} collective-permute(%p), channel_id=6, source_target_pairs={{0,1},{1,0}}
  ROOT %while.2 = (s32[], bf16[2,4]{1,0}) while(%p), condition=%tokens_go_on, body=%token, backend_config={"known_trip_count":{"n":"10"}}
}
"""  # noqa: E501


def test_collectives_count_once_a_trip_of_their_loops_and_once_a_channel():
    found = {one.kind: one for one in collectives(HLO)}
    large = 4096 * 14336 * 2
    gather = Collective("all-gather", large, 4, 320, "jit(step)/while/body/gate")
    assert collectives(HLO)[0] == gather
    assert found["all-reduce"] == Collective("all-reduce", 8 * 16 * 4 + 4 * 2, 2, 320, "")
    assert found["all-to-all"] == Collective("all-to-all", 32, 4, 10, "")
    assert found["reduce-scatter"] == Collective("reduce-scatter", 2 * 16, 2, 1, "")
    assert found["collective-permute"] == Collective("collective-permute", 40, 2, 1, "")
    assert Collective("all-gather", 128, 8, 1, "") in collectives(HLO)
    assert len(collectives(HLO)) == 6  # one over a single device is none


def test_collectives_alike_are_shown_as_one_row():
    one = Collective("all-reduce", 100, 4, 32, "a")
    rows = summary([one, one._replace(bytes=50), one._replace(times=1)])
    assert rows == [
        Collective("all-reduce", 150, 4, 32, "2"),
        Collective("all-reduce", 100, 4, 1, "1"),
    ]


CHIP = chips.Chip("v0", 100e12, 2 * GIB, 1 * GIB, 1e12, 1e11, 2.0, ("1x1", "2x2", "2x4"))


def test_interconnect_time_is_that_of_rings():
    one = Collective("all-gather", 8_000_000, 8, 10, "")
    moved, hops = 7_000_000 / 1e11 / 0.8, 4e-6
    assert roofline.collective_seconds([one], CHIP) == pytest.approx(10 * (moved + hops))
    reduce = one._replace(kind="all-reduce")
    assert roofline.collective_seconds([reduce], CHIP) == pytest.approx(20 * (moved + hops))
    permute = one._replace(kind="collective-permute", times=1)
    assert roofline.collective_seconds([permute], CHIP) == pytest.approx(1e-4 + 1e-6)


def test_a_step_takes_as_long_as_its_tightest_limit():
    times = roofline.times(Work(6e12, 1.6e9), 0.001, CHIP)
    assert (times.compute, times.hbm) == pytest.approx((0.1, 0.002))
    assert times.step == pytest.approx(0.1)
    assert times.bound == "compute"
    assert roofline.times(Work(0.0, 8e9), 0.02, CHIP).bound == "ici"


def mesh_of(**axes):
    return SimpleNamespace(shape={"data": 1, "fsdp": 1, "tensor": 1} | axes)


def test_the_work_of_llama_3_8b_by_hand():
    config = shapes.find_config("llama-3-8b")
    parts = Parts.of(config, mesh_of(data=2, tensor=4), 2)
    weights = (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336) / 4  # of a layer and chip
    assert parts.layer_weights == weights
    work = roofline.forward(parts, 4, 2048)
    tokens, scores = 2 * 2048, 2 * 8 * 2048 * 2048  # of a chip: two rows, eight heads
    assert work.flops == 32 * (2 * weights * tokens + 4 * 128 * scores)
    values = tokens * (16 * 4096 + 6 * 3584)
    assert work.hbm == 32 * (2 * weights + 2 * values + 16 * scores)

    step = roofline.decoding(parts, 64, 100)
    cache = 2 * 32 * 32 * 100 * (8 // 4) * 128 * 2  # 32 rows a chip
    one = roofline.forward(parts, 64, 1, 100)
    vocabulary = 128256 * 4096 // 4
    assert step.flops == one.flops + 2 * vocabulary * 32
    assert step.hbm == one.hbm + 2 * vocabulary + 12 * 32 * 128256 // 4 + cache


def test_what_fsdp_gathers_is_read_written_and_read_again():
    config = shapes.find_config("llama-3-8b")
    whole = roofline.forward(Parts.of(config, mesh_of(data=4), 2), 4, 8)
    gathered = roofline.forward(Parts.of(config, mesh_of(fsdp=4), 2), 4, 8)
    weights = 32 * 2 * Parts.of(config, mesh_of(), 2).layer_weights
    assert gathered.hbm - whole.hbm == pytest.approx(1.25 * weights)
    assert gathered.flops == whole.flops


def test_key_heads_that_do_not_divide_are_copied():
    config = shapes.find_config("llama-3-8b")
    parts = Parts.of(config, mesh_of(tensor=16), 2)
    assert (parts.kv, parts.vocab, parts.tensor) == (1, 16, 16)


def test_flops_are_those_that_xla_counts():
    params = jax.eval_shape(lambda: init_params(TINY, jax.random.key(0)))
    tokens = jax.ShapeDtypeStruct((4, 64), jnp.int32)
    mask = jax.ShapeDtypeStruct((4, 64), bool)

    def hidden(params, tokens, mask):
        return run_decoder(TINY, params, tokens, mask, unroll=True).hidden

    cost = jax.jit(hidden).lower(params, tokens, mask).compile().cost_analysis()
    parts = Parts.of(TINY, mesh_of(), 4)
    ours = roofline.forward(parts, 4, 64).flops
    assert ours < cost["flops"] < 1.35 * ours  # norms, softmax and rotation of so small a model


def test_parameters_that_are_shapes_are_those_of_the_model():
    mesh = runtime.one_device()
    config = dataclasses.replace(TINY, tie_embeddings=False)
    model = stages.programs.abstract_model(config, mesh, "float32")
    real = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    assert jax.tree.map(np.shape, model.params) == jax.tree.map(np.shape, real)


def test_every_stage_compiles_as_the_job_runs_it():
    mesh = runtime.one_device()
    model = stages.programs.abstract_model(TINY, mesh, "float32")
    job = stages.Job(row_length=64, words=64, batch_size=16, pairs=1, top_rate=0.25)
    made = stages.make_stages(model, mesh, job)
    assert tuple(stage.name for stage in made) == stages.STAGES
    for stage in made:
        found = stages.compile_program(stage.lower(stage.step))
        assert found is not None
        assert found.collectives == ()
        assert min(found.arguments, found.temporaries, found.outputs) >= 0
        assert found.bytes > 0
        work = stage.work(stage.step)
        assert work.flops > 0
        assert work.hbm > 0


def small_plan(compile_, **settings):
    """A plan of TINY on one virtual chip."""
    target = run.Target("tiny", TINY, "float32", chips.Slice(CHIP, "1x1"), None)
    job = stages.Job(row_length=64, words=64, batch_size=16, pairs=2, languages=3, tokens=640)
    names = settings.pop("names", ("count", "spectrum"))
    return run.make_plan(target, job, Console(True), names=names, compile_=compile_, **settings)


@pytest.fixture
def one_chip(monkeypatch):
    monkeypatch.setattr(run, "slice_mesh", lambda slice_, shape: runtime.one_device())


def grows(lowered):
    """A program that holds 1 MiB a row or block."""
    rows = jax.tree.leaves(lowered.args_info)
    batch = max(info.shape[0] for info in rows if len(info.shape) == 2 and info.shape[1] == 64)
    return stages.Program(2.0, 1000, batch << 20, 24, (Collective("all-gather", GIB, 2, 3, "x"),))


def test_a_plan_says_what_fits_and_what_it_costs(one_chip):
    plan = small_plan(grows, names=("count",), price=7.2)
    (count,) = plan.stages
    assert count.batch == 8  # ten rows of a language, counted in two halves
    assert count.largest == 256  # 1,023 would fit: the search ends before
    assert count.more_may_fit
    assert count.steps == 2 * 3
    assert plan.seconds == count.steps * count.times.step
    assert plan.dollars == pytest.approx(plan.seconds / 500)
    shown = text.plan_text(plan)
    assert " 256+ " in shown
    assert "tiny, float32, on v0:1x1 (1 chips; one chip)" in shown
    assert "count: 1 all-gather of 1.07 GB over 2 chips, 3 times: 3.22 GB" in shown
    assert f"${plan.dollars:.2f} at $7.20 a chip-hour" in shown
    assert "60% of peak bfloat16" in shown
    stored = json.loads(json.dumps(text.plan_json(plan)))
    assert stored["stages"][0]["largest_batch"] == count.largest
    assert stored["stages"][0]["total_bytes"] == count.bytes
    assert stored["dollars"] == plan.dollars


def test_a_batch_that_does_not_fit_gives_way_to_the_largest(one_chip):
    def large(lowered):
        found = grows(lowered)
        return dataclasses.replace(found, temporaries=200 * found.temporaries)

    (count,) = small_plan(large, names=("count",)).stages
    assert count.batch == count.largest
    assert count.batch == 5
    assert count.steps == 2 * 3


def test_what_fits_nowhere_is_refused_in_one_line(one_chip):
    with pytest.raises(InputError) as error:
        small_plan(lambda lowered: None)
    assert str(error.value) == (
        "tiny in float32 does not fit v0:1x1 with data=1: count of 1 rows of 64 tokens needs more "
        "than the 1.00 GiB of a chip; no slice of v0 up to 2x4 holds it"
    )


def test_a_refusal_names_the_smallest_slice_that_compiles(monkeypatch, one_chip):
    tried = []

    def mesh(slice_, shape):
        tried.append((slice_.shape, shape))
        return runtime.one_device()

    monkeypatch.setattr(run, "slice_mesh", mesh)

    def fits_from_the_third(lowered):
        return None if len(tried) < 3 else grows(lowered)

    with pytest.raises(InputError, match="the smallest that fits is --topology v0:2x2 --mesh data"):
        small_plan(fits_from_the_third, names=("count",))
    assert tried == [("1x1", None), ("1x1", "data=1,tensor=1"), ("2x2", "data=4,tensor=1")]


def test_slices_that_cannot_hold_the_weights_are_not_tried():
    config = shapes.find_config("llama-3-70b")
    asked = run.Target("70b", config, "bfloat16", chips.Slice(V5E, "1x1"), None)
    found = [(target.slice.shape, target.mesh) for target in run.candidates(asked)]
    assert found[0] == ("4x4", "data=1,tensor=16")  # 141 GB over chips of 16.9
    assert ("4x8", "data=2,tensor=16") in found
    assert all("tensor=8" not in mesh for _, mesh in found)


V5E = chips.CHIPS["v5e"]


def test_topologies_are_those_that_are_sold():
    assert chips.parse_topology("v5e:4x4").n_chips == 16
    assert chips.parse_topology("v5p:2x2x4").n_chips == 16
    with pytest.raises(InputError, match="names no TPU; write one of v4, v5e, v5p, v6e"):
        chips.parse_topology("h100:8")
    with pytest.raises(InputError, match="is no slice of v5e; write v5e: and one of 1x1"):
        chips.parse_topology("v5e:3x3")


def test_without_libtpu_the_remedy_is_one_command(monkeypatch):
    monkeypatch.setattr(chips, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'bridgex_jax\[plan\]'"):
        chips.slice_mesh(chips.Slice(V5E, "2x2"), None)


@pytest.mark.parametrize(
    ("name", "billions"),
    [("llama-3-8b", 8.03), ("llama-3-70b", 70.55), ("mistral-7b", 7.25), ("qwen2.5-7b", 7.62),
     ("qwen3-8b", 8.19)],
)  # fmt: skip
def test_named_shapes_have_the_parameters_that_their_names_say(name, billions):
    numbers = run.parameter_bytes(shapes.find_config(name), "bfloat16") / 2
    assert numbers / 1e9 == pytest.approx(billions, abs=0.01)


def test_only_the_configuration_of_a_directory_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY.to_hf()))
    assert shapes.find_config(str(tmp_path)) == TINY
    assert shapes.find_config("builtin").n_layers > 0
    with pytest.raises(InputError, match="no such model; give a directory, a hub id or one of"):
        shapes.find_config("llama-9")
    with pytest.raises(InputError, match="not in the hub's cache, and the hub cannot be reached"):
        shapes.find_config("nobody/nothing-of-the-kind")


def test_the_command_has_the_defaults_of_the_job():
    args = build_parser().parse_args(["plan", "llama-3-8b", "--topology", "v5e:2x4"])
    job = {field.name: field.default for field in dataclasses.fields(stages.Job)}
    assert {name: getattr(args, name) for name in job} == job
    assert args.stages is None


@pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_small_model_is_planned_for_a_slice_without_a_tpu(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY.to_hf()))
    command = [sys.executable, "-m", "bridgex_jax.cli", "plan", str(tmp_path), "--topology"]
    options = ["v5e:2x2", "--mesh", "data=2,tensor=2", "--stages", "count"]
    options += ["--row-length", "64", "--tokens", "640"]
    done = subprocess.run(
        [*command, *options, "--json"], capture_output=True, text=True, env=os.environ, check=True
    )
    (count,) = json.loads(done.stdout)["stages"]
    reduced = [one for one in count["collectives"] if one["times"] == TINY.n_layers]
    assert {one["kind"] for one in reduced} == {"all-reduce"}
    assert count["largest_batch"] >= count["batch"]
