"""`report.html` in a real browser: it fits, fetches nothing, and follows light, dark and paper."""

from __future__ import annotations

import base64
import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

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
)
from bridgex_jax.report.html import render_figures, render_html
from bridgex_jax.report.text import choice_sentence, evaluation_sentence, label
from bridgex_jax.store.tables import OverlapMatrix, PairSpectrum

_spec = importlib.util.spec_from_file_location("chromium", Path(__file__).with_name("chromium.py"))
chromium = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(chromium)

BRIDGES = ("en", "de", "fr", "it", "pt", "es")
LANGUAGES = (*BRIDGES, "zh", "ja", "ar", "he", "id", "tl", "fi", "hu", "sw")
WIDTHS = (320, 390, 768, 1440)


def pair(source: str = "id", target: str = "he", n_layers: int = 32) -> PairReport:
    rng = np.random.default_rng(0)
    score = 0.1 + rng.normal(0, 0.02, (6, n_layers)).cumsum(1) * 0.1
    score[2, 3:6] = score[3, 1] = score[3, 3] = NAN
    sizes = rng.integers(9, 99, (6, n_layers)).astype(np.int32)
    ranks = [
        BridgeRank(b, Interval(0.2 - i / 50, 0.17 - i / 50, 0.23), 0.9 / (i + 1), 0.01, 12, 1234)
        for i, b in enumerate(BRIDGES[:5])
    ]
    absent = BridgeRank("es", Interval(NAN), layers=3, neurons=20, comparable=False)
    words = (WordSample("rumah", "בית"), WordSample("x" * 80, "مرحبا بالعالم"))
    window = tuple(range(n_layers // 3, 2 * n_layers // 3))
    return PairReport(
        source, target, "en", (*ranks, absent), window, window[1:],
        runner_up="de", margin=0.02, tied_with=("de", "fr"), resamples=1000, permutations=999,
        n_words=512, words={"in the dictionaries": 5123, "drawn for the probe": 512},
        examples=words * 4, spectrum=PairSpectrum(source, target, BRIDGES, score, sizes[0], sizes),
    )  # fmt: skip


def select_report() -> Report:
    n = len(LANGUAGES)
    overlap = np.random.default_rng(1).integers(100, 4589, (n, n))
    corpora = tuple(
        Source((c,), f"corpora/{c}.txt", 1012, 31_000, 0.9, {"duplicates": 3}) for c in LANGUAGES
    )
    return Report(
        (pair(),),
        {
            "kind": "select", "created": "2030-01-02T03:04:05+00:00",
            "command": ["bridgex", "select", "/" + "very-long-name" * 12],
            "settings": {"top_rate": 0.01, "estimator": "cka_debiased"},
            "model": {"id": "somebody/" + "A-Model-With-A-Very-Long-Name" * 3, "sha256": "f" * 64},
        },
        OverlapMatrix(LANGUAGES, overlap, overlap / 5000, overlap / 5000),
        corpora, (Source(("id", "he"), "d" * 120 + ".txt", 5123, notes={"CRLF": 5123}),),
        ("Some corpora have fewer than 50,000 tokens.",), None, "debiased CKA, size-matched",
    )  # fmt: skip


def demo_report() -> Report:
    ends = ("he", "id", "hu", "sw")
    directions = tuple(
        Direction(s, t, 400, 0.2, {b: 0.4 + i / 20 for i, b in enumerate(BRIDGES)}, "de")
        for s in ends for t in ends if s != t
    )  # fmt: skip
    pooled = (
        Accuracy("zero-shot", "baseline", Interval(0.2, 0.1, 0.3)),
        *(Accuracy(label(b), "bridge", Interval(0.5, 0.45, 0.55)) for b in BRIDGES),
        Accuracy("chosen by HSIC", "chosen", Interval(0.6, 0.5, 0.7)),
        Accuracy("oracle", "oracle", Interval(0.7, 0.6, 0.8)),
    )
    evaluation = Evaluation(
        "bli", 4800, pooled, directions, Interval(0.03, 0.01, 0.05), Interval(0.1, 0.05, 0.15)
    )
    pairs = tuple(pair(d.source, d.target, 6) for d in directions[:3])
    return Report(pairs, {"kind": "demo"}, evaluation=evaluation)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    executable = chromium.find_chromium()
    if executable is None:
        pytest.skip("no Chromium on this machine")
    running = chromium.Chromium(executable, tmp_path_factory.mktemp("profile"))
    yield running
    running.close()


@pytest.fixture(scope="module", params=[select_report, demo_report])
def page(request, tmp_path_factory):
    report = request.param()
    path = tmp_path_factory.mktemp("run") / "report.html"
    text = render_html(report, render_figures(report), ["choice.json", "spectrum.parquet"])
    path.write_text(text, encoding="utf-8")
    return report, path


def keep_picture(browser, name: str) -> None:
    """Leaves a picture for the eye where BRIDGEX_PICTURES names a directory."""
    if directory := os.environ.get("BRIDGEX_PICTURES"):
        shot = browser.send("Page.captureScreenshot", captureBeyondViewport=True)
        (Path(directory) / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_never_scrolls_sideways(browser, page, width):
    report, path = page
    browser.open(path, width)
    browser.ask("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.ask("document.documentElement.scrollWidth") <= width
    # Whatever is wider than the screen lies in a box that scrolls by itself.
    outside = """[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll')
        && e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML.slice(0, 80))"""
    assert browser.ask(outside) == []
    keep_picture(browser, f"{report.manifest['kind']}-{width}")


def test_the_page_fetches_nothing_and_reports_no_error(browser, page):
    _, path = page
    browser.open(path, 1000)
    browser.ask("document.body.getBoundingClientRect().height")
    requests = [
        event["params"]["request"]["url"]
        for event in browser.events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert path.as_uri() in requests
    assert [u for u in requests if not u.startswith("data:") and u != path.as_uri()] == []
    faults = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
    assert [event for event in browser.events if event["method"] in faults] == []


def test_title_and_answer_are_on_the_first_screen_of_a_phone(browser, page):
    report, path = page
    browser.open(path, 390)
    single = len(report.pairs) == 1
    assert browser.ask("document.title") == (
        "Indonesian → Hebrew" if single else "Bridges for 3 directions"
    )
    answer = choice_sentence(report.pairs[0]) if single else evaluation_sentence(report.evaluation)
    assert browser.ask("document.querySelector('.answer').innerText") == answer
    assert browser.ask("document.querySelector('.answer').getBoundingClientRect().bottom") < 800


def test_no_text_of_a_figure_is_cut_or_covers_another(browser, page):
    """The browser's font is not the one that matplotlib measured with."""
    _, path = page
    browser.open(path, 1000)
    browser.ask("document.querySelectorAll('details').forEach(d => d.open = true)")
    troubles = """[...document.querySelectorAll('figure svg')].flatMap(svg => {
        const frame = svg.getBoundingClientRect();
        const texts = [...svg.querySelectorAll('text')].map(t => [t, t.getBoundingClientRect()]);
        const cut = texts.filter(([t, r]) => r.left < frame.left - 1 || r.right > frame.right + 1
            || r.top < frame.top - 1 || r.bottom > frame.bottom + 1);
        const covered = texts.filter(([t, r], i) => texts.some(([u, q], j) => j > i
            && Math.min(r.right, q.right) - Math.max(r.left, q.left) > 1
            && Math.min(r.bottom, q.bottom) - Math.max(r.top, q.top) > 4));
        return [...cut, ...covered].map(([t]) => t.textContent); })"""
    assert browser.ask(troubles) == []


def test_figures_and_text_are_readable_in_light_and_dark(browser, page):
    """Contrast of every text against the page is at least 4.5, as WCAG asks."""
    _, path = page
    contrast = """(() => {
        const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3)
            .map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
            return .2126 * r + .7152 * g + .0722 * b; };
        const ground = light(getComputedStyle(document.body).backgroundColor);
        const ratio = c => { const l = light(c);
            return (Math.max(l, ground) + .05) / (Math.min(l, ground) + .05); };
        const texts = [...document.querySelectorAll('main *')].filter(e =>
            [...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim()));
        return texts.filter(e => { const s = getComputedStyle(e);
            return ratio(e.closest('svg') ? s.fill : s.color) < 4.5; })
            .map(e => e.textContent); })()"""
    grounds = set()
    for scheme in ("light", "dark"):
        browser.open(path, 1000, scheme)
        grounds.add(browser.ask("getComputedStyle(document.body).backgroundColor"))
        assert browser.ask(contrast) == [], scheme
    keep_picture(browser, f"dark-{path.parent.name}")
    assert len(grounds) == 2


def test_hebrew_and_arabic_words_run_from_right_to_left(browser, page):
    report, path = page
    browser.open(path, 390)
    if len(report.pairs) > 1:
        browser.ask("document.querySelectorAll('details').forEach(d => d.open = true)")
    words = browser.ask(
        "[...document.querySelectorAll('.words span[lang]')].map(e => "
        "[e.textContent, getComputedStyle(e).direction])"
    )
    assert {"rtl"} == {d for word, d in words if word in ("בית", "مرحبا بالعالم")}
    assert {"ltr"} == {d for word, d in words if word == "rumah"}


def test_paper_is_white_and_shows_what_is_folded(browser, page):
    _, path = page
    browser.open(path, 720, scheme="dark", media="print")
    assert browser.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    folded = """[...document.querySelectorAll('details:not([open]) table')].every(t =>
        t.checkVisibility({contentVisibilityAuto: true})
        && t.getBoundingClientRect().height > 10)"""
    assert browser.ask("document.querySelectorAll('details:not([open])').length") > 0
    assert browser.ask(folded)
