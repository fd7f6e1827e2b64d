"""From prompts and text to padded batches: token scopes by character offsets, length buckets.

A bucket is a padded length; every batch of a bucket has one shape, so the model compiles at most
once a bucket. Rows that only fill a batch up have index -1 and nothing in scope. Axes: B T.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from jaxtyping import Bool, Int

from bridgex_jax.data.prompts import Prompt
from bridgex_jax.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Scope = Literal[
    "from_word_mean", "prompt_mean", "prompt_and_generated_mean", "word_tokens", "last_token"
]
SCOPES: tuple[str, ...] = get_args(Scope)
BUCKET_MULTIPLE = 8  # padded lengths are multiples of this


@dataclass(frozen=True)
class Encoded:
    """Token ids of one text and which of them are in scope."""

    ids: tuple[int, ...]
    scope: tuple[bool, ...]


@dataclass(frozen=True)
class Batch:
    """A padded batch. mask: real tokens; scope: the tokens that count; index: which example."""

    tokens: Int[np.ndarray, "B T"]
    mask: Bool[np.ndarray, "B T"]
    scope: Bool[np.ndarray, "B T"]
    index: Int[np.ndarray, " B"]


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], scope: Scope
) -> list[Encoded]:
    """Token ids with special tokens, and the scope of bridgex-icl Stage 4.

    `from_word_mean`: from the word's first token to the end (a token that straddles the word's
    beginning counts); `prompt_mean` and `prompt_and_generated_mean`: all but special tokens;
    `word_tokens`: tokens that overlap the word; `last_token`.

    Raises InputError for a word that no token covers, or a tokenizer without character offsets,
    ValueError for an unknown scope.
    """
    if scope not in SCOPES:
        raise ValueError(f"scope is {scope!r}, not one of {', '.join(SCOPES)}")
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            "the tokenizer gives no character offsets",
            file=getattr(tokenizer, "name_or_path", None),
            remedy="convert it to a tokenizer.json",
        )
    texts = [prompt.text for prompt in prompts]
    coded = tokenizer(texts, return_offsets_mapping=True, return_special_tokens_mask=True)
    encoded = []
    for i, prompt in enumerate(prompts):
        offsets, special = coded["offset_mapping"][i], coded["special_tokens_mask"][i]
        ids = tuple(coded["input_ids"][i])
        real = [not s and b > a for (a, b), s in zip(offsets, special, strict=True)]
        word = [r and b > prompt.start and a < prompt.end
                for (a, b), r in zip(offsets, real, strict=True)]  # fmt: skip
        if not any(word):
            raise InputError(
                f"the word {prompt.text[prompt.start : prompt.end]!r} gives no tokens",
                remedy="take it out of the dictionary",
            )
        encoded.append(Encoded(ids, _scope(scope, word, [not s for s in special])))
    return encoded


def _scope(scope: Scope, word: list[bool], ordinary: list[bool]) -> tuple[bool, ...]:
    if scope == "word_tokens":
        return tuple(word)
    if scope == "from_word_mean":
        first = word.index(True)
        return tuple(o and i >= first for i, o in enumerate(ordinary))
    if scope == "last_token":
        last = max(i for i, o in enumerate(ordinary) if o)
        return tuple(i == last for i in range(len(ordinary)))
    return tuple(ordinary)


def extend(encoded: Encoded, generated: Sequence[int]) -> Encoded:
    """The prompt with its generated continuation, which is in scope."""
    return Encoded(encoded.ids + tuple(generated), encoded.scope + (True,) * len(generated))


def bucket_length(n: int, multiple: int = BUCKET_MULTIPLE) -> int:
    """The padded length of a row of n tokens."""
    return -(-n // multiple) * multiple


def bucketed(
    encoded: Sequence[Encoded],
    batch_size: int,
    *,
    multiple: int = BUCKET_MULTIPLE,
) -> Iterator[Batch]:
    """Batches of at most `batch_size` rows, shortest bucket first, order within a bucket kept.

    A bucket with fewer rows than `batch_size` has batches of the next power of two instead. A
    multiple of the number of devices divides `batch_size` only if the caller chose it so.
    """
    buckets: dict[int, list[int]] = {}
    for index, item in enumerate(encoded):
        buckets.setdefault(bucket_length(len(item.ids), multiple), []).append(index)
    for length, members in sorted(buckets.items()):
        size = min(batch_size, 1 << (len(members) - 1).bit_length())
        for start in range(0, len(members), size):
            yield _pad(encoded, members[start : start + size], size, length)


def _pad(encoded: Sequence[Encoded], members: list[int], size: int, length: int) -> Batch:
    tokens = np.zeros((size, length), np.int32)
    mask, scope = np.zeros((2, size, length), bool)
    index = np.full(size, -1, np.int32)
    for row, member in enumerate(members):
        item = encoded[member]
        at = slice(0, len(item.ids))
        tokens[row, at], mask[row, at], scope[row, at] = item.ids, True, item.scope
        index[row] = member
    return Batch(tokens, mask, scope, index)


def pack_lines(
    tokenizer: PreTrainedTokenizerBase, lines: Iterable[str], row_length: int
) -> list[Encoded]:
    """Rows of `row_length` tokens of running text, the remainder dropped (Stage 1).

    Lines are joined by newlines. Each row begins with the model's BOS token, where it has one:
    fed, as in training, and not counted.
    """
    stream: list[int] = []
    separator = tokenizer.encode("\n", add_special_tokens=False)
    for ids in tokenizer(list(lines), add_special_tokens=False)["input_ids"]:
        stream += ids + separator
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    n = row_length - len(bos)
    scope = (False,) * len(bos) + (True,) * n
    return [
        Encoded(tuple(bos + stream[start : start + n]), scope)
        for start in range(0, len(stream) - n + 1, n)
    ]
