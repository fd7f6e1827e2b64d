"""`bridgex select`: the bridge language of one pair."""

from __future__ import annotations

import argparse
import json
from typing import Any

from bridgex_jax.cli.options import (
    add_corpora,
    add_model,
    add_pair,
    add_verb,
    console,
    layers,
    model_of,
    or_cldr,
    positive,
    rate,
    read_pair,
)
from bridgex_jax.errors import InputError


def add(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "select",
        "choose the bridge language of one pair",
        "  bridgex select builtin --source id --target he --top-rate 0.10 --probe-filter none \\\n"
        "      --out runs/id-he\n"
        "  bridgex select meta-llama/Meta-Llama-3-8B --source id --target he \\\n"
        "      --bridges en de fr it pt es --dictionary id-he=id-he.txt \\\n"
        "      --counts runs/counts --out runs/id-he",
        run,
    )
    add_model(parser)
    add_pair(parser)
    add_corpora(parser)
    parser.add_argument("--counts", metavar="RUN", help="of bridgex count, instead of --corpus")
    parser.add_argument("--words", type=positive, default=500, help="probe words at most")
    parser.add_argument("--seed", type=int, default=0, help="of the words drawn and of resampling")
    parser.add_argument("--template", help="prompt with {source_language} {target_language} {word}")
    parser.add_argument("--layers", type=layers, metavar="FIRST-LAST", help="window of layers, "
                        "from 0 (default: the middle, 10-21 of 32)")  # fmt: skip
    parser.add_argument("--batch-size", type=positive, default=64, help="prompts a batch")
    parser.add_argument("--top-rate", type=rate, default=0.01, help="share of neurons in a "
                        "language's set; small models need more (0.10)")  # fmt: skip
    parser.add_argument("--rate-scope", choices=("global", "layer"), default="global",
                        help="top neurons of the whole model or of each layer")  # fmt: skip
    parser.add_argument("--bridge-set", choices=("exclusive", "not_shared", "all"),
                        default="exclusive", help="which of the bridge's neurons are "
                        "compared")  # fmt: skip
    parser.add_argument("--top-k", type=positive, metavar="K", help="cut every bridge's set to "
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
    parser.add_argument("--parallel", type=positive, metavar="N", help="the first N lines of the "
                        "corpora say the same in all languages (FLORES-200): compare their hidden "
                        "states too, as choosers")  # fmt: skip
    parser.add_argument("--resamples", type=positive, default=1000, help="bootstrap draws")
    parser.add_argument("--permutations", type=positive, default=499, help="of the null")
    parser.add_argument("--out", required=True, metavar="RUN", help="run directory to write")
    parser.add_argument("--json", action="store_true", help="print the choice as JSON")


def request_of(args: argparse.Namespace) -> Any:
    """What is asked: the pair, its candidates and words, and text or earlier counts."""
    from bridgex_jax.pipelines.inputs import BUILTIN, read_corpora
    from bridgex_jax.pipelines.select import Request

    words, bridges = read_pair(args)
    corpora = None
    if args.counts is None:
        texts = or_cldr(args.corpus, args.model == BUILTIN, "--corpus or --counts")
        corpora = read_corpora(texts, (words.source, words.target, *bridges), args.seed)
    elif args.corpus:
        raise InputError("--corpus and --counts are both given", remedy="give one of them")
    return Request(words.source, words.target, bridges, words, corpora, args.counts)


def run(args: argparse.Namespace) -> int:
    from bridgex_jax.pipelines import select as job
    from bridgex_jax.store.paths import as_path

    settings, request = job.settings_from(vars(args)), request_of(args)
    job.check_parallel(request, settings)
    model = model_of(args)
    result = job.run_select(model, request, settings, as_path(args.out), console(args))
    print(json.dumps(result.to_json(), ensure_ascii=False) if args.json else result.text())
    return 0
