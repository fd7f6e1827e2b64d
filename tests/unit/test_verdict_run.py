"""`bridgex verdict`: evaluations of several pairs, compared from their files."""

import json
import zlib
from dataclasses import replace

import numpy as np
import pytest

from bridgex_jax.errors import InputError
from bridgex_jax.icl.conditions import ZERO_SHOT, Item, PairTask
from bridgex_jax.icl.task import read_task
from bridgex_jax.pipelines.console import Console
from bridgex_jax.pipelines.evaluate import run_evaluate
from bridgex_jax.pipelines.task_inputs import EvaluateSettings, Exam
from bridgex_jax.pipelines.verdict import (
    PairResult,
    VerdictSettings,
    compare,
    find_runs,
    run_verdict,
    verdict_lines,
)
from bridgex_jax.store.manifest import verify_run
from bridgex_jax.store.tables import read_answers

QUIET = Console(quiet=True)
BRIDGES = ("en", "de", "fr")


class Oracle:
    """Answers right through each bridge with its own probability, by a hash of the prompt."""

    def __init__(self, rates):
        self.rates = rates

    def complete(self, what, prompts, max_new_tokens, *, quoted):
        return [self._answer(prompt) for prompt in prompts]

    def _answer(self, prompt):
        rng = np.random.default_rng(zlib.crc32(prompt.encode()))
        chain = prompt.count("→") > 1
        if not chain and not prompt.endswith("עִברִית:"):
            return '"x"'
        bridge = next((b for b, n in (("en", "English"), ("de", "Deutsch"), ("fr", "Français"))
                       if f"→{n}:" in prompt), None)  # fmt: skip
        return '"gold"' if rng.random() < self.rates[bridge] else '"other"'

    def score(self, what, prompts, continuations):
        return np.array([-1.0 for _ in prompts])


def exam(source, scores):
    items = tuple(Item(f"w{i}", f"w{i}", ("gold",)) for i in range(60))
    picks = {name: max(of, key=of.__getitem__) for name, of in scores.items()}
    task = PairTask(source, "he", items)
    return Exam(read_task("bli"), task, BRIDGES, picks, scores, {"dictionary": source}, {})


SCORES = {
    "hsic": {"en": 0.1, "de": 0.9, "fr": 0.2},
    "english": {"en": 1.0, "de": 0.0, "fr": 0.0},
}


@pytest.fixture
def runs(tiny_model, tmp_path):
    model = Oracle({None: 0.2, "en": 0.4, "de": 0.8, "fr": 0.4})
    for source in ("id", "sw", "hu"):
        run_evaluate(
            tiny_model, exam(source, SCORES), EvaluateSettings(resamples=50),
            tmp_path / "runs" / source, QUIET, model,
        )  # fmt: skip
    return tmp_path / "runs"


def test_evaluations_below_a_directory_give_one_verdict(runs, tmp_path):
    found = find_runs([str(runs)])
    assert [run.pair.source for run in found] == ["hu", "id", "sw"]
    out = tmp_path / "verdict"
    result = run_verdict(found, VerdictSettings(resamples=200), out, QUIET)
    first, english = result.verdict.choosers
    assert (first.name, first.picks) == ("hsic", ("de",) * 3)
    assert english.picks == ("en",) * 3
    assert result.verdict.n_words == 180
    gain = {row.baseline: row for row in first.gains}
    assert gain["random"].is_real and gain["random"].gain.value > 0.1
    assert "better than a random bridge" in result.verdict.sentence
    files = verify_run(out)["files"]
    assert {"verdict.json", "report.html", "pairs.svg", "regret.svg", "score.svg"} <= set(files)
    stored = json.loads((out / "verdict.json").read_text())
    assert stored["choosers"][0]["accuracy"]["value"] == first.accuracy.value
    assert "hsic" in "\n".join(verdict_lines(result.verdict))
    again = run_verdict(found, VerdictSettings(resamples=200), out, QUIET)
    assert again.verdict == result.verdict


def test_the_same_pair_twice_and_several_tasks_are_refused(runs, tmp_path):
    found = find_runs([str(runs), str(runs / "id")])
    with pytest.raises(InputError, match="evaluates id-he, and so does"):
        run_verdict(found, VerdictSettings(), tmp_path / "v", QUIET)
    with pytest.raises(InputError, match="0 tasks: none is left"):
        run_verdict(found[:1], VerdictSettings(task="mrc"), tmp_path / "v", QUIET)


def test_a_place_without_evaluations_is_named(tmp_path):
    with pytest.raises(InputError, match="holds no run of bridgex evaluate"):
        find_runs([str(tmp_path)])


def test_a_damaged_evaluation_is_named(runs):
    file = runs / "id" / "answers.parquet"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"answers\.parquet"):
        find_runs([str(runs)])


def pair(source, scores, rng, best="de"):
    rates = {ZERO_SHOT: 0.3, "en": 0.4, "de": 0.4, "fr": 0.4} | {best: 0.7}
    return PairResult(
        source, "he", {name: rng.random(50) < rate for name, rate in rates.items()}, None, scores
    )


def test_a_chooser_that_cannot_say_everywhere_is_left_out_and_named():
    rng = np.random.default_rng(0)
    lost = {"hsic": SCORES["hsic"], "table": {"en": 1.0}}
    found = compare([pair("id", lost, rng), pair("sw", SCORES, rng)], task="bli", model="m",
                    resamples=50)  # fmt: skip
    assert [row.name for row in found.choosers] == ["hsic"]
    assert any("table takes a bridge in 1 of 2 pairs" in text for text in found.dropped)
    with pytest.raises(InputError, match="no such chooser"):
        compare([pair("id", lost, rng)], task="bli", model="m", judged="lape", resamples=50)


def test_without_choosers_there_is_a_table_and_no_claim():
    rng = np.random.default_rng(0)
    found = compare([pair("id", {}, rng)], task="bli", model="m", resamples=50)
    assert found.choosers == () and "nothing can be said" in found.sentence
    assert set(found.rules) >= {ZERO_SHOT, "en", "de", "fr", "random", "oracle"}


def test_log_probabilities_stand_beside_accuracy_where_all_bridges_have_them():
    rng = np.random.default_rng(0)
    one = pair("id", SCORES, rng)
    values = {name: np.where(right, -0.5, -3.0) for name, right in one.correct.items()}
    values["fr"][:5] = np.nan
    told = PairResult("id", "he", one.correct, values, SCORES)
    found = compare([told], task="bli", model="m", resamples=200)
    gain = found.choosers[0].log_probability
    assert gain is not None and gain.gain.value > 0 and gain.n_words == 45
    assert any("5 of 50 words" in text for text in found.dropped)


def test_a_task_of_f1_is_judged_by_f1_and_an_answer_that_is_half_right_is_not_right(
    tiny_model, tmp_path
):
    form = replace(read_task("qa"), metrics=("f1",))
    items = tuple(Item(f"q{i}", "gold stone", ("gold stone",), {"question": "x"}) for i in range(9))
    halves = Exam(form, PairTask("en", "he", items), ("de",), {"ours": "de"},
                  {"ours": {"de": 1.0}}, {}, {})  # fmt: skip

    class Half(Oracle):
        def complete(self, what, prompts, max_new_tokens, *, quoted):
            return ["gold" for _ in prompts]

    run_evaluate(
        tiny_model, halves, EvaluateSettings(resamples=20), tmp_path / "e", QUIET, Half({})
    )
    (run,) = find_runs([str(tmp_path / "e")])
    assert not any(a.correct for a in read_answers(tmp_path / "e" / "answers.parquet"))
    np.testing.assert_allclose(run.pair.correct["de"], 2 / 3)
    found = compare([run.pair], task="qa", model="m", resamples=20)
    assert found.choosers[0].accuracy.value == pytest.approx(2 / 3)


def test_other_scores_with_the_same_picks_are_another_run(tiny_model, tmp_path):
    model, settings = Oracle({None: 0.2, "en": 0.4, "de": 0.8, "fr": 0.4}), EvaluateSettings()
    run_evaluate(tiny_model, exam("id", SCORES), settings, tmp_path / "e", QUIET, model)
    others = {name: {b: 2 * v for b, v in of.items()} for name, of in SCORES.items()}
    with pytest.raises(InputError, match="already holds another run"):
        run_evaluate(tiny_model, exam("id", others), settings, tmp_path / "e", QUIET, model)
