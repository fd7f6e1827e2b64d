"""The command line as a whole: all verbs, what surrounds a job, how errors and Ctrl-C end it."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

from bridgex_jax.cli import (
    ablate,
    bench,
    capture,
    count,
    demo,
    evaluate,
    plan,
    report,
    select,
    sweep,
    verdict,
)
from bridgex_jax.cli.options import BAD_INPUT, Parser, add_languages, complain
from bridgex_jax.errors import InputError

VERBS = (demo, count, select, ablate, evaluate, verdict, sweep, capture, plan, report, bench)
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
    from bridgex_jax import cluster, runtime

    runtime.quiet_libraries()
    runtime.keep_interrupts()
    runtime.use_compilation_cache()
    try:
        _join(args)
        add_languages(getattr(args, "language", ()))
        status = args.run(args)
        sys.stdout.flush()
        return status
    except InputError as error:
        cluster.stop_watching()
        complain(str(error))
        cluster.leave(str(error), BAD_INPUT)
        return BAD_INPUT
    except BrokenPipeError:
        # The reader of our pipe has gone; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        cluster.stop_watching()
        print("bridgex: interrupted; the same command continues where it stopped", file=sys.stderr)
        cluster.leave("interrupted", INTERRUPTED)
        return INTERRUPTED
    except Exception as error:
        if cluster.peers():
            traceback.print_exc()
            cluster.lost_peer()
            cluster.leave(f"{type(error).__name__}: {error}", 1)
        raise


def _join(args: argparse.Namespace) -> None:
    """Connects with the other processes that run this command, where it says that there are any."""
    given = [getattr(args, name, None) for name in ("coordinator", "num_processes", "process_id")]
    if not getattr(args, "distributed", False):
        if any(value is not None for value in given):
            raise InputError("--distributed is missing", remedy="give it with --coordinator")
        return
    from bridgex_jax import cluster

    cluster.join(*given)
    if not cluster.is_leader():  # one voice for all
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def main() -> None:
    """The console script."""
    from absl import app

    app.run(run, flags_parser=parse)
