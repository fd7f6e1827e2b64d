"""`bridgex count`: corpora of several languages to activation counts, which `select` can reuse.

bridgex-icl Stage 1: running text packed into rows, equal token budgets, BOS fed and not counted.
Axes: L F (axes.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh

from bridgex_jax import cluster, runtime
from bridgex_jax.activations.run import Statistics, count_activations
from bridgex_jax.data.batching import Encoded, bucketed, pack_lines
from bridgex_jax.data.corpora import Corpus
from bridgex_jax.errors import InputError
from bridgex_jax.models.load import Model
from bridgex_jax.pipelines import programs
from bridgex_jax.pipelines.console import Console
from bridgex_jax.pipelines.inputs import model_facts
from bridgex_jax.store.counts import LanguageCounts, save_counts
from bridgex_jax.store.paths import AnyPath
from bridgex_jax.store.runs import RunDirectory, create_run

ROW_LENGTH = 2048
FEW_TOKENS = 50_000
Arrays = Mapping[str, np.ndarray]
Part = Callable[[str, Callable[[], Arrays]], Arrays]
OpenRun = Callable[..., RunDirectory]


@dataclass(frozen=True)
class CountSettings:
    """tokens: budget of every language (None: the smallest corpus). row_length: None for the
    smaller of 2048 and the model's context. batch_size: rows a batch; None for what suits
    the devices."""

    tokens: int | None = None
    row_length: int | None = None
    batch_size: int | None = None
    site: str = "mlp_gate_act"


def count_languages(
    model: Model,
    corpora: Mapping[str, Corpus],
    settings: CountSettings,
    mesh: Mesh,
    console: Console,
    part: Part = lambda name, compute: compute(),
) -> dict[str, LanguageCounts]:
    """Counts of every language over equal numbers of tokens; `part` keeps finished languages.

    Raises InputError for a corpus that does not fill two rows, and rows beyond the model's context.
    """
    context = model.config.max_position_embeddings
    length = settings.row_length or min(ROW_LENGTH, context)
    if length > context:
        raise InputError(
            f"rows of {length} tokens are longer than the model's context of {context}",
            remedy=f"give --row-length {context} or less",
        )
    batch = settings.batch_size or programs.rows_that_fit(model, mesh, length)

    def count(packed: list[Encoded]) -> Arrays:
        halves = (bucketed(packed[half::2], batch) for half in (0, 1))
        return _as_arrays([count_activations(model, b, mesh, progress=progress) for b in halves])

    with _packed(model, corpora, length) as (order, rows):
        budget = len(rows[order[0]].result())
        if settings.tokens is not None:
            budget = min(budget, max(2, settings.tokens // length))
        found: dict[str, Arrays] = {}
        with console.progress("counting", budget * len(order), "rows") as progress:
            # Which corpus is the smallest is certain when all are packed: those before it, rarely
            # any, are then counted again.
            while len(found) < len(order):
                for code in order:
                    _raise_early(rows.values())
                    packed = rows[code].result()
                    if len(packed) < budget:
                        budget = len(packed)
                        found.clear()
                    if code not in found:
                        work = partial(count, packed[:budget])
                        found[code] = part(f"count-{code}-{budget}", work)
        n_tokens = budget * sum(rows[order[0]].result()[0].scope)
    if n_tokens < FEW_TOKENS:
        console.warn(
            f"{n_tokens:,} tokens are counted in each language; neuron sets are steady from about "
            f"{FEW_TOKENS:,}"
        )
    found = {code: found[code] for code in corpora}
    return {code: _language_counts(corpora[code], arrays) for code, arrays in found.items()}


@contextmanager
def _packed(
    model: Model, corpora: Mapping[str, Corpus], length: int
) -> Iterator[tuple[list[str], dict[str, Future[list[Encoded]]]]]:
    """Languages, probably the shortest corpus first, and their rows, made in a thread meanwhile.

    The devices count one language while the next is tokenised. The others keep the given order,
    so that the processes of a sweep can begin at different ones.
    """
    shortest = min(corpora, key=lambda code: sum(map(len, corpora[code].lines)))
    order = [shortest, *(code for code in corpora if code != shortest)]
    rows: dict[str, Future[list[Encoded]]] = {code: Future() for code in order}
    stopped = threading.Event()

    def work() -> None:
        for code, future in rows.items():
            if stopped.is_set():
                return
            try:
                future.set_result(pack(model, corpora[code], length))
            except BaseException as error:
                future.set_exception(error)

    # Not of an executor: Python waits for those threads at its end, and Ctrl-C would wait as well.
    threading.Thread(target=work, daemon=True).start()
    try:
        yield order, rows
    finally:
        stopped.set()


def _raise_early(rows: Iterable[Future[list[Encoded]]]) -> None:
    """What is wrong with any corpus that has been packed meanwhile, before more is counted."""
    for future in rows:
        if future.done():
            future.result()


def pack(model: Model, corpus: Corpus, length: int) -> list[Encoded]:
    """Rows of a corpus. Raises InputError where it does not fill one for each half."""
    rows = pack_lines(model.tokenizer, corpus.lines, length)
    if len(rows) < 2:
        raise InputError(
            f"the corpus of {corpus.language} has fewer than two rows of {length} tokens",
            file=corpus.file,
            remedy="give more text, or a smaller --row-length",
        )
    return rows


def _as_arrays(halves: list[Statistics]) -> Arrays:
    return {
        "halves": np.stack([half.positive for half in halves]),
        "sums": halves[0].total + halves[1].total,
        "half_tokens": np.array([half.tokens for half in halves], np.int64),
    }


def _language_counts(corpus: Corpus, arrays: Arrays) -> LanguageCounts:
    first, second = (int(n) for n in arrays["half_tokens"])
    facts = {"file": corpus.file, "sha256": corpus.sha256, "lines": len(corpus.lines)}
    return LanguageCounts(
        corpus.language,
        arrays["halves"],
        arrays["sums"],
        (first, second),
        facts | {"notes": corpus.notes},
    )


def run_count(
    model: Model,
    corpora: Mapping[str, Corpus],
    settings: CountSettings,
    out: AnyPath,
    console: Console,
    *,
    open_run: OpenRun = create_run,
    part: Part | None = None,
) -> AnyPath:
    """Counts into a run directory of kind `count`; a killed run continues. Returns its path.

    open_run: `create_run` with what a sweep sets; part: keeps finished languages (default: the
    run does).
    """
    assert model.source is not None
    inputs = {
        "model": model.source.hash,
        "dtype": str(jax.tree.leaves(model.params)[0].dtype),
        "corpora": {code: corpus.sha256 for code, corpus in corpora.items()},
    }
    opened = open_run(
        out, kind="count", settings=asdict(settings), inputs=inputs, peers=cluster.peers()
    )
    with opened as run:
        if run.notice:
            console.say(run.notice)
        if run.complete:
            return run.directory
        with run.stage("count"):
            found = count_languages(model, corpora, settings, model.mesh, console, part or run.part)
        save_counts(run, found.values(), model_sha256=model.source.hash, site=settings.site)
        run.record(
            model=model_facts(model),
            devices=runtime.describe_devices(model.mesh),
            data={code: counts.corpus for code, counts in found.items()},
            notes={"warnings": console.warnings},
        )
    return run.out
