"""The model that ships, and the demo on it: what is held out is held out, and nothing flatters."""

import json

import pytest

from bridgex_jax.data.cldr import concepts_digest, read_concepts
from bridgex_jax.pipelines.console import Console
from bridgex_jax.pipelines.demo import (
    DemoSettings,
    evaluation_task,
    read_recipe,
    run_demo,
    split_concepts,
)
from bridgex_jax.pipelines.inputs import builtin_directory, read_model


@pytest.fixture(scope="module")
def recipe():
    return read_recipe(builtin_directory())


@pytest.fixture(scope="module")
def concepts(recipe):
    mix = recipe["mix"]
    return read_concepts([*mix["bridges"], *mix["ordinary"], *mix["poor"]])


def test_the_tokenizer_never_merges_across_the_marks_of_a_prompt():
    tokenizer = read_model("builtin", dtype="float32", revision=None, quiet=True).tokenizer
    marks = {tokenizer.encode(mark, add_special_tokens=False)[0] for mark in '":→\n'}
    for token, index in tokenizer.get_vocab().items():
        text = tokenizer.convert_tokens_to_string([token])
        assert index in marks or not set('":→\n') & set(text), token


def test_the_model_is_small_and_says_how_it_was_made(recipe):
    directory = builtin_directory()
    assert sum(p.stat().st_size for p in directory.glob("*.*") if p.suffix != ".py") < 10e6
    assert recipe["concepts_sha256"] and recipe["training"]["seed"] == recipe["mix"]["seed"]


def test_this_babel_gives_the_words_that_the_model_learned(recipe, concepts):
    assert concepts_digest(concepts) == recipe["concepts_sha256"]


def test_probe_and_evaluation_concepts_are_disjoint_and_enough(recipe, concepts):
    held = split_concepts(concepts, recipe["mix"]["seed"])
    probe, evaluation = ({c.id for c in part} for part in (held.probe, held.evaluation))
    assert len(probe) >= 256 and not probe & evaluation
    assert len(probe) + len(evaluation) == len(concepts)


def test_no_evaluated_word_can_be_answered_by_copying_it_or_its_english(concepts):
    task = evaluation_task("id", "sw", concepts)
    english = {c.words["id"]: c.words["en"] for c in concepts}
    for item in task.items:
        (gold,) = item.golds
        assert gold.casefold() not in (item.text.casefold(), english[item.text].casefold())


def test_the_demo_runs_whole_and_its_last_lines_answer(tmp_path):
    small = DemoSettings(words=3, tokens=1_500, resamples=40, permutations=19)
    result = run_demo(small, tmp_path / "demo", Console(quiet=True))
    *_, sentence, place = result.text().splitlines()
    assert place == f"Report: {tmp_path / 'demo' / 'report.html'}"
    assert "random" in sentence or "chosen bridges translate" in sentence
    evaluation = result.report.evaluation
    assert evaluation is not None and len(evaluation.directions) == 12
    names = {row.name for row in evaluation.pooled}
    assert {"zero_shot", "en", "random", "oracle", "chosen", "largest |Y|"} <= names
    manifest = json.loads((tmp_path / "demo" / "manifest.json").read_text())
    assert "answers.parquet" in manifest["files"]
    again = run_demo(small, tmp_path / "demo", Console(quiet=True))
    assert again.text() == result.text()
