"""`bridgex ablate`: how sensitive the choice of one pair is to every setting."""

from __future__ import annotations

import argparse
import json
from typing import Any

from bridgex_jax.cli import select
from bridgex_jax.cli.options import Parser, console, model_of

WHAT = "how sensitive the choice is: vary one setting of select at a time"
EXAMPLES = """examples:
  bridgex ablate builtin --source id --target he --top-rate 0.10 --probe-filter none \\
      --words 256 --out runs/ablate-id-he
  bridgex ablate meta-llama/Meta-Llama-3-8B --source id --target he \\
      --bridges en de fr it pt es --dictionary id-he=id-he.txt --counts runs/counts \\
      --vary token_scope,estimator,layers --out runs/ablate-id-he"""


def add(verbs: Any) -> None:
    of_select = _options_of_select()
    parser = verbs.add_parser(
        "ablate",
        help=WHAT,
        description=f"{WHAT}; the options of select give the point to vary around",
        epilog=EXAMPLES,
        formatter_class=of_select.formatter_class,
        parents=[of_select],
        conflict_handler="resolve",  # the options below take the place of select's
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--vary", type=names, default=(), metavar="SETTING,…", help="token_scope, bridge_set, "
        "estimator, bandwidth, top_rate, probe_filter, layers, words, size_matching, "
        "length_control, seed (default: all)"
    )  # fmt: skip
    # No variation draws permutations or runs other choosers.
    parser.add_argument("--permutations", type=int, default=499, help=argparse.SUPPRESS)
    parser.add_argument("--parallel", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print the table as JSON")


def _options_of_select() -> Parser:
    """A parser that has all of select's options, whatever they become."""
    verbs = Parser().add_subparsers()
    select.add(verbs)
    return verbs.choices["select"]


def names(text: str) -> tuple[str, ...]:
    return tuple(name.strip().replace("-", "_") for name in text.split(",") if name.strip())


def run(args: argparse.Namespace) -> int:
    from bridgex_jax.pipelines import ablate as job
    from bridgex_jax.pipelines import select as base
    from bridgex_jax.store.paths import as_path

    vary = job.checked_vary(args.vary)
    settings = base.settings_from(vars(args))
    request = select.request_of(args)
    model = model_of(args)
    result = job.run_ablate(model, request, settings, vary, as_path(args.out), console(args))
    print(json.dumps(result.to_json(), ensure_ascii=False) if args.json else result.text())
    return 0
