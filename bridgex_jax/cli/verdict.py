"""`bridgex verdict`: evaluations of many pairs together."""

from __future__ import annotations

import argparse
import json
from typing import Any

from bridgex_jax.cli.options import add_verb, console, positive


def add(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "verdict",
        "say of every way to choose a bridge whether it helps, over evaluations of many pairs",
        "  bridgex verdict runs/id-he-bli runs/he-id-bli --out runs/verdict\n"
        "  bridgex verdict runs/sweep --task bli --out runs/verdict",
        run,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="of bridgex evaluate, or "
                        "directories that hold some, such as a sweep")  # fmt: skip
    parser.add_argument("--task", help="of runs of several tasks, this one")
    parser.add_argument("--model", help="of runs of several models, this one")
    parser.add_argument("--judge", metavar="CHOOSER", help="what the sentence is about (default: "
                        "hsic)")  # fmt: skip
    parser.add_argument("--resamples", type=positive, default=2000, help="bootstrap draws")
    parser.add_argument("--seed", type=int, default=0, help="of resampling")
    parser.add_argument("--out", required=True, metavar="RUN", help="run directory to write")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    from bridgex_jax.pipelines import verdict as job
    from bridgex_jax.store.paths import as_path

    settings = job.VerdictSettings(args.judge, args.task, args.model, args.resamples, args.seed)
    found = job.find_runs(args.runs)
    result = job.run_verdict(found, settings, as_path(args.out), console(args))
    print(json.dumps(result.to_json(), ensure_ascii=False) if args.json else result.text())
    return 0
