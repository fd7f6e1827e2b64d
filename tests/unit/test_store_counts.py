"""Activation counts: what `count` leaves, `select` finds again, for the same model only."""

from __future__ import annotations

import numpy as np
import pytest

from bridgex_jax.errors import InputError
from bridgex_jax.store.counts import LanguageCounts, load_counts, save_counts
from bridgex_jax.store.runs import create_run

HASH = "ab" * 32


def language_counts(language: str, seed: int) -> LanguageCounts:
    rng = np.random.default_rng(seed)
    halves = rng.integers(0, 100, (2, 3, 5)).astype(np.int32)
    return LanguageCounts(
        language, halves, rng.normal(size=(3, 5)), (120, 119), {"file": f"{language}.txt"}
    )


@pytest.fixture
def counted(tmp_path):
    with create_run(tmp_path / "counts", kind="count", settings={}) as run:
        save_counts(run, [language_counts("id", 0), language_counts("he", 1)], model_sha256=HASH)
    return tmp_path / "counts"


def test_counts_survive_the_disk_bit_by_bit(counted):
    found = load_counts(counted, model_sha256=HASH, languages=["he", "id"])
    assert list(found) == ["he", "id"]
    for seed, language in enumerate(("id", "he")):
        want, got = language_counts(language, seed), found[language]
        np.testing.assert_array_equal(got.halves, want.halves)
        np.testing.assert_array_equal(got.sums, want.sums)
        assert got.halves.dtype == np.int32 and got.sums.dtype == np.float64
        assert (got.half_tokens, got.n_tokens, got.corpus) == ((120, 119), 239, want.corpus)
        np.testing.assert_array_equal(got.counts, want.halves.sum(0))


def test_equal_counts_are_equal_bytes(counted, tmp_path):
    with create_run(tmp_path / "again", kind="count", settings={"n": 2}) as run:
        save_counts(run, [language_counts("id", 0), language_counts("he", 1)], model_sha256=HASH)
    for name in ("counts.json", "counts/id.safetensors", "counts/he.safetensors"):
        assert (counted / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_counts_of_another_model_site_or_language_are_refused(counted):
    with pytest.raises(InputError, match=r"another model .* run bridgex count with this model"):
        load_counts(counted, model_sha256="cd" * 32, languages=["id"])
    with pytest.raises(InputError, match="at mlp_gate_act, not at mlp_act"):
        load_counts(counted, model_sha256=HASH, languages=["id"], site="mlp_act")
    with pytest.raises(InputError, match=r"no counts of fr, only of he, id; .*--corpus fr=FILE"):
        load_counts(counted, model_sha256=HASH, languages=["id", "fr"])


def test_a_run_of_another_kind_is_refused(tmp_path):
    with create_run(tmp_path / "run", kind="select", settings={}) as run:
        run.write_text("counts.json", "{}")
    with pytest.raises(InputError, match="of kind select, not count"):
        load_counts(tmp_path / "run", model_sha256=HASH, languages=["id"])


def test_changed_counts_are_named_and_other_languages_still_load(counted):
    path = counted / "counts" / "id.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"id\.safetensors: has changed"):
        load_counts(counted, model_sha256=HASH, languages=["id"])
    assert "he" in load_counts(counted, model_sha256=HASH, languages=["he"])


def test_arrays_of_other_types_or_shapes_are_a_fault_of_the_program(tmp_path):
    good = language_counts("id", 0)
    wrong = [
        LanguageCounts("id", good.halves.astype(np.int64), good.sums, (1, 1)),
        LanguageCounts("id", good.halves, good.sums[:2], (1, 1)),
    ]
    for item in wrong:
        with (
            pytest.raises(ValueError, match="id: "),
            create_run(tmp_path / "run", kind="count", settings={}) as run,
        ):
            save_counts(run, [item], model_sha256=HASH)
    assert not list(tmp_path.iterdir())
