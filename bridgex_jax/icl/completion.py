"""Completing prompts in batches: greedy, up to where the answer ends, each distinct prompt once.

bridgex-icl, "Using the bridge": at most 30 new tokens, stop at a newline. The stop is every
token whose text holds a newline, since tokenizers merge it with its neighbours. An answer that
opens with a quote also ends with the next one: nothing after it is read. Another rule is a `Stops`
(models/stopping.py). Prompts that begin alike (one word into several languages, one bridge to
several targets) share these tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from bridgex_jax import runtime
from bridgex_jax.data.batching import Encoded, bucket_length, extend
from bridgex_jax.data.trees import PROMPTS_PER_ROW, ROW_LENGTH, Row, pack, row_arrays
from bridgex_jax.models.generate import Pool, check_room, decode, new_pool, prefill
from bridgex_jax.models.load import Model
from bridgex_jax.models.rope import LENGTH_DEPENDENT
from bridgex_jax.models.stopping import DONE, START, Stops, stop_at_answer_end

MAX_NEW_TOKENS = 30
PATH_MULTIPLE = 16  # of padded prompt lengths: the loop takes long to compile, so few shapes
SHORTEST_PATH = 32
AT_ONCE = 2  # batches in flight
Progress = Callable[[int], object]


# Prompts that are decoded together: for each device the rows that hold its prompts.
_Chunk = tuple[tuple[Row, ...], ...]


def _silent(rows: int) -> None:
    """No progress shown."""


def answer_stops(model: Model) -> Stops:
    """An answer ends with its line or, if it opens with a quote, with the next quote."""
    return stop_at_answer_end(model.line_end_ids, *model.quote_ids, model.config.vocab_size)


def complete_ids(
    model: Model,
    encoded: Sequence[Encoded],
    mesh: Mesh,
    *,
    batch_size: int,
    max_new_tokens: int = MAX_NEW_TOKENS,
    stops: Stops | None = None,
    progress: Progress = _silent,
) -> list[list[int]]:
    """The generated token ids of every prompt, without a token of `stops.dropped` at the end.

    stops: None for `answer_stops`. Raises InputError where a prompt and its answer exceed the
    model's context.
    """
    stops = stops or answer_stops(model)
    check_room(model.config, max((len(item.ids) for item in encoded), default=0), max_new_tokens)
    # prompts a device
    width = -(-min(batch_size, _power_of_two(len(encoded))) // runtime.batch_parts(mesh))
    answers: list[list[int]] = [[] for _ in encoded]
    states = [START] * len(encoded)
    left = list(range(len(encoded)))
    while left:
        asked = [extend(encoded[i], answers[i]) for i in left]
        begun = [states[i] for i in left]
        found = _one_round(model, asked, begun, stops, mesh, width, max_new_tokens, progress)
        progress = _silent  # the first round has counted every prompt
        for i, (ids, state) in zip(left, found, strict=True):
            answers[i] = (answers[i] + stops.trim(ids, state == DONE))[:max_new_tokens]
            states[i] = state
        left = [i for i in left if states[i] != DONE and len(answers[i]) < max_new_tokens]
    return answers


def _one_round(
    model: Model,
    encoded: Sequence[Encoded],
    states: Sequence[int],
    stops: Stops,
    mesh: Mesh,
    width: int,
    max_new_tokens: int,
    progress: Progress,
) -> list[tuple[list[int], int]]:
    """New ids of every prompt, and the state of `stops` after them; `states`: before."""
    n_parts = runtime.batch_parts(mesh)
    row_length = max(ROW_LENGTH, 2 * bucket_length(max(len(item.ids) for item in encoded)))
    chunks = _chunks(pack(encoded, row_length, min(width, PROMPTS_PER_ROW)), n_parts, width)
    at_once = max(1, runtime.tokens_a_batch(mesh) // (row_length * n_parts))
    # Room for 16 new tokens a prompt, whatever is needed: another size would compile again.
    usual = 16 * width // row_length
    n_rows = max(usual, *(len(rows) for chunk in chunks for rows in chunk))
    n_rows = -(-n_rows // at_once) * at_once
    table = runtime.put(stops.table, runtime.replicated(mesh))
    pools = [_new_pool(model, mesh, n_rows * row_length) for _ in range(AT_ONCE)]

    def start(number: int, chunk: _Chunk) -> tuple[Int[np.ndarray, "P b"], tuple[Array, ...]]:
        """Queues a chunk on the devices: its indices, and what they will answer."""
        pool = pools[number % AT_ONCE]
        index, paths, lengths = _paths(chunk, width, row_length)
        depends = model.config.rope.type in LENGTH_DEPENDENT
        context = paths.shape[2] + max_new_tokens if depends else None
        for first in range(0, max(len(rows) for rows in chunk), at_once):
            rows = [row for part in chunk for row in _padded(part, first, at_once)]
            sharding = runtime.over_data(mesh, len(rows))
            arrays = runtime.put(row_arrays(rows, row_length), sharding)
            at = runtime.put(np.int32(first), runtime.replicated(mesh))
            pool = prefill(model, pool, *arrays, at, context)
        pools[number % AT_ONCE] = pool
        state = np.where(index >= 0, np.asarray(states, np.int32)[index], DONE)
        places = runtime.put((paths, lengths, state), runtime.over_data(mesh, n_parts))
        return index, decode(model, pool, *places, table, max_new_tokens)

    answers: list[tuple[list[int], int]] = [([], DONE)] * len(encoded)

    def finish(index: Int[np.ndarray, "P b"], found: tuple[Array, ...]) -> None:
        real = index >= 0
        rows = (x[real].tolist() for x in runtime.fetch(found))
        for prompt, ids, n, state in zip(index[real].tolist(), *rows, strict=True):
            answers[prompt] = (ids[:n], state)
        progress(int(real.sum()))

    queue: list[tuple[Int[np.ndarray, "P b"], tuple[Array, ...]]] = []
    for number, chunk in enumerate(chunks):
        queue.append(start(number, chunk))
        if len(queue) == AT_ONCE:  # a device that waits for memory can work on another batch
            finish(*queue.pop(0))
    for item in queue:
        finish(*item)
    return answers


def _power_of_two(n: int) -> int:
    """The next power of two: few shapes for small jobs."""
    return 1 << (n - 1).bit_length()


def _chunks(rows: Sequence[Row], n_parts: int, width: int) -> list[_Chunk]:
    """Rows in batches of at most `width` prompts a device, short prompts first.

    Short prompts have short answers, and a batch runs as long as its longest.
    """
    in_order = sorted(rows, key=lambda row: max(len(path) for _, path in row.prompts))
    parts: list[list[Row]] = [[]]
    prompts = 0
    for row in in_order:
        if parts[-1] and prompts + len(row.prompts) > width:
            parts.append([])
            prompts = 0
        parts[-1].append(row)
        prompts += len(row.prompts)
    parts += [[]] * (-len(parts) % n_parts)
    return [
        tuple(tuple(rows) for rows in parts[start : start + n_parts])
        for start in range(0, len(parts), n_parts)
    ]


def _padded(rows: Sequence[Row], start: int, n: int) -> list[Row]:
    """Rows start … start + n - 1, empty ones after the last."""
    some = list(rows[start : start + n])
    return some + [Row()] * (n - len(some))


def _paths(
    chunk: _Chunk, width: int, row_length: int
) -> tuple[Int[np.ndarray, "P b"], Int[np.ndarray, "P b S"], Int[np.ndarray, "P b"]]:
    """For every prompt of every part its index (-1: none), its slots in the pool, its length."""
    longest = max(len(path) for part in chunk for row in part for _, path in row.prompts)
    shape = (len(chunk), width)
    index, lengths = np.full(shape, -1, np.int32), np.zeros(shape, np.int32)
    paths = np.zeros((*shape, max(SHORTEST_PATH, bucket_length(longest, PATH_MULTIPLE))), np.int32)
    for p, part in enumerate(chunk):
        prompts = [(row, *prompt) for row, held in enumerate(part) for prompt in held.prompts]
        for b, (row, prompt, path) in enumerate(prompts):
            index[p, b], lengths[p, b] = prompt, len(path)
            paths[p, b, : len(path)] = np.array(path) + row * row_length
    return index, paths, lengths


def _new_pool(model: Model, mesh: Mesh, slots: int) -> Pool:
    """An empty pool: its parts split like the rows of a batch, its heads like the model's."""
    parts = runtime.batch_parts(mesh)
    rows = runtime.over_data(mesh, parts)
    heads = runtime.dividing_axes(mesh, ("tensor",), model.config.n_kv_heads)
    held = NamedSharding(mesh, PartitionSpec(None, *rows.spec, None, heads))
    places: Any = (held, held, rows)
    make = jax.jit(new_pool, static_argnums=(1, 2), out_shardings=Pool(*places))
    return make(model, parts, slots)


def complete(
    model: Model,
    prompts: Sequence[str],
    mesh: Mesh,
    *,
    batch_size: int,
    max_new_tokens: int = MAX_NEW_TOKENS,
    stops: Stops | None = None,
    special_tokens: bool = True,
    progress: Progress = _silent,
) -> list[str]:
    """The continuation of every prompt as text, cut before the string that it stopped at.

    A prompt that occurs twice is computed once. special_tokens: whether the tokenizer adds its own
    (a chat template has written them already). See `complete_ids`.
    """
    if not prompts:
        return []
    stops = stops or answer_stops(model)
    distinct = list(dict.fromkeys(prompts))
    coded = model.tokenizer(distinct, add_special_tokens=special_tokens)["input_ids"]
    encoded = [Encoded(tuple(ids), (False,) * len(ids)) for ids in coded]
    generated = complete_ids(
        model,
        encoded,
        mesh,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        stops=stops,
        progress=progress,
    )
    texts = model.tokenizer.batch_decode(generated, skip_special_tokens=True)
    answers = {
        prompt: stops.cut(text, ids, model.token_bytes)
        for prompt, text, ids in zip(distinct, texts, generated, strict=True)
    }
    return [answers[prompt] for prompt in prompts]
