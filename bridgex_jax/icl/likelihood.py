"""Log-probabilities of given continuations: of candidate answers, or of gold translations.

Prompts that begin alike, and several continuations of one prompt, share their tokens (the trees of
data/trees.py): four options of a question compute it once. Axes: B T D V (axes.py); C = tokens of
a row that are scored at once, W = continuations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from bridgex_jax import runtime
from bridgex_jax.data.batching import Encoded, bucket_length
from bridgex_jax.data.trees import ROW_LENGTH, Row, pack, row_arrays, rows_a_batch
from bridgex_jax.errors import InputError
from bridgex_jax.models.decoder import run_decoder, tree_attend, unembed
from bridgex_jax.models.generate import check_room
from bridgex_jax.models.load import Model
from bridgex_jax.models.rope import LENGTH_DEPENDENT

LOGITS_AT_ONCE = 1 << 24  # float32 logits in memory: 64 MB, whatever the batch and vocabulary
Progress = Callable[[int], object]


class Likelihoods(NamedTuple):
    """Σ log p of the tokens of every continuation, natural logarithm, and how many they are."""

    log_prob: Float[np.ndarray, " W"]
    n_tokens: Int[np.ndarray, " W"]


def _silent(rows: int) -> None:
    """No progress shown."""


def score_continuations(
    model: Model,
    prompts: Sequence[str],
    continuations: Sequence[str],
    mesh: Mesh,
    *,
    batch_size: int = 64,
    special_tokens: bool = True,
    progress: Progress = _silent,
) -> Likelihoods:
    """log p(continuation | prompt) of every pair, in the order given; W of each.

    The tokens are those of prompt and continuation written as one text, since the model never saw
    another division. Where the tokenizer merges across the boundary (`:"` may be one token), the
    continuation begins with that token: its probability includes the characters of the prompt in
    it. So compare continuations that begin alike, or a prompt that ends where a token does.

    Args:
      prompts: one for each continuation; equal ones are computed once.
      batch_size: as many tokens at once as this many of the longest text have.
      special_tokens: whether the tokenizer adds its own.

    Raises InputError where a text exceeds the model's context, and where no token stands before a
    continuation (an empty prompt, and the tokenizer adds no beginning-of-sequence token).
    """
    pairs = list(zip(prompts, continuations, strict=True))
    if not pairs:
        return Likelihoods(np.zeros(0), np.zeros(0, np.int64))
    encoded = _encode(model.tokenizer, pairs, special_tokens)
    longest = max(len(item.ids) for item in encoded)
    check_room(model.config, longest, 0)
    row_length = max(ROW_LENGTH, 2 * bucket_length(longest))
    rows = pack(encoded, row_length)
    at_most = max(1, batch_size * bucket_length(longest) // row_length)
    size = rows_a_batch([len(rows)], at_most, runtime.batch_parts(mesh))
    depends = model.config.rope.type in LENGTH_DEPENDENT
    context = bucket_length(longest) if depends else None
    totals = np.zeros(len(pairs))
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        some += [Row()] * (size - len(some))
        arrays = (*row_arrays(some, row_length), *_scored(encoded, some, row_length))
        arrays = runtime.put(arrays, runtime.over_data(mesh, size))
        found = runtime.fetch(_log_probs(model, *arrays, context)).astype(np.float64)
        for of_slot, row in zip(found, some, strict=True):
            for index, path in row.prompts:
                totals[index] = of_slot[path][list(encoded[index].scope)].sum()
        progress(sum(len(row.prompts) for row in some))
    return Likelihoods(totals, np.array([sum(item.scope) for item in encoded]))


def _encode(
    tokenizer: Any, pairs: Sequence[tuple[str, str]], special_tokens: bool
) -> list[Encoded]:
    """Whole texts; in scope is what follows the tokens that a text and its prompt begin with."""
    distinct = list(dict.fromkeys(prompt for prompt, _ in pairs))

    def ids_of(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts, add_special_tokens=special_tokens)["input_ids"]

    alone = dict(zip(distinct, ids_of(distinct), strict=True))
    texts = ids_of([prompt + continuation for prompt, continuation in pairs])
    encoded = []
    for (prompt, continuation), ids in zip(pairs, texts, strict=True):
        both = zip(ids, alone[prompt], strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], both))
        if shared == 0 and ids:
            raise InputError(
                f"no token stands before the continuation {continuation!r}",
                remedy="give a prompt that its first token belongs to",
            )
        encoded.append(Encoded(tuple(ids), (False,) * shared + (True,) * (len(ids) - shared)))
    return encoded


def _scored(
    encoded: Sequence[Encoded], rows: Sequence[Row], row_length: int
) -> tuple[Int[np.ndarray, "B T"], Int[np.ndarray, "B T"], Int[np.ndarray, ""]]:
    """Slots that any continuation needs, first in their row, the slot before each; the most a row.

    What lies behind is slot 0, which no continuation needs.
    """
    slots, parents = np.zeros((2, len(rows), row_length), np.int32)
    longest = 0
    for b, row in enumerate(rows):
        needed = {
            slot
            for index, path in row.prompts
            for slot, counts in zip(path, encoded[index].scope, strict=True)
            if counts
        }
        slots[b, : len(needed)] = sorted(needed)
        parents[b, : len(needed)] = [row.parents[slot] for slot in sorted(needed)]
        longest = max(longest, len(needed))
    return slots, parents, np.full(len(rows), longest, np.int32)


@partial(jax.jit, static_argnames=("context",))
def _log_probs(
    model: Model,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    ancestors: Bool[Array, "B T T"],
    slots: Int[Array, "B T"],
    parents: Int[Array, "B T"],
    longest: Int[Array, " B"],
    context: int | None,
) -> Float[Array, "B T"]:
    """log p of the token in every slot of `slots`, after the one before it; 0 elsewhere."""
    attend = tree_attend(model.config, positions, ancestors, context=context)
    output = run_decoder(model.config, model.params, tokens, attend, layout=model.layout)
    batch, length = tokens.shape
    # So few tokens of all rows at once that their logits fit.
    chunk = max(1, min(length, LOGITS_AT_ONCE // (batch * model.config.vocab_size)))
    chunk = next(n for n in range(chunk, 0, -1) if length % n == 0)

    def score(i: Int[Array, ""], found: Float[Array, "B T"]) -> Float[Array, "B T"]:
        at, before = (
            jax.lax.dynamic_slice_in_dim(x, i * chunk, chunk, axis=1) for x in (slots, parents)
        )
        hidden = jnp.take_along_axis(output.hidden, before[:, :, None], axis=1)
        logits = unembed(model.params, hidden, model.layout)
        target = jnp.take_along_axis(tokens, at, axis=1)[:, :, None]
        logit = jnp.take_along_axis(logits, target, axis=2)[:, :, 0]
        value = logit - jax.nn.logsumexp(logits, axis=2)
        return found.at[jnp.arange(batch)[:, None], at].set(value)

    n_chunks = -(-jnp.max(longest) // chunk)
    return jax.lax.fori_loop(0, n_chunks, score, jnp.zeros((batch, length), jnp.float32))
