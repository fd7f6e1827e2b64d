"""`bridgex ablate` with bad input and cut short: one line, or the same result after all."""

import json

import pytest

from bridgex_jax.pipelines import ablate as job
from bridgex_jax.pipelines import select as steps
from bridgex_jax.store.manifest import verify_run
from tests.faults.test_cli import corpora as corpora
from tests.faults.test_cli import dictionary as dictionary
from tests.faults.test_cli import run


def ablate(model, dictionary, corpora, out, *more):
    return (
        "ablate", model, "--source", "id", "--target", "he", "--bridges", "en", "de",
        "--dictionary", f"id-he={dictionary}", "--corpus", *corpora, "--out", out,
        "--probe-filter", "none", "--top-rate", "0.3", "--resamples", "20", *more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (("--vary", "layers,frob"), "--vary 'frob' is no setting; choose from token_scope"),
        (("--layers", "2-9", "--vary", "layers"), "of a model with 4"),
        (("--compat", "paper", "--estimator", "cka"), "--compat paper already decides"),
        (("--probe-filter", "correct", "--words", "50"), "--words 50 is under 128"),
        (("--counts", "somewhere"), "--corpus and --counts are both given"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    more,
    part,
    tiny_directory,
    dictionary,
    corpora,
    tmp_path,
    capsys,
):
    out = tmp_path / "run"
    status, shown, err = run(capsys, *ablate(tiny_directory, dictionary, corpora, out, *more))
    assert status == 2 and shown == "" and part in err
    assert err.splitlines()[-1].startswith("bridgex: error: ") and not out.exists()


def test_too_few_words_are_refused(tiny_directory, dictionary, corpora, tmp_path, capsys):
    dictionary.write_text("".join(dictionary.read_text().splitlines(keepends=True)[:7]))
    status, _, err = run(
        capsys, *ablate(tiny_directory, dictionary, corpora, tmp_path / "run", "--quiet")
    )
    assert status == 2 and "only 7 usable words" in err and err.count("\n") == 1


def test_a_run_cut_short_continues_without_probing_again(
    tiny_directory,
    dictionary,
    corpora,
    tmp_path,
    capsys,
    monkeypatch,
):
    vary = ("--vary", "token-scope,estimator,layers")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    status, shown, err = run(
        capsys, *ablate(tiny_directory, dictionary, corpora, whole, *vary, "--json")
    )
    assert status == 0, err
    table = json.loads(shown)
    assert len(table["rows"]) == 5 + 7 + 4 and table["bridge"] in ("en", "de")
    assert [one["setting"] for one in table["settings"]] == ["token_scope", "estimator", "layers"]

    score, n = job.score_pairs, []

    def fail_later(*args, **rest):
        n.append(1)
        if len(n) == 4:
            raise KeyboardInterrupt
        return score(*args, **rest)

    monkeypatch.setattr(job, "score_pairs", fail_later)
    status, _, err = run(capsys, *ablate(tiny_directory, dictionary, corpora, cut, *vary))
    assert status == 130 and not cut.exists()

    def not_again(*args, **rest):
        raise AssertionError("probed again")

    monkeypatch.setattr(steps, "probe_prompts", not_again)
    status, _, err = run(capsys, *ablate(tiny_directory, dictionary, corpora, cut, *vary))
    assert status == 0 and "resuming a run that was stopped" in err
    assert len(n) == 4 + 5  # the base, the scopes and six estimators: three were there already
    for name in (job.TABLE, job.FIGURE):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    manifest = verify_run(cut)
    assert manifest["kind"] == "ablate" and set(manifest["files"]) == {job.TABLE, job.FIGURE}

    status, again, err = run(
        capsys, *ablate(tiny_directory, dictionary, corpora, cut, *vary, "--json")
    )
    assert status == 0 and "already holds this run" in err
    assert json.loads(again) == table | {"run": str(cut)}
