"""A plan says what the command line would: same defaults, same values, errors with their line."""

from __future__ import annotations

import itertools
import json

import pytest

from bridgex_jax.cli.main import parse
from bridgex_jax.errors import InputError
from bridgex_jax.icl.task import read_task
from bridgex_jax.pipelines.evaluate import EvaluateSettings
from bridgex_jax.pipelines.select import settings_from
from bridgex_jax.pipelines.sweep.plan import _OPTIONS, read_plan

SMALL = {"models": ["builtin"], "pairs": ["id-he"], "bridges": ["en", "de"]}


def written(tmp_path, text):
    file = tmp_path / "plan.yaml"
    file.write_text(text if isinstance(text, str) else json.dumps(text))
    return file


def read(tmp_path, text):
    return read_plan(written(tmp_path, text))


def command_line(*flags):
    return vars(parse(["bridgex", "select", "builtin", "--source", "id", "--target", "he",
                       "--out", "o", *flags]))  # fmt: skip


def test_the_defaults_are_those_of_select(tmp_path):
    assert read(tmp_path, SMALL).settings == (settings_from(command_line()),)


FLAGS = {
    "top_rate": "0.1", "rate_scope": "layer", "bridge_set": "all", "top_k": "7",
    "drop_common": True, "words": "300", "probe_filter": "none", "token_scope": "last_token",
    "template": '{word}→{target_language}:', "layers": "3-5", "seed": "4", "batch_size": "8",
    "resamples": "20", "permutations": "30", "estimator": "biased", "bandwidth": "set_median",
    "length_control": "none", "no_size_matching": True, "compat": "paper", "tokens": "900",
    "row_length": "64", "parallel": "99",
}  # fmt: skip


def test_every_option_of_select_can_stand_in_a_plan(tmp_path):
    """Compat alone, since it excludes others; then all the others together."""
    assert FLAGS.keys() == _OPTIONS.keys()
    for names in (["compat"], [name for name in FLAGS if name != "compat"]):
        flags: list[str] = []
        for name in names:
            value = FLAGS[name]
            flags += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
        expected = settings_from(command_line(*flags))
        chosen = {name: FLAGS[name] for name in names}
        assert read(tmp_path, SMALL | {"select": chosen}).settings == (expected,)
        dashed = {name.replace("_", "-"): value for name, value in chosen.items()}
        assert read(tmp_path, SMALL | {"select": dashed}).settings == (expected,)


def test_a_grid_is_every_combination_with_the_last_key_fastest(tmp_path):
    plan = read(tmp_path, SMALL | {"grid": {"seed": [0, 1], "top_rate": [0.1, 0.2, 0.3]}})
    found = [(one.seed, one.top_rate) for one in plan.settings]
    assert found == list(itertools.product([0, 1], [0.1, 0.2, 0.3]))


def test_yaml_s_own_guesses_do_no_harm(tmp_path):
    """`no` is Norwegian and not false, 1e-2 a number and not a word, 0-5 a range and not a date."""
    plan = read(
        tmp_path,
        "models: [builtin]\npairs: [no-sv]\nbridges: [da]\n"
        "select: {top_rate: 1e-2, layers: 0-5, tokens: ~, probe_filter: none, drop_common: true}",
    )
    (one,) = plan.settings
    assert plan.pairs[0].source == "no" and one.top_rate == 0.01 and one.layers == (0, 5)
    assert one.count.tokens is None and one.probe_filter == "none" and one.drop_common is True


def test_bridges_of_the_plan_leave_source_and_target_out(tmp_path):
    plan = read(
        tmp_path, SMALL | {"pairs": ["id-he", "en-he", "eng-deu"], "bridges": ["en", "de", "fr"]}
    )
    assert [pair.bridges for pair in plan.pairs] == [("en", "de", "fr"), ("de", "fr"), ("fr",)]
    assert plan.languages == ("id", "he", "en", "de", "fr")


def test_a_pair_may_have_its_own_bridges_and_dictionary(tmp_path):
    pair = {"source": "id", "target": "sw", "bridges": ["pt"], "dictionary": ["a.txt", "b.txt"]}
    plan = read(tmp_path, SMALL | {"pairs": ["id-he", pair], "dictionary": {"id-he": "c.txt"}})
    assert plan.pairs[1].bridges == ("pt",)
    assert plan.pairs[1].dictionary == ("a.txt", "b.txt")
    assert plan.dictionaries == (("id-he", ("c.txt",)),)


def test_a_plan_without_evaluate_evaluates_nothing(tmp_path):
    assert read(tmp_path, SMALL).evaluate == ()


def test_evaluate_has_the_defaults_of_the_command_line_and_takes_its_options(tmp_path):
    (one,) = read(tmp_path, SMALL | {"evaluate": {"task": "bli"}}).evaluate
    flags = vars(parse(["bridgex", "evaluate", "builtin", "--source", "id", "--target", "he",
                        "--out", "o"]))  # fmt: skip
    names = ("limit", "shots", "seed", "batch_size")
    assert one.settings == EvaluateSettings(**{name: flags[name] for name in names})
    assert one.form == read_task("bli") and one.data is None and one.choosers == ()
    given = {"task": "bli", "limit": "500", "shots": 2, "seed": -1, "batch-size": 8,
             "scores": "s.csv", "typology": "t.npz"}  # fmt: skip
    (one,) = read(tmp_path, SMALL | {"evaluate": given}).evaluate
    assert one.settings == EvaluateSettings(limit=500, shots=2, seed=-1, batch_size=8)
    assert one.choosers == (("typology", "t.npz"), ("scores", "s.csv"))


def test_a_list_of_tasks_is_each_of_them_with_its_own_data(tmp_path):
    files = {"eng_Latn": "e", "id": "i"}
    own = tmp_path / "own.yaml"
    own.write_text("name: mine\nversion: 1\ndata: xnli\nbridged: premise\ntranslate: '{premise}'\n"
                   "prompt: '{premise}'\nchain: '{translation}'\nexample: '{gold}'\nread: line\n"
                   "metrics: [exact]\nmax_translation_tokens: 9\nmax_new_tokens: 9\n")  # fmt: skip
    tasks = ["bli", "mrc", str(own)]
    data = {"mrc": files, "mine": "hub"}
    plan = read(tmp_path, SMALL | {"evaluate": {"task": tasks, "data": data}})
    assert [(one.form.name, one.data) for one in plan.evaluate] == [
        ("bli", None),
        ("mrc", (("en", "e"), ("id", "i"))),
        ("mine", "hub"),
    ]
    for data in (files, {"nli": files}):  # of one task alone, with or without its name
        (words, texts) = read(
            tmp_path, SMALL | {"evaluate": {"task": ["bli", "nli"], "data": data}}
        ).evaluate
        assert words.data is None and texts.files == {"en": "e", "id": "i"}


BAD = [
    ("models: [builtin]\npairs: [id-he\n", 3, "is not YAML"),
    ("", None, "is empty"),
    ("- a\n", 1, "is not a mapping"),
    ("models: [builtin]\npair: [id-he]\n", 2, "unknown key 'pair' in the plan; did you mean pairs"),
    ("models: [builtin]\n", 1, "has no pairs"),
    ("models: []\npairs: [id-he]\nbridges: [en]", 1, "models is not a list"),
    ("models: [builtin]\nmodels: [x]\n", 2, "'models' stands twice"),
    ("models: [builtin]\npairs: [idhe]\nbridges: [en]", 2, "does not name two languages"),
    ("models: [builtin]\npairs:\n - id-he\n - id-xx\nbridges: [en]", 4, "unknown language code"),
    ("models: [builtin]\npairs: [id-id]\nbridges: [en]", 2, "source and target are both id"),
    ("models: [builtin]\npairs: [id-he, ind-heb]\nbridges: [en]", 2, "pairs holds an item twice"),
    ("models: [builtin]\npairs: [id-he]\n", 2, "id-he has no bridges"),
    ("models: [builtin]\npairs: [{source: id, target: he, bridges: [id]}]", 2, "bridge id is the"),
    ("models: [builtin]\npairs: [{source: id}]", 2, "a pair has no target"),
    ("models:\n - {model: x, dtype: int8}\npairs: [id-he]\nbridges: [en]", 2, "dtype 'int8'"),
    ("models:\n - {path: x}\npairs: [id-he]\nbridges: [en]", 2, "unknown key 'path' in models"),
    ("models: [x]\npairs: [id-he]\nbridges: [en]", 1, "the plan has no corpus"),
    ("models: [x]\npairs: [id-he]\nbridges: [en]\ncorpus: cldr", 1, "the plan has no dictionary"),
    ("models: [x]\npairs: [id-he]\nbridges: [en]\ncorpus:\n  en: f\n  id: f", 5, "no corpus of he"),
    ("models: [x]\npairs: [id-he]\nbridges: [en]\ncorpus: f", 4, "neither files nor cldr"),
    ("models: [x]\npairs: [id-he]\nbridges: [en]\ncorpus: {en: a, eng: b}", 4, "two corpora of en"),
]
BUILTIN = "models: [builtin]\npairs: [id-he]\nbridges: [en]\n"
BAD += [
    (BUILTIN + "select:\n  top_rate: 2", 5, "top_rate: '2' is not a number between 0 and 1"),
    (BUILTIN + "select:\n  toprate: 0.1", 5, "did you mean top_rate?"),
    (BUILTIN + "select:\n  top_rate: [0.1, 0.2]", 5, "lists go under grid:"),
    (BUILTIN + "select:\n  words: 0", 5, "is not a positive whole number"),
    (BUILTIN + "select:\n  words: 1.5", 5, "is not a positive whole number"),
    (BUILTIN + "select:\n  seed: x", 5, "is not a whole number"),
    (BUILTIN + "select:\n  drop_common: yes", 5, "is neither true nor false"),
    (BUILTIN + "select:\n  layers: 9-3", 5, "ends before it begins"),
    (BUILTIN + "select:\n  rate_scope: world", 5, "is none of global, layer"),
    (BUILTIN + "select:\n  words: 100", 5, "under 128"),
    (BUILTIN + "select: {compat: paper}\ngrid: {estimator: [biased, cka]}", 5, "already decides"),
    (BUILTIN + "select: {estimator: hsic}", 4, "estimator 'hsic' is unknown"),
    (BUILTIN + "select: {template: '{word}'}", 4, "lacks {target_language}"),
    (BUILTIN + "grid: {seed: 1}", 4, "seed is not a list"),
    (BUILTIN + "grid: {seed: [1, 01]}", 4, "seed holds a value twice"),
    (BUILTIN + "select: {seed: 1}\ngrid: {seed: [1, 2]}", 5, "in select and in grid"),
    (BUILTIN + "count: {rows: 3}", 4, "unknown key 'rows' in count"),
    (BUILTIN + "dictionary: {idhe: f}", 4, "does not name two languages"),
    (BUILTIN + "languages: [zz]", 4, "unknown language code"),
]
EVALUATE = BUILTIN + "evaluate:\n"
BAD += [
    (BUILTIN + "evaluate: bli", 4, "evaluate is not a mapping"),
    (EVALUATE + "  limit: 5", 5, "evaluate has no task"),
    (EVALUATE + "  task: bli\n  limits: 5", 6, "'limits' in evaluate; did you mean limit?"),
    (EVALUATE + "  task: bli\n  limit: 0", 6, "limit: '0' is not a positive whole number"),
    (EVALUATE + "  task: bli\n  shots: -1", 6, "shots: '-1' is not a whole number from 0"),
    (EVALUATE + "  task: bli\n  seed: [1, 2]", 6, "seed is not a single value"),
    (EVALUATE + "  task: blu", 5, "unknown task 'blu'"),
    (EVALUATE + "  task: gone.yaml", 5, "gone.yaml: no such file"),
    (EVALUATE + "  task: [bli, bli]", 5, "task holds bli twice"),
    (EVALUATE + "  task: []", 5, "task is not a list of items"),
    (EVALUATE + "  task: bli\n  data: {id: f}", 6, "data are not for bli"),
    (EVALUATE + "  task: [bli, mrc]", 5, "no data of mrc"),
    (EVALUATE + "  task: mrc\n  data: f", 6, "data are neither files nor hub"),
    (EVALUATE + "  task: mrc\n  data:\n    id: f\n    xx: f", 8, "unknown language code"),
    (EVALUATE + "  task: mrc\n  data:\n    id: f\n    ind: f", 8, "two files of mrc of id"),
    (EVALUATE + "  task: [mrc, nli]\n  data: {id: f}", 6, "do not say of which task they are"),
    (EVALUATE + "  task: [mrc, nli]\n  data: {mrc: {id: f}}", 6, "no data of nli"),
    (EVALUATE + "  task: mrc\n  data:\n    mrc: {id: f}\n    mcr: hub", 8, "did you mean mrc?"),
]


@pytest.mark.parametrize(("text", "line", "what"), BAD, ids=[what[:30] for *_, what in BAD])
def test_what_is_wrong_is_one_line_with_file_line_and_remedy(tmp_path, text, line, what):
    with pytest.raises(InputError) as caught:
        read(tmp_path, text)
    shown = str(caught.value)
    place = tmp_path / "plan.yaml"
    assert shown.startswith(f"{place}: " if line is None else f"{place}:{line}: "), shown
    assert what in shown and "\n" not in shown and caught.value.remedy


def test_a_plan_that_cannot_be_read_is_bad_input(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_plan(tmp_path / "gone.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"models: [caf\xe9]")
    with pytest.raises(InputError, match="UTF-8"):
        read_plan(tmp_path / "latin.yaml")
