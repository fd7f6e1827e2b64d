"""`bridgex demo`: the main job on the built-in model."""

from __future__ import annotations

import argparse
import json
from typing import Any

from bridgex_jax.cli.options import add_verb, console, positive


def add(verbs: Any) -> None:
    parser = add_verb(
        verbs,
        "demo",
        "the main job on the built-in model and words: 12 directions, chosen and evaluated",
        "  bridgex demo\n  bridgex demo --out runs/demo --json",
        run,
    )
    parser.add_argument("--out", default="runs/demo", metavar="RUN", help="run directory to write")
    parser.add_argument("--seed", type=int, default=0, help="of resampling")
    parser.add_argument("--words", type=positive, default=80, help="evaluated a direction; there "
                        "are 320 to 617, all of which take a minute and a half")  # fmt: skip
    parser.add_argument("--batch-size", type=positive, default=512, help="prompts a batch")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    from bridgex_jax.pipelines.demo import DemoSettings, run_demo
    from bridgex_jax.store.paths import as_path

    settings = DemoSettings(seed=args.seed, words=args.words, batch_size=args.batch_size)
    result = run_demo(settings, as_path(args.out), console(args))
    print(json.dumps(result.to_json(), ensure_ascii=False) if args.json else result.text())
    return 0
