"""Result tables as Parquet with fixed schemas, and `choice.json`: equal results give equal bytes.

Missing scores are null in the file and NaN in memory; a missing layer keeps its row, so that every
pair has all layers of the model. Axis letters: G bridge (or language), L layer.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from bridgex_jax.errors import InputError
from bridgex_jax.store.files import read_json, write_bytes, write_json
from bridgex_jax.store.paths import AnyPath, read_bytes

SPECTRUM_SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("target", pa.string(), nullable=False),
        pa.field("bridge", pa.string(), nullable=False),
        pa.field("layer", pa.int32(), nullable=False),
        pa.field("score", pa.float64()),
        pa.field("n_shared", pa.int32(), nullable=False),
        pa.field("n_bridge", pa.int32(), nullable=False),
    ]
)
OVERLAP_SCHEMA = pa.schema(
    [
        pa.field("language_a", pa.string(), nullable=False),
        pa.field("language_b", pa.string(), nullable=False),
        pa.field("overlap", pa.int64(), nullable=False),
        pa.field("jaccard", pa.float64()),
        pa.field("cosine", pa.float64()),
    ]
)
ANSWER_SCHEMA = pa.schema(
    [
        pa.field("task", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("target", pa.string(), nullable=False),
        pa.field("condition", pa.string(), nullable=False),
        pa.field("bridge", pa.string()),
        pa.field("item", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("normalised", pa.string()),
        pa.field("gold", pa.list_(pa.string()), nullable=False),
        pa.field("correct", pa.bool_(), nullable=False),
        pa.field("f1", pa.float64()),
        pa.field("log_probability", pa.float64()),
        pa.field("hop1_prompt", pa.string()),
        pa.field("hop1_answer", pa.string()),
        pa.field("hop1_correct", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class PairSpectrum:
    """The language spectrum of one pair, as stored.

    score: [G, L], NaN where a layer is missing for a bridge; n_shared: [L] neurons of X;
    n_bridge: [G, L] neurons of Y_b.
    """

    source: str
    target: str
    bridges: tuple[str, ...]
    score: Float[np.ndarray, "G L"]
    n_shared: Int[np.ndarray, "L"]
    n_bridge: Int[np.ndarray, "G L"]


@dataclass(frozen=True)
class OverlapMatrix:
    """Neurons that languages share. overlap [G, G]: counts; jaccard, cosine [G, G] (may be NaN)."""

    languages: tuple[str, ...]
    overlap: Int[np.ndarray, "G G"]
    jaccard: Float[np.ndarray, "G G"]
    cosine: Float[np.ndarray, "G G"]


@dataclass(frozen=True)
class Answer:
    """One question under one condition ("zero_shot", or the bridge through which it went).

    item: what it is known by: the word, or the key in its data. prompt: "" where the step into the
    bridge gave nothing to go on with. answer: the raw continuation, or the label that was chosen;
    normalised: what was compared, None when it could not be read. correct: by the task's first
    metric. log_probability: of the most probable right answer, in nats. hop1_*: the step into the
    bridge, if there was one.
    """

    task: str
    source: str
    target: str
    condition: str
    bridge: str | None
    item: str
    prompt: str
    answer: str
    normalised: str | None
    gold: tuple[str, ...]
    correct: bool
    f1: float | None = None
    log_probability: float | None = None
    hop1_prompt: str | None = None
    hop1_answer: str | None = None
    hop1_correct: bool | None = None


def write_spectrum(path: Path, spectra: Iterable[PairSpectrum]) -> None:
    """Writes `spectrum.parquet`: one row for every pair, bridge and layer."""
    rows = [
        (s.source, s.target, bridge, layer, _number(s.score[g, layer]),
         int(s.n_shared[layer]), int(s.n_bridge[g, layer]))
        for s in spectra
        for g, bridge in enumerate(s.bridges)
        for layer in range(s.score.shape[1])
    ]  # fmt: skip
    _write(path, SPECTRUM_SCHEMA, rows)


def read_spectrum(path: AnyPath) -> tuple[PairSpectrum, ...]:
    """Reads `spectrum.parquet`, pairs and bridges in the order of the file.

    Raises InputError when the file is no such table or a pair lacks rows.
    """
    pairs: dict[tuple[str, str], dict[str, list[tuple[Any, ...]]]] = {}
    for source, target, bridge, *rest in _read(path, SPECTRUM_SCHEMA):
        pairs.setdefault((source, target), {}).setdefault(bridge, []).append(tuple(rest))
    return tuple(
        _pair_spectrum(path, source, target, bridges) for (source, target), bridges in pairs.items()
    )


def _pair_spectrum(
    path: AnyPath, source: str, target: str, bridges: Mapping[str, list[tuple[Any, ...]]]
) -> PairSpectrum:
    layers = range(len(next(iter(bridges.values()))))
    columns = [
        list(zip(*sorted(rows, key=lambda row: row[0]), strict=True)) for rows in bridges.values()
    ]
    if any(column[0] != tuple(layers) for column in columns):
        raise InputError(f"lacks layers of {source}→{target}", file=path, remedy="run select again")
    return PairSpectrum(
        source=source,
        target=target,
        bridges=tuple(bridges),
        score=np.array([column[1] for column in columns], np.float64),  # None becomes NaN
        n_shared=np.array(columns[0][2], np.int32),
        n_bridge=np.array([column[3] for column in columns], np.int32),
    )


def write_overlap(path: Path, matrix: OverlapMatrix) -> None:
    """Writes `overlap.parquet`: a row for every ordered pair of languages and the diagonal."""
    rows = [
        (
            a,
            b,
            int(matrix.overlap[i, j]),
            _number(matrix.jaccard[i, j]),
            _number(matrix.cosine[i, j]),
        )
        for i, a in enumerate(matrix.languages)
        for j, b in enumerate(matrix.languages)
    ]
    _write(path, OVERLAP_SCHEMA, rows)


def read_overlap(path: AnyPath) -> OverlapMatrix:
    """Reads `overlap.parquet`; InputError when it is no square table."""
    rows = _read(path, OVERLAP_SCHEMA)
    languages = tuple(dict.fromkeys(row[0] for row in rows))
    if [row[:2] for row in rows] != [(a, b) for a in languages for b in languages]:
        raise InputError("lacks pairs of languages", file=path, remedy="run select again")
    shape = (len(languages), len(languages))
    overlap, jaccard, cosine = (np.array([row[i] for row in rows], t).reshape(shape) for i, t in
                                ((2, np.int64), (3, np.float64), (4, np.float64)))  # fmt: skip
    return OverlapMatrix(languages, overlap, jaccard, cosine)


def write_answers(path: Path, answers: Iterable[Answer]) -> None:
    """Writes `answers.parquet`: every question with its prompt, answer and gold."""
    names = ANSWER_SCHEMA.names
    _write(path, ANSWER_SCHEMA, [tuple(getattr(a, name) for name in names) for a in answers])


def read_answers(path: AnyPath) -> tuple[Answer, ...]:
    """Reads `answers.parquet`."""
    known = {field.name for field in fields(Answer)}
    rows = (dict(zip(ANSWER_SCHEMA.names, row, strict=True)) for row in _read(path, ANSWER_SCHEMA))
    return tuple(
        Answer(**{k: v for k, v in (row | {"gold": tuple(row["gold"])}).items() if k in known})
        for row in rows
    )


def write_choice(path: Path, choice: Mapping[str, Any]) -> None:
    """Writes `choice.json`: sorted keys, UTF-8, NaN as null."""
    write_json(path, choice)


def read_choice(path: AnyPath) -> dict[str, Any]:
    """Reads `choice.json`."""
    choice = read_json(path)
    if not isinstance(choice, dict):
        raise InputError("is not a choice", file=path, remedy="run select again")
    return choice


def _number(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _write(path: Path, schema: pa.Schema, rows: Sequence[tuple[Any, ...]]) -> None:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), stream, compression="zstd")
    write_bytes(path, stream.getvalue())


def _read(path: AnyPath, schema: pa.Schema) -> list[tuple[Any, ...]]:
    data = read_bytes(path, missing="is missing", remedy="run the command again")
    try:
        table = pq.read_table(pa.BufferReader(data), columns=schema.names)
    except pa.ArrowException as error:
        raise InputError(
            f"is not a Parquet file of this kind ({error})",
            file=path,
            remedy="run the command again",
        ) from error
    if table.schema.names != schema.names:
        raise InputError("lacks columns", file=path, remedy="run the command again")
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))
