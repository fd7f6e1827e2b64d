"""Runs in an object store: complete by their manifest alone, whatever cut the upload.

The stores are emulators on localhost; the calls are those that go to real ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import urllib.request
from pathlib import Path

import jax
import numpy as np
import pytest

from bridgex_jax.data.corpora import read_corpus
from bridgex_jax.data.dictionaries import read_dictionary
from bridgex_jax.errors import InputError
from bridgex_jax.models.load import load_model
from bridgex_jax.pipelines.report import run_report
from bridgex_jax.report.content import PairReport, Report, read_report
from bridgex_jax.store import paths, places
from bridgex_jax.store.counts import LanguageCounts, load_counts, save_counts
from bridgex_jax.store.files import write_bytes
from bridgex_jax.store.manifest import CorruptRun, read_manifest, verify_run
from bridgex_jax.store.paths import as_path, file_system, files_below, read_bytes
from bridgex_jax.store.runs import create_run
from tests.faults.test_peers import together, write_own

s3fs = pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")


@pytest.fixture(scope="module")
def server():
    running = moto_server.ThreadedMotoServer(port=0, verbose=False)
    running.start()
    _, port = running.get_host_and_port()
    yield f"http://127.0.0.1:{port}"
    running.stop()


@pytest.fixture
def bucket(server, tmp_path, monkeypatch):
    """An empty bucket; the user's cache lies in `tmp_path / "cache"`."""
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    forget_file_systems()
    urllib.request.urlopen(f"{server}/moto-api/reset", data=b"").close()
    file_system(as_path("s3://bucket/x")).mkdir("bucket")
    yield "s3://bucket"
    forget_file_systems()


def forget_file_systems():
    paths._file_system.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()


def put(url, data: bytes):
    file_system(as_path(url)).pipe_file(url, data)


def begin(out, seed=0, **options):
    return create_run(out, kind="select", settings={"seed": seed}, command=[], **options)


def write(run):
    run.part("counts", lambda: {"x": np.arange(3)})
    run.write_text("choice.json", "{}")
    run.write_text("figures/a.svg", "<svg/>")


def finish(out, **options):
    with begin(out, **options) as run:
        if not run.complete:
            write(run)
    return run


def hidden(tmp_path):
    """What a run for an object store keeps on this machine."""
    return sorted(p.name for p in (tmp_path / "cache" / "bridgex_jax" / "runs").glob("*"))


FILES = {"choice.json", "figures/a.svg", "manifest.json"}


def test_a_run_appears_whole_and_leaves_nothing_on_this_machine(bucket, tmp_path):
    with begin(f"{bucket}/runs/one") as run:
        write(run)
        assert "manifest.json" not in files_below(as_path(f"{bucket}/runs/one"))
    assert run.complete and str(run.directory) == str(run.out) == f"{bucket}/runs/one"
    assert set(files_below(run.out)) == FILES
    assert set(verify_run(f"{bucket}/runs/one")["files"]) == FILES - {"manifest.json"}
    assert hidden(tmp_path) == []
    with begin(f"{bucket}/runs/one/") as run:
        assert run.complete and "already holds this run" in run.notice
    with pytest.raises(InputError, match=r"s3://bucket/runs/one: already holds another run \(seed"):
        finish(f"{bucket}/runs/one", seed=1)


def test_a_stopped_run_is_resumed_from_this_machine_s_parts(bucket, tmp_path):
    with pytest.raises(KeyboardInterrupt), begin(f"{bucket}/one") as run:
        write(run)
        raise KeyboardInterrupt
    assert files_below(as_path(f"{bucket}/one")) is None
    assert len(hidden(tmp_path)) == 1
    with begin(f"{bucket}/one") as run:
        assert run.resumed == ("counts",)
        write(run)
    verify_run(f"{bucket}/one")
    assert hidden(tmp_path) == []


class Killed(BaseException):
    """Stands for a kill at a chosen request."""


def kill_at(monkeypatch, moment):
    """From the `moment`-th request that changes the object store on, none is made."""
    calls = 0

    def guarded(original):
        def call(*args):
            nonlocal calls
            calls += 1
            if calls >= moment:
                raise Killed
            return original(*args)

        return call

    for module, name in (
        (places, "upload"),
        (places, "remove_object"),
        (places, "write_json"),
    ):
        monkeypatch.setattr(module, name, guarded(getattr(module, name)))


def test_an_upload_cut_at_any_request_is_finished_by_the_same_command_only(bucket, monkeypatch):
    for moment in range(1, 20):
        out = f"{bucket}/cut-{moment}"
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, moment)
            try:
                finish(out)
                break
            except Killed:
                pass
        left = set(files_below(as_path(out)) or ())
        if "manifest.json" in left:
            verify_run(out)
        else:
            with pytest.raises(InputError, match=r"no complete run .*no manifest\.json"):
                read_manifest(out)
        if left - {".upload.json"}:
            with pytest.raises(InputError, match=r"another run('s upload)? \(seed: 0 there, 1"):
                finish(out, seed=1)
        finish(out)
        verify_run(out)
        assert set(files_below(as_path(out))) - {".upload.json"} == FILES
    assert moment > 5


def test_remains_with_somebody_else_s_file_are_refused_and_kept(bucket):
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, 4)
        with pytest.raises(Killed):
            finish(f"{bucket}/one")
    put(f"{bucket}/one/notes.txt", b"mine")
    for place in ("one", "two"):
        put(f"{bucket}/{place}/notes.txt", b"mine")
        with pytest.raises(InputError, match="is not empty and holds no complete run"):
            finish(f"{bucket}/{place}")
        assert read_bytes(f"{bucket}/{place}/notes.txt") == b"mine"


def test_a_file_that_comes_meanwhile_is_kept(bucket):
    with begin(f"{bucket}/one") as run:
        write(run)
        put(f"{bucket}/one/notes.txt", b"mine")
    verify_run(f"{bucket}/one")
    assert read_bytes(f"{bucket}/one/notes.txt") == b"mine"


def test_of_two_writers_the_first_wins_and_the_other_finds_it(bucket, tmp_path):
    with begin(f"{bucket}/one", exclusive=False) as second:
        write(second)
        finish(f"{bucket}/one", exclusive=False)
        manifest = read_bytes(f"{bucket}/one/manifest.json")
    assert second.complete and "another process made this run first" in second.notice
    assert read_bytes(f"{bucket}/one/manifest.json") == manifest
    assert set(files_below(as_path(f"{bucket}/one"))) == FILES
    assert hidden(tmp_path) == []


def test_files_that_another_writer_puts_between_ours_do_not_stay(bucket, monkeypatch):
    upload, met = places.upload, []

    def disturbed(source, path):
        upload(source, path)
        if path.name == "manifest.json" and not met:
            met.append(path)
            put(f"{bucket}/one/choice.json", b"[]")

    monkeypatch.setattr(places, "upload", disturbed)
    monkeypatch.setattr(places.time, "sleep", lambda seconds: None)
    finish(f"{bucket}/one")
    assert met
    verify_run(f"{bucket}/one")


def test_a_corrupt_unit_is_made_again_and_a_corrupt_run_is_refused(bucket):
    finish(f"{bucket}/one")
    put(f"{bucket}/one/choice.json", b"[]")
    with pytest.raises(CorruptRun, match=r"s3://bucket/one/choice\.json: has changed"):
        finish(f"{bucket}/one")
    run = finish(f"{bucket}/one", exclusive=False)
    assert "making the run again" in run.notice
    assert "choice.json: has changed" in verify_run(f"{bucket}/one")["notes"]["redone"]
    assert set(files_below(as_path(f"{bucket}/one"))) == FILES


def test_missing_changed_and_foreign_files_are_named_by_their_url(bucket):
    finish(f"{bucket}/one")
    file_system(as_path(bucket)).rm_file(f"{bucket}/one/figures/a.svg")
    with pytest.raises(CorruptRun, match=r"s3://bucket/one/figures/a\.svg: is listed .* missing"):
        read_manifest(f"{bucket}/one")
    put(f"{bucket}/one/figures/a.svg", b"<svg/> ")
    with pytest.raises(CorruptRun, match=r"a\.svg: has 7 bytes, the manifest says 6"):
        read_manifest(f"{bucket}/one")
    put(f"{bucket}/one/manifest.json", b"{")
    with pytest.raises(CorruptRun, match=r"manifest\.json: is not valid JSON"):
        read_manifest(f"{bucket}/one")


def test_corpora_dictionaries_and_counts_are_read_as_local_ones_are(bucket, tmp_path):
    text = b"Bahasa Indonesia adalah bahasa resmi.\n" * 3
    (tmp_path / "id.txt").write_bytes(text)
    put(f"{bucket}/id.txt", text)
    here, there = read_corpus(tmp_path / "id.txt", "id"), read_corpus(f"{bucket}/id.txt", "id")
    assert (here.lines, here.sha256) == (there.lines, there.sha256)
    assert there.file == f"{bucket}/id.txt"
    put(f"{bucket}/id-he.txt", "air\tמים\napi\tאש\n".encode())
    assert read_dictionary(f"{bucket}/id-he.txt", "id", "he").translations() == {
        "air": ("מים",),
        "api": ("אש",),
    }
    counted = LanguageCounts(
        "id", np.arange(12, dtype=np.int32).reshape(2, 2, 3), np.ones((2, 3)), (5, 4)
    )
    with create_run(f"{bucket}/counts", kind="count", settings={}) as run:
        save_counts(run, [counted], model_sha256="ab")
    found = load_counts(f"{bucket}/counts", model_sha256="ab", languages=["id"])
    np.testing.assert_array_equal(found["id"].halves, counted.halves)
    put(f"{bucket}/counts/counts/id.safetensors", bytes(200))
    with pytest.raises(InputError, match=r"id\.safetensors: has"):
        load_counts(f"{bucket}/counts", model_sha256="ab", languages=["id"])


def test_the_report_of_a_remote_run_is_made_again(bucket):
    from bridgex_jax.pipelines.publish import publish

    with begin(f"{bucket}/one") as run:
        publish(run, Report((PairReport("id", "he", None, (), (), ()),), run.facts()))
    page = read_bytes(f"{bucket}/one/report.html")
    put(f"{bucket}/one/report.html", b"old")
    assert str(run_report(f"{bucket}/one")) == f"{bucket}/one/report.html"
    assert len(read_bytes(f"{bucket}/one/report.html")) == pytest.approx(len(page), rel=0.2)
    report = read_report(f"{bucket}/one", verify_run(f"{bucket}/one"))
    assert report.pairs[0].source == "id"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://bucket/none.txt", r"s3://bucket/none\.txt: no such file; check the path"),
        ("s3://none/en.txt", r"s3://none/en\.txt: no such bucket; check the name of the bucket"),
        ("s3://bucket/folder", r"s3://bucket/folder: no such file"),
    ],
)
def test_a_file_or_bucket_that_is_not_there_is_one_line(bucket, url, message):
    put(f"{bucket}/folder/en.txt", b"x")
    with pytest.raises(InputError, match=message) as caught:
        read_corpus(url, "en")
    assert "\n" not in str(caught.value)


def test_a_bucket_that_is_not_there_is_found_before_the_work(bucket, tmp_path):
    with (
        pytest.raises(InputError, match=r"s3://none/one.*: no such bucket"),
        begin("s3://none/one"),
    ):
        pytest.fail("was entered")
    assert hidden(tmp_path) == []


def test_an_object_in_the_place_of_the_directory_is_refused(bucket):
    put(f"{bucket}/one", b"mine")
    with pytest.raises(InputError, match="s3://bucket/one: is a file, not a directory"):
        finish(f"{bucket}/one")
    assert read_bytes(f"{bucket}/one") == b"mine"


def test_denied_access_is_one_line_and_found_before_the_work(bucket, server):
    def check_access(number):
        header = {"Content-Type": "text/plain"}
        address = f"{server}/moto-api/reset-auth"
        urllib.request.urlopen(urllib.request.Request(address, number, header)).close()

    check_access(b"0")
    try:
        for act in (lambda: read_corpus(f"{bucket}/en.txt", "en"), lambda: finish(f"{bucket}/one")):
            with pytest.raises(InputError, match=r"access is denied; .*AWS_PROFILE") as caught:
                act()
            assert "\n" not in str(caught.value)
    finally:
        check_access(b"inf")


def test_a_store_that_goes_away_is_one_line_and_the_parts_stay(bucket, tmp_path, monkeypatch):
    with (
        pytest.raises(InputError, match=r"cannot be reached \(.*\); check the network") as caught,
        begin(f"{bucket}/one") as run,
    ):
        write(run)
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        forget_file_systems()
    assert "\n" not in str(caught.value)
    assert len(hidden(tmp_path)) == 1


def test_a_full_cache_disk_is_named_with_its_remedy(bucket, monkeypatch):
    import errno

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with (
        pytest.raises(InputError, match=r"bridgex_jax/runs: the disk is full; .*XDG_CACHE_HOME"),
        begin(f"{bucket}/one") as run,
    ):
        monkeypatch.setattr(os, "fsync", full)
        run.write_text("choice.json", "{}")


GOOGLE = """
    import os
    from gcp_storage_emulator.server import create_server

    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    server.start()
    os.environ["STORAGE_EMULATOR_HOST"] = f"http://127.0.0.1:{server._api._httpd.server_port}"

    from bridgex_jax.errors import InputError
    from bridgex_jax.store import places
    from bridgex_jax.store.manifest import verify_run
    from bridgex_jax.store.paths import as_path, files_below, read_bytes
    from bridgex_jax.store.runs import create_run

    def make(out, seed=0):
        with create_run(out, kind="select", settings={"seed": seed}, command=[]) as run:
            if not run.complete:
                run.write_text("choice.json", "{}")
                run.write_text("figures/a.svg", "<svg/>")
        return run.notice

    def refused(act, *arguments):
        try:
            act(*arguments)
        except InputError as error:
            return str(error)

    def cut(source, path):
        if path.name == "manifest.json":
            raise KeyboardInterrupt
        upload(source, path)

    upload, places.upload = places.upload, cut
    try:
        make("gs://bucket/runs/one")
    except KeyboardInterrupt:
        print(sorted(files_below(as_path("gs://bucket/runs/one"))))
    places.upload = upload
    print(refused(make, "gs://bucket/runs/one", 1))
    print(make("gs://bucket/runs/one"), sorted(verify_run("gs://bucket/runs/one")["files"]))
    print(make("gs://bucket/runs/one"))
    print(refused(read_bytes, "gs://bucket/none.txt"))
    print(refused(make, "gs://none/one"))
    os._exit(0)
"""


def test_google_s_store_serves_as_well(tmp_path):
    pytest.importorskip("gcp_storage_emulator")
    pytest.importorskip("gcsfs")
    settings = {
        "FSSPEC_GS_TOKEN": "anon",
        # Asks a server of Google's, by another protocol, what kind of bucket it is.
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        "XDG_CACHE_HOME": str(tmp_path),
    }
    program = [sys.executable, "-c", textwrap.dedent(GOOGLE)]
    done = subprocess.run(
        program, capture_output=True, text=True, env=os.environ | settings, timeout=60
    )
    assert done.stdout.splitlines() == [
        "['.upload.json', 'choice.json', 'figures/a.svg']",
        "gs://bucket/runs/one: holds the remains of another run's upload (seed: 0 there, 1 here); "
        "run its command to finish it, delete it, or choose another --out",
        "None ['choice.json', 'figures/a.svg']",
        "gs://bucket/runs/one already holds this run, complete",
        "gs://bucket/none.txt: no such file; check the path",
        "gs://none/one: no such bucket; check the name of the bucket",
    ], done.stderr


TEXTS = {
    "id": "Bahasa Indonesia adalah bahasa resmi negara ini dan dipakai di sekolah.",
    "he": "השפה העברית היא שפה שמית המדוברת בעיקר בישראל ובקהילות אחרות.",
    "en": "The quick brown fox jumps over the lazy dog near the river bank.",
}
WORDS = (
    "air\tמים\napi\tאש\nrumah\tבית\nbatu\tאבן\nikan\tדג\nbuku\tספר\nkota\tעיר\n"
    "laut\tים\npohon\tעץ\n"
)


def test_a_study_wholly_in_an_object_store_gives_the_local_one_s_answer(
    bucket, tiny_model, tmp_path
):
    from bridgex_jax.pipelines.console import Console
    from bridgex_jax.pipelines.count import CountSettings, run_count
    from bridgex_jax.pipelines.inputs import dictionary_files, read_corpora, read_words
    from bridgex_jax.pipelines.select import Request, SelectSettings, run_select

    def study(base):
        def write(name, text):
            write_bytes(as_path(base) / name, text.encode())

        write("id-he.txt", WORDS)
        for code, text in TEXTS.items():
            write(f"{code}.txt", "".join(f"{text} {n}\n" for n in range(20)))
        console = Console(quiet=True)
        texts = read_corpora([f"{code}={base}/{code}.txt" for code in TEXTS], list(TEXTS), 0)
        counts = run_count(
            tiny_model, texts, CountSettings(row_length=32), as_path(f"{base}/counts"), console
        )
        words = read_words(dictionary_files([f"id-he={base}/id-he.txt"]), "id", "he")
        settings = SelectSettings(
            top_rate=0.3, probe_filter="none", words=9, resamples=20, permutations=19
        )
        request = Request("id", "he", ("en",), words, None, str(counts))
        result = run_select(tiny_model, request, settings, as_path(f"{base}/id-he"), console)
        assert result.to_json()["run"] == f"{base}/id-he"
        again = run_select(tiny_model, request, settings, as_path(f"{base}/id-he"), console)
        assert again.to_json() == result.to_json()
        run_report(f"{base}/id-he")
        verify_run(f"{base}/id-he")
        return [read_bytes(f"{base}/id-he/{name}.parquet") for name in ("spectrum", "overlap")]

    assert study(f"{bucket}/study") == study(str(tmp_path))


def test_a_model_is_read_from_the_store_without_a_copy_of_its_weights(bucket, tiny_model, tmp_path):
    for file in Path(tiny_model.source.path).iterdir():
        put(f"{bucket}/models/tiny/{file.name}", file.read_bytes())
    model = load_model(f"{bucket}/models/tiny", quiet=True)
    same = jax.tree.map(np.array_equal, model.params, tiny_model.params)
    assert all(jax.tree.leaves(same))
    assert model.source.hash == tiny_model.source.hash
    assert model.tokenizer("satu")["input_ids"] == tiny_model.tokenizer("satu")["input_ids"]
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    with pytest.raises(InputError, match="no such directory"):
        load_model(f"{bucket}/models/other", quiet=True)
    put(f"{bucket}/models/cut/config.json", b"{}")
    with pytest.raises(InputError, match="model_type"):
        load_model(f"{bucket}/models/cut", quiet=True)


def test_processes_on_other_machines_put_their_own_files(bucket, tmp_path, monkeypatch):
    """What they hold of a killed run is found again; nothing of theirs stays behind."""
    monkeypatch.setattr("bridgex_jax.store.team_files.sees", lambda path, mark: False)
    out = f"{bucket}/run"
    assert [type(e) for e in together(lambda p: write_own(p, out, killed=True))] == [
        KeyboardInterrupt
    ] * 3
    assert together(lambda p: write_own(p, out)) == [["two"]] * 3
    names = {"choice.json", *(f"data/{i}.bin" for i in range(3))}
    assert set(verify_run(as_path(out))["files"]) == names
    assert set(files_below(as_path(out))) == {*names, "manifest.json"}
    assert not list((tmp_path / "cache").rglob("*.bin"))


def test_an_upload_by_several_processes_that_was_cut_is_finished_by_the_same_command(
    bucket, monkeypatch
):
    monkeypatch.setattr("bridgex_jax.store.team_files.sees", lambda path, mark: False)
    out, publish = f"{bucket}/run", places.Place.publish

    def cut(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(places.Place, "publish", cut)
    found = together(lambda p: write_own(p, out), to_the_end=False, patience=2)
    assert type(found[0]) is KeyboardInterrupt
    left = set(files_below(as_path(out)))
    assert {"data/1.bin", "data/2.bin", ".upload.json"} <= left
    assert "manifest.json" not in left
    monkeypatch.setattr(places.Place, "publish", publish)
    together(lambda p: write_own(p, out))
    assert set(verify_run(as_path(out))["files"]) >= {"data/1.bin", "data/2.bin"}
