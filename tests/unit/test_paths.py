"""Paths from outside: local ones stay what they are, remote ones are told apart before anything
is read."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from bridgex_jax.errors import InputError
from bridgex_jax.store import paths
from bridgex_jax.store.paths import as_path, cache_directory, files_below, is_remote, read_bytes


@pytest.mark.parametrize("text", ["a", "./a/b", "/a", "~", "s3", "s3:a", "a/s3://b", "C:/a"])
def test_a_local_path_is_pathlib_s(text):
    path = as_path(text)
    assert type(path) is type(Path()) and path == Path(text)
    assert not is_remote(path)


def test_a_remote_path_keeps_its_slashes_through_all_that_is_done_to_it():
    for scheme, back_end in (("s3", "s3fs"), ("gs", "gcsfs")):
        pytest.importorskip(back_end)
        path = as_path(f"{scheme}://bucket/runs/id-he/")
        assert is_remote(path)
        assert str(path) == f"{scheme}://bucket/runs/id-he"
        assert str(path / "figures" / "a.svg") == f"{scheme}://bucket/runs/id-he/figures/a.svg"
        assert path.name == "id-he"
        assert as_path(path) == path
        assert str(InputError("x", file=path)) == f"{scheme}://bucket/runs/id-he: x"


@pytest.mark.parametrize(
    ("scheme", "package", "name"),
    [("s3", "s3fs", "S3FileSystem"), ("gs", "gcsfs", "GcsFileSystem")],
)
def test_each_scheme_goes_to_its_own_back_end(monkeypatch, scheme, package, name):
    pytest.importorskip(package)
    import fsspec

    def found(protocol, **options):
        assert options == {"use_listings_cache": False}
        return fsspec.get_filesystem_class(protocol)

    monkeypatch.setattr(fsspec, "filesystem", found)
    paths._file_system.cache_clear()
    try:
        assert name in paths.file_system(as_path(f"{scheme}://bucket/key")).__name__
    finally:
        paths._file_system.cache_clear()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("http://host/en.txt", "http:// is no place that can be used; give a local path, s3://"),
        ("s3://", "names no bucket; give s3://BUCKET/KEY"),
        (Path("s3://bucket/key"), "has lost a slash in a pathlib.Path; give remote paths as text"),
    ],
)
def test_what_is_no_path_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        as_path(given)


def test_a_back_end_that_is_not_installed_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs the package gcsfs, .*\[cloud\]"):
        read_bytes("gs://bucket/en.txt")


def test_local_files_load_no_library_of_remote_ones(tmp_path):
    (tmp_path / "en.txt").write_text("a b\n")
    program = (
        "import sys\n"
        "from bridgex_jax.data.corpora import read_corpus\n"
        "from bridgex_jax.store.runs import create_run\n"
        "read_corpus(sys.argv[1] + '/en.txt', 'en')\n"
        "with create_run(sys.argv[1] + '/run', kind='count', settings={}) as run: pass\n"
        "print(sorted({'etils.epath', 'fsspec', 's3fs', 'gcsfs'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_files_below_a_directory_are_listed_with_their_sizes(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_bytes(b"123")
    (tmp_path / "d").write_bytes(b"")
    assert files_below(tmp_path) == {"a/b/c": 3, "d": 0}
    assert files_below(tmp_path / "none") is None
    assert files_below(tmp_path / "d") is None


def test_the_cache_follows_the_desktop_s_rule(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "bridgex_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_directory() == tmp_path / "home" / ".cache" / "bridgex_jax"
