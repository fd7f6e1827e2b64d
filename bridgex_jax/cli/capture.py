"""`bridgex capture`: activations of any sites, reduced or whole, to arrays with named axes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from bridgex_jax.cli.options import add_model, add_verb, console, model_of, positive
from bridgex_jax.errors import InputError

if TYPE_CHECKING:
    from bridgex_jax.pipelines.capture_settings import Text


def add(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "capture",
        "write activations of texts or dictionary prompts, reduced or whole, as arrays with named "
        "axes",
        "  bridgex capture builtin --corpus en=cldr id=cldr --site mlp_gate_act=count,sum \\\n"
        "      --out runs/counts\n"
        "  bridgex capture meta-llama/Meta-Llama-3-8B --corpus en=eng.txt de=deu.txt \\\n"
        "      --site mlp_gate_act=histogram:64:-0.5:3 --site resid_post=last_token,token_mean \\\n"
        "      --site mlp_act=full --layers 3 7-9 --out runs/activations\n"
        "  bridgex capture meta-llama/Meta-Llama-3-8B --dictionary id-he=id-he.txt --source id \\\n"
        "      --target he --site mlp_gate_act=token_mean --out runs/prompts",
        run,
    )
    add_model(parser)
    parser.add_argument("--text", nargs="+", action="extend", metavar="FILE",
                        help="text of any language, a line an example")  # fmt: skip
    parser.add_argument("--corpus", nargs="+", action="extend", metavar="CODE=FILE",
                        help="text of a language, a line an example; `CODE=cldr` for dates, "
                        "amounts and lists of the CLDR")  # fmt: skip
    parser.add_argument("--dictionary", nargs="+", action="extend", metavar="S-T=FILE",
                        help="word pairs, as for select; `cldr` for the words of the CLDR. A "
                        "prompt an example")  # fmt: skip
    parser.add_argument("--source", metavar="CODE", help="language of the dictionary's words")
    parser.add_argument("--target", metavar="CODE", help="language to translate to")
    parser.add_argument("--template", help="prompt with {source_language} {target_language} {word}")
    parser.add_argument("--token-scope", choices=("from_word_mean", "prompt_mean", "word_tokens",
                        "last_token"), default="from_word_mean", help="tokens of a prompt that "
                        "count; of a line all but special ones do")  # fmt: skip
    parser.add_argument("--examples", type=positive, metavar="N", help="the first N of every text")
    parser.add_argument("--site", nargs="+", action="extend",
                        metavar="SITE=REDUCER,...", help="what to keep: count[:THRESHOLD], sum, "
                        "sum_of_squares, histogram[:BINS:LOW:HIGH] of every text; token_mean, "
                        "last_token, full of every example")  # fmt: skip
    parser.add_argument("--layers", nargs="+", metavar="N", help="layers that are kept of every "
                        "example, from 0, such as 3 7-9 (default: all)")  # fmt: skip
    parser.add_argument("--store-dtype", choices=("float32", "bfloat16", "float16"),
                        default="float32", help="of what is kept of every example")  # fmt: skip
    parser.add_argument("--batch-size", type=positive, metavar="N", help="examples a batch, if all "
                        "were as long as the longest (default: what suits the device)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of text made from the CLDR")
    parser.add_argument("--out", required=True, metavar="RUN", help="run directory to write")


def run(args: argparse.Namespace) -> int:
    from bridgex_jax.pipelines import capture as job
    from bridgex_jax.pipelines.capture_settings import (
        CaptureSettings,
        parse_layers,
        parse_reducers,
    )
    from bridgex_jax.store.paths import as_path

    parse_reducers(args.site or (), (0,))  # before the model is loaded
    texts = list(_texts(args))
    if not texts:
        raise InputError("nothing to read", remedy="give --text, --corpus or --dictionary")
    model = model_of(args)
    layers = parse_layers(args.layers, model.config.n_layers) if args.layers else None
    reducers = parse_reducers(args.site or (), layers)
    if layers and job.chosen_layers(reducers) is None:
        raise InputError(
            "--layers chooses nothing: statistics are kept of all layers",
            remedy="take it out, or keep token_mean, last_token or full",
        )
    settings = CaptureSettings(reducers, args.store_dtype, args.batch_size)
    print(job.describe(job.run_capture(model, texts, settings, as_path(args.out), console(args))))
    return 0


def _texts(args: argparse.Namespace) -> Iterator[Text]:
    """Files, corpora and the dictionary, in this order. InputError for a name that comes twice."""
    from bridgex_jax.pipelines.capture_settings import first_examples

    names = set()
    for text in (*_files(args), *_corpora(args), *_dictionary(args)):
        if text.name in names:
            raise InputError(f"{text.name} is given twice", remedy="give it once, or rename a file")
        names.add(text.name)
        yield first_examples(text, args.examples)


def _files(args: argparse.Namespace) -> Iterator[Text]:
    from pathlib import PurePath

    from bridgex_jax.data.text import read_lines
    from bridgex_jax.pipelines.capture_settings import line_text

    for file in args.text or ():
        read = read_lines(file)
        if not read.lines:
            raise InputError("holds no text", file=file, remedy="give a file with text")
        yield line_text(PurePath(file).name, [s.strip() for s in read.lines], read.sha256, file)


def _corpora(args: argparse.Namespace) -> Iterator[Text]:
    from bridgex_jax.cli.options import codes
    from bridgex_jax.pipelines.capture_settings import line_text
    from bridgex_jax.pipelines.inputs import keyed, read_corpora

    if args.corpus:
        languages = [key for key, _ in keyed(args.corpus, "--corpus", "--corpus en=FILE")]
        for code, corpus in read_corpora(args.corpus, codes(languages), args.seed).items():
            yield line_text(code, corpus.lines, corpus.sha256, corpus.file)


def _dictionary(args: argparse.Namespace) -> Iterator[Text]:
    from bridgex_jax.cli.options import or_cldr
    from bridgex_jax.pipelines import inputs
    from bridgex_jax.pipelines.capture_settings import dictionary_text

    if not args.dictionary:
        return
    if not (args.source and args.target):
        raise InputError("--dictionary needs a pair", remedy="give --source and --target")
    source, target, _ = inputs.check_languages(args.source, args.target, [])
    given = or_cldr(args.dictionary, False, "--dictionary")
    files = given if given == inputs.CLDR else inputs.dictionary_files(given)
    words = inputs.read_words(files, source, target)
    yield dictionary_text(words, args.template, args.token_scope)
