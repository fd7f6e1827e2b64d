"""The directory of a sweep, and the tables that its units gather into.

    sweep.json          code, plan, hashes of what it read, units with their estimates
    units/KEY/          one run directory for every unit
    parts/KEY/          finished parts of a unit that is not complete, for whoever makes it
    failures/KEY.json   why a unit failed last; of no account once the unit is complete
    lowered/KEY.json    the smaller batch that a unit needs, and the unit that stands in for it
    running/KEY.*.json  who works at a unit now, and how far it is
    results.parquet     one row for every unit and bridge
    spectrum.parquet    one row for every unit, bridge and layer
    evaluations.parquet one row for every evaluate unit and condition, where the plan evaluates

Nothing here is appended to or locked, so it works on object stores, and any number of processes may
write: every file is replaced whole, and equal facts are equal bytes.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bridgex_jax.errors import InputError
from bridgex_jax.store.files import disk_errors, json_bytes, read_json, write_bytes, write_json
from bridgex_jax.store.manifest import MANIFEST, verify_run
from bridgex_jax.store.parts import check_name, unpack
from bridgex_jax.store.paths import (
    AnyPath,
    as_path,
    file_system,
    files_below,
    is_remote,
    read_bytes,
    remote_errors,
    remove_object,
)
from bridgex_jax.store.places import Place
from bridgex_jax.store.workplace import sweep as sweep_leftovers

SCHEMA = 1
INDEX, RESULTS, LAYERS = "sweep.json", "results.parquet", "spectrum.parquet"
EVALUATIONS = "evaluations.parquet"
_OURS = {"units", "parts", "failures", "lowered", "running", RESULTS, LAYERS, EVALUATIONS}
SILENT_SECONDS = 600  # a process that has not been heard of for so long is taken for dead


def _field(name: str, kind: pa.DataType, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable)


_UNIT = [_field(name, pa.string()) for name in ("unit", "model", "source", "target", "bridge")]
RESULT_SCHEMA = pa.schema(
    [
        *_UNIT,
        _field("chosen", pa.bool_()),
        _field("comparable", pa.bool_()),
        *(_field(name, pa.float64(), True) for name in ("score", "low", "high")),
        *(_field(name, pa.float64(), True) for name in ("p_best", "p_value")),
        *(_field(name, pa.int32()) for name in ("layers", "neurons", "probe_words")),
        *(_field(name, pa.int32()) for name in ("window_first", "window_last")),
        _field("count_unit", pa.string()),
        _field("revision", pa.string(), True),
        _field("dtype", pa.string()),
        _field("model_sha256", pa.string()),
        _field("dictionary_sha256", pa.string()),
        _field("top_rate", pa.float64()),
        _field("rate_scope", pa.string()),
        _field("bridge_set", pa.string()),
        _field("top_k", pa.int32(), True),
        _field("drop_common", pa.bool_()),
        _field("words", pa.int32()),
        _field("probe_filter", pa.string()),
        _field("token_scope", pa.string()),
        _field("template", pa.string(), True),
        _field("seed", pa.int64()),
        _field("resamples", pa.int32()),
        _field("permutations", pa.int32()),
        _field("estimator", pa.string()),
        _field("bandwidth", pa.string()),
        _field("size_matching", pa.bool_()),
        _field("length_control", pa.string()),
        _field("compat", pa.string(), True),
        _field("tokens", pa.int64(), True),
        _field("row_length", pa.int32(), True),
        _field("batch_size", pa.int32()),
        _field("planned_batch_size", pa.int32()),
        _field("count_batch_size", pa.int32(), True),
        _field("planned_count_batch_size", pa.int32(), True),
    ]
)
LAYER_SCHEMA = pa.schema(
    [
        *_UNIT,
        _field("layer", pa.int32()),
        _field("score", pa.float64(), True),
        _field("n_shared", pa.int32()),
        _field("n_bridge", pa.int32()),
    ]
)
# condition: zero_shot or a bridge. choosers: names of those that pick it. f1: null where the task
# has none. log_probability: mean over the questions that could be asked, in nats.
EVALUATION_SCHEMA = pa.schema(
    [
        *(_field(name, pa.string()) for name in ("unit", "select_unit", "task")),
        *(_field(name, pa.string()) for name in ("model", "source", "target", "condition")),
        _field("accuracy", pa.float64()),
        *(_field(name, pa.float64(), True) for name in ("f1", "log_probability")),
        _field("questions", pa.int32()),
        _field("choosers", pa.list_(pa.field("element", pa.string(), nullable=False))),
        _field("revision", pa.string(), True),
        _field("dtype", pa.string()),
        _field("model_sha256", pa.string()),
        _field("limit", pa.int32(), True),
        _field("shots", pa.int32()),
        _field("seed", pa.int64()),
        _field("batch_size", pa.int32()),
        _field("planned_batch_size", pa.int32()),
    ]
)


def write_table(
    path: AnyPath, schema: pa.Schema, rows: Iterable[Mapping[str, Any]], missing: Iterable[str]
) -> None:
    """Writes one of the tables whole; NaN becomes null.

    missing: keys of units that failed and have no rows; the file's metadata names them under
    `missing_units`, so that a table with gaps says so.
    """
    plain_rows = [{k: _finite(v) for k, v in row.items()} for row in rows]
    marked = schema.with_metadata({"missing_units": ",".join(missing)})
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(plain_rows, marked), stream, compression="zstd")
    with disk_errors(path):
        write_bytes(path, stream.getvalue())


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def now() -> str:
    """The time in UTC, as all records have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class SweepDirectory:
    """DIR of `bridgex sweep PLAN --out DIR`, local or in an object store.

    It is made where it is missing once something is written. writes: False for processes that
    leave that to another one, and whose changes come to nothing.
    """

    def __init__(self, root: str | os.PathLike[str], writes: bool = True):
        self.root = as_path(root)
        self._writes = writes
        self._mine = f"{socket.gethostname()}-{os.getpid()}"

    # sweep.json ------------------------------------------------------------------------------

    def read(self) -> dict[str, Any] | None:
        """`sweep.json`; None where there is none yet.

        Raises InputError for a directory with other files in it and for a damaged index.
        """
        path = self.root / INDEX
        if not _is_file(path):
            if not is_remote(self.root) and self.root.exists() and not self.root.is_dir():
                raise InputError("is not a directory", file=self.root, remedy="give another --out")
            if foreign := [name for name in self._names("") if name not in _OURS]:
                remedy = "choose another --out or empty the directory"
                what = f"is not empty ({foreign[0]}) and holds no sweep"
                raise InputError(what, file=self.root, remedy=remedy)
            return None
        found = read_json(path)
        whole = isinstance(found, dict) and {"code", "pins", "units"} <= found.keys()
        if not whole or found.get("schema") != SCHEMA:
            remedy = "delete this file; the same sweep makes it again and keeps all finished units"
            raise InputError("is not the index of a sweep", file=path, remedy=remedy)
        return found

    def write(self, index: Mapping[str, Any]) -> None:
        """Writes `sweep.json`, unless it says so already."""
        path = self.root / INDEX
        data = json_bytes({"schema": SCHEMA, **index})
        if not self._writes or (_is_file(path) and read_bytes(path) == data):
            return
        with disk_errors(self.root):
            _make_directory(self.root)
            write_bytes(path, data)

    # Units -----------------------------------------------------------------------------------

    def unit(self, key: str) -> AnyPath:
        """Where the unit of that key lies or will lie."""
        return self.root / "units" / key

    def finished(self) -> set[str]:
        """Keys of the units that have a manifest; their files are not looked at."""
        if not is_remote(self.root):
            return {path.parent.name for path in self.root.glob(f"units/[!.]*/{MANIFEST}")}
        names = (name.split("/") for name in files_below(self.root / "units") or {})
        return {parts[0] for parts in names if parts[1:] == [MANIFEST]}

    def is_whole(self, key: str) -> bool:
        """Whether the unit is complete and every file of it is as its manifest says."""
        try:
            verify_run(self.unit(key))
        except InputError:
            return False
        return True

    # Parts of units that are not complete --------------------------------------------------------

    def part(
        self, key: str, name: str, compute: Callable[[], Mapping[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """The arrays of a unit's part, which any process may have made, or `compute()`, kept."""
        check_name(name)
        path = self.root / "parts" / key / f"{name}.npz"
        found = _read_part(path)
        if found is None:
            stream = io.BytesIO()
            np.savez(stream, **compute())  # type: ignore[arg-type]
            found = stream.getvalue()
            digest = hashlib.sha256(found).digest()
            # Whoever completes the unit meanwhile removes the folder: then nobody needs the part.
            with disk_errors(self.root), suppress(FileNotFoundError):
                _make_directory(self.root / "parts" / key)
                write_bytes(path, digest + found)
        return unpack(found)

    def drop_parts(self, key: str) -> None:
        """Removes the parts of a unit that is complete."""
        place = self.root / "parts" / key
        if is_remote(place):
            for name in self._names(f"parts/{key}"):
                self._remove(place / name)
        elif self._writes:
            shutil.rmtree(place, ignore_errors=True)

    def tidy(self) -> None:
        """Removes what killed processes left of units that are complete now."""
        if is_remote(self.root) or not self._writes:
            return
        hidden = [path.name for path in self.root.glob("units/.*")]
        for key in self.finished() if hidden else ():
            base = Place(self.unit(key), {}).work
            if any(name.startswith(base.name) for name in hidden):
                sweep_leftovers(base)
        for torn in self.root.glob("running/.*.tmp"):
            self._remove(torn)

    # Failures and smaller batches --------------------------------------------------------------

    def fail(self, key: str, reason: str, **facts: Any) -> None:
        """Records that a unit failed; `attempts` counts how often."""
        before = self.failure(key) or {}
        record = {
            "unit": key,
            "reason": reason,
            "attempts": int(before.get("attempts", 0)) + 1,
            "host": socket.gethostname(),
            "at": now(),
            **facts,
        }
        self._put("failures", f"{key}.json", record)

    def failure(self, key: str) -> dict[str, Any] | None:
        """The record of a unit's last failure."""
        return self._get("failures", f"{key}.json")

    def failures(self) -> dict[str, dict[str, Any]]:
        """All records of failures, by key; those of units that are complete by now among them."""
        return {record["unit"]: record for record in self._all("failures")}

    def lower(self, key: str, batch_size: int | None, made: str | None = None) -> None:
        """Records that a unit needs a smaller batch than its planned one.

        key: of the planned unit; made: of the unit that stands in for it, once it is complete.
        """
        record = {"unit": key, "batch_size": batch_size, "made": made}
        if self._get("lowered", f"{key}.json") != record:
            self._put("lowered", f"{key}.json", record)

    def lowered(self) -> dict[str, dict[str, Any]]:
        """All records of `lower`, by the key of the planned unit."""
        return {record["unit"]: record for record in self._all("lowered")}

    def forget(self, folder: str, key: str) -> None:
        """Removes the record of a unit in `failures` or `lowered`."""
        self._remove(self.root / folder / f"{key}.json")

    # Who works ---------------------------------------------------------------------------------

    def begin(self, key: str, **facts: Any) -> None:
        """Says that this process works at a unit, or how far it is."""
        record = {"unit": key, "host": socket.gethostname(), "pid": os.getpid(), "at": now()}
        with suppress(InputError, OSError):  # a sign for people only: no unit fails for it
            self._put("running", f"{key}.{self._mine}.json", record | facts)

    def end(self, key: str, *, everyone: bool = False) -> None:
        """Removes this process's sign; everyone: also those that dead processes left behind."""
        mine = f"{key}.{self._mine}.json"
        names = self._names("running") if everyone else [mine]
        for name in names:
            if name == mine or name.startswith(f"{key}."):
                self._remove(self.root / "running" / name)

    def running(self) -> list[dict[str, Any]]:
        """Signs of processes at work, those of the dead among them."""
        return self._all("running")

    # Records -----------------------------------------------------------------------------------

    def _put(self, folder: str, name: str, record: Mapping[str, Any]) -> None:
        if not self._writes:
            return
        with disk_errors(self.root):
            _make_directory(self.root / folder)
            write_json(self.root / folder / name, record)

    def _remove(self, path: AnyPath) -> None:
        """Removes a record; one that is gone or cannot be removed does no harm."""
        if self._writes:
            with suppress(InputError, OSError):
                if is_remote(path):
                    remove_object(path)
                else:
                    path.unlink()

    def _get(self, folder: str, name: str) -> dict[str, Any] | None:
        """A record; None where there is none or it is damaged, which only costs its knowledge."""
        try:
            record = read_json(self.root / folder / name)
        except (InputError, OSError):
            return None
        return record if isinstance(record, dict) and record.get("unit") else None

    def _all(self, folder: str) -> list[dict[str, Any]]:
        names = [name for name in self._names(folder) if name.endswith(".json")]
        return [record for name in names if (record := self._get(folder, name))]

    def _names(self, folder: str) -> list[str]:
        """Names in a folder, sorted, without hidden ones; none where it is missing."""
        place = self.root / folder if folder else self.root
        if is_remote(place):
            return sorted({name.split("/")[0] for name in files_below(place) or {}})
        with suppress(FileNotFoundError, NotADirectoryError):
            return sorted(p.name for p in place.iterdir() if not p.name.startswith("."))
        return []


def _read_part(path: AnyPath) -> bytes | None:
    """The bytes of a whole part; None where it is missing or damaged."""
    try:
        data = read_bytes(path)
    except InputError:
        return None
    digest, found = data[:32], data[32:]
    return found if hashlib.sha256(found).digest() == digest else None


def _is_file(path: AnyPath) -> bool:
    if is_remote(path):
        with remote_errors(path):
            return bool(file_system(path).isfile(str(path)))
    return path.is_file()


def _make_directory(path: AnyPath) -> None:
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)


def is_silent(record: Mapping[str, Any]) -> bool:
    """Whether a sign in `running` is that of a dead process, as far as one can tell from here."""
    if record.get("host") == socket.gethostname():
        return not _is_alive(int(record.get("pid", 0)))
    try:
        heard = datetime.fromisoformat(str(record.get("at")))
    except ValueError:
        return True
    return (datetime.now(UTC) - heard).total_seconds() > SILENT_SECONDS


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True
