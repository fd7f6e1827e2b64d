"""`bridgex capture`: activations of any sites on texts, reduced or whole, to a run directory.

Texts are lines of files, corpora or dictionary prompts. They are packed into rows so that hardly
anything is padded, run in parts that a killed run need not compute again, and written as arrays
with named axes (store/activations.py). Of several processes each gets, keeps and writes the results
of examples of every n-th layer, the first the statistics. Axes: L B T F (axes.py); E = examples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from bridgex_jax import cluster, runtime
from bridgex_jax.activations.examples import ExampleReducer
from bridgex_jax.activations.observe import InMemory, Observed, Progress, Reducer, observe
from bridgex_jax.activations.sites import site_features
from bridgex_jax.activations.statistics import Histogram
from bridgex_jax.data.batching import Encoded, bucket_length, encode_prompts
from bridgex_jax.data.trees import PROMPTS_PER_ROW, ROW_LENGTH, fill, pack, rows_a_batch
from bridgex_jax.errors import InputError
from bridgex_jax.models.load import Model
from bridgex_jax.pipelines.capture_settings import CaptureSettings, Text
from bridgex_jax.pipelines.console import Console
from bridgex_jax.pipelines.inputs import model_facts
from bridgex_jax.store.activations import (
    GROUP,
    KIND,
    Examples,
    create_store,
    hash_text,
    open_activations,
)
from bridgex_jax.store.named_arrays import BFLOAT16, LAYER_AXES, NamedArray, ZarrWriter
from bridgex_jax.store.paths import AnyPath
from bridgex_jax.store.runs import RunDirectory, create_run

PART_BATCHES = 64
PART_BYTES = 2**28  # of results of examples; a part is at least one batch
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Packing:
    """One shape for all batches of a run. rows: a batch; slots: tokens a row; prompts: a row."""

    rows: int
    slots: int
    prompts: int


@dataclass(frozen=True)
class Share:
    """What this process keeps: of results of examples every `count`-th layer, from `rank` on."""

    rank: int
    count: int

    @classmethod
    def mine(cls) -> Share:
        peers = cluster.peers()
        return cls(peers.rank, peers.count) if peers else cls(0, 1)

    @property
    def leads(self) -> bool:
        """Whether this process has all that is not divided."""
        return self.rank == 0

    @property
    def slots(self) -> slice:
        return slice(None) if self.count == 1 else slice(self.rank, None, self.count)


def run_capture(
    model: Model,
    texts: Sequence[Text],
    settings: CaptureSettings,
    out: AnyPath,
    console: Console,
) -> AnyPath:
    """Captures into a run directory of kind `capture`; a killed run continues. Returns its path.

    Raises InputError for a text longer than the model's context.
    """
    assert model.source is not None
    inputs = {
        "model": model.source.hash,
        "texts": {t.name: [t.sha256, len(t.prompts), t.scope] for t in texts},
    }
    reducers = {n: {type(r).__name__: asdict(r)} for n, r in settings.reducers.items()}
    identity = {
        "reducers": reducers,
        "dtype": settings.dtype,
        "model_dtype": str(jax.tree.leaves(model.params)[0].dtype),
        "batch_size": settings.batch_size,
    }
    with create_run(out, kind=KIND, settings=identity, inputs=inputs, peers=cluster.peers()) as run:
        if run.notice:
            console.say(run.notice)
        if run.complete:
            return run.directory
        encoded = [_encode(model, text) for text in texts]
        with run.stage("capture"):
            waste = _capture(model, texts, encoded, settings, run, console)
        run.record(
            model=model_facts(model),
            devices=runtime.describe_devices(model.mesh),
            data={
                t.name: {"file": t.file, "sha256": t.sha256, "examples": len(t.prompts)}
                for t in texts
            },
            notes={"warnings": console.warnings, "padding": round(waste, 4)},
        )
    return run.out


def _encode(model: Model, text: Text) -> list[Encoded]:
    try:
        encoded = encode_prompts(model.tokenizer, text.prompts, text.scope)
    except InputError as error:
        raise InputError(error.what, file=text.file, remedy="take it out") from error
    context = model.config.max_position_embeddings
    for item, prompt in zip(encoded, text.prompts, strict=True):
        if len(item.ids) > context:
            raise InputError(
                f"{prompt.text[:40]!r}… has {len(item.ids)} tokens, the model's context is "
                f"{context}",
                file=text.file,
                remedy="divide it into shorter lines",
            )
    return encoded


def _capture(
    model: Model,
    texts: Sequence[Text],
    encoded: Sequence[list[Encoded]],
    settings: CaptureSettings,
    run: RunDirectory,
    console: Console,
) -> float:
    """Computes and writes all parts of all texts; the share of token slots that held nothing."""
    packing = plan_packing(encoded, model.mesh, settings.batch_size)
    window = packing.rows * _part_batches(model, settings, packing)
    known = _examples(texts, encoded)
    offsets, first = known.offsets, 0
    sizes = len(texts), len(known.entry), int(offsets[-1])
    share = Share.mine()
    arrays = named_arrays(model, settings, *sizes, layers_apart=share.count > 1)
    writer = _open_store(run, share, arrays, texts, encoded, known, settings)
    slots = used = 0
    with console.progress("capturing", len(known.entry), "examples") as progress:
        for number, items in enumerate(encoded):
            observed = Observed()
            for start, stop in windows(items, packing, window):
                some = items[start:stop]
                compute = partial(_part, model, some, settings, packing, share, progress)
                found = run.own_part(f"text{number}-{start}-{stop}", compute)
                observed = observed + _statistics(found)
                _write_examples(writer, arrays, found, share, first + start, offsets)
                slots, used = slots + int(found["slots"]), used + int(found["used"])
            _write_statistics(writer, arrays, observed, number)
            first += len(items)
    if share.leads:
        writer.finish()
    return 1 - used / slots


def _open_store(
    run: RunDirectory,
    share: Share,
    arrays: Mapping[str, NamedArray],
    texts: Sequence[Text],
    encoded: Sequence[Sequence[Encoded]],
    known: Examples,
    settings: CaptureSettings,
) -> ZarrWriter:
    """The store, with all that is known of the texts: that and the metadata the leader writes."""
    place, some = run.own_path(GROUP), list(arrays.values())
    if not share.leads:
        return ZarrWriter(place, some, {}, with_metadata=False)
    n_tokens = [sum(sum(item.scope) for item in items) for items in encoded]
    names, layers = [text.name for text in texts], chosen_layers(settings.reducers)
    return create_store(place, some, names, n_tokens, known, layers)


# Packing and parts ------------------------------------------------------------------------------


def plan_packing(
    encoded: Sequence[Sequence[Encoded]], mesh: Mesh, batch_size: int | None
) -> Packing:
    """A shape of batches for all texts together: the model is compiled once."""
    longest = bucket_length(max(len(item.ids) for items in encoded for item in items))
    slots = max(ROW_LENGTH, 2 * longest)
    tokens = batch_size * longest if batch_size else runtime.tokens_a_batch(mesh)
    packed = [pack(items, slots) for items in encoded]
    parts = runtime.batch_parts(mesh)
    rows = rows_a_batch([len(rows) for rows in packed], max(parts, tokens // slots), parts)
    most = max(len(row.prompts) for rows in packed for row in rows)
    return Packing(rows, slots, min(PROMPTS_PER_ROW, 1 << (most - 1).bit_length()))


def windows(items: Sequence[Encoded], packing: Packing, n_rows: int) -> Iterator[tuple[int, int]]:
    """Examples in order, as many at a time as fill at most `n_rows` rows."""

    def rows_of(start: int, n: int) -> int:
        return len(pack(items[start : start + n], packing.slots, packing.prompts))

    start, n = 0, len(items)
    while start < len(items):
        left = len(items) - start
        n = min(n, left)
        while (rows := rows_of(start, n)) > n_rows:
            n = max(1, int(n * 0.98 * n_rows / rows))
        more = min(left, int(n * 0.99 * n_rows / rows))
        if more > n and rows_of(start, more) <= n_rows:
            n = more
        yield start, start + n
        start += n


def _part_batches(model: Model, settings: CaptureSettings, packing: Packing) -> int:
    """Batches a part, so that what is kept of its examples stays small in memory."""
    width = 0
    for reducer in settings.reducers.values():
        if isinstance(reducer, ExampleReducer):
            features = site_features(model.config, reducer.site)
            layers = features.layers if reducer.layers is None else len(reducer.layers)
            slots = packing.slots if reducer.by_token else packing.prompts
            width += layers * math.prod(features.shape) * slots * packing.rows * 4
    return max(1, min(PART_BATCHES, PART_BYTES // max(1, width)))


def _part(
    model: Model,
    items: Sequence[Encoded],
    settings: CaptureSettings,
    packing: Packing,
    share: Share,
    progress: Progress,
) -> Arrays:
    """What a part of a text gives this process, by name: results of its examples, in order.

    The leader has the statistics, too.
    """
    rows = pack(items, packing.slots, packing.prompts)
    batches = (
        fill(items, rows[at : at + packing.rows], packing.rows, packing.slots, packing.prompts)
        for at in range(0, len(rows), packing.rows)
    )
    sink = InMemory(len(items), np.array([sum(item.scope) for item in items]))
    observed = observe(
        model,
        batches,
        settings.reducers,
        sink=sink,
        dtype=settings.dtype,
        slots=share.slots,
        progress=progress,
    )
    n_batches = -(-len(rows) // packing.rows)
    statistics = observed.statistics if share.leads else {}
    return {
        **{f"statistic.{name}": values for name, values in statistics.items()},
        **{f"example.{name}": _bits(values) for name, values in sink.values.items()},
        "tokens": np.array(observed.tokens),
        "slots": np.array(n_batches * packing.rows * packing.slots),
        "used": np.array(sum(len(row.tokens) for row in rows)),
    }


def _bits(values: np.ndarray) -> np.ndarray:
    """NumPy's files know no bfloat16."""
    return values.view(np.uint16) if values.dtype == BFLOAT16 else values


def _statistics(part: Arrays) -> Observed:
    found = {k.removeprefix("statistic."): v for k, v in part.items() if k.startswith("statistic.")}
    return Observed(found, int(part["tokens"]))


def _write_statistics(
    writer: ZarrWriter, arrays: Mapping[str, NamedArray], observed: Observed, text: int
) -> None:
    for name, values in observed.statistics.items():
        # At a site of the whole model the one layer becomes the one text.
        whole = values[None] if "layer" in arrays[name].axes else values
        writer.write(name, (text, *(0,) * (whole.ndim - 1)), whole)


def _write_examples(
    writer: ZarrWriter,
    arrays: Mapping[str, NamedArray],
    part: Arrays,
    share: Share,
    first: int,
    offsets: Int[np.ndarray, " E+1"],
) -> None:
    """Puts what a part has of its examples behind those of the parts before."""
    for key, values in part.items():
        if not key.startswith("example."):
            continue
        name = key.removeprefix("example.")
        array = arrays[name]
        at = int(offsets[first]) if "token" in array.axes else first
        if array.dtype == BFLOAT16:
            values = values.view(BFLOAT16)
        others = (0,) * (values.ndim - 2)
        if not array.axes.keys() & {*LAYER_AXES}:
            if share.leads:
                writer.write(name, (at, *others), values[0])
        elif share.count == 1:
            writer.write(name, (0, at, *others), values)
        else:
            for slot, of_layer in enumerate(values):
                layer = share.rank + slot * share.count
                writer.write(name, (layer, at, *others), of_layer[None])


# The arrays -------------------------------------------------------------------------------------


def named_arrays(
    model: Model,
    settings: CaptureSettings,
    n_texts: int,
    n_examples: int,
    n_tokens: int,
    layers_apart: bool = False,
) -> dict[str, NamedArray]:
    """The arrays that the reducers give, with their axes, by name."""
    arrays = {}
    for name, reducer in settings.reducers.items():
        features = site_features(model.config, reducer.site)
        about: dict[str, Any] = {"site": reducer.site, "reducer": type(reducer).__name__}
        axes = {} if features.is_global else {"layer": features.layers}
        if isinstance(reducer, ExampleReducer):
            if reducer.layers is not None:
                axes = {"chosen_layer": len(reducer.layers)}
            axes |= {"token": n_tokens} if reducer.by_token else {"example": n_examples}
            dtype = np.dtype(settings.dtype)
        else:
            axes = {"text": n_texts, **axes}
            dtype = reducer.dtype
        axes |= dict(zip(features.axes, features.shape, strict=True))
        if isinstance(reducer, Histogram):
            axes["bin"] = reducer.bins + 2
        about |= {k: v for k, v in asdict(reducer).items() if k in ("threshold", "low", "high")}
        arrays[name] = NamedArray(name, axes, dtype, about, layers_apart)
    return arrays


def chosen_layers(reducers: Mapping[str, Reducer]) -> tuple[int, ...] | None:
    """The layers that reducers keep where they do not keep all."""
    return next(
        (r.layers for r in reducers.values() if isinstance(r, ExampleReducer) and r.layers), None
    )


def _examples(texts: Sequence[Text], encoded: Sequence[Sequence[Encoded]]) -> Examples:
    """What is known of examples and tokens before the model runs."""
    items = [item for of_text in encoded for item in of_text]
    in_scope = [np.flatnonzero(item.scope) for item in items]
    return Examples(
        text=np.repeat(np.arange(len(texts)), [len(text.prompts) for text in texts]),
        entry=np.concatenate([np.arange(len(text.prompts)) for text in texts]),
        text_hash=np.array(
            [hash_text(prompt.text) for text in texts for prompt in text.prompts], np.uint64
        ),
        n_tokens=np.array([len(positions) for positions in in_scope]),
        token_id=np.concatenate(
            [np.asarray(item.ids)[at] for item, at in zip(items, in_scope, strict=True)]
        ),
        token_position=np.concatenate(in_scope),
    )


def describe(directory: AnyPath) -> str:
    """What a finished run holds and how to open it, for the terminal."""
    return f"""{open_activations(directory)}

from bridgex_jax import open_activations
activations = open_activations({str(directory)!r})
activations.xarray()  # or .numpy(NAME, layers=…, examples=…), .jax(NAME, sharding)"""
