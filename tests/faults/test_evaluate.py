"""`bridgex evaluate` as a stranger calls it: what is missing or does not fit, what was killed."""

import json
import subprocess
import sys
import time

import pytest

from bridgex_jax.cli import main as cli
from bridgex_jax.languages import _ADDED, _BY_CODE, language
from bridgex_jax.store.tables import read_answers

TASK = """
name: tiny
version: 1
data: xnli
bridged: premise
translate: "{source_code} {bridge_code} {premise}:"
prompt: "{premise}|{hypothesis}:"
chain: "{translation}|{hypothesis}:"
example: "{gold}\\n"
read: choice
choices: {entailment: "ya", neutral: "tak", contradiction: "no"}
metrics: [accuracy]
max_translation_tokens: 8
"""


def run(capsys, *arguments):
    status = cli.run(cli.parse(["bridgex", *map(str, arguments)]))
    printed = capsys.readouterr()
    return status, printed.out, printed.err


@pytest.fixture
def files(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TASK)
    for code in ("id", "de"):
        rows = [f"{i}\t{code} satu {i}\t{code} dua {i}\t{i % 3}" for i in range(12)]
        text = "\n".join(["id\tpremise\thypothesis\tlabel", *rows]) + "\n"
        (tmp_path / f"{code}.tsv").write_text(text)
    return tmp_path


def command(model, files, *more, data=("id", "de")):
    return (
        "evaluate", model, "--task", files / "tiny.yaml", "--source", "id", "--target", "de",
        "--bridges", "en", "fr", "--data", *(f"{c}={files / f'{c}.tsv'}" for c in data),
        "--out", files / "run", *more,
    )  # fmt: skip


def test_a_user_s_task_is_evaluated_through_every_bridge(tiny_directory, files, capsys):
    status, shown, err = run(capsys, *command(tiny_directory, files, "--show", "2"))
    assert status == 0, err
    assert "tiny, id → de, 12 questions" in shown and shown.count("gold:") == 2
    answers = read_answers(files / "run" / "answers.parquet")
    assert {a.condition for a in answers} == {"zero_shot", "en", "fr"}
    assert {a.answer for a in answers if a.prompt} <= {"entailment", "neutral", "contradiction"}
    assert all(
        a.log_probability is not None and a.log_probability <= 0 for a in answers if a.prompt
    )
    manifest = json.loads((files / "run" / "manifest.json").read_text())
    assert manifest["data"]["data"]["id"]["files"] == [str(files / "id.tsv")]
    status, again, _ = run(capsys, *command(tiny_directory, files, "--json"))
    assert status == 0 and json.loads(again)["n_words"] == 12


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"data": ("id",)}, "no data of de for tiny"),
        ({"data": ()}, "--data is missing for tiny"),
        ({"more": ("--shots", "5")}, "7 questions are left"),
        ({"more": ("--shots", "-1")}, "--shots -1 is negative"),
        ({"more": ("--chat",)}, "no chat template"),
        ({"more": ("--select", "nowhere")}, "nowhere"),
        ({"more": ("--typology", "nowhere.npz")}, "nowhere.npz"),
        ({"more": ("--typology", "lang2vec")}, "lang2vec is not installed"),
        ({"more": ("--scores", "nowhere.csv")}, "nowhere.csv"),
        ({"more": ("--answers", "gs://bucket/answers")}, "answers are kept on a local disk"),
        ({"more": ("--translation-tokens", "999")}, "exceed the model's context of 128"),
        ({"more": ("--language", "xx")}, "no code and name of a language"),
        ({"more": ("--language", "de,Deitsch")}, "de is German (Deutsch) already"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(tiny_directory, files, capsys, change, complaint):
    arguments = command(
        tiny_directory, files, *change.get("more", ()), data=change.get("data", ("id", "de"))
    )
    if change.get("data") == ():
        arguments = tuple(a for a in arguments if a != "--data")
    status, _, err = run(capsys, *arguments)
    assert status == 2 and complaint in err and err.count("\n") == 1
    assert not (files / "run").exists()


def test_other_questions_in_the_other_language_are_refused(tiny_directory, files, capsys):
    file = files / "de.tsv"
    file.write_text(file.read_text().replace("\n11\t", "\n99\t"))
    status, _, err = run(capsys, *command(tiny_directory, files))
    assert status == 2 and "missing" in err and err.count("\n") == 1


def test_text_that_chose_the_bridge_is_warned_of(tiny_directory, files, capsys):
    line = "Sebuah kalimat yang panjang sekali dan berbeda dari semua kalimat lain di berkas ini."
    for code in ("id", "de"):
        file = files / f"{code}.tsv"
        file.write_text(file.read_text().replace(f"{code} satu 3", line))
    (files / "flores.txt").write_text(f"Lain.\n{line.upper()}\n")
    status, _, err = run(
        capsys, *command(tiny_directory, files, "--corpus", f"id={files / 'flores.txt'}")
    )
    assert status == 0
    assert "warning: 1 of 12 questions are about text that chose the bridge" in err


def test_a_language_of_the_user_s_own_stands_in_the_prompts(tiny_directory, files, capsys):
    words = files / "words.txt"
    words.write_text("".join(f"wasi{i} haus{i}\n" for i in range(12)))
    try:
        status, shown, err = run(
            capsys, "evaluate", tiny_directory, "--source", "quy", "--target", "de", "--bridges",
            "es", "--dictionary", f"quy-de={words}", "--language", "quy,Runasimi", "--limit", "9",
            "--show", "1", "--out", files / "run",
        )  # fmt: skip
        assert status == 0, err
        assert 'Runasimi:"wasi' in shown
        assert language("quy").scripts == {"Latn"}
        manifest = json.loads((files / "run" / "manifest.json").read_text())
        assert manifest["inputs"]["languages"] == {"quy": "Runasimi"}
    finally:
        del _BY_CODE["quy"], _ADDED["quy"]


def test_a_corpus_is_refused_where_words_are_asked(tiny_directory, files, capsys):
    (files / "w.txt").write_text("".join(f"kata{i} wort{i}\n" for i in range(12)))
    status, _, err = run(
        capsys, "evaluate", tiny_directory, "--source", "id", "--target", "de", "--bridges", "en",
        "--dictionary", f"id-de={files / 'w.txt'}", "--corpus", f"id={files / 'w.txt'}",
        "--out", files / "run",
    )  # fmt: skip
    assert status == 2 and "--corpus is not for bli" in err and err.count("\n") == 1


KILLED = """
import os, signal, sys
from bridgex_jax.pipelines import answering
answering.PORTION = 1
complete, calls = answering.complete, []

def killed(*args, **options):
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    calls.append(None)
    return complete(*args, **options)

answering.complete = killed
from bridgex_jax.cli.main import main
main()
"""


def test_a_killed_evaluation_goes_on_from_what_was_answered(tiny_directory, files, capsys):
    more = ("--batch-size", "4", "--answers", files / "answers")
    arguments = [str(a) for a in command(tiny_directory, files, *more)]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == -9, done.stderr[-2000:]
    assert not (files / "run").exists()
    start = time.monotonic()
    status, _, err = run(capsys, *arguments)
    assert status == 0, err
    notes = json.loads((files / "run" / "manifest.json").read_text())["notes"]
    assert notes["prompts"]["known_before"] == 8, (notes, time.monotonic() - start)
