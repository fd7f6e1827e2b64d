"""`bridgex bench`: speed and memory as ratios."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bridgex_jax.cli.options import add_verb, positive

# The names of pipelines/bench.py, which would load jax.
WHAT = ("capture", "generate", "evaluate", "hsic", "memory", "spectrum", "all")


def add(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "bench",
        "measure speed and memory, as ratios against the alternatives in the same process",
        "  bridgex bench capture\n  bridgex bench hsic --out runs/bench --json",
        run,
    )
    parser.add_argument("what", choices=WHAT, help="benchmark")
    parser.add_argument(
        "--repeats", type=positive, default=5, help="measurements; the median counts"
    )
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--out", metavar="DIR", help="also write bench.json and a roofline there")


def run(args: argparse.Namespace) -> int:
    from bridgex_jax.pipelines import bench

    names = tuple(bench.BENCHMARKS) if args.what == "all" else (args.what,)
    rows = bench.run(names, repeats=args.repeats, quiet=args.quiet)
    print(json.dumps(rows, ensure_ascii=False) if args.json else bench.format_table(rows))
    if args.out:
        bench.write_bench(rows, Path(args.out))
    return 0
