"""The command line as a stranger uses it: one line for what is wrong, nothing half-written."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bridgex_jax.cli import main as cli

BRIDGEX = [sys.executable, "-m", "bridgex_jax.cli"]


def run(capsys, *argv):
    """Exit status, standard output and standard error of `bridgex ARGV`, in this process."""
    with pytest.raises(SystemExit) as ended:
        raise SystemExit(cli.run(cli.parse(["bridgex", *map(str, argv)])))
    out, err = capsys.readouterr()
    return ended.value.code, out, err


@pytest.fixture
def dictionary(tmp_path) -> Path:
    file = tmp_path / "id-he.txt"
    words = ["air", "api", "rumah", "batu", "ikan", "buku", "kota", "laut", "pohon", "langit"]
    targets = ["מים", "אש", "בית", "אבן", "דג", "ספר", "עיר", "ים", "עץ", "שמיים"]
    file.write_text("".join(f"{a}\t{b}\n" for a, b in zip(words, targets, strict=True)))
    return file


@pytest.fixture
def corpora(tmp_path) -> list[str]:
    texts = {
        "id": "Bahasa Indonesia adalah bahasa resmi negara ini dan dipakai di sekolah.",
        "he": "השפה העברית היא שפה שמית המדוברת בעיקר בישראל ובקהילות אחרות.",
        "en": "The quick brown fox jumps over the lazy dog near the river bank.",
        "de": "Der schnelle braune Fuchs springt über den faulen Hund am Fluss.",
    }
    arguments = []
    for code, text in texts.items():
        (tmp_path / f"{code}.txt").write_text("".join(f"{text} {n}\n" for n in range(40)))
        arguments.append(f"{code}={tmp_path / code}.txt")
    return arguments


def select(model, dictionary, corpora, out, *more):
    return (
        "select", model, "--source", "id", "--target", "he", "--bridges", "en", "de",
        "--dictionary", f"id-he={dictionary}", "--corpus", *corpora, "--out", out,
        "--probe-filter", "none", "--top-rate", "0.3", "--permutations", "19",
        "--resamples", "50", *more,
    )  # fmt: skip


BAD = [
    (("slect",), "invalid choice: 'slect'"),
    (("select", "builtin", "--source", "id"), "the following arguments are required"),
    (("select", "builtin", "--frob"), "see bridgex select --help"),
    (("select", "x", "--source", "qq", "--target", "he", "--out", "o"), "qq"),
    (
        ("select", "x", "--source", "id", "--target", "id", "--out", "o"),
        "source and target are both",
    ),
    (
        ("select", "x", "--source", "id", "--target", "he", "--bridges", "en", "id", "--out", "o"),
        "bridge id is the source or the target",
    ),
    (
        (
            "select",
            "x",
            "--source",
            "id",
            "--target",
            "he",
            "--dictionary",
            "nowhere",
            "--out",
            "o",
        ),
        "is not KEY=FILE",
    ),
    (
        (
            "select",
            "x",
            "--source",
            "id",
            "--target",
            "he",
            "--dictionary",
            "id-he=gone.txt",
            "--out",
            "o",
        ),
        "gone.txt",
    ),
    (("select", "x", "--source", "id", "--target", "he", "--out", "o"), "--dictionary is missing"),
    (("select", "x", "--source", "id", "--target", "he", "--top-rate", "7", "--out", "o"), "7"),
    (
        ("select", "x", "--source", "id", "--target", "he", "--words", "100", "--out", "o"),
        "--words 100 is under 128",
    ),
    (("select", "x", "--source", "id", "--target", "he", "--layers", "9-3", "--out", "o"), "9-3"),
    (
        (
            "select",
            "x",
            "--source",
            "id",
            "--target",
            "he",
            "--template",
            "{word",
            "--dictionary",
            "cldr",
            "--corpus",
            "cldr",
            "--out",
            "o",
        ),
        "template",
    ),
    (("report", "gone"), "gone"),
    (("count", "gone-model", "--corpus", "cldr", "--out", "o"), "gone-model"),
]


@pytest.mark.parametrize(("argv", "part"), BAD, ids=lambda value: str(value)[:40])
def test_bad_input_is_one_line_with_status_two(argv, part, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, *argv)
    assert status == 2 and out == ""
    assert err.startswith("bridgex: error: ") and err.count("\n") == 1
    assert part in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "verb", ["demo", "count", "select", "evaluate", "verdict", "ablate", "report", "bench"]
)
def test_every_verb_has_help_with_an_example(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.parse(["bridgex", verb, "--help"])
    out = capsys.readouterr().out
    assert ended.value.code == 0 and f"bridgex {verb}" in out and "example" in out


def test_select_answers_and_lists_what_it_wrote(
    tiny_directory, dictionary, corpora, tmp_path, capsys
):
    out = tmp_path / "run"
    status, shown, err = run(capsys, *select(tiny_directory, dictionary, corpora, out, "--json"))
    assert status == 0, err
    choice = json.loads(shown)
    assert choice["pairs"][0]["bridge"] in ("en", "de")
    manifest = json.loads((out / "manifest.json").read_text())
    there = {path.name for path in out.iterdir()} - {"manifest.json"}
    assert set(manifest["files"]) == there
    assert {"choice.json", "spectrum.parquet", "overlap.parquet", "report.html"} <= there

    status, again, err = run(capsys, *select(tiny_directory, dictionary, corpora, out, "--json"))
    assert status == 0 and "already holds this run" in err
    assert json.loads(again)["pairs"] == choice["pairs"]

    status, _, err = run(capsys, *select(tiny_directory, dictionary, corpora, out, "--seed", "9"))
    assert status == 2 and "already holds another run" in err

    status, page, _ = run(capsys, "report", out)
    assert status == 0 and page.strip() == str(out / "report.html")


def test_counts_made_once_give_the_same_choice(
    tiny_directory, dictionary, corpora, tmp_path, capsys
):
    counts = tmp_path / "counts"
    status, shown, err = run(capsys, "count", tiny_directory, "--corpus", *corpora, "--out", counts)
    assert status == 0 and shown.strip() == str(counts), err
    arguments = list(select(tiny_directory, dictionary, corpora, tmp_path / "a", "--json"))
    _, direct, _ = run(capsys, *arguments)
    place = arguments.index("--corpus")
    arguments[place : place + 1 + len(corpora)] = ["--counts", counts]
    arguments[arguments.index(tmp_path / "a")] = tmp_path / "b"
    _, stored, _ = run(capsys, *arguments)
    first, second = (json.loads(text)["pairs"] for text in (direct, stored))
    assert first == second


def test_other_counts_of_the_same_text_are_another_run(
    tiny_directory, dictionary, corpora, tmp_path, capsys
):
    for name, tokens in (("few", "300"), ("many", "900")):
        status, _, err = run(
            capsys, "count", tiny_directory, "--corpus", *corpora, "--tokens", tokens,
            "--out", tmp_path / name,
        )  # fmt: skip
        assert status == 0, err
    arguments = list(select(tiny_directory, dictionary, corpora, tmp_path / "run"))
    place = arguments.index("--corpus")
    for name, expected in (("few", 0), ("many", 2)):
        arguments[place : place + 1 + len(corpora)] = ["--counts", tmp_path / name]
        place, corpora = arguments.index("--counts"), [name]
        status, _, err = run(capsys, *arguments)
        assert status == expected, err
    assert "already holds another run" in err and "counts" in err


def test_rows_beyond_the_model_s_context_are_refused(tiny_directory, corpora, tmp_path, capsys):
    status, _, err = run(
        capsys, "count", tiny_directory, "--corpus", *corpora, "--row-length", "512",
        "--out", tmp_path / "c",
    )  # fmt: skip
    assert status == 2 and "longer than the model's context of 128" in err
    assert err.count("\n") == 1 and not (tmp_path / "c").exists()


def test_evaluate_leaves_the_probe_words_out(tiny_directory, dictionary, corpora, tmp_path, capsys):
    run(capsys, *select(tiny_directory, dictionary, corpora, tmp_path / "s", "--words", "8"))
    status, _, err = run(
        capsys, "evaluate", tiny_directory, "--source", "id", "--target", "he", "--bridges", "en",
        "--dictionary", f"id-he={dictionary}", "--select", tmp_path / "s",
        "--out", tmp_path / "e",
    )  # fmt: skip
    assert status == 2 and "2 questions are left" in err
    status, shown, err = run(
        capsys, "evaluate", tiny_directory, "--source", "id", "--target", "he", "--bridges", "en",
        "--dictionary", f"id-he={dictionary}", "--out", tmp_path / "e", "--show", "3",
    )  # fmt: skip
    assert status == 0 and "zero_shot" in shown and shown.count("gold:") == 3, err


def test_an_interrupt_leaves_nothing_that_looks_finished(
    tiny_directory, dictionary, corpora, tmp_path
):
    out = tmp_path / "run"
    command = [str(a) for a in select(tiny_directory, dictionary, corpora, out)]
    process = subprocess.Popen(
        [*BRIDGEX, *command], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    while not (tmp_path / ".run.partial").exists() and process.poll() is None:
        time.sleep(0.02)
    # Again until it ends, as a person does: Python loses an interrupt that falls into a finaliser.
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=3)
    _, err = process.communicate()
    assert process.returncode == cli.INTERRUPTED
    assert err.splitlines()[-1].startswith("bridgex: interrupted")
    assert "Traceback" not in err and not out.exists()


@pytest.mark.parametrize("verb", ["select --help", "select"])
def test_a_closed_pipe_is_no_error(verb, tiny_directory, dictionary, corpora, tmp_path):
    out = tmp_path / "run"
    argv = verb.split() if "--help" in verb else select(tiny_directory, dictionary, corpora, out)
    argv = [*argv, "--quiet"] if verb == "select" else argv
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*BRIDGEX, *argv], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.stderr == ""
