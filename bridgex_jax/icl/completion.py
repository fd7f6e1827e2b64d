"""Completing prompts in batches: greedy, up to the end of the line, each distinct prompt once.

bridgex-icl, "Using the bridge": at most 30 new tokens, stop at a newline. The stop is every
token whose text holds a newline, since tokenizers merge it with its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from bridgex_jax import runtime
from bridgex_jax.data.batching import Encoded, bucketed, extend
from bridgex_jax.models.generate import generate
from bridgex_jax.models.load import Model

MAX_NEW_TOKENS = 30
PROMPT_MULTIPLE = 16  # of padded lengths: the loop takes long to compile, so few shapes
SHORT_ANSWER = 16  # new tokens of the first round; most answers to a dictionary prompt end here


def complete_ids(
    model: Model,
    encoded: Sequence[Encoded],
    mesh: Mesh,
    *,
    batch_size: int,
    max_new_tokens: int = MAX_NEW_TOKENS,
    progress: Callable[[int], object] = lambda rows: None,
) -> list[list[int]]:
    """The generated token ids of every prompt, up to and without the token that ended the line.

    In two rounds: a batch runs as long as its longest answer, so the few long ones are finished
    together in batches of their own.
    """
    first = min(SHORT_ANSWER, max_new_tokens)
    answers, ended = _run_round(model, encoded, mesh, batch_size, first, progress)
    left = [i for i, done in enumerate(ended) if not done]
    if left and first < max_new_tokens:
        longer = [extend(encoded[i], answers[i]) for i in left]
        rest, _ = _run_round(model, longer, mesh, batch_size, max_new_tokens - first)
        for i, more in zip(left, rest, strict=True):
            answers[i] = answers[i] + more
    return answers


def _run_round(
    model: Model,
    encoded: Sequence[Encoded],
    mesh: Mesh,
    batch_size: int,
    max_new_tokens: int,
    progress: Callable[[int], object] = lambda rows: None,
) -> tuple[list[list[int]], list[bool]]:
    """Generated ids without the stop token, and whether there was one, for every prompt."""
    stops = model.line_end_ids
    ends = frozenset(stops)
    answers: list[list[int]] = [[] for _ in encoded]
    ended = [False] * len(encoded)
    for batch in bucketed(encoded, batch_size, multiple=PROMPT_MULTIPLE):
        rows = runtime.over_data(mesh, len(batch.tokens))
        tokens, mask = jax.device_put((batch.tokens, batch.mask), rows)
        produced = generate(model, tokens, mask, max_new_tokens=max_new_tokens, stop_ids=stops)
        for row, ids in zip(batch.index, np.asarray(produced).tolist(), strict=True):
            if row >= 0:
                end = next((i for i, token in enumerate(ids) if token in ends), None)
                answers[row], ended[row] = ids[:end], end is not None
        progress(int((batch.index >= 0).sum()))
    return answers, ended


def complete(
    model: Model,
    prompts: Sequence[str],
    mesh: Mesh,
    *,
    batch_size: int,
    max_new_tokens: int = MAX_NEW_TOKENS,
    progress: Callable[[int], object] = lambda rows: None,
) -> list[str]:
    """The continuation of every prompt as text; a prompt that occurs twice is computed once."""
    if not prompts:
        return []
    distinct = list(dict.fromkeys(prompts))
    coded = model.tokenizer(distinct)["input_ids"]
    encoded = [Encoded(tuple(ids), (False,) * len(ids)) for ids in coded]
    generated = complete_ids(
        model,
        encoded,
        mesh,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        progress=progress,
    )
    texts = model.tokenizer.batch_decode(generated, skip_special_tokens=True)
    answers = dict(zip(distinct, texts, strict=True))
    return [answers[prompt] for prompt in prompts]
