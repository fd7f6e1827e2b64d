"""The manifest: complete if and only if every file that it lists is there, unchanged."""

from __future__ import annotations

import hashlib
import json
import sys

import numpy as np
import pytest

from bridgex_jax.errors import InputError
from bridgex_jax.store.files import json_bytes, plain
from bridgex_jax.store.manifest import collect_versions, read_manifest, replace_files, verify_run
from bridgex_jax.store.runs import create_run


@pytest.fixture
def finished(tmp_path):
    with create_run(
        tmp_path / "run",
        kind="select",
        settings={"seed": 3},
        inputs={"model": "ff"},
        command=["bridgex", "select"],
    ) as run:
        run.record(model={"id": "tiny", "sha256": "ff"}, devices={"platform": "cpu"}, seed=3)
        with run.stage("probe"):
            pass
        run.write_text("choice.json", "{}\n")
        run.write_bytes("figures/a.svg", b"<svg/>")
    return tmp_path / "run"


def test_the_manifest_says_what_the_run_was(finished):
    manifest = verify_run(finished)
    assert manifest["kind"] == "select"
    assert manifest["command"] == ["bridgex", "select"]
    assert manifest["settings"] == {"seed": 3}
    assert manifest["inputs"] == {"model": "ff"}
    assert manifest["model"] == {"id": "tiny", "sha256": "ff"}
    assert manifest["devices"] == {"platform": "cpu"}
    assert manifest["seed"] == 3
    assert manifest["versions"]["python"].split(".") == [str(x) for x in sys.version_info[:3]]
    assert manifest["timings"]["probe"] >= 0
    assert manifest["created"].endswith("+00:00")


def test_the_manifest_lists_every_file_with_size_and_sha256(finished):
    listed = read_manifest(finished)["files"]
    there = {p.relative_to(finished).as_posix() for p in finished.rglob("*") if p.is_file()}
    assert set(listed) == there - {"manifest.json"}
    for name, entry in listed.items():
        data = (finished / name).read_bytes()
        assert entry == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_versions_name_the_packages_that_can_change_a_result():
    versions = collect_versions()
    assert {"python", "numpy", "jax", "pyarrow", "matplotlib"} <= versions.keys()
    assert versions["numpy"] == np.__version__


def damage(finished, how: str) -> str:
    victim = finished / "figures" / "a.svg"
    if how == "missing":
        victim.unlink()
    elif how == "longer":
        victim.write_bytes(b"<svg/> ")
    else:
        victim.write_bytes(b"<SVG/>")
    return "a.svg"


@pytest.mark.parametrize(
    ("how", "word"), [("missing", "missing"), ("longer", "7 bytes"), ("changed", "changed")]
)
def test_a_missing_or_changed_file_is_named(finished, how, word):
    name = damage(finished, how)
    with pytest.raises(InputError, match=rf"{name}: .*{word}.*; .*run the command again"):
        verify_run(finished)


def test_verifying_some_files_leaves_the_others_unread(finished):
    damage(finished, "changed")
    assert verify_run(finished, ["choice.json"])["kind"] == "select"
    with pytest.raises(InputError, match="not listed"):
        verify_run(finished, ["other.json"])


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"files": []}', '{"schema": 1, "files": {}}', '{"schema": 99, "files": {}}'],
)
def test_a_damaged_manifest_is_no_manifest(finished, content):
    (finished / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=r"manifest\.json"):
        read_manifest(finished)


def test_a_directory_without_manifest_is_no_run(tmp_path):
    with pytest.raises(InputError, match=r"no manifest\.json"):
        read_manifest(tmp_path)
    with pytest.raises(InputError, match="not a run directory"):
        read_manifest(tmp_path / "absent")


def test_derived_files_can_be_made_anew_and_the_run_stays_valid(finished):
    replace_files(finished, {"report.html": b"<html>", "figures/a.svg": b"<svg>new</svg>"})
    manifest = verify_run(finished)
    assert set(manifest["files"]) == {"choice.json", "figures/a.svg", "report.html"}
    # Half-replaced, as after a kill: the run is not valid, and the same call repairs it.
    damage(finished, "changed")
    with pytest.raises(InputError):
        verify_run(finished)
    replace_files(finished, {"figures/a.svg": b"<svg>new</svg>"})
    verify_run(finished)


def test_derived_files_are_refused_when_the_results_have_changed(finished):
    (finished / "choice.json").write_text("{} \n")
    with pytest.raises(InputError, match=r"choice\.json: has changed"):
        replace_files(finished, {"report.html": b"<html>"})
    assert not (finished / "report.html").exists()


def test_json_is_canonical_and_knows_our_values(tmp_path):
    value = {
        "b": (1, 2), "a": {"path": tmp_path, "nan": np.float32("nan"), "set": {"y", "x"}},
        "c": np.arange(3), "d": np.bool_(True), "e": "he \u05d0 \udc80",
    }  # fmt: skip
    text = json_bytes(value).decode("utf-8")
    assert list(json.loads(text)) == ["a", "b", "c", "d", "e"]
    assert json.loads(text) == plain(value)
    assert "א" in text
    with pytest.raises(TypeError, match="object"):
        plain(object())


def test_a_run_of_another_kind_is_refused_and_nobody_is_told_to_delete_it(finished, tmp_path):
    assert verify_run(finished, kinds=("select", "demo"))["kind"] == "select"
    with pytest.raises(InputError, match="holds a run of kind select, not ablate") as caught:
        verify_run(finished, ("ablation.parquet",), ("ablate",))
    with pytest.raises(InputError, match="holds no complete run") as missing:
        verify_run(tmp_path)
    assert "delete" not in str(caught.value) + str(missing.value)
