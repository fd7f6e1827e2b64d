"""`bridgex sweep`: models × pairs × settings (× tasks) of a plan; `sweep status DIR`."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from bridgex_jax.cli.options import add_devices, add_verb, console, positive
from bridgex_jax.errors import InputError


def add(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "sweep",
        "select bridges for many models, pairs and settings, and evaluate them in tasks; nothing "
        "is computed twice",
        "  bridgex sweep experiments/sweep_builtin.yaml --out runs/sweep --dry-run\n"
        "  bridgex sweep experiments/sweep_builtin.yaml --out runs/sweep\n"
        "  bridgex sweep experiments/paper_builtin.yaml --out runs/paper         (evaluates too)\n"
        "  bridgex sweep PLAN.yaml --out runs/sweep --shard 3/16      (or: --shard auto)\n"
        "  bridgex sweep PLAN.yaml --out runs/sweep --engine ray --workers 4\n"
        "  bridgex sweep status runs/sweep\n\n"
        "exit status: 0 all units of this call are complete, 1 some failed (the same command\n"
        "tries them again), 2 bad input, 130 Ctrl-C, 143 SIGTERM with units left",
        run,
    )
    parser.add_argument("plan", metavar="PLAN", help="a YAML file, or the word status")
    parser.add_argument("directory", nargs="?", metavar="DIR", help="with status: the sweep's")
    parser.add_argument("--out", metavar="DIR", help="directory of the sweep, also gs:// or s3://")
    parser.add_argument("--dry-run", action="store_true", help="only print the units, their cost "
                        "and what is there; reads every new model once, for its hash")  # fmt: skip
    parser.add_argument("--shard", metavar="I/N", help="only part I of N, from 0; auto: as the "
                        "Slurm array or the Kubernetes Indexed Job says")  # fmt: skip
    parser.add_argument("--engine", choices=("local", "ray"), default="local",
                        help="who does the units")  # fmt: skip
    parser.add_argument("--workers", type=positive, metavar="N", help="of the Ray cluster that is "
                        "started here, unless RAY_ADDRESS names one (default: CPUs)")  # fmt: skip
    parser.add_argument("--grace", type=float, default=20.0, metavar="SECONDS", help="after "
                        "SIGTERM, for the current unit to end")  # fmt: skip
    add_devices(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    if args.plan == "status":
        return _show_status(args)
    _check(args)
    from bridgex_jax.pipelines.sweep.run import SweepSettings, plan_sweep, run_sweep
    from bridgex_jax.pipelines.sweep.shards import read_shard

    shard = read_shard(args.shard, os.environ)
    if args.dry_run:
        status = plan_sweep(args.plan, args.out, console(args))
        _print(args, status.to_json(), status.text(every_unit=True))
        return 0
    settings = SweepSettings(args.engine, shard, args.workers, args.grace, args.mesh)
    result = run_sweep(args.plan, args.out, settings, console(args))
    _print(args, result.to_json(), result.text())
    return result.status


def _show_status(args: argparse.Namespace) -> int:
    from bridgex_jax.pipelines.sweep.status import read_status

    if not args.directory:
        raise InputError("sweep status: no DIR is given", remedy="write bridgex sweep status DIR")
    status = read_status(args.directory)
    _print(args, status.to_json(), status.text())
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.directory:
        remedy = f"write --out {args.directory}"
        raise InputError(f"{args.directory!r} after the plan is not understood", remedy=remedy)
    if not args.out:
        raise InputError("sweep: --out is missing", remedy="give the directory of the sweep")
    if args.engine == "ray" and (args.distributed or args.mesh):
        raise InputError(
            "--engine ray gives every unit to one worker",
            remedy="leave --distributed and --mesh out",
        )
    if args.workers and args.engine != "ray":
        raise InputError("--workers is for --engine ray", remedy="add --engine ray, or use --shard")


def _print(args: argparse.Namespace, value: dict[str, Any], text: str) -> None:
    print(json.dumps(value, ensure_ascii=False) if args.json else text)
