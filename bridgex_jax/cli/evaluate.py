"""`bridgex evaluate`: zero-shot against every bridge, in any task."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bridgex_jax.cli.options import (
    add_model,
    add_pair,
    add_verb,
    bridges_of,
    console,
    model_of,
    or_cldr,
    positive,
)


def add(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "evaluate",
        "answer the questions of a task zero-shot and through every bridge, and compare",
        "  bridgex evaluate builtin --task bli --source id --target he --select runs/id-he \\\n"
        "      --out runs/id-he-bli\n"
        "  bridgex evaluate meta-llama/Meta-Llama-3-8B --task mrc --source sw --target en \\\n"
        "      --data sw=swh_Latn.jsonl en=eng_Latn.jsonl --bridges de fr --out runs/sw-en-mrc",
        run,
    )
    add_model(parser)
    parser.add_argument("--task", default="bli", help="bli (word translation), mrc (Belebele), "
                        "nli (XNLI), qa (XQuAD), or a YAML file of your own")  # fmt: skip
    add_pair(parser)
    parser.add_argument("--data", nargs="+", action="extend", metavar="CODE=FILE", help="questions "
                        "of mrc, nli, qa in both languages; `hub` takes them from the Hugging Face "
                        "hub")  # fmt: skip
    parser.add_argument("--select", metavar="RUN", help="of bridgex select: its choice "
                        "is judged beside others, its probe words are not asked")  # fmt: skip
    parser.add_argument("--ablate", metavar="RUN", help="of bridgex ablate, with the words of "
                        "--select: its estimators of HSIC as choosers")  # fmt: skip
    parser.add_argument("--typology", metavar="FILE", help="URIEL's features.npz as a chooser, "
                        "or `lang2vec` for the installed package's")  # fmt: skip
    parser.add_argument("--scores", metavar="FILE", help="your own scores as a chooser: CSV or "
                        "TSV with source, target, bridge, score")  # fmt: skip
    parser.add_argument("--corpus", nargs="+", action="extend", metavar="CODE=FILE", help="text "
                        "that chose the bridge: looked for in the questions (default: that of "
                        "--select)")  # fmt: skip
    parser.add_argument("--limit", type=positive, metavar="N", help="evaluate at most N questions")
    parser.add_argument("--shots", type=int, default=0, metavar="K", help="answered examples "
                        "before each question")  # fmt: skip
    parser.add_argument("--translation-tokens", type=positive, metavar="N", help="at most, of a "
                        "text into a bridge (default: the task's)")  # fmt: skip
    parser.add_argument("--chat", action="store_true", help="prompts in the tokenizer's chat "
                        "template, for instruct models")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of questions and examples drawn, and "
                        "of resampling")  # fmt: skip
    parser.add_argument("--batch-size", type=positive, default=256, help="prompts a batch")
    parser.add_argument("--answers", metavar="DIR", help="where answers are kept between runs "
                        "(default: in the user's cache)")  # fmt: skip
    parser.add_argument("--show", type=positive, metavar="N", help="print N answers")
    parser.add_argument("--out", required=True, metavar="RUN", help="run directory to write")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from bridgex_jax.errors import InputError
    from bridgex_jax.icl.task import WORDS, read_task
    from bridgex_jax.pipelines import evaluate as job
    from bridgex_jax.pipelines import inputs, task_inputs
    from bridgex_jax.pipelines.answering import ModelAnswerer
    from bridgex_jax.store.paths import as_path

    if args.shots < 0:
        raise InputError(f"--shots {args.shots} is negative", remedy="give 0 or more")
    form = read_task(args.task)
    if args.translation_tokens:
        form = replace(form, max_translation_tokens=args.translation_tokens)
    source, target, bridges = inputs.check_languages(args.source, args.target, bridges_of(args))
    settings = task_inputs.EvaluateSettings(
        limit=args.limit,
        shots=args.shots,
        seed=args.seed,
        batch_size=args.batch_size,
        chat=args.chat,
    )
    asked = task_inputs.Asked(form, source, target, tuple(bridges), settings)
    told = console(args)
    chosen = task_inputs.read_chosen(
        asked,
        args.select,
        typology=args.typology,
        table=args.scores,
        corpora=args.corpus,
        ablation=args.ablate,
    )
    if form.data == WORDS:
        if args.data:
            raise InputError(f"--data is not for {form.name}", remedy="give --dictionary")
        given = or_cldr(args.dictionary, args.model == inputs.BUILTIN, "--dictionary")
        files = given if given == inputs.CLDR else inputs.dictionary_files(given)
        exam = task_inputs.word_exam(asked, inputs.read_words(files, source, target), chosen)
    else:
        exam = task_inputs.record_exam(asked, task_inputs.data_files(args.data, form), chosen, told)
    if left_out := exam.facts.get("excluded"):
        told.say(f"{left_out:,} words chose the bridge, or share their English with one: not asked")
    model = model_of(args)
    answerer = ModelAnswerer(
        model,
        told,
        batch_size=args.batch_size,
        chat=args.chat,
        place=_local(args.answers) if args.answers else None,
    )
    result = job.run_evaluate(model, exam, settings, as_path(args.out), told, answerer)
    print(json.dumps(result.to_json(), ensure_ascii=False) if args.json else result.text(args.show))
    return 0


def _local(place: str) -> Path:
    from bridgex_jax.errors import InputError
    from bridgex_jax.store.paths import as_path, is_remote

    path = as_path(place)
    if is_remote(path):
        raise InputError("answers are kept on a local disk", file=place, remedy="give a directory")
    return path
