"""Prompts as trees of tokens: what several prompts begin with is computed once.

The prompts of a language pair begin with the same tokens (BOS and `{S}:"`), those of one word with
several targets go on alike, and dictionaries repeat a word once a translation. Under causal
attention a token depends on what stands before it alone, so prompts that begin alike can share
these tokens. A row holds as many prompts as fit, as one tree (the attention mask of SpecInfer,
arXiv 2305.09781); hardly anything is padded, and all rows have one shape. Axes: B T (axes.py);
Q = prompts of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Int

from bridgex_jax.data.batching import Encoded, bucket_length

ROW_LENGTH = 128  # longer rows repeat the beginning less often, but their attention costs more
PROMPTS_PER_ROW = 64  # MUSE has three translations a word, and words of one token
_OPEN_ROWS = 8  # rows that may still be filled up


@dataclass(frozen=True)
class TreeBatch:
    """Rows of prompts. A token stands where its prompts have it (`positions`).

    ancestors[b, i, j]: token j stands before token i in its prompts, or is i.
    scope[b, q]: the tokens that count for the q-th prompt of the row, which is `index[b, q]` of
    all prompts; -1: none.
    """

    tokens: Int[np.ndarray, "B T"]
    positions: Int[np.ndarray, "B T"]
    ancestors: Bool[np.ndarray, "B T T"]
    scope: Bool[np.ndarray, "B Q T"]
    index: Int[np.ndarray, "B Q"]

    def arrays(self) -> tuple[np.ndarray, ...]:
        """What goes to the devices: all but `index`."""
        return self.tokens, self.positions, self.ancestors, self.scope


@dataclass
class Row:
    """Prompts as one tree of tokens. parents: the slot before each slot, -1 at the root.

    prompts: the index of each, and the slots of its tokens.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    slots: dict[tuple[int, int], int] = field(default_factory=dict)  # (parent, token) -> slot
    prompts: list[tuple[int, list[int]]] = field(default_factory=list)

    def path(self, ids: Sequence[int]) -> list[int]:
        """The slots of as many of the first tokens as the row has."""
        path, slot = [], -1
        for token in ids:
            if (slot := self.slots.get((slot, token), -1)) < 0:
                break
            path.append(slot)
        return path

    def add(self, index: int, ids: Sequence[int]) -> None:
        path = self.path(ids)
        for token in ids[len(path) :]:
            parent = path[-1] if path else -1
            path.append(len(self.tokens))
            self.slots[parent, token] = path[-1]
            self.tokens.append(token)
            self.parents.append(parent)
        self.prompts.append((index, path))


def pack(
    encoded: Sequence[Encoded], row_length: int, prompts_per_row: int = PROMPTS_PER_ROW
) -> list[Row]:
    """Rows of at most `row_length` tokens: each prompt goes where most of it is already there."""
    rows: list[Row] = []
    for index in sorted(range(len(encoded)), key=lambda i: encoded[i].ids):
        ids = encoded[index].ids
        missing = {
            row: len(ids) - len(rows[row].path(ids))
            for row in range(max(0, len(rows) - _OPEN_ROWS), len(rows))
            if len(rows[row].prompts) < prompts_per_row
        }
        fitting = [row for row, n in missing.items() if len(rows[row].tokens) + n <= row_length]
        if not fitting:
            rows.append(Row())
            fitting, missing = [len(rows) - 1], {len(rows) - 1: len(ids)}
        rows[min(fitting, key=missing.__getitem__)].add(index, ids)
    return rows


def tree_batches(
    encoded: Sequence[Encoded], batch_size: int, n_devices: int = 1
) -> Iterator[TreeBatch]:
    """Batches of one shape that hold every prompt once, in no particular order.

    A batch has about as many tokens as `batch_size` of the longest prompt, and a number of rows
    that `n_devices` divides. Prompts that are equal, tokens and scope, share all of their tokens.
    """
    longest = bucket_length(max((len(item.ids) for item in encoded), default=1))
    row_length = max(ROW_LENGTH, 2 * longest)
    rows = pack(encoded, row_length)
    size = rows_a_batch([len(rows)], max(1, batch_size * longest // row_length), n_devices)
    for start in range(0, len(rows), size):
        yield fill(encoded, rows[start : start + size], size, row_length)


def rows_a_batch(n_rows: Sequence[int], at_most: int, n_devices: int = 1) -> int:
    """The size of batches of one shape that leaves the fewest rows empty.

    n_rows: of every text, as no batch holds rows of two. At most `at_most`, and more than half of
    it where there are as many rows; a multiple of `n_devices`.
    """
    all_rows = -(-max(n_rows, default=1) // n_devices)
    largest = max(1, min(at_most // n_devices, all_rows)) * n_devices
    sizes = range(largest, max(largest // 2, n_devices - 1), -n_devices)
    return min(sizes, key=lambda size: sum(-(-n // size) * size for n in n_rows))


def fill(
    encoded: Sequence[Encoded],
    rows: Sequence[Row],
    size: int,
    row_length: int,
    prompts_per_row: int = PROMPTS_PER_ROW,
) -> TreeBatch:
    """One batch of `size` rows, the last of them empty where there are fewer."""
    scope = np.zeros((size, prompts_per_row, row_length), bool)
    index = np.full((size, prompts_per_row), -1, np.int32)
    for b, row in enumerate(rows):
        for q, (prompt, path) in enumerate(row.prompts):
            index[b, q] = prompt
            scope[b, q, path] = encoded[prompt].scope
    empty = [Row()] * (size - len(rows))
    return TreeBatch(*row_arrays([*rows, *empty], row_length), scope, index)


def row_arrays(rows: Sequence[Row], row_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """tokens, positions and ancestors of a `TreeBatch`."""
    tokens, positions = np.zeros((2, len(rows), row_length), np.int32)
    ancestors = np.tile(np.eye(row_length, dtype=bool), (len(rows), 1, 1))  # padding sees itself
    for b, row in enumerate(rows):
        tokens[b, : len(row.tokens)] = row.tokens
        for slot, parent in enumerate(row.parents):
            if parent >= 0:
                positions[b, slot] = positions[b, parent] + 1
                ancestors[b, slot] |= ancestors[b, parent]
    return tokens, positions, ancestors
