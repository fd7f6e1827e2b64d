"""What `bridgex capture` is asked for: texts, sites with their reducers, layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from bridgex_jax.activations.examples import ExampleReducer, Full, LastToken, TokenMean
from bridgex_jax.activations.observe import Reducer
from bridgex_jax.activations.statistics import Count, Histogram, Statistic, Sum, SumOfSquares
from bridgex_jax.data.batching import Scope
from bridgex_jax.data.dictionaries import Dictionary
from bridgex_jax.data.prompts import WORD_TEMPLATE, Prompt, parse_template, word_prompt
from bridgex_jax.errors import InputError
from bridgex_jax.models.decoder import GLOBAL_SITES, SITES

_EXAMPLE = "write for example --site mlp_gate_act=count,sum --site resid_post=last_token"
STATISTICS: Mapping[str, Callable[..., Statistic]] = {
    "count": Count,
    "sum": Sum,
    "sum_of_squares": SumOfSquares,
    "histogram": Histogram,
}
OF_EXAMPLES: Mapping[str, type[ExampleReducer]] = {
    "token_mean": TokenMean,
    "last_token": LastToken,
    "full": Full,
}


@dataclass(frozen=True)
class Text:
    """Prompts or lines that belong together; statistics are kept for each text.

    name: language, pair or file. scope: which of its tokens count.
    """

    name: str
    prompts: tuple[Prompt, ...]
    scope: Scope
    sha256: str
    file: str


@dataclass(frozen=True)
class CaptureSettings:
    """reducers: by the name of the array. dtype: of what is kept of examples. batch_size: examples
    a batch if all were as long as the longest; None for what suits the devices."""

    reducers: Mapping[str, Reducer]
    dtype: str = "float32"
    batch_size: int | None = None


def line_text(name: str, lines: Sequence[str], sha256: str, file: str) -> Text:
    """A text of lines; all of its tokens but the special ones are in scope."""
    prompts = tuple(Prompt(line, 0, len(line)) for line in lines)
    return Text(name, prompts, "prompt_mean", sha256, file)


def dictionary_text(words: Dictionary, template: str | None, scope: Scope) -> Text:
    """The probe prompts of a dictionary, one for every source word."""
    form = parse_template(template) if template else WORD_TEMPLATE
    sources = dict.fromkeys(pair.source for pair in words.pairs)
    prompts = tuple(word_prompt(words.source, words.target, word, form) for word in sources)
    name = f"{words.source}-{words.target}"
    facts = f"{words.sha256} {template or ''}".strip()
    return Text(name, prompts, scope, facts, ", ".join(map(str, words.files)))


def first_examples(text: Text, n: int | None) -> Text:
    """The first n of a text; all for None."""
    return replace(text, prompts=text.prompts[:n])


def parse_reducers(items: Iterable[str], layers: tuple[int, ...] | None) -> dict[str, Reducer]:
    """`SITE=REDUCER,…` items as reducers by array name.

    `count:T` counts above T, `histogram:BINS:LOW:HIGH` has these bins. layers: of the reducers of
    examples. Raises InputError for what is unknown, given twice, or `full` without layers.
    """
    found: dict[str, Reducer] = {}
    for item in items:
        site, mark, kinds = item.partition("=")
        if not mark or not kinds:
            raise InputError(f"--site {item!r} is not SITE=REDUCER", remedy=_EXAMPLE)
        if site not in SITES:
            raise InputError(f"unknown site {site!r}", remedy=f"the sites are {', '.join(SITES)}")
        for kind in kinds.split(","):
            name = f"{site}_{kind}" if kind.startswith("count:") else f"{site}_{kind.split(':')[0]}"
            name = name.replace(":", "_")
            if name in found:
                raise InputError(f"--site {site}={kind} is given twice", remedy="give it once")
            found[name] = _reducer(site, kind, None if site in GLOBAL_SITES else layers)
    if not found:
        raise InputError("--site is missing", remedy=_EXAMPLE)
    bins = {r.bins for r in found.values() if isinstance(r, Histogram)}
    if len(bins) > 1:
        raise InputError(
            f"histograms of {' and '.join(map(str, sorted(bins)))} bins in one run",
            remedy="give all histograms the same number of bins",
        )
    return found


def _reducer(site: str, kind: str, layers: tuple[int, ...] | None) -> Reducer:
    name, *numbers = kind.split(":")
    if name not in {**STATISTICS, **OF_EXAMPLES}:
        known = ", ".join((*STATISTICS, *OF_EXAMPLES))
        raise InputError(f"unknown reducer {name!r}", remedy=f"the reducers are {known}")
    if name in OF_EXAMPLES and not numbers:
        if name == "full" and layers is None and site not in GLOBAL_SITES:
            raise InputError(
                f"--site {site}=full keeps every token of every layer",
                remedy="choose layers with --layers",
            )
        return OF_EXAMPLES[name](site, layers)
    try:
        if not numbers:
            return STATISTICS[name](site)
        if name == "count" and len(numbers) == 1:
            return Count(site, float(numbers[0]))
        if name == "histogram" and len(numbers) == 3:
            return Histogram(site, int(numbers[0]), float(numbers[1]), float(numbers[2]))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
    raise InputError(f"--site {site}={kind}: {name} takes no such numbers", remedy=_EXAMPLE)


def parse_layers(items: Iterable[str], n_layers: int) -> tuple[int, ...]:
    """`3 7-9` as layers, counted from 0. InputError for what the model does not have."""
    found: set[int] = set()
    for item in items:
        first, mark, last = item.partition("-")
        if not (first.isdigit() and (last.isdigit() or not mark)):
            raise InputError(f"--layers {item!r} is no layer", remedy="write --layers 3 7-9")
        found |= set(range(int(first), int(last or first) + 1))
    if not found or max(found) >= n_layers:
        raise InputError(
            f"--layers {' '.join(items)}: the model has layers 0 to {n_layers - 1}",
            remedy="choose among them",
        )
    return tuple(sorted(found))
