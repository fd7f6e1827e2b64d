"""The command line as a whole: all verbs, what surrounds a job, how errors and Ctrl-C end it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from bridgex_jax.cli import bench, count, demo, evaluate, report, select
from bridgex_jax.cli.options import Parser, fail
from bridgex_jax.errors import InputError

VERBS = (demo, count, select, evaluate, report, bench)
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def build_parser() -> Parser:
    """The command line with all its verbs."""
    parser = Parser(
        prog="bridgex",
        description="Choose a bridge language for prompting a multilingual model in a "
        "low-resource language, by the neurons of the model itself.",
        epilog="Begin with: bridgex demo",
    )
    parser.add_argument("--version", action="version", version=f"bridgex {_version()}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)
    for verb in VERBS:
        verb.add(verbs)
    return parser


def _version() -> str:
    from importlib.metadata import version

    return version("bridgex_jax")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """absl's parser hook: its own flags keep their defaults, ours are argparse's."""
    from absl import flags

    flags.FLAGS(argv[:1])
    return build_parser().parse_args(argv[1:])


def run(args: argparse.Namespace) -> int:
    """One verb, from its arguments to the exit status."""
    from bridgex_jax import runtime

    runtime.quiet_libraries()
    runtime.keep_interrupts()
    runtime.use_compilation_cache()
    try:
        status = args.run(args)
        sys.stdout.flush()
        return status
    except InputError as error:
        fail(str(error))
    except BrokenPipeError:
        # The reader of our pipe has gone; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("bridgex: interrupted; the same command continues where it stopped", file=sys.stderr)
        return INTERRUPTED


def main() -> None:
    """The console script."""
    from absl import app

    app.run(run, flags_parser=parse)
