"""`bridgex plan`: memory, batches, collectives, time and cost of a model on a TPU slice."""

from __future__ import annotations

import argparse
import json
from typing import Any

from bridgex_jax.cli.options import add_verb, console, positive, rate

STAGES = ("count", "probe", "generate", "spectrum")


def add(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "plan",
        "what a TPU slice would do with a model, from programs that are compiled for it here",
        "  bridgex plan llama-3-8b --topology v5e:2x4 --mesh data=2,tensor=4\n"
        "  bridgex plan meta-llama/Meta-Llama-3-70B --topology v5p:2x2x2 --mesh tensor=8 --json\n\n"
        "Needs libtpu (pip install 'bridgex_jax[plan]') and no TPU; each stage takes minutes to\n"
        "compile. A model that does not fit is refused (exit status 2) with the smallest slice\n"
        "that holds it.",
        run,
    )
    parser.add_argument(
        "model", metavar="MODEL", help="a shape (llama-3-8b, llama-3-70b, mistral-7b, qwen2.5-7b, "
        "qwen3-8b), a directory, a hub id or `builtin`; only config.json is read"
    )  # fmt: skip
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32", "float16"), default="bfloat16",
        help="of parameters and activations",
    )  # fmt: skip
    parser.add_argument(
        "--topology", required=True, metavar="CHIP:GRID",
        help="v4:2x2x1, v5e:4x4, v5p:2x2x2, v6e:2x4, …",
    )  # fmt: skip
    parser.add_argument(
        "--mesh", metavar="AXIS=N,…", help="such as data=4,tensor=4 (default: all chips along data)"
    )
    parser.add_argument(
        "--stages", nargs="+", choices=STAGES, metavar="STAGE",
        help="some of count, probe, generate, spectrum (default: all)",
    )  # fmt: skip
    _add_job(parser)
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")


def _add_job(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the job")
    for option, default, what in (
        ("--languages", 12, "whose text is counted"),
        ("--tokens", 100_000, "of text a language"),
        ("--row-length", 2048, "tokens a row of text"),
        ("--pairs", 15, "of source and target"),
        ("--bridges", 6, "candidates a pair"),
        ("--words", 1000, "probe words a pair"),
        ("--batch-size", 64, "prompts at once"),
    ):
        group.add_argument(option, type=positive, default=default, metavar="N", help=what)
    group.add_argument("--top-rate", type=rate, default=0.01, help="share of neurons in a set")
    group.add_argument(
        "--price", type=float, metavar="DOLLARS", help="a chip-hour (default: the list price)"
    )


def run(args: argparse.Namespace) -> int:
    from bridgex_jax import runtime
    from bridgex_jax.pipelines.plan.chips import parse_topology
    from bridgex_jax.pipelines.plan.run import Target, make_plan
    from bridgex_jax.pipelines.plan.shapes import find_config
    from bridgex_jax.pipelines.plan.stages import Job
    from bridgex_jax.pipelines.plan.text import plan_json, plan_text

    runtime.compile_only()
    names = ("languages", "tokens", "pairs", "bridges", "words", "row_length", "batch_size",
             "top_rate")  # fmt: skip
    job = Job(**{name: getattr(args, name) for name in names})
    slice_ = parse_topology(args.topology)
    config = find_config(args.model, args.revision)
    target = Target(args.model, config, args.dtype, slice_, args.mesh)
    plan = make_plan(target, job, console(args), names=args.stages or STAGES, price=args.price)
    print(json.dumps(plan_json(plan), indent=1) if args.json else plan_text(plan))
    return 0
