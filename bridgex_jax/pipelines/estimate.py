"""What a run will cost, before it starts: tokens, floating-point operations, memory.

2·parameters operations a token for a forward pass (the vocabulary product left out where no logits
are needed); HSIC as n1·n2·N² products a layer and bridge. An estimate, rounded for people.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax

from bridgex_jax.models.load import Model
from bridgex_jax.store.counts import LanguageCounts

if TYPE_CHECKING:
    from bridgex_jax.pipelines.select import Request, SelectSettings

CHARACTERS_PER_TOKEN = 3
PROMPT_TOKENS = 16
GENERATED_TOKENS = 10  # of an answer to a dictionary prompt, on average


@dataclass(frozen=True)
class Cost:
    """Work and memory of a job. tokens: through the model; flops: all; hsic: those of HSIC.

    Bytes: of the parameters, of one batch's activations, of the probe values that are kept.
    """

    tokens: int
    flops: float
    hsic: float = 0.0
    parameters: int = 0
    batch: int = 0
    values: int = 0


def cost_of_counting(model: Model, tokens: int) -> Cost:
    """A forward pass over so many tokens, without the vocabulary product.

    Here and in `cost_of_select` parameters may be shapes alone (`jax.eval_shape`).
    """
    layers, _ = _parameters(model)
    return Cost(tokens, 2.0 * layers * tokens, parameters=_bytes(model))


def cost_of_select(
    model: Model,
    settings: SelectSettings,
    *,
    languages: int,
    bridges: int,
    word_pairs: int,
    counted: int,
) -> Cost:
    """Counting `counted` tokens, probing at most `word_pairs` words, and HSIC with every bridge."""
    config = model.config
    layers, vocabulary = _parameters(model)
    words = min(settings.words, word_pairs)
    filtered = (
        words * (PROMPT_TOKENS + GENERATED_TOKENS) if settings.probe_filter == "correct" else 0
    )
    forward = 2 * layers * (counted + words * PROMPT_TOKENS) + (2 * layers + vocabulary) * filtered
    per_layer = max(1, round(settings.top_rate * config.d_ff))
    pairs_of_neurons = per_layer**2 * bridges * config.n_layers
    hsic = 2 * pairs_of_neurons * words**2
    rows = settings.batch_size * 32
    item = jax.tree.leaves(model.params)[0].dtype.itemsize
    return Cost(
        tokens=counted + words * PROMPT_TOKENS + filtered,
        flops=float(forward + hsic),
        hsic=float(hsic),
        parameters=_bytes(model),
        batch=rows * (4 * config.d_ff + 12 * config.d_model) * item,
        values=languages * per_layer * config.n_layers * words * 4,
    )


def estimate_select(
    model: Model,
    request: Request,
    settings: SelectSettings,
    counts: Mapping[str, LanguageCounts] | None,
) -> str:
    """One line: work of counting, probing and HSIC, and the peak of memory."""
    cost = cost_of_select(
        model,
        settings,
        languages=len(request.languages),
        bridges=len(request.bridges),
        word_pairs=len(request.words.pairs),
        counted=0 if counts is not None else _counted_tokens(request, settings),
    )
    return (
        f"estimate: {cost.tokens:,} tokens, "
        f"{cost.flops / 1e12:.2g} TFLOP ({cost.hsic / 1e12:.2g} of them HSIC); memory "
        f"{_size(cost.parameters)} parameters + {_size(cost.batch)} a batch + "
        f"{_size(cost.values)} probe values"
    )


def _parameters(model: Model) -> tuple[int, int]:
    """Parameters of the layers, and operations of the vocabulary product of a token."""
    config = model.config
    vocabulary = 2 * config.vocab_size * config.d_model
    total = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    return total - vocabulary // (2 if config.tie_embeddings else 1), vocabulary


def _bytes(model: Model) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(model.params))


def counted_tokens(characters: Iterable[int], budget: int | None) -> int:
    """Tokens of all corpora, from their characters: the smallest decides, at most the budget."""
    sizes = [n // CHARACTERS_PER_TOKEN for n in characters]
    return min(min(sizes), budget or min(sizes)) * len(sizes)


def _counted_tokens(request: Request, settings: SelectSettings) -> int:
    assert request.corpora is not None
    characters = [sum(map(len, corpus.lines)) for corpus in request.corpora.values()]
    return counted_tokens(characters, settings.count.tokens)


def _size(n_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} GiB"
