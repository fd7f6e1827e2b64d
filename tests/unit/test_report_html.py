"""`report.html`: escaped, self-contained, the same from memory and from the files of a run."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import fields, replace

import numpy as np
import pytest

from bridgex_jax.errors import InputError
from bridgex_jax.report.content import (
    NAN,
    Accuracy,
    BridgeRank,
    Direction,
    Evaluation,
    Interval,
    PairReport,
    Report,
    Source,
    WordSample,
    choice_of,
    evaluation_of,
    read_report,
)
from bridgex_jax.report.html import render_figures, render_html
from bridgex_jax.report.text import choice_sentence, evaluation_sentence
from bridgex_jax.store.tables import (
    OverlapMatrix,
    PairSpectrum,
    write_choice,
    write_overlap,
    write_spectrum,
)

EVIL = '<script>alert("x")</script>&amp;'


def pair(source: str = "id", target: str = "he") -> PairReport:
    sizes = np.full((2, 4), 9, np.int32)
    score = np.array([[0.1, 0.2, NAN, 0.1], [0.3, NAN, 0.2, 0.3]])
    return PairReport(
        source=source,
        target=target,
        bridge="de",
        ranking=(
            BridgeRank("de", Interval(0.25, 0.2, 0.3), 0.91, 0.012, 2, 90),
            BridgeRank("en", Interval(0.15), layers=1, neurons=8, comparable=False),
        ),
        window=(1, 2, 3),
        compared=(1, 3),
        runner_up="en",
        margin=0.1,
        tied_with=("en",),
        resamples=200,
        permutations=199,
        n_words=300,
        words={"in the dictionary": 5000, "used": 300},
        examples=(WordSample("rumah", "בית"), WordSample(EVIL, "مرحبا")),
        spectrum=PairSpectrum(source, target, ("en", "de"), score, sizes[0], sizes),
    )


def evaluation() -> Evaluation:
    return Evaluation(
        "bli",
        100,
        (
            Accuracy("zero-shot", "baseline", Interval(0.2)),
            Accuracy("chosen", "chosen", Interval(0.6, 0.5, 0.7)),
        ),
        (
            Direction("id", "he", 50, NAN, {"de": 0.5, "en": 0.6}, "de"),
            Direction("he", "id", 50, 0.1, {"de": 0.5}, None),
        ),
        gain=Interval(0.1, -0.1, 0.3),
        regret=Interval(0.05, 0.0, 0.1),
        rank_correlation=Interval(0.4, 0.1, 0.6),
        notes={"invalid answers": 3},
    )


def report(**changes) -> Report:
    ones = np.eye(2)
    whole = Report(
        pairs=(pair(),),
        manifest={
            "kind": "select",
            "created": "2030-01-02T03:04:05+00:00",
            "command": ["bridgex", "select", EVIL],
            "settings": {"seed": 0, "compat": None, "nested": {"deep": [1, 2]}},
            "model": {"id": EVIL},
        },
        overlap=OverlapMatrix(("id", "he"), np.eye(2, dtype=np.int64), ones, ones),
        corpora=(Source(("id",), "id.txt", 12, 345, 0.87, {"duplicates": 2, "CRLF": 0}),),
        dictionaries=(Source(("id", "he"), EVIL, 99),),
        warnings=(f"Mind {EVIL}",),
        evaluation=evaluation(),
        score_name="debiased CKA",
    )
    return replace(whole, **changes)


def html(content: Report) -> str:
    return render_html(content, render_figures(content), ["choice.json", "spectrum.parquet"])


def test_the_answer_comes_first():
    page = html(report())
    answer = choice_sentence(pair())
    assert page.index(answer) < page.index("<table")
    assert "<title>Indonesian → Hebrew</title>" in page
    assert evaluation_sentence(evaluation()) in page


def test_what_users_files_hold_is_escaped():
    page = html(report())
    assert "<script" not in page
    # A word, a dictionary, a warning, the command, and the model twice.
    assert page.count("&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&amp;amp;") == 6


def test_words_carry_language_and_direction_of_their_own():
    page = html(report())
    assert '<span dir="auto" lang="he">בית</span>' in page
    assert '<span dir="auto" lang="he">مرحبا</span>' in page


def test_nothing_is_fetched_and_no_script_runs():
    page = html(report())
    urls = set(re.findall(r"https?://[^\"'\s<>]+", page))
    assert urls <= {"http://www.w3.org/1999/xlink"}  # a name of a namespace, not an address
    assert "default-src 'none'" in page
    assert set(re.findall(r'<a href="([^"]+)"', page)) == {"choice.json", "spectrum.parquet"}


def test_ids_are_unique_and_every_reference_has_its_target():
    page = html(report(pairs=(pair(), pair("he", "id"))))
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) > 0
    assert set(re.findall(r'(?:xlink:href="|url\()#([^")]+)', page)) <= set(ids)


def test_inline_figures_are_well_formed_and_take_their_colours_from_the_page():
    page = html(report())
    svgs = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(svgs) == 5
    defined = set(re.findall(r"(--[a-z0-9-]+):", page))
    for svg in svgs:
        assert ET.fromstring(svg).get("aria-label")
        assert not re.findall(r"(?:fill|stroke): #", svg)
        assert set(re.findall(r"var\((--[a-z0-9-]+)\)", svg)) <= defined


def test_the_page_is_the_same_from_memory_and_from_the_files(tmp_path):
    whole = report(pairs=(pair(), pair("he", "id")))
    write_choice(tmp_path / "choice.json", choice_of(whole))
    write_choice(tmp_path / "evaluation.json", evaluation_of(whole))
    write_spectrum(tmp_path / "spectrum.parquet", [p.spectrum for p in whole.pairs])
    write_overlap(tmp_path / "overlap.parquet", whole.overlap)
    again = read_report(tmp_path, whole.manifest)
    assert html(again) == html(whole)
    assert choice_of(again) == choice_of(whole)
    for one, other in zip(whole.pairs, again.pairs, strict=True):
        for field in fields(PairReport):
            if field.name not in ("spectrum", "ranking"):  # arrays and NaN
                assert getattr(one, field.name) == getattr(other, field.name)


def test_a_run_without_its_choice_is_named(tmp_path):
    with pytest.raises(InputError, match=r"choice\.json: is missing"):
        read_report(tmp_path, {})


def test_a_report_of_the_least_content_still_reads():
    bare = PairReport("id", "he", None, (), (), ())
    page = html(Report((bare,), {}))
    assert "No bridge can be chosen" in page
    assert "<figure>" not in page
    assert page.count("<h2>") == 2  # ranking, files


def test_many_pairs_are_one_page_with_a_fold_for_each():
    page = html(report(pairs=(pair(), pair("he", "id"))))
    assert "<title>Bridges for 2 directions</title>" in page
    assert page.count("<details><summary>Indonesian → Hebrew") == 1
    names = render_figures(report(pairs=(pair(), pair("he", "id"))))
    assert {"spectrum-id-he.svg", "ranking-he-id.svg", "overlap.svg"} <= names.keys()
