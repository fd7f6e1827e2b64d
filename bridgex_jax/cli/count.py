"""`bridgex count`: corpora to activation counts."""

from __future__ import annotations

import argparse
from typing import Any

from bridgex_jax.cli.options import (
    BRIDGES,
    add_corpora,
    add_model,
    add_verb,
    codes,
    console,
    model_of,
    or_cldr,
    positive,
)


def add(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "count",
        "count how often every neuron is active in text of each language, for `select --counts`",
        "  bridgex count meta-llama/Meta-Llama-3-8B --corpus en=flores/eng_Latn.devtest \\\n"
        "      he=flores/heb_Hebr.devtest id=flores/ind_Latn.devtest --out runs/counts",
        run,
    )
    add_model(parser)
    add_corpora(parser)
    parser.add_argument(
        "--languages", nargs="+", metavar="CODE", help="which (default: those with a corpus)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of text made from the CLDR")
    parser.add_argument("--batch-size", type=positive, metavar="N", help="rows a batch")
    parser.add_argument("--out", required=True, metavar="RUN", help="run directory to write")


def run(args: argparse.Namespace) -> int:
    from bridgex_jax.pipelines.count import CountSettings, run_count
    from bridgex_jax.pipelines.inputs import BUILTIN, CLDR, keyed, read_corpora
    from bridgex_jax.store.paths import as_path

    corpora = or_cldr(args.corpus, args.model == BUILTIN, "--corpus")
    languages = args.languages or (
        list(BRIDGES)
        if corpora == CLDR
        else [key for key, _ in keyed(corpora, "--corpus", "en=FILE")]
    )
    settings = CountSettings(args.tokens, args.row_length, args.batch_size)
    texts = read_corpora(corpora, codes(languages), args.seed)
    model = model_of(args)
    print(run_count(model, texts, settings, as_path(args.out), console(args)))
    return 0
