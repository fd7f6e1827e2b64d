"""Variations share their work, agree with `select`, and say what they could not do."""

from dataclasses import replace

import numpy as np
import pytest

from bridgex_jax.bridge.sets import ProbeValues
from bridgex_jax.bridge.spectrum import SpectrumSettings
from bridgex_jax.cli import main as cli
from bridgex_jax.data.corpora import Corpus
from bridgex_jax.data.dictionaries import Dictionary, WordPair
from bridgex_jax.errors import InputError
from bridgex_jax.pipelines import ablate as job
from bridgex_jax.pipelines.choosers import estimator_choosers
from bridgex_jax.pipelines.select import Request, SelectSettings, select_bridge
from bridgex_jax.report.ablation_figure import (
    Ablation,
    AblationRow,
    ablation_figure,
    ablation_sentence,
    ablation_table,
    read_ablation,
    write_ablation,
)
from bridgex_jax.report.drawing import to_svg
from bridgex_jax.store.counts import LanguageCounts
from bridgex_jax.store.runs import create_run

BRIDGES = ("en", "de", "fr")
PAIRS = tuple(WordPair(f"{'kata' * (n % 3)}{n}", f"מילה{n}") for n in range(48))
WORDS = Dictionary("id", "he", PAIRS, {}, ("d",), "0")
TEXTS = {
    "id": "Bahasa Indonesia adalah bahasa resmi negara ini dan dipakai di sekolah.",
    "he": "השפה העברית היא שפה שמית המדוברת בעיקר בישראל ובקהילות אחרות.",
    "en": "The quick brown fox jumps over the lazy dog near the river bank.",
    "de": "Der schnelle braune Fuchs springt über den faulen Hund am Fluss.",
    "fr": "Le vif renard brun saute par-dessus le chien paresseux près du fleuve.",
}
CORPORA = {
    code: Corpus(code, tuple(f"{text} {n}" for n in range(40)), {}, "0", "c")
    for code, text in TEXTS.items()
}
REQUEST = Request("id", "he", BRIDGES, WORDS, CORPORA)
BASE = SelectSettings(
    top_rate=0.3,
    bridge_set="not_shared",
    probe_filter="none",
    words=32,
    resamples=20,
    permutations=19,
    batch_size=16,
)


@pytest.fixture
def calls(monkeypatch):
    """Token scopes that were probed, and the HSIC settings of every spectrum that was made."""
    probed, scored = [], []
    read, score = job.read_probes, job.score_pairs

    def read_probes(model, probes, neurons, settings, mesh, console):
        probed.append(settings.token_scope)
        return read(model, probes, neurons, settings, mesh, console)

    def score_pairs(pairs, settings, mesh, **rest):
        scored.extend([settings] * len(pairs))
        return score(pairs, settings, mesh, **rest)

    monkeypatch.setattr(job, "read_probes", read_probes)
    monkeypatch.setattr(job, "score_pairs", score_pairs)
    return probed, scored


def row_of(ablation, setting, value) -> AblationRow:
    return next(r for r in ablation.rows if r.setting == setting and r.value.startswith(value))


@pytest.fixture(scope="module")
def everything(tiny_model):
    """All variations but those of HSIC, which compile for long."""
    vary = [name for name in job.SETTINGS if name not in ("estimator", "bandwidth")]
    return job.ablate(tiny_model, REQUEST, BASE, vary)[0]


def test_the_base_value_of_every_setting_changes_nothing(everything):
    base = [row for row in everything.rows if row.is_base]
    assert {row.setting for row in base} == {*job.SETTINGS} - {"estimator", "bandwidth"}
    for row in base:
        assert row.same_as_base and row.rank_correlation == pytest.approx(1)
        assert (row.bridge, row.scores) == (everything.base.bridge, everything.base.scores)
        assert row.p_best is not None
    assert all(row.p_best is None for row in everything.rows if not row.is_base)


def test_what_cannot_be_run_says_why_and_does_not_count(everything):
    reasons = {
        ("probe_filter", "correct"): "32 words, at least 128",
        ("top_rate", "5×"): "under 1",
        ("words", "1/8"): "4 words, at least 8",
    }
    for place, part in reasons.items():
        row = row_of(everything, *place)
        assert row.bridge is None and row.same_as_base is None and part in row.note
    of = {one.setting: one for one in everything.settings}
    assert (of["words"].answered, of["words"].unanswered) == (2, 1)
    assert of["probe_filter"].answered == 0
    assert "no choice with probe filter correct: 32 words" in ablation_table(everything)


def test_every_token_scope_is_probed_once_and_equal_sources_are_scored_once(tiny_model, calls):
    probed, scored = calls
    vary = ("token_scope", "words", "seed", "top_rate", "bridge_set", "length_control")
    found, _, _ = job.ablate(tiny_model, REQUEST, BASE, vary)
    assert sorted(probed) == sorted({r.value for r in found.rows if r.setting == "token_scope"})
    different = [row for row in found.rows if not row.is_base and row.n_words is not None]
    assert len(scored) == 1 + len(different)


def test_layer_windows_read_the_base_s_spectrum(tiny_model, calls):
    probed, scored = calls
    found, _, _ = job.ablate(tiny_model, REQUEST, BASE, ["layers"])
    assert len(found.rows) == 4 and len(probed) == 1 and scored == [BASE.spectrum]
    first, last = (row_of(found, "layers", name) for name in ("first", "last"))
    assert first.scores != last.scores


def test_a_window_of_the_user_s_own_is_the_base():
    own = job.variations(job.BasePoint(replace(BASE, layers=(1, 3)), 32, 4), ["layers"])
    assert [v.value.split()[0] for v in own] == ["as", "middle", "first", "last", "all"]
    assert [v.is_base for v in own] == [True, False, False, False, False]
    whole = job.variations(job.BasePoint(replace(BASE, layers=(0, 3)), 32, 4), ["layers"])
    assert [v.is_base for v in whole] == [False, False, False, True]


@pytest.mark.parametrize(
    ("setting", "value", "change"),
    [
        ("top_rate", "2×", {"top_rate": 0.6}),
        ("words", "1/2", {"words": 16}),
        ("token_scope", "last_token", {"token_scope": "last_token"}),
        ("size_matching", "off", {"spectrum": SpectrumSettings(size_matching=False)}),
        ("seed", "3", {"seed": 3}),
        ("layers", "last third", {"layers": (3, 3)}),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_variation_is_select_with_that_setting(tiny_model, everything, setting, value, change):
    row = row_of(everything, setting, value)
    alone = select_bridge(tiny_model, REQUEST, replace(BASE, **change))[0]
    assert row.bridge == alone.choice.bridge and row.n_words == len(alone.probe.words)
    known = {bridge: score for bridge, score in row.scores.items() if score is not None}
    assert known == pytest.approx(alone.choice.means, rel=1e-3, abs=1e-6)


def test_a_planted_bridge_stays_chosen_under_all_estimators_and_bandwidths(tiny_model, monkeypatch):
    """Blocks of 16 neurons: shared, then each bridge's own; those of `de` follow the shared."""
    n_layers, n_neurons, n_words = 4, 64, 48
    random = np.random.default_rng(0)
    values = random.standard_normal((n_layers, n_neurons, n_words))
    values[:, 32:48] = 0.4 * values[:, 32:48] + values[:, :16]
    counts = {}
    for code, block in {"id": 0, "he": 0, "en": 1, "de": 2, "fr": 3}.items():
        halves = np.zeros((2, n_layers, n_neurons), np.int32)
        halves[:, :, 16 * block : 16 * block + 16] = 9
        sums = np.zeros((n_layers, n_neurons), np.float32)
        counts[code] = LanguageCounts(code, halves, sums, (10, 10), {})

    def read_probes(model, probes, neurons, *rest):
        kept = [layer[ids].astype(np.float32) for layer, ids in zip(values, neurons, strict=True)]
        return [ProbeValues(kept, neurons, np.full(n_words, 9))]

    monkeypatch.setattr(job, "read_probes", read_probes)
    settings = replace(BASE, top_rate=0.25, words=n_words)
    vary = ["estimator", "bandwidth"]
    found, _, _ = job.ablate(tiny_model, REQUEST, settings, vary, counts=counts)
    assert [row.bridge for row in found.rows] == ["de"] * 12
    assert "changes in none of 10 variations" in ablation_sentence(found)


def test_what_compat_decides_is_not_varied():
    settings = replace(BASE, spectrum=SpectrumSettings(compat="paper"))
    planned = job.variations(job.BasePoint(settings, 32, 4), ["size_matching", "estimator"])
    (only,) = (one for one in planned if one.setting == "size_matching")
    assert only.is_base and only.note == "compat paper decides it"
    assert [v.value for v in planned if v.is_base] == ["as given", "compat paper"]
    assert all(v.settings.spectrum.compat is None for v in planned if "compat" not in v.value
               and not v.is_base)  # fmt: skip


def test_every_variation_differs_from_the_base_in_its_own_setting_alone():
    base = job.BasePoint(BASE, 32, 24)
    names = {"layers", "words", "seed", "top_rate", "probe_filter", "token_scope", "bridge_set"}
    for one in job.variations(base, tuple(job.SETTINGS)):
        changed = {k for k, v in vars(one.settings).items() if v != vars(BASE)[k]}
        own = one.setting if one.setting in names else "spectrum"
        assert changed == (set() if one.is_base else {own}), one
    windows = [v.value for v in job.variations(base, ["layers"])]
    assert windows == ["middle (7–16)", "first third (0–7)", "last third (16–23)", "all (0–23)"]


def test_seeds_that_draw_the_same_words_are_not_run(tiny_model, calls):
    found, _, _ = job.ablate(tiny_model, REQUEST, replace(BASE, words=99), ["seed"])
    assert len(calls[1]) == 1
    assert {row.note for row in found.rows if not row.is_base} == {
        "all 48 words are used, whatever the seed"
    }
    assert "no variation gave a choice" in ablation_sentence(found)
    assert "seed of the words 1, 2, 3, 4: all 48" in ablation_table(found)


def test_a_base_point_without_an_answer_is_an_error(tiny_model):
    words = replace(WORDS, pairs=PAIRS[:7])
    with pytest.raises(InputError, match="only 7 usable words from id to he"):
        job.ablate(tiny_model, replace(REQUEST, words=words), BASE, ["layers"])
    with pytest.raises(InputError, match=r"--vary 'layer' is no setting; choose from token_scope"):
        job.ablate(tiny_model, REQUEST, BASE, ["layer"])


def sample() -> Ablation:
    scores = {"en": 0.3, "de": 0.2, "fr": None}
    base = AblationRow("top_rate", "1× (0.1)", True, "en", True, 1.0, 0.1, 0.9, 64, 1.0, "", scores)
    other = {"en": 0.1, "de": 0.2, "fr": None}
    changed = replace(base, value="2× (0.2)", is_base=False, bridge="de", same_as_base=False,
                      rank_correlation=-1.0, p_best=None, scores=other)  # fmt: skip
    silent = AblationRow("top_rate", "5× (0.5)", False, note="no neuron " * 30)
    same = replace(base, setting="seed", value="1", is_base=False, p_best=None)
    return Ablation((base, changed, silent, replace(base, setting="seed", value="0"), same))


def test_the_sentence_counts_what_changes():
    assert ablation_sentence(sample()) == (
        "The choice of English (en) changes in 1 of 2 variations: with the top rate (1 of 1)."
    )
    table = ablation_table(sample()).splitlines()
    assert table[0] == "base: English (en), P(best) 90 %, runner-up German (de)"
    assert table[2].split() == ["top", "rate", "1", "of", "1", "−1.00", "de"]


def test_rows_come_back_from_the_file_and_equal_rows_are_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_ablation(tmp_path / name, sample())
    assert read_ablation(tmp_path / "a") == sample()
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    (tmp_path / "a").write_bytes(b"no table")
    with pytest.raises(InputError, match="is not a Parquet file"):
        read_ablation(tmp_path / "a")


def test_the_figure_names_every_value_and_marks_nothing_outside(everything):
    svg = to_svg(ablation_figure(everything), "title")
    assert svg == to_svg(ablation_figure(everything), "title")
    for row in everything.rows:
        assert row.value.split()[0] in svg
    figure = ablation_figure(sample())
    figure.canvas.draw()
    shown = [text for text in figure.axes[0].texts if text.get_text()]
    for text in shown:
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1, text.get_text()
        assert box.y0 >= 0 and box.y1 <= figure.bbox.y1, text.get_text()


def test_the_help_names_every_setting(capsys):
    with pytest.raises(SystemExit):
        cli.parse(["bridgex", "ablate", "--help"])
    out = capsys.readouterr().out
    assert "bridgex ablate builtin" in out
    for name in job.SETTINGS:
        assert name in out


def test_estimators_of_an_ablation_are_choosers_of_an_evaluation(tmp_path):
    row = {"bridge": "de", "same_as_base": False, "scores": {"en": 0.1, "de": 0.4}}
    rows = (
        AblationRow("estimator", "cka_debiased", True, **(row | {"scores": {"en": 1.0}})),
        AblationRow("estimator", "compat paper", False, **row),
        AblationRow("seed", "3", False, **row),
    )
    inputs = {"pair": ["id", "he"]}
    with create_run(tmp_path / "a", kind="ablate", settings={}, inputs=inputs, command=[]) as run:
        write_ablation(run.path("ablation.parquet"), Ablation(rows))
    found = estimator_choosers(tmp_path / "a", "id", "he")
    assert found == {"hsic_compat_paper": {"en": 0.1, "de": 0.4}}
    with pytest.raises(InputError, match="holds no ablation of he-id"):
        estimator_choosers(tmp_path / "a", "he", "id")
