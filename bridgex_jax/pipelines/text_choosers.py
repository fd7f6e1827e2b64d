"""Choosers that look at text: tokens that languages share, and hidden states of parallel lines.

Hidden states are token means of the residual stream at mid-depth, where representations of
languages are closest; lines are parallel where the user says so (FLORES-200, Bibles). Definitions:
bridge/choosers.py. Axes: D (axes.py); n = lines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from bridgex_jax import runtime
from bridgex_jax.activations.examples import TokenMean
from bridgex_jax.activations.observe import InMemory, observe
from bridgex_jax.bridge import choosers
from bridgex_jax.data.batching import encode_prompts
from bridgex_jax.data.corpora import Corpus
from bridgex_jax.data.prompts import Prompt
from bridgex_jax.data.trees import tree_batches
from bridgex_jax.errors import InputError
from bridgex_jax.models.load import Model
from bridgex_jax.pipelines.choosers import ByChooser

FEWEST_LINES = 16
TOKENIZED_LINES = 10_000  # of a corpus: its tokens' frequencies are known well enough by then
Part = Callable[[str, Callable[[], Mapping[str, np.ndarray]]], Mapping[str, np.ndarray]]


def text_choosers(
    model: Model,
    corpora: Mapping[str, Corpus],
    source: str,
    target: str,
    bridges: Sequence[str],
    *,
    parallel: int | None,
    batch_size: int,
    mesh: Mesh,
    part: Part,
) -> ByChooser:
    """`tokenizer`, and with parallel corpora `embedding` and `cka`.

    parallel: so many first lines of every corpus say the same; None where they do not. part: keeps
    hidden states. Raises InputError where corpora that are called parallel differ in length.
    """
    alike = {"tokenizer": choosers.tokenizer_overlap(token_counts(model, corpora))}
    if parallel is not None:
        n = _parallel_lines(corpora, parallel)

        def means_of(code: str) -> Float[np.ndarray, "n D"]:
            def compute() -> Mapping[str, np.ndarray]:
                return {"means": sentence_means(model, corpora[code].lines[:n], batch_size, mesh)}

            return part(f"hidden-{code}", compute)["means"]

        means = {code: means_of(code) for code in corpora}
        alike["embedding"] = choosers.embedding_similarity(
            {code: of_lines.mean(axis=0, dtype=np.float64) for code, of_lines in means.items()}
        )
        alike["cka"] = choosers.cka(means)
    return {name: choosers.between(sim, source, target, bridges) for name, sim in alike.items()}


def token_counts(model: Model, corpora: Mapping[str, Corpus]) -> dict[str, Int[np.ndarray, " V"]]:
    """How often each token occurs in a corpus' first lines, special tokens left out."""
    counts = {}
    for code, corpus in corpora.items():
        ids = model.tokenizer(list(corpus.lines[:TOKENIZED_LINES]), add_special_tokens=False)[
            "input_ids"
        ]
        flat = np.concatenate([np.asarray(line, np.int64) for line in ids])
        counts[code] = np.bincount(flat, minlength=model.config.vocab_size)
    return counts


def _parallel_lines(corpora: Mapping[str, Corpus], wanted: int) -> int:
    lengths = {code: len(corpus.lines) for code, corpus in corpora.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{code} {n:,}" for code, n in lengths.items())
        raise InputError(
            f"--parallel: the corpora have different numbers of lines ({told})",
            remedy="give parallel text such as FLORES-200, or take --parallel out",
        )
    n = min(wanted, next(iter(lengths.values())))
    if n < FEWEST_LINES:
        raise InputError(
            f"--parallel: {n} lines are too few", remedy=f"give at least {FEWEST_LINES}"
        )
    return n


def sentence_means(
    model: Model, lines: Sequence[str], batch_size: int, mesh: Mesh
) -> Float[np.ndarray, "n D"]:
    """The residual stream after the middle layer, averaged over the tokens of each line.

    A line beyond the model's context is cut there.
    """
    prompts = [Prompt(line, 0, len(line)) for line in lines]
    context = model.config.max_position_embeddings
    encoded = [
        type(item)(item.ids[:context], item.scope[:context])
        for item in encode_prompts(model.tokenizer, prompts, "prompt_mean")
    ]
    sink = InMemory(len(lines))
    reducer = TokenMean("resid_post", layers=(model.config.n_layers // 2,))
    batches = tree_batches(encoded, batch_size, runtime.batch_parts(mesh))
    observe(model, batches, {"mean": reducer}, mesh, sink=sink)
    return sink.values["mean"][0]
