"""`bridgex evaluate`: zero-shot against every bridge."""

from __future__ import annotations

import argparse
import json
from typing import Any

from bridgex_jax.cli.options import (
    add_model,
    add_pair,
    add_verb,
    console,
    model_of,
    positive,
    read_pair,
)


def add(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "evaluate",
        "translate words zero-shot and through every bridge, and compare",
        "  bridgex evaluate builtin --task bli --source id --target he --select runs/id-he \\\n"
        "      --out runs/id-he-bli",
        run,
    )
    add_model(parser)
    parser.add_argument("--task", choices=("bli",), default="bli", help="word translation")
    add_pair(parser)
    parser.add_argument("--select", metavar="RUN", help="of bridgex select: its choice is judged "
                        "and its probe words are not evaluated")  # fmt: skip
    parser.add_argument("--words", type=positive, help="evaluate at most so many words")
    parser.add_argument("--seed", type=int, default=0, help="of the words drawn and of resampling")
    parser.add_argument("--batch-size", type=positive, default=256, help="prompts a batch")
    parser.add_argument("--show", type=positive, metavar="N", help="print N answers")
    parser.add_argument("--out", required=True, metavar="RUN", help="run directory to write")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    from bridgex_jax.pipelines import evaluate as job
    from bridgex_jax.store.paths import as_path

    words, bridges = read_pair(args)
    chosen: str | None = None
    excluded: set[str] = set()
    if args.select:
        chosen, excluded = job.read_selection(args.select, words.source, words.target)
    model = model_of(args)
    settings = job.EvaluateSettings(words=args.words, seed=args.seed, batch_size=args.batch_size)
    result = job.run_evaluate(
        model, words, bridges, chosen, excluded, settings, as_path(args.out), console(args)
    )
    print(json.dumps(result.to_json(), ensure_ascii=False) if args.json else result.text(args.show))
    return 0
