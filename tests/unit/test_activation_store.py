"""Arrays with named axes: written in pieces, read back in three ways, whole or refused."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest

from bridgex_jax.errors import InputError
from bridgex_jax.store.activations import (
    GROUP,
    Examples,
    create_store,
    hash_text,
    open_activations,
    token_places,
)
from bridgex_jax.store.named_arrays import (
    CHUNK_BYTES,
    SHARD_BYTES,
    NamedArray,
    ZarrWriter,
    chunk_shapes,
)
from bridgex_jax.store.runs import create_run

BF16 = np.dtype(ml_dtypes.bfloat16)
F32 = np.dtype(np.float32)
N_TOKENS = np.array([3, 1, 4, 2, 5])
RNG = np.random.default_rng(0)
MEANS = RNG.standard_normal((4, 5, 6)).astype(np.float32)
FULL = RNG.standard_normal((2, 15, 6)).astype(BF16)
COUNTS = RNG.integers(0, 99, (2, 4, 6))


def known():
    return Examples(
        text=np.array([0, 0, 0, 1, 1]),
        entry=np.array([0, 1, 2, 0, 1]),
        text_hash=np.array([hash_text(str(i)) for i in range(5)], np.uint64),
        n_tokens=N_TOKENS,
        token_id=np.arange(100, 115),
        token_position=np.concatenate([np.arange(n) for n in N_TOKENS]),
    )


@pytest.fixture
def directory(tmp_path):
    """A finished run of two texts and five examples; results came in two pieces."""
    arrays = [
        NamedArray("means", {"layer": 4, "example": 5, "neuron": 6}, F32, {"site": "mlp_act"}),
        NamedArray("full", {"chosen_layer": 2, "token": 15, "neuron": 6}, BF16),
        NamedArray("counts", {"text": 2, "layer": 4, "neuron": 6}, np.dtype(np.int64)),
    ]
    with create_run(tmp_path / "run", kind="capture", settings={}, command=[]) as run:
        writer = create_store(run.path(GROUP), arrays, ["en", "id-he"], [8, 7], known(), (1, 3))
        for first, last in ((0, 3), (3, 5)):
            writer.write("means", (0, first, 0), MEANS[:, first:last])
            tokens = known().offsets[[first, last]]
            writer.write("full", (0, tokens[0], 0), FULL[:, slice(*tokens)])
        for text in (0, 1):
            writer.write("counts", (text, 0, 0), COUNTS[text : text + 1])
        writer.finish()
    return tmp_path / "run"


def test_arrays_come_back_as_they_were_written(directory):
    found = open_activations(directory)
    assert found.names == ("counts", "full", "means") and found.texts == ("en", "id-he")
    assert found.axes("full") == {"chosen_layer": 2, "token": 15, "neuron": 6}
    assert found.attributes("means") == {"site": "mlp_act"}
    for name, written in (("means", MEANS), ("full", FULL), ("counts", COUNTS)):
        read = found.numpy(name)
        assert read.dtype == written.dtype
        np.testing.assert_array_equal(read, written)
    np.testing.assert_array_equal(found.numpy("chosen_layer"), [1, 3])
    np.testing.assert_array_equal(found.numpy("token_example"), np.repeat(np.arange(5), N_TOKENS))
    assert str(found).splitlines()[1] == "full [chosen_layer 2, token 15, neuron 6] bfloat16"


def test_layers_and_examples_are_chosen_by_their_numbers(directory):
    found = open_activations(directory)
    read = found.numpy("full", layers=[3], examples=[4, 1])
    offsets = found.offsets([4, 1])
    np.testing.assert_array_equal(offsets, [0, 5, 6])
    np.testing.assert_array_equal(read[0, :5], FULL[1, 10:15])
    np.testing.assert_array_equal(read[0, 5:], FULL[1, 3:4])
    np.testing.assert_array_equal(
        found.numpy("means", layers=[2], examples=[3]), MEANS[[2]][:, [3]]
    )
    np.testing.assert_array_equal(found.numpy("counts", layers=[0, 2]), COUNTS[:, [0, 2]])
    for wrong in ({"layers": [2]}, {"examples": [5]}):
        with pytest.raises(ValueError, match="is not in this run"):
            found.numpy("full", **wrong)
    with pytest.raises(ValueError, match="no array 'mean'; there are counts, full, means"):
        found.numpy("mean")


def test_token_places_are_those_of_the_examples():
    np.testing.assert_array_equal(
        token_places(known().offsets, np.array([2, 0])), [4, 5, 6, 7, 0, 1, 2]
    )


def test_devices_read_their_parts(directory):
    found = open_activations(directory)
    mesh = jax.make_mesh((1,), ("data",), (jax.sharding.AxisType.Auto,))
    place = jax.sharding.NamedSharding(mesh, jax.P(None, "data"))
    for sharding in (None, place):
        read = found.jax("means", sharding, layers=[0, 3])
        np.testing.assert_array_equal(read, MEANS[[0, 3]])
    assert read.sharding == place


def test_xarray_has_the_names_of_axes_texts_and_layers(directory):
    pytest.importorskip("xarray")
    data = open_activations(directory).xarray()
    assert data.full.dims == ("chosen_layer", "token", "neuron")
    np.testing.assert_array_equal(data.counts.sel(text="id-he"), COUNTS[1])
    own = data.full.sel(chosen_layer=3)[data.token_example == 2]
    np.testing.assert_array_equal(own, FULL[1, 4:8].astype(np.float32))
    assert int(data.text_hash[4]) == hash_text("4")


def test_xarray_and_zarr_open_the_group_as_it_is(directory):
    xarray, zarr = pytest.importorskip("xarray"), pytest.importorskip("zarr")
    data = xarray.open_zarr(directory / GROUP, chunks=None)
    assert data.means.dims == ("layer", "example", "neuron")
    assert {"example_text", "token_id", "chosen_layer"} <= set(data.coords)
    np.testing.assert_array_equal(data.means, MEANS)
    group = zarr.open_group(directory / GROUP, mode="r")
    np.testing.assert_array_equal(group["full"][:].view(BF16), FULL)
    assert group["full"].attrs["bridgex_dtype"] == "bfloat16"


def chunk_file(directory):
    return directory / GROUP / "means" / "c" / "0" / "0" / "0"


def test_a_damaged_chunk_is_named(directory):
    data = bytearray(chunk_file(directory).read_bytes())
    data[5] ^= 1
    chunk_file(directory).write_bytes(data)
    found = open_activations(directory)
    np.testing.assert_array_equal(found.numpy("counts"), COUNTS)
    with pytest.raises(InputError, match=r"c/0/0/0: is damaged .*; delete the run") as caught:
        found.numpy("means")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("what", ["shorter", "missing", "metadata", "manifest", "kind"])
def test_a_run_that_is_not_whole_is_refused(directory, what):
    path = chunk_file(directory)
    if what == "shorter":
        path.write_bytes(path.read_bytes()[:-1])
    elif what == "missing":
        path.unlink()
    elif what == "metadata":
        path = directory / GROUP / "zarr.json"
        path.write_text(path.read_text().replace('"layer"', '"lager"', 1))
    elif what == "manifest":
        (directory / "manifest.json").unlink()
        path = directory
    else:
        manifest = json.loads((directory / "manifest.json").read_text())
        path = directory / "manifest.json"
        path.write_text(json.dumps(manifest | {"kind": "count"}))
        path = directory
    with pytest.raises(InputError) as caught:
        open_activations(directory)
    assert caught.value.file == path and caught.value.remedy


def test_axes_of_one_name_have_one_size(tmp_path):
    arrays = [NamedArray(str(n), {"neuron": n}, F32) for n in (3, 4)]
    with pytest.raises(ValueError, match="4: neuron has 4 entries, elsewhere 3"):
        create_store(tmp_path, arrays, ["en"], [1], known(), None)


@pytest.mark.parametrize(
    "axes",
    [
        {"chosen_layer": 3, "token": 10**7, "neuron": 14336},
        {"layer": 32, "example": 900, "embed": 4096},
        {"text": 15, "layer": 32, "neuron": 14336, "bin": 66},
        {"text": 2, "layer": 4, "neuron": 6},
        {"example": 5},
    ],
)
def test_chunks_are_small_and_files_are_not_many(axes):
    array = NamedArray("x", axes, F32)
    chunk, shard = chunk_shapes(array)
    assert all(s % c == 0 for s, c in zip(shard, chunk, strict=True))
    assert np.prod(shard) * 4 <= SHARD_BYTES
    if "token" in axes or "example" in axes:
        assert np.prod(chunk) * 4 <= CHUNK_BYTES
    n_files = np.prod([-(-n // s) for n, s in zip(axes.values(), shard, strict=True)])
    total = np.prod(list(axes.values())) * 4
    assert n_files <= 4 * total / SHARD_BYTES + axes.get("layer", 1) * axes.get("text", 1)


def test_a_full_disk_is_the_error_that_the_run_knows(tmp_path, monkeypatch):
    import tensorstore

    def refuse(*args, **keywords):
        raise ValueError("OUT_OF_RANGE: Failed to write: File too large [os_error_code='27']")

    writer = ZarrWriter(tmp_path, [NamedArray("x", {"example": 3}, F32)], {})
    monkeypatch.setattr(tensorstore, "Transaction", refuse)
    with pytest.raises(OSError, match="File too large") as caught:
        writer.write("x", (0,), np.zeros(3, np.float32))
    assert caught.value.errno == 27
