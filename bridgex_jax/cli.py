"""`bridgex VERB`: reads the command line, calls one pipeline, prints its result.

Results go to standard output, everything else to standard error; bad input is one line,
`bridgex: error: …`, with exit status 2. No verb's libraries load before its arguments are right.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from bridgex_jax.errors import InputError

BRIDGES = ("en", "de", "fr", "it", "pt", "es")
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class Parser(argparse.ArgumentParser):
    """argparse with the project's one-line errors."""

    def error(self, message: str) -> NoReturn:
        fail(f"{message}; see {self.prog} --help")


def fail(message: str) -> NoReturn:
    """Prints the one line of bad input and ends the program."""
    print(f"bridgex: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _rate(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _layers(text: str) -> tuple[int, int]:
    first, mark, last = text.partition("-")
    if not (first.isdigit() and (last.isdigit() if mark else not last)):
        raise argparse.ArgumentTypeError(f"{text!r} is not FIRST-LAST, such as 10-21")
    low, high = int(first), int(last or first)
    if high < low:
        raise argparse.ArgumentTypeError(f"{text!r} ends before it begins")
    return low, high


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
    _add_demo(verbs)
    _add_count(verbs)
    _add_select(verbs)
    _add_evaluate(verbs)
    _add_report(verbs)
    _add_bench(verbs)
    return parser


def _version() -> str:
    from importlib.metadata import version

    return version("bridgex_jax")


def _verb(verbs: Any, name: str, what: str, example: str, run: Callable[..., int]) -> Parser:
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


def _add_model(parser: Parser) -> None:
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


def _add_pair(parser: Parser) -> None:
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


def _add_corpora(parser: Parser) -> None:
    parser.add_argument(
        "--corpus",
        nargs="+",
        action="extend",
        metavar="CODE=FILE",
        help="text, a sentence a line; `cldr` for dates, amounts and lists of the CLDR, which is "
        "the default with the built-in model",
    )
    parser.add_argument(
        "--tokens", type=_positive, metavar="N", help="tokens to count a language (default: the "
        "smallest corpus)"
    )  # fmt: skip
    parser.add_argument(
        "--row-length", type=_positive, metavar="T", help="tokens a row (default: 2048, at most "
        "the model's context)"
    )  # fmt: skip


def _add_demo(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "demo",
        "the main job on the built-in model and words: 12 directions, chosen and evaluated",
        "  bridgex demo\n  bridgex demo --out runs/demo --json",
        _run_demo,
    )
    parser.add_argument("--out", default="runs/demo", metavar="RUN", help="run directory to write")
    parser.add_argument("--seed", type=int, default=0, help="of resampling")
    parser.add_argument("--words", type=_positive, default=80, help="evaluated a direction; there "
                        "are 320 to 617, all of which take a minute and a half")  # fmt: skip
    parser.add_argument("--batch-size", type=_positive, default=512, help="prompts a batch")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _add_count(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "count",
        "count how often every neuron is active in text of each language, for `select --counts`",
        "  bridgex count meta-llama/Meta-Llama-3-8B --corpus en=flores/eng_Latn.devtest \\\n"
        "      he=flores/heb_Hebr.devtest id=flores/ind_Latn.devtest --out runs/counts",
        _run_count,
    )
    _add_model(parser)
    _add_corpora(parser)
    parser.add_argument(
        "--languages", nargs="+", metavar="CODE", help="which (default: those with a corpus)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of text made from the CLDR")
    parser.add_argument("--batch-size", type=_positive, metavar="N", help="rows a batch")
    parser.add_argument("--out", required=True, metavar="RUN", help="run directory to write")


def _add_select(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "select",
        "choose the bridge language of one pair",
        "  bridgex select builtin --source id --target he --top-rate 0.10 --probe-filter none \\\n"
        "      --out runs/id-he\n"
        "  bridgex select meta-llama/Meta-Llama-3-8B --source id --target he \\\n"
        "      --bridges en de fr it pt es --dictionary id-he=id-he.txt \\\n"
        "      --counts runs/counts --out runs/id-he",
        _run_select,
    )
    _add_model(parser)
    _add_pair(parser)
    _add_corpora(parser)
    parser.add_argument("--counts", metavar="RUN", help="of bridgex count, instead of --corpus")
    parser.add_argument("--words", type=_positive, default=500, help="probe words at most")
    parser.add_argument("--seed", type=int, default=0, help="of the words drawn and of resampling")
    parser.add_argument("--template", help="prompt with {source_language} {target_language} {word}")
    parser.add_argument("--layers", type=_layers, metavar="FIRST-LAST", help="window of layers, "
                        "from 0 (default: the middle, 10-21 of 32)")  # fmt: skip
    parser.add_argument("--batch-size", type=_positive, default=64, help="prompts a batch")
    parser.add_argument("--top-rate", type=_rate, default=0.01, help="share of neurons in a "
                        "language's set; small models need more (0.10)")  # fmt: skip
    parser.add_argument("--rate-scope", choices=("global", "layer"), default="global",
                        help="top neurons of the whole model or of each layer")  # fmt: skip
    parser.add_argument("--bridge-set", choices=("exclusive", "not_shared", "all"),
                        default="exclusive", help="which of the bridge's neurons are "
                        "compared")  # fmt: skip
    parser.add_argument("--top-k", type=_positive, metavar="K", help="cut every bridge's set to "
                        "its K most active neurons a layer")  # fmt: skip
    parser.add_argument("--drop-common", action="store_true", help="leave out neurons that all "
                        "languages have")  # fmt: skip
    parser.add_argument("--probe-filter", choices=("correct", "none"), default="correct",
                        help="only words that the model translates right")  # fmt: skip
    parser.add_argument("--token-scope", default="from_word_mean", choices=(
        "from_word_mean", "prompt_mean", "prompt_and_generated_mean", "word_tokens", "last_token"),
        help="tokens whose activations are averaged")  # fmt: skip
    parser.add_argument("--length-control", choices=("strata", "none"),
                        help="of token counts (default: strata)")  # fmt: skip
    parser.add_argument("--estimator", choices=("biased", "unbiased", "cka", "cka_debiased",
                        "trace_khl"), help="of HSIC (default: cka_debiased)")  # fmt: skip
    parser.add_argument("--bandwidth", choices=("variable_median", "set_median"),
                        help="of the Gaussian kernels (default: variable_median)")  # fmt: skip
    parser.add_argument("--no-size-matching", action="store_true", help="the released score, which "
                        "prefers larger sets")  # fmt: skip
    parser.add_argument("--compat", choices=("paper", "reference"), help="the paper's, or the "
                        "released code's, estimator, bandwidth and rules instead")  # fmt: skip
    parser.add_argument("--resamples", type=_positive, default=1000, help="bootstrap draws")
    parser.add_argument("--permutations", type=_positive, default=499, help="of the null")
    parser.add_argument("--out", required=True, metavar="RUN", help="run directory to write")
    parser.add_argument("--json", action="store_true", help="print the choice as JSON")


def _add_evaluate(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "evaluate",
        "translate words zero-shot and through every bridge, and compare",
        "  bridgex evaluate builtin --task bli --source id --target he --select runs/id-he \\\n"
        "      --out runs/id-he-bli",
        _run_evaluate,
    )
    _add_model(parser)
    parser.add_argument("--task", choices=("bli",), default="bli", help="word translation")
    _add_pair(parser)
    parser.add_argument("--select", metavar="RUN", help="of bridgex select: its choice is judged "
                        "and its probe words are not evaluated")  # fmt: skip
    parser.add_argument("--words", type=_positive, help="evaluate at most so many words")
    parser.add_argument("--seed", type=int, default=0, help="of the words drawn and of resampling")
    parser.add_argument("--batch-size", type=_positive, default=256, help="prompts a batch")
    parser.add_argument("--show", type=_positive, metavar="N", help="print N answers")
    parser.add_argument("--out", required=True, metavar="RUN", help="run directory to write")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _add_report(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "report",
        "make report.html and the figures of a finished run again",
        "  bridgex report runs/id-he",
        _run_report,
    )
    parser.add_argument("run_directory", metavar="RUN", help="of bridgex select or bridgex demo")


def _add_bench(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "bench",
        "measure speed and memory, as ratios against the alternatives in the same process",
        "  bridgex bench capture\n  bridgex bench hsic --out runs/bench --json",
        _run_bench,
    )
    parser.add_argument(
        "what", choices=("capture", "hsic", "memory", "spectrum", "all"), help="benchmark"
    )
    parser.add_argument(
        "--repeats", type=_positive, default=5, help="measurements; the median counts"
    )
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--out", metavar="DIR", help="also write bench.json and a roofline there")


def _run_demo(args: argparse.Namespace) -> int:
    from bridgex_jax.pipelines.demo import DemoSettings, run_demo

    settings = DemoSettings(seed=args.seed, words=args.words, batch_size=args.batch_size)
    result = run_demo(settings, Path(args.out), _console(args))
    print(json.dumps(result.to_json(), ensure_ascii=False) if args.json else result.text())
    return 0


def _run_count(args: argparse.Namespace) -> int:
    from bridgex_jax.pipelines.count import CountSettings, run_count
    from bridgex_jax.pipelines.inputs import BUILTIN, CLDR, keyed, read_corpora, read_model

    corpora = _or_cldr(args.corpus, args.model == BUILTIN, "--corpus")
    languages = args.languages or (
        list(BRIDGES)
        if corpora == CLDR
        else [key for key, _ in keyed(corpora, "--corpus", "en=FILE")]
    )
    settings = CountSettings(args.tokens, args.row_length, args.batch_size)
    texts = read_corpora(corpora, _codes(languages), args.seed)
    model = read_model(args.model, dtype=args.dtype, revision=args.revision, quiet=args.quiet)
    print(run_count(model, texts, settings, Path(args.out), _console(args)))
    return 0


def _run_select(args: argparse.Namespace) -> int:
    from bridgex_jax.pipelines import select as job
    from bridgex_jax.pipelines.inputs import BUILTIN, read_corpora, read_model

    settings = job.settings_from(vars(args))
    words, bridges = _read_pair(args)
    languages = (words.source, words.target, *bridges)
    corpora = None
    if args.counts is None:
        texts = _or_cldr(args.corpus, args.model == BUILTIN, "--corpus or --counts")
        corpora = read_corpora(texts, languages, args.seed)
    elif args.corpus:
        raise InputError("--corpus and --counts are both given", remedy="give one of them")
    model = read_model(args.model, dtype=args.dtype, revision=args.revision, quiet=args.quiet)
    request = job.Request(words.source, words.target, bridges, words, corpora, args.counts)
    result = job.run_select(model, request, settings, Path(args.out), _console(args))
    print(json.dumps(result.to_json(), ensure_ascii=False) if args.json else result.text())
    return 0


def _run_evaluate(args: argparse.Namespace) -> int:
    from bridgex_jax.pipelines import evaluate as job
    from bridgex_jax.pipelines.inputs import read_model

    words, bridges = _read_pair(args)
    chosen: str | None = None
    excluded: set[str] = set()
    if args.select:
        chosen, excluded = job.read_selection(args.select, words.source, words.target)
    model = read_model(args.model, dtype=args.dtype, revision=args.revision, quiet=args.quiet)
    settings = job.EvaluateSettings(words=args.words, seed=args.seed, batch_size=args.batch_size)
    result = job.run_evaluate(
        model, words, bridges, chosen, excluded, settings, Path(args.out), _console(args)
    )
    print(json.dumps(result.to_json(), ensure_ascii=False) if args.json else result.text(args.show))
    return 0


def _run_report(args: argparse.Namespace) -> int:
    from bridgex_jax.pipelines.report import run_report

    print(run_report(Path(args.run_directory)))
    return 0


def _run_bench(args: argparse.Namespace) -> int:
    from bridgex_jax.pipelines import bench

    names = tuple(bench.BENCHMARKS) if args.what == "all" else (args.what,)
    rows = bench.run(names, repeats=args.repeats, quiet=args.quiet)
    print(json.dumps(rows, ensure_ascii=False) if args.json else bench.format_table(rows))
    if args.out:
        bench.write_bench(rows, Path(args.out))
    return 0


def _console(args: argparse.Namespace):
    from bridgex_jax.pipelines.console import Console

    return Console(args.quiet)


def _bridges(args: argparse.Namespace) -> list[str]:
    """The candidates; by default the paper's, without the languages of the pair."""
    taken = _codes([args.source, args.target])
    return args.bridges or [code for code in BRIDGES if code not in taken]


def _read_pair(args: argparse.Namespace) -> tuple[Any, tuple[str, ...]]:
    """The dictionary of the pair and its candidates, checked."""
    from bridgex_jax.pipelines import inputs

    source, target, bridges = inputs.check_languages(args.source, args.target, _bridges(args))
    given = _or_cldr(args.dictionary, args.model == inputs.BUILTIN, "--dictionary")
    files = given if given == inputs.CLDR else inputs.dictionary_files(given)
    return inputs.read_words(files, source, target), tuple(bridges)


def _codes(codes: Sequence[str]) -> list[str]:
    from bridgex_jax.languages import language

    return [language(code).code for code in codes]


def _or_cldr(items: list[str] | None, is_builtin: bool, option: str) -> Any:
    """The given files, or `cldr` where that was asked for or goes with the built-in model."""
    from bridgex_jax.pipelines.inputs import CLDR

    if items == [CLDR] or (not items and is_builtin):
        return CLDR
    if not items:
        raise InputError(
            f"{option} is missing", remedy=f"give {option.split()[0]} KEY=FILE or cldr"
        )
    return items


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """absl's parser hook: its own flags keep their defaults, ours are argparse's."""
    from absl import flags

    flags.FLAGS(argv[:1])
    return build_parser().parse_args(argv[1:])


def _main(args: argparse.Namespace) -> int:
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

    app.run(_main, flags_parser=_parse)


if __name__ == "__main__":
    main()
