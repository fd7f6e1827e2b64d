"""What the verbs share: the parser with its one-line errors, groups of options, reading them.

No jax is loaded here: `bridgex --help` answers at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from bridgex_jax.errors import InputError

BAD_INPUT = 2  # exit status
BRIDGES = ("en", "de", "fr", "it", "pt", "es")


class Parser(argparse.ArgumentParser):
    """argparse with the project's one-line errors."""

    def error(self, message: str) -> NoReturn:
        complain(f"{message}; see {self.prog} --help")
        raise SystemExit(BAD_INPUT)


def complain(message: str) -> None:
    """Prints the one line of bad input."""
    print(f"bridgex: error: {message}", file=sys.stderr)


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def rate(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def layers(text: str) -> tuple[int, int]:
    first, mark, last = text.partition("-")
    if not (first.isdigit() and (last.isdigit() if mark else not last)):
        raise argparse.ArgumentTypeError(f"{text!r} is not FIRST-LAST, such as 10-21")
    low, high = int(first), int(last or first)
    if high < low:
        raise argparse.ArgumentTypeError(f"{text!r} ends before it begins")
    return low, high


def add_verb(verbs: Any, name: str, what: str, example: str, run: Callable[..., int]) -> Parser:
    parser = verbs.add_parser(
        name,
        help=what,
        description=what,
        epilog=f"examples:\n{example}",
        formatter_class=_Help,
    )
    parser.set_defaults(run=run)
    parser.add_argument("--quiet", action="store_true", help="no notices and no progress bars")
    return parser


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults and leaves the examples as they are; no default of None or False."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, argparse.SUPPRESS):
            return action.help
        return super()._get_help_string(action)


def add_model(parser: Parser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="a Hugging Face directory, a hub id, or `builtin`"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of parameters and activations",
    )
    parser.add_argument(
        "--language",
        action="append",
        default=[],
        metavar="CODE,ENDONYM",
        help="a language that the table lacks, with its own name, such as quy,Runasimi",
    )
    add_devices(parser)


def add_devices(parser: Parser) -> None:
    """--mesh, and how several processes that run the same command find each other."""
    group = parser.add_argument_group("devices")
    group.add_argument(
        "--mesh", metavar="AXIS=N,…", help="such as data=4,tensor=2: data splits batches, tensor "
        "heads and neurons, fsdp batches and parameters (default: all devices along data)"
    )  # fmt: skip
    group.add_argument(
        "--distributed", action="store_true", help="several processes run this command: they find "
        "each other as TPU pods, Slurm, Open MPI and Kubernetes have it, or by:"
    )  # fmt: skip
    group.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0")
    group.add_argument("--num-processes", type=positive, metavar="N", help="how many there are")
    group.add_argument("--process-id", type=int, metavar="I", help="which this is, from 0")


def add_pair(parser: Parser) -> None:
    parser.add_argument("--source", required=True, metavar="CODE", help="language of the words")
    parser.add_argument("--target", required=True, metavar="CODE", help="language to translate to")
    parser.add_argument(
        "--bridges",
        nargs="+",
        metavar="CODE",
        help=f"candidates (default: {' '.join(BRIDGES)}, less source and target)",
    )
    parser.add_argument(
        "--dictionary",
        nargs="+",
        action="extend",
        metavar="S-T=FILE",
        help="word pairs (MUSE, TAB, TICO-19 CSV); also reversed, or joined through en; `cldr` for "
        "the words of the CLDR, which is the default with the built-in model",
    )


def add_corpora(parser: Parser) -> None:
    parser.add_argument(
        "--corpus",
        nargs="+",
        action="extend",
        metavar="CODE=FILE",
        help="text, a sentence a line; `cldr` for dates, amounts and lists of the CLDR, which is "
        "the default with the built-in model",
    )
    parser.add_argument(
        "--tokens", type=positive, metavar="N", help="tokens to count a language (default: the "
        "smallest corpus)"
    )  # fmt: skip
    parser.add_argument(
        "--row-length", type=positive, metavar="T", help="tokens a row (default: 2048, at most "
        "the model's context)"
    )  # fmt: skip


def add_languages(items: Sequence[str]) -> None:
    """--language CODE,ENDONYM, before any other option is looked at."""
    if items:
        from bridgex_jax.data.text import scripts_of
        from bridgex_jax.languages import add_language

        for item in items:
            code, _, endonym = (part.strip() for part in item.partition(","))
            add_language(code, endonym, scripts_of(endonym))


def model_of(args: argparse.Namespace) -> Any:
    """The model that `add_model`'s options name, on its mesh."""
    from bridgex_jax.pipelines.inputs import read_model

    return read_model(
        args.model,
        dtype=args.dtype,
        revision=args.revision,
        mesh=args.mesh,
        quiet=args.quiet,
    )


def console(args: argparse.Namespace):
    from bridgex_jax import cluster
    from bridgex_jax.pipelines.console import Console

    return Console(args.quiet or not cluster.is_leader())


def bridges_of(args: argparse.Namespace) -> list[str]:
    """The candidates; by default the paper's, without the languages of the pair."""
    taken = codes([args.source, args.target])
    return args.bridges or [code for code in BRIDGES if code not in taken]


def read_pair(args: argparse.Namespace) -> tuple[Any, tuple[str, ...]]:
    """The dictionary of the pair and its candidates, checked."""
    from bridgex_jax.pipelines import inputs

    source, target, bridges = inputs.check_languages(args.source, args.target, bridges_of(args))
    given = or_cldr(args.dictionary, args.model == inputs.BUILTIN, "--dictionary")
    files = given if given == inputs.CLDR else inputs.dictionary_files(given)
    return inputs.read_words(files, source, target), tuple(bridges)


def codes(codes: Sequence[str]) -> list[str]:
    from bridgex_jax.languages import language

    return [language(code).code for code in codes]


def or_cldr(items: list[str] | None, is_builtin: bool, option: str) -> Any:
    """The given files, or `cldr` where that was asked for or goes with the built-in model."""
    from bridgex_jax.pipelines.inputs import CLDR

    if items == [CLDR] or (not items and is_builtin):
        return CLDR
    if not items:
        raise InputError(
            f"{option} is missing", remedy=f"give {option.split()[0]} KEY=FILE or cldr"
        )
    return items
