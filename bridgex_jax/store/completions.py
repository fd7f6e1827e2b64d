"""What models have answered, kept between runs so that no prompt is computed twice.

A directory for every model and way of answering (`key`), in it Parquet files that a person can
read, each written whole and named by its content: any number of processes may add to one directory.
A file that is damaged is left out, and what it held is computed again.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bridgex_jax.store.files import disk_errors, json_bytes, write_bytes, write_json

# continuation: null for an answer of the model, else what was scored.
SCHEMA = pa.schema(
    [
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("continuation", pa.string()),
        pa.field("answer", pa.string()),
        pa.field("log_probability", pa.float64()),
    ]
)
_KEY = "key.json"


class Completions:
    """Answers and log-probabilities of one model under one key.

    damaged: files that could not be read.
    """

    def __init__(self, directory: Path, key: Mapping[str, Any]) -> None:
        digest = hashlib.sha256(json_bytes(key)).hexdigest()[:24]
        self.directory = directory / digest
        self.damaged: list[Path] = []
        self._key = key
        self._answers: dict[str, str] = {}
        self._scores: dict[tuple[str, str], float] = {}
        for file in sorted(self.directory.glob("[!.]*.parquet")):
            try:
                table = pq.read_table(file, schema=SCHEMA)
            except (pa.ArrowException, OSError):
                self.damaged.append(file)
                continue
            for prompt, text, answer, value in zip(
                *(column.to_pylist() for column in table.columns), strict=True
            ):
                if text is None:
                    self._answers[prompt] = answer
                else:
                    self._scores[prompt, text] = math.nan if value is None else value

    def answers(self, prompts: Sequence[str]) -> list[str | None]:
        """The answer of every prompt; None where it is not known."""
        return [self._answers.get(prompt) for prompt in prompts]

    def scores(self, pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        """log p of every (prompt, continuation); None where it is not known."""
        return [self._scores.get(pair) for pair in pairs]

    def add_answers(self, found: Mapping[str, str]) -> None:
        """Keeps answers; InputError where the disk refuses."""
        self._answers |= found
        self._write([(prompt, None, answer, None) for prompt, answer in found.items()])

    def add_scores(self, found: Mapping[tuple[str, str], float]) -> None:
        """Keeps log-probabilities; InputError where the disk refuses."""
        self._scores |= found
        self._write([(*pair, None, value) for pair, value in found.items()])

    def _write(self, rows: Sequence[tuple[Any, ...]]) -> None:
        if not rows:
            return
        columns = [
            pa.array(c, f.type) for c, f in zip(zip(*rows, strict=True), SCHEMA, strict=True)
        ]
        stream = io.BytesIO()
        pq.write_table(pa.Table.from_arrays(columns, schema=SCHEMA), stream, compression="zstd")
        data = stream.getvalue()
        with disk_errors(self.directory, remedy="give another directory for --answers"):
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not (self.directory / _KEY).exists():
                write_json(self.directory / _KEY, self._key)
            name = hashlib.sha256(data).hexdigest()[:24]
            write_bytes(self.directory / f"{name}.parquet", data)
