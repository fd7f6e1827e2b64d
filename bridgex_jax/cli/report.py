"""`bridgex report`: the page of a finished run, made again."""

from __future__ import annotations

import argparse
from typing import Any

from bridgex_jax.cli.options import add_verb


def add(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "report",
        "make report.html and the figures of a finished run again",
        "  bridgex report runs/id-he",
        run,
    )
    parser.add_argument("run_directory", metavar="RUN", help="of bridgex select or bridgex demo")


def run(args: argparse.Namespace) -> int:
    from bridgex_jax.pipelines.report import run_report

    print(run_report(args.run_directory))
    return 0
