"""URIEL features: what is read, from which code and source, and files that cannot be used."""

import io
import os
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bridgex_jax.bridge.choosers import between, pick, typological
from bridgex_jax.data.typology import lang2vec_file, read_typology
from bridgex_jax.errors import InputError
from bridgex_jax.languages import LANGUAGES, PAPER_LANGUAGES

DATA = os.environ.get("BRIDGEX_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="BRIDGEX_DATA is not set")

FEATS = np.array(["S_SVO", "S_SOV", "P_VOWELS", "INV_P"])
LANGS = np.array(["ara", "arb", "deu", "eng", "swh", "lav", "lvs"])
ROWS = {
    "ara": [[1, 0], [0, -1], [-1, -1], [-1, -1]],
    "arb": [[1, 1], [-1, -1], [-1, -1], [1, 1]],
    "deu": [[1, -1], [-1, 0], [1, 1], [0, 0]],
    "swh": [[1, -1], [0, 0], [-1, -1], [-1, -1]],
}


def write(path, **changes):
    data = np.full((len(LANGS), len(FEATS), 2), -1, np.float32)
    for code, row in ROWS.items():
        data[LANGS.tolist().index(code)] = row
    arrays = {"data": data, "feats": FEATS, "langs": LANGS, "sources": np.array(["WALS", "SSWL"])}
    arrays |= changes
    np.savez_compressed(path, **{k: v for k, v in arrays.items() if v is not None})
    return path


def refusal(path, *languages, **settings):
    with pytest.raises(InputError) as caught:
        read_typology(path, languages or ("de",), **settings)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and caught.value.remedy
    return message.removeprefix(f"{path}: ")


def test_sources_are_averaged_and_what_none_knows_is_missing(tmp_path):
    found = read_typology(write(tmp_path / "features.npz"), ["ar", "deu"])
    assert found.names == tuple(FEATS)
    assert found.features["de"].tolist() == [1, 0, 1, 0]
    assert found.features["ar"].tolist() == [0.5, 0, -1, -1]
    assert found.features["ar"].dtype == np.float64


def test_a_language_is_found_under_the_code_that_knows_more(tmp_path):
    path = write(tmp_path / "features.npz")
    found = read_typology(path, ["ar", "sw", "lv"])
    assert found.codes == {"ar": "ara", "sw": "swh", "lv": "lav"}
    assert (found.features["lv"] == -1).all()
    inventory = read_typology(path, ["ar"], kinds=["inventory"])
    assert inventory.codes == {"ar": "arb"} and inventory.features["ar"].tolist() == [1]


def test_kinds_keep_their_features_in_the_file_s_order(tmp_path):
    path = write(tmp_path / "features.npz")
    found = read_typology(path, ["de"], kinds=["inventory", "syntax"])
    assert found.names == ("S_SVO", "S_SOV", "INV_P")
    assert found.features["de"].tolist() == [1, 0, 0]
    assert "unknown features 'sound'; one of syntax" in refusal(path, kinds=["sound"])
    lexical = write(tmp_path / "other.npz", feats=np.array(["F_A", "F_B", "F_C", "F_D"]))
    assert len(read_typology(lexical, ["de"]).names) == 4
    assert refusal(lexical, kinds=["syntax"]).startswith("holds no feature of syntax")


def test_languages_that_are_not_there_are_named(tmp_path):
    path = write(tmp_path / "features.npz")
    assert refusal(path, "de", "zh").startswith("does not have Chinese (zho); leave")
    assert "unknown language code 'qqq'" in refusal(path, "qqq")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty (0 bytes); download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        (b"\x80\x04\x95rest", "is not an .npz file"),
        (b"S_SVO,1,0\n", "is not an .npz file"),
        (b"PK\x05\x06" + bytes(18), "is a zip file without the arrays data, feats, langs"),
        (b"PK\x03\x04rest", "is a damaged zip file"),
    ],
)
def test_what_is_no_file_of_arrays_is_refused(tmp_path, content, said):
    path = tmp_path / "features.npz"
    path.write_bytes(content)
    assert refusal(path).startswith(said)


def test_a_missing_file_is_refused(tmp_path):
    assert refusal(tmp_path / "none.npz") == "no such file; check the path"


def test_a_zip_without_the_arrays_is_refused(tmp_path):
    path = tmp_path / "distances.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("syntactic.csv", "a,b\n")
    assert refusal(path).startswith("is a zip file without the arrays data, feats, langs; give")
    assert "without the arrays langs;" in refusal(write(tmp_path / "l.npz", langs=None))


class Trap:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_pickle_is_named_and_never_opened(tmp_path):
    sprung = tmp_path / "sprung"
    array = np.empty(len(LANGS), dtype=object)
    array[:] = Trap(sprung)
    said = refusal(write(tmp_path / "features.npz", langs=array))
    assert said.startswith("langs.npy needs Python's pickle, which is never opened; save")
    path = tmp_path / "whole.npz"
    path.write_bytes(pickle.dumps(Trap(sprung)))
    assert refusal(path).startswith("is not an .npz file")
    assert not sprung.exists()


def test_a_file_that_was_cut_off_or_changed_is_refused(tmp_path):
    whole = write(tmp_path / "features.npz").read_bytes()
    cut = tmp_path / "cut.npz"
    cut.write_bytes(whole[: len(whole) // 2])
    assert refusal(cut).startswith("is a damaged zip file")
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((7, 4, 2), np.float32))
    short = tmp_path / "short.npz"
    with zipfile.ZipFile(short, "w") as archive:
        archive.writestr("data.npy", buffer.getvalue()[:-8])
    assert refusal(short).startswith("data.npy is a damaged array")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": np.zeros((7, 3, 2))}, "data (7, 3, 2), langs (7,), feats (4,) do not fit"),
        ({"data": np.zeros((7, 4))}, "data (7, 4), langs"),
        ({"data": np.full((7, 4, 2), "1")}, "data (7, 4, 2), langs"),
        ({"langs": np.arange(7)}, "data (7, 4, 2), langs (7,)"),
        ({"data": np.full((7, 4, 2), 2.0)}, "holds values other than -1 and 0…1"),
        ({"data": np.full((7, 4, 2), -0.5)}, "holds values other than -1 and 0…1"),
        ({"data": np.full((7, 4, 2), np.nan)}, "holds values other than -1 and 0…1"),
    ],
)
def test_arrays_that_are_no_features_are_refused(tmp_path, changes, said):
    assert refusal(write(tmp_path / "features.npz", **changes)).startswith(said)


def test_lang2vec_is_found_without_being_imported(tmp_path, monkeypatch):
    package = tmp_path / "lang2vec"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('must not be imported')")
    write(package / "data" / "features.npz")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "lang2vec", raising=False)
    path = lang2vec_file()
    assert path == package / "data" / "features.npz"
    assert read_typology(path, ["de"]).codes == {"de": "deu"}
    with pytest.raises(InputError, match="no such file; pip install lang2vec"):
        lang2vec_file("feature_predictions")


def test_without_lang2vec_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="lang2vec is not installed; pip install lang2vec"):
        lang2vec_file()


@needs_data
def test_uriel_has_all_our_languages_and_knows_something_of_all_but_slovak():
    found = read_typology(Path(DATA) / "reference" / "features.npz", list(LANGUAGES))
    assert len(found.names) == 289
    known = {code: int((values >= 0).sum()) for code, values in found.features.items()}
    assert [code for code, n in known.items() if n == 0] == ["sk"]
    assert all(known[code] >= 235 for code in PAPER_LANGUAGES)
    assert (found.codes["ar"], found.codes["zh"], found.codes["sr"]) == ("ara", "zho", "hbs")
    assert known["ar"] == 284  # and arb has 66


@needs_data
def test_romance_languages_are_closest_to_each_other_in_uriel():
    found = read_typology(Path(DATA) / "reference" / "features.npz", PAPER_LANGUAGES)
    for distance in ("unequal", "cosine"):
        sim = typological(found.features, distance=distance)
        assert pick(between(sim, "pt", "es", ["zh", "ja", "fi", "it"])) == "it"


@needs_data
def test_a_distances_file_of_0_bytes_and_an_lfs_pointer_are_refused():
    bad = Path(DATA) / "bad_inputs"
    assert refusal(bad / "zero_bytes.distances.zip").startswith("is empty (0 bytes)")
    pointer = bad / "git_lfs_pointer_instead_of_data.arrow"
    assert refusal(pointer).startswith("is a Git LFS pointer, not the data; run")
