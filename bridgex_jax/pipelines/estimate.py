"""What a run will cost, before it starts: tokens, floating-point operations, memory.

2·parameters operations a token for a forward pass (the vocabulary product left out where no logits
are needed); HSIC as n1·n2·N² products a layer and bridge. An estimate, rounded for people.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax

from bridgex_jax.models.load import Model
from bridgex_jax.store.counts import LanguageCounts

if TYPE_CHECKING:
    from bridgex_jax.pipelines.select import Request, SelectSettings

CHARACTERS_PER_TOKEN = 3
PROMPT_TOKENS = 16
GENERATED_TOKENS = 10  # of an answer to a dictionary prompt, on average


def estimate_select(
    model: Model,
    request: Request,
    settings: SelectSettings,
    counts: Mapping[str, LanguageCounts] | None,
) -> str:
    """One line: work of counting, probing and HSIC, and the peak of memory."""
    config = model.config
    leaves = jax.tree.leaves(model.params)
    vocabulary = 2 * config.vocab_size * config.d_model
    layers = sum(leaf.size for leaf in leaves) - vocabulary // (2 if config.tie_embeddings else 1)
    counted = 0 if counts is not None else _counted_tokens(request, settings)
    words = min(settings.words, len(request.words.pairs))
    filtered = (
        words * (PROMPT_TOKENS + GENERATED_TOKENS) if settings.probe_filter == "correct" else 0
    )
    forward = 2 * layers * (counted + words * PROMPT_TOKENS) + (2 * layers + vocabulary) * filtered
    per_layer = max(1, round(settings.top_rate * config.d_ff))
    pairs_of_neurons = per_layer**2 * len(request.bridges) * config.n_layers
    hsic = 2 * pairs_of_neurons * words**2
    item = leaves[0].dtype.itemsize
    parameters = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    rows = settings.batch_size * 32
    batch = rows * (4 * config.d_ff + 12 * config.d_model) * item
    values = len(request.languages) * per_layer * config.n_layers * words * 4
    return (
        f"estimate: {counted + words * PROMPT_TOKENS + filtered:,} tokens, "
        f"{(forward + hsic) / 1e12:.2g} TFLOP ({hsic / 1e12:.2g} of them HSIC); memory "
        f"{_size(parameters)} parameters + {_size(batch)} a batch + {_size(values)} probe values"
    )


def _counted_tokens(request: Request, settings: SelectSettings) -> int:
    assert request.corpora is not None
    smallest = min(
        sum(map(len, corpus.lines)) // CHARACTERS_PER_TOKEN for corpus in request.corpora.values()
    )
    return min(smallest, settings.count.tokens or smallest) * len(request.corpora)


def _size(n_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} GiB"
