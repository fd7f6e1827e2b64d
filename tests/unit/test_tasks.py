"""Tasks as data: their forms, the conditions under which they are asked, and the metrics."""

import numpy as np
import pytest

from bridgex_jax.errors import InputError
from bridgex_jax.icl.conditions import ZERO_SHOT, Item, PairTask, evaluate_conditions
from bridgex_jax.icl.contamination import WINDOW, contaminated
from bridgex_jax.icl.metrics import best, exact_match, f1, normalise_span
from bridgex_jax.icl.task import builtin_tasks, read_task
from bridgex_jax.pipelines.choosers import plain_choosers
from bridgex_jax.pipelines.task_inputs import Asked, EvaluateSettings, pair_task, word_items


class Answers:
    """A model that answers with a function of the prompt and scores with another."""

    def __init__(self, complete=lambda prompt: "", score=lambda prompt, text: 0.0):
        self._complete, self._score, self.asked = complete, score, []

    def complete(self, what, prompts, max_new_tokens, *, quoted):
        self.asked.append((what, list(prompts), max_new_tokens, quoted))
        return [self._complete(prompt) for prompt in prompts]

    def score(self, what, prompts, continuations):
        self.asked.append((what, list(prompts), None, None))
        return np.array([self._score(p, t) for p, t in zip(prompts, continuations, strict=True)])


def question(key="1", gold="B", passage="Sebuah batu."):
    fields = {"question": "What?", "a": "a", "b": "b", "c": "c", "d": "d"}
    return Item(key, passage, (gold,), fields)


# Forms ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", builtin_tasks())
def test_the_tasks_that_ship_are_whole(name):
    form = read_task(name)
    assert form.name == name
    assert form.facts()["prompt"] == form.prompt


GOOD = """
name: mine
version: 1
data: xnli
bridged: premise
translate: "{source_code} {bridge_code} {premise}"
prompt: "{premise} {hypothesis}"
chain: "{translation} {hypothesis}"
example: " {gold}"
read: choice
choices: {entailment: " yes", neutral: " maybe", contradiction: " no"}
metrics: [accuracy]
max_translation_tokens: 9
"""


def test_a_user_s_task_is_a_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(GOOD)
    assert read_task(str(file)).choices["neutral"] == " maybe"


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("name: mine", "nome: mine", "unknown field 'nome'"),
        ("version: 1\n", "", "lacks the field 'version'"),
        ("data: xnli", "data: squad", "data is 'squad'"),
        ("bridged: premise", "bridged: passage", "bridged is 'passage'"),
        ("{translation} {hyp", "{traduction} {hyp", "chain: unknown field {traduction}"),
        ("{translation} {hyp", "{hyp", "chain: lacks {translation}"),
        ("{bridge_code} {premise}", "{hypothesis}", "translate: unknown field {hypothesis}"),
        ("[accuracy]", "[bleu]", "metrics are ['bleu']"),
        ("[accuracy]", "[]", "metrics are none"),
        ("read: choice", "read: line", "choices go with read: choice"),
        ("{premise} {hypothesis}", "{premise} {", "prompt: "),
        ("name: mine", "name: [mine", "is not YAML"),
        ("metrics: [accuracy]", "metrics: 3", "metrics is 3, not of the kind list"),
        ("max_translation_tokens: 9", "max_translation_tokens: many", "not of the kind int"),
    ],
)
def test_a_form_that_cannot_work_is_refused_by_file_and_field(tmp_path, old, new, complaint):
    file = tmp_path / "mine.yaml"
    file.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(InputError) as caught:
        read_task(str(file))
    assert complaint in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_task_names_the_known_ones():
    with pytest.raises(InputError, match="bli, mrc, nli, qa"):
        read_task("translation")


# Conditions -------------------------------------------------------------------------------------


def test_the_most_probable_choice_is_taken_and_its_share_is_the_gold_s_log_probability():
    probable = {" A": 0.1, " B": 0.6, " C": 0.2, " D": 0.05}
    model = Answers(lambda p: "A stone.", lambda p, text: np.log(probable[text]))
    task = PairTask("id", "en", (question(), question("2", "C")))
    (found,) = evaluate_conditions(read_task("mrc"), [task], ["de"], model, log_probs=True)
    for condition in found.values():
        assert condition.answers == ("B", "B")
        assert condition.correct.tolist() == [True, False]
        np.testing.assert_allclose(np.exp(condition.log_prob), np.array([0.6, 0.2]) / 0.95)


def test_a_passage_is_translated_once_and_takes_the_place_of_the_original():
    model = Answers(lambda p: "Ein  Stein.\n")
    task = PairTask("id", "en", (question(), question("2")))
    (found,) = evaluate_conditions(read_task("mrc"), [task], ["de"], model)
    hop1 = model.asked[0][1]
    assert len(set(hop1)) == 1
    assert hop1[0].startswith("Translate the following text from ind_Latn to deu_Latn:\n")
    assert "Passage: Ein Stein.\nQuestion" in found["de"].prompts[0]
    assert "batu" not in found["de"].prompts[0]
    assert "Passage: Sebuah batu.\n" in found[ZERO_SHOT].prompts[0]


def test_an_extracted_answer_is_judged_by_the_passage_s_language_under_all_conditions():
    model = Answers(lambda p: " The stone." if "Translate" not in p else "Der Stein.")
    item = Item("1", "A stone lies here.", ("stone", "a stone"), {"question": "Was?"})
    (found,) = evaluate_conditions(
        read_task("qa"), [PairTask("en", "de", (item,))], ["fr"], model, log_probs=True
    )
    for name in (ZERO_SHOT, "fr"):
        assert found[name].scores["exact"].tolist() == [1.0]
        assert found[name].scores["f1"].tolist() == [1.0]
        assert "Passage: A stone lies here." in found[name].prompts[0]
    assert "Translation of the passage: Der Stein." in found["fr"].prompts[0]


def test_no_translation_counts_as_wrong_and_is_not_asked():
    model = Answers(lambda p: "  \n", lambda p, text: float(text == " B"))
    (found,) = evaluate_conditions(
        read_task("mrc"), [PairTask("id", "en", (question(),))], ["de"], model, log_probs=True
    )
    assert found["de"].prompts == ("",)
    assert not found["de"].correct.any()
    assert np.isnan(found["de"].log_prob).all()
    assert found[ZERO_SHOT].correct.all()


def test_examples_stand_before_every_question_in_the_condition_s_own_form():
    model = Answers(lambda p: '"Wasser"')
    items = (Item("air", "air", ("maji",)),)
    task = PairTask("id", "sw", items, (Item("api", "api", ("moto",)),))
    (found,) = evaluate_conditions(read_task("bli"), [task], ["de"], model)
    assert found[ZERO_SHOT].prompts == (
        'Indonesia:"api"→kiswahili:"moto"\nIndonesia:"air"→kiswahili:',
    )
    assert found["de"].prompts == (
        'Indonesia:"api"→Deutsch:"Wasser"→kiswahili:"moto"\n'
        'Indonesia:"air"→Deutsch:"Wasser"→kiswahili:',
    )


def test_a_bridge_that_is_a_language_of_the_pair_is_left_out_there():
    task = PairTask("id", "de", (question(),))
    (found,) = evaluate_conditions(read_task("mrc"), [task], ["de", "fr"], Answers())
    assert list(found) == [ZERO_SHOT, "fr"]


# Questions --------------------------------------------------------------------------------------


def items(n):
    return [Item(str(i), str(i), ("x",)) for i in range(n)]


def test_examples_are_never_asked_and_the_draw_follows_the_seed():
    asked = Asked(
        read_task("bli"), "id", "he", ("en",), EvaluateSettings(limit=10, shots=3, seed=1)
    )
    first, again = (pair_task(asked, items(20), ["f"]) for _ in range(2))
    assert first == again
    assert len(first.items) == 10 and len(first.examples) == 3
    assert not {e.key for e in first.examples} & {i.key for i in first.items}
    assert [i.key for i in first.items] == sorted((i.key for i in first.items), key=int)


def test_too_few_questions_are_refused():
    asked = Asked(read_task("bli"), "id", "he", ("en",), EvaluateSettings(shots=3))
    with pytest.raises(InputError, match="7 questions are left to evaluate id-he on"):
        pair_task(asked, items(10), ["f"])


def test_words_that_chose_a_bridge_and_their_pivots_are_not_asked(tmp_path):
    from bridgex_jax.data.dictionaries import Dictionary, WordPair

    pairs = (
        WordPair("air", "mayim", ("water",)),
        WordPair("banyu", "mayim", ("water",)),
        WordPair("api", "esh", ("fire",)),
    )
    words = Dictionary("id", "he", pairs, {}, ("f",), "0")
    assert [item.key for item in word_items(words, {"Air"})] == ["api"]


def test_text_that_a_corpus_has_is_found_whatever_its_case_and_punctuation():
    line = "The quick brown fox jumps over the lazy dog near the old river bank today."
    texts = [
        f"Before. {line.upper()} After.",
        line[: WINDOW // 2],
        "Something else that has nothing to do with any of the lines, as long as it may be.",
        "中文" * 30,
    ]
    assert contaminated(texts, [line.replace(",", ""), "中文" * 25]).tolist() == [
        True, False, False, True,
    ]  # fmt: skip
    assert contaminated(["A short line."], ["a SHORT line"]).tolist() == [True]


def test_english_is_a_chooser_where_it_is_a_bridge():
    assert plain_choosers("id", "he", ["en", "de"]) == {"english": {"en": 1.0, "de": 0.0}}
    assert plain_choosers("id", "he", ["de", "fr"]) == {}


# Metrics ----------------------------------------------------------------------------------------


def test_f1_and_exact_match_by_hand():
    assert exact_match("The cat.", "cat", "en") == 1
    assert exact_match("Die Katze", "Katze", "de") == 1
    assert exact_match("", "", "en") == 0
    assert f1("the black cat", "cat sat", "en") == pytest.approx(2 * 1 / (2 + 2))
    assert f1("我是人", "我是", "zh") == pytest.approx(4 / 5)
    assert f1("dog", "cat", "en") == 0
    assert normalise_span("الرجل هنا", "ar") == "رجل هنا"
    assert best(f1, "cat", ["dog", "cat sat", "cat"], "en") == 1


@pytest.mark.parametrize("metric", [f1, exact_match])
def test_metrics_are_symmetric_and_between_0_and_1(metric):
    rng = np.random.default_rng(0)
    words = ["a", "cat", "sat", "on", "mat", "猫", "ok."]
    for _ in range(200):
        one, other = (" ".join(rng.choice(words, rng.integers(0, 5))) for _ in range(2))
        value = metric(one, other, "en")
        assert 0 <= value <= 1
        assert value == metric(other, one, "en")
