"""Tables of the store come back as they went in, and equal results are equal files."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from bridgex_jax.errors import InputError
from bridgex_jax.store.tables import (
    ANSWER_SCHEMA,
    OVERLAP_SCHEMA,
    SPECTRUM_SCHEMA,
    Answer,
    OverlapMatrix,
    PairSpectrum,
    read_answers,
    read_choice,
    read_overlap,
    read_spectrum,
    write_answers,
    write_choice,
    write_overlap,
    write_spectrum,
)

NAN = float("nan")


def spectrum(source: str = "id", target: str = "he") -> PairSpectrum:
    return PairSpectrum(
        source,
        target,
        ("pt", "de"),  # an order that is not alphabetical
        np.array([[0.1, NAN, 1 / 3], [-1e-17, 0.2, NAN]]),
        np.array([3, 0, 7], np.int32),
        np.array([[5, 1, 6], [9, 8, 2]], np.int32),
    )


def assert_same(a: PairSpectrum, b: PairSpectrum) -> None:
    assert (a.source, a.target, a.bridges) == (b.source, b.target, b.bridges)
    for field in ("score", "n_shared", "n_bridge"):
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field))


def test_spectrum_survives_the_disk_bit_by_bit_with_missing_layers(tmp_path):
    path = tmp_path / "spectrum.parquet"
    written = [spectrum("id", "he"), spectrum("he", "id")]
    write_spectrum(path, written)
    table = pq.read_table(path)
    assert table.schema.equals(SPECTRUM_SCHEMA)
    assert table.num_rows == 2 * 2 * 3
    assert table["score"].null_count == 4
    for a, b in zip(written, read_spectrum(path), strict=True):
        assert_same(a, b)


def test_rows_in_another_order_give_the_same_layers(tmp_path):
    path = tmp_path / "spectrum.parquet"
    write_spectrum(path, [spectrum()])
    table = pq.read_table(path)
    pq.write_table(table.take([2, 1, 0, 5, 3, 4]), path)
    assert_same(spectrum(), read_spectrum(path)[0])


def test_equal_results_are_equal_bytes(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    write_spectrum(first, [spectrum()])
    write_spectrum(second, [spectrum()])
    assert first.read_bytes() == second.read_bytes()
    write_choice(first, {"b": 1, "a": "עברית"})
    write_choice(second, {"a": "עברית", "b": 1})
    assert first.read_bytes() == second.read_bytes()
    assert "עברית" in first.read_text(encoding="utf-8")


def test_overlap_and_answers_survive_the_disk(tmp_path):
    jaccard = np.array([[1.0, 0.25], [0.25, 1.0]])
    matrix = OverlapMatrix(
        ("sw", "en"), np.array([[10, 4], [4, 10]]), jaccard, np.array([[1, NAN], [NAN, 1]])
    )
    write_overlap(tmp_path / "overlap.parquet", matrix)
    read = read_overlap(tmp_path / "overlap.parquet")
    assert read.languages == matrix.languages
    np.testing.assert_array_equal(read.overlap, matrix.overlap)
    np.testing.assert_array_equal(read.jaccard, matrix.jaccard)
    np.testing.assert_array_equal(read.cosine, matrix.cosine)
    assert pq.read_schema(tmp_path / "overlap.parquet").equals(OVERLAP_SCHEMA)

    answers = (
        Answer("bli", "id", "he", "zero_shot", None, "rumah", "p", '"בית"', "בית", ("בית",), True,
               log_probability=-0.25),
        Answer("bli", "id", "he", "de", "de", "air", "p", "?", None, ("מים", "מי"), False, f1=0.5,
               hop1_prompt="q", hop1_answer="Wasser", hop1_correct=True),
    )  # fmt: skip
    write_answers(tmp_path / "answers.parquet", answers)
    assert read_answers(tmp_path / "answers.parquet") == answers
    assert pq.read_schema(tmp_path / "answers.parquet").equals(ANSWER_SCHEMA)


def test_empty_tables_keep_their_columns(tmp_path):
    write_answers(tmp_path / "a.parquet", [])
    write_spectrum(tmp_path / "s.parquet", [])
    assert read_answers(tmp_path / "a.parquet") == ()
    assert read_spectrum(tmp_path / "s.parquet") == ()


def test_missing_values_of_a_choice_are_null(tmp_path):
    write_choice(tmp_path / "choice.json", {"margin": NAN, "draws": np.array([1.5, np.inf])})
    assert json.loads((tmp_path / "choice.json").read_text()) == {
        "margin": None,
        "draws": [1.5, None],
    }


@pytest.mark.parametrize("content", [None, b"", b"no parquet"])
def test_a_damaged_table_is_named(tmp_path, content):
    path = tmp_path / "spectrum.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"spectrum\.parquet"):
        read_spectrum(path)


def test_tables_that_lack_rows_or_columns_are_refused(tmp_path):
    path = tmp_path / "t.parquet"
    write_spectrum(path, [spectrum()])
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    with pytest.raises(InputError, match="lacks layers of id→he"):
        read_spectrum(path)
    pq.write_table(table.drop_columns(["n_bridge"]), path)
    with pytest.raises(InputError, match=r"t\.parquet: "):
        read_spectrum(path)


@pytest.mark.parametrize("content", ["[]", "{", "\ufeff{}"])
def test_a_damaged_choice_is_named(tmp_path, content):
    (tmp_path / "choice.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"choice\.json"):
        read_choice(tmp_path / "choice.json")
