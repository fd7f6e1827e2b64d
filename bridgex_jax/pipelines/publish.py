"""From results to the files of a run: the report's values, tables, figures and the page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bridgex_jax.data.dictionaries import Dictionary
from bridgex_jax.report.content import (
    BridgeRank,
    Interval,
    PairReport,
    Report,
    Source,
    WordSample,
    choice_of,
    evaluation_of,
)
from bridgex_jax.report.html import render_figures, render_html
from bridgex_jax.store.counts import LanguageCounts
from bridgex_jax.store.manifest import MANIFEST
from bridgex_jax.store.paths import files_below
from bridgex_jax.store.runs import RunDirectory
from bridgex_jax.store.tables import PairSpectrum, write_choice, write_overlap, write_spectrum

if TYPE_CHECKING:
    from bridgex_jax.pipelines.select import Selection

EXAMPLES = 12


def pair_report(selection: Selection, stored: PairSpectrum, words: Dictionary) -> PairReport:
    """The ranking with intervals and p-values, best first, what is not comparable last."""
    choice, boot, permuted = selection.choice, selection.bootstrap, selection.permutation
    compared = list(choice.layers)
    rows = []
    for g, bridge in enumerate(stored.bridges):
        comparable = bridge in choice.means and bridge not in choice.not_comparable
        low, high = boot.intervals[bridge] if boot and bridge in boot.intervals else (np.nan,) * 2
        rows.append(
            BridgeRank(
                bridge,
                Interval(choice.means.get(bridge, np.nan), low, high),
                p_best=boot.p_best.get(bridge, np.nan) if boot else np.nan,
                p_value=permuted.p_values.get(bridge, np.nan) if permuted else np.nan,
                layers=int(np.isfinite(stored.score[g, list(selection.window)]).sum()),
                neurons=int(stored.n_bridge[g, compared].sum()),
                comparable=comparable,
            )
        )
    rows.sort(key=lambda row: (not row.comparable, -np.nan_to_num(row.score.value, nan=-np.inf)))
    gold = words.translations()
    return PairReport(
        source=stored.source,
        target=stored.target,
        bridge=choice.bridge,
        ranking=tuple(rows),
        window=selection.window,
        compared=tuple(compared),
        runner_up=choice.runner_up,
        margin=choice.margin,
        tied_with=boot.tied_with(choice.bridge) if boot and choice.bridge else (),
        resamples=len(boot.draws) if boot else 0,
        permutations=len(permuted.null) if permuted else 0,
        n_words=len(selection.probe.words),
        words=selection.probe.steps,
        examples=tuple(
            WordSample(word, ", ".join(gold[word])) for word in selection.probe.words[:EXAMPLES]
        ),
        probe_words=selection.probe.words,
        spectrum=stored,
    )


def corpus_source(counts: LanguageCounts, stability: float) -> Source:
    """The report's row of one corpus."""
    facts: dict[str, Any] = counts.corpus
    return Source(
        (counts.language,),
        str(facts.get("file", "counts")),
        int(facts.get("lines", 0)),
        tokens=counts.n_tokens,
        stability=float(stability),
        notes=facts.get("notes", {}),
    )


def dictionary_source(words: Dictionary) -> Source:
    """The report's row of one dictionary."""
    name = " and ".join(words.files) + ("" if words.route == "direct" else f" ({words.route})")
    return Source((words.source, words.target), name, len(words.pairs), notes=words.notes)


def publish(run: RunDirectory, report: Report) -> None:
    """Writes tables, choice, evaluation, figures and report.html into a run."""
    spectra = [pair.spectrum for pair in report.pairs if pair.spectrum is not None]
    write_spectrum(run.path("spectrum.parquet"), spectra)
    if report.overlap is not None:
        write_overlap(run.path("overlap.parquet"), report.overlap)
    write_choice(run.path("choice.json"), choice_of(report))
    evaluation = evaluation_of(report)
    if evaluation is not None:
        run.write_json("evaluation.json", evaluation)
    for name, data in rendered(report, run_files(run)).items():
        run.write_bytes(name, data)


def run_files(run: RunDirectory) -> list[str]:
    """What the page links to: the files written so far, and the manifest that comes last."""
    return sorted({*(files_below(run.directory) or ()), MANIFEST})


def rendered(report: Report, files: list[str]) -> dict[str, bytes]:
    """The figures and the page that links to `files`, as bytes by name."""
    svgs = render_figures(report)
    linked = sorted({*files, *svgs} - {"report.html"})
    pages = {name: svg.encode() for name, svg in svgs.items()}
    pages["report.html"] = render_html(report, svgs, linked).encode()
    return pages
