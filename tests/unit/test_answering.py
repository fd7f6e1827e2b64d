"""Answers are computed once, in a run and across runs, whatever happens to the files."""

import numpy as np
import pytest

from bridgex_jax.errors import InputError
from bridgex_jax.icl.completion import complete
from bridgex_jax.icl.likelihood import score_continuations
from bridgex_jax.pipelines.answering import ModelAnswerer
from bridgex_jax.pipelines.console import Console
from bridgex_jax.store.completions import Completions

PROMPTS = [f'Indonesia:"{word}"→Deutsch:' for word in ("api", "air", "batu", "air", "jalan")]
QUIET = Console(quiet=True)


def answerer(model, tmp_path, **options):
    return ModelAnswerer(model, QUIET, batch_size=4, place=tmp_path / "kept", **options)


def test_equal_prompts_are_computed_once_and_never_again(tiny_model, tmp_path):
    first = answerer(tiny_model, tmp_path)
    answers = first.complete("x", PROMPTS, 6, quoted=True)
    assert (first.computed, first.known) == (4, 0)
    assert answers == complete(tiny_model, PROMPTS, tiny_model.mesh, batch_size=4, max_new_tokens=6)
    again = answerer(tiny_model, tmp_path)
    assert again.complete("x", [*PROMPTS, "Deutsch:"], 6, quoted=True)[:5] == answers
    assert (again.computed, again.known) == (1, 4)


def test_other_lengths_and_other_ends_are_other_answers(tiny_model, tmp_path):
    one = answerer(tiny_model, tmp_path)
    one.complete("x", PROMPTS, 6, quoted=True)
    one.complete("x", PROMPTS, 7, quoted=True)
    one.complete("x", PROMPTS, 6, quoted=False)
    assert one.computed == 12


def test_scores_are_kept_too(tiny_model, tmp_path):
    texts = ["a", "b", "c", "d", "e"]
    one = answerer(tiny_model, tmp_path)
    found = one.score("x", PROMPTS, texts)
    wanted = score_continuations(tiny_model, PROMPTS, texts, tiny_model.mesh).log_prob
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    again = answerer(tiny_model, tmp_path)
    np.testing.assert_array_equal(again.score("x", PROMPTS, texts), found)
    assert (again.computed, again.known) == (0, 5)


def test_a_damaged_file_is_named_and_computed_again(tiny_model, tmp_path):
    one = answerer(tiny_model, tmp_path)
    answers = one.complete("x", PROMPTS, 6, quoted=True)
    (file,) = (tmp_path / "kept").rglob("*.parquet")
    file.write_bytes(file.read_bytes()[:-20])
    console = Console(quiet=True)
    again = ModelAnswerer(tiny_model, console, batch_size=4, place=tmp_path / "kept")
    assert again.complete("x", PROMPTS, 6, quoted=True) == answers
    assert again.computed == 4
    assert str(file) in console.warnings[0]


def test_what_was_answered_before_a_kill_is_not_lost(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("bridgex_jax.pipelines.answering.PORTION", 1)
    calls = []

    def killed(model, prompts, *args, **options):
        calls.append(prompts)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return [""] * len(prompts)

    monkeypatch.setattr("bridgex_jax.pipelines.answering.complete", killed)
    many = [f"{i}" for i in range(10)]
    with pytest.raises(KeyboardInterrupt):
        answerer(tiny_model, tmp_path).complete("x", many, 6, quoted=True)
    again = answerer(tiny_model, tmp_path)
    again.complete("x", many, 6, quoted=True)
    assert (again.computed, again.known) == (6, 4)


def test_a_full_or_forbidden_place_is_said_in_one_line(tmp_path):
    (tmp_path / "kept").write_text("a file")
    kept = Completions(tmp_path / "kept", {"model": "x"})
    with pytest.raises(InputError, match="--answers"):
        kept.add_answers({"p": "a"})


def test_chat_templates_write_their_own_special_tokens(tiny_model, tmp_path):
    with pytest.raises(InputError, match="no chat template"):
        answerer(tiny_model, tmp_path, chat=True)
    tokenizer = tiny_model.tokenizer
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}:"
    try:
        chat = answerer(tiny_model, tmp_path, chat=True)
        found = chat.complete("x", PROMPTS[:1], 6, quoted=False)
        asked = [f"<user>{PROMPTS[0]}:"]
        wanted = complete(
            tiny_model, asked, tiny_model.mesh, batch_size=4, max_new_tokens=6,
            special_tokens=False,
        )  # fmt: skip
        assert chat.computed == 1 and len(found) == len(wanted)
    finally:
        tokenizer.chat_template = None
