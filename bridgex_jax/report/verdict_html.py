"""The page of a verdict: the sentence, the choosers against each other, pair by pair.

Pure: a `VerdictReport` in, HTML out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from bridgex_jax.report.content import Interval, is_number
from bridgex_jax.report.elements import (
    figure_of,
    files_of_run,
    header,
    how_it_was_made,
    table,
    warnings_list,
)
from bridgex_jax.report.page import page
from bridgex_jax.report.text import label, number, p_value
from bridgex_jax.report.verdict_content import ChooserRow, GainRow, VerdictReport

_FILES = {
    "verdict.json": "every number of this page, for scripts",
    "manifest.json": "the runs that were compared, settings, versions, and the hash of every file",
}
_CAPTIONS = {
    "pairs.svg": "Accuracy of every pair, zero-shot and through every bridge. Outlined: the bridge "
    "that was chosen. Dotted: the best one.",
    "regret.svg": "What each way to choose loses to the best bridge of every pair. That one is "
    "known only afterwards and is too good by its luck, so these are upper bounds.",
    "score.svg": "The judged score against accuracy, within pairs: only the order of the bridges "
    "of one pair can be compared.",
}
_RULES = {"zero_shot": "zero-shot", "random": "random bridge (the mean)", "oracle": "oracle"}


def render_verdict(
    verdict: VerdictReport, svgs: Mapping[str, str], manifest: Mapping[str, Any]
) -> str:
    """The whole page. svgs: by file name; manifest: as far as it is known."""
    title = f"{verdict.task}: does the bridge help?"
    facts = {
        "Task": verdict.task,
        "Model": verdict.model,
        "Pairs": f"{len(verdict.directions)}",
        "Questions": f"{verdict.n_words:,}",
        "Made": str(manifest.get("created", "–"))[:10],
    }
    cells = "".join(
        f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items()
    )
    head = (
        f'<header>\n<p class="kind">bridgex verdict</p>\n<h1>{escape(title)}</h1>\n'
        f'<p class="answer">{escape(verdict.sentence)}</p>\n<dl class="facts">{cells}</dl>\n'
        f"{warnings_list([f'Left out: {text}' for text in verdict.dropped])}</header>"
    )
    sections = [
        head,
        _section("Ways to choose", _choosers(verdict) + _drawn(svgs, "regret.svg")),
        _section(
            "Does the score follow accuracy?", _correlations(verdict) + _drawn(svgs, "score.svg")
        ),
        _section("Chooser against chooser", _wins(verdict)),
        _section("Pair by pair", _drawn(svgs, "pairs.svg")),
        how_it_was_made(manifest),
        files_of_run(list(_FILES), _FILES),
    ]
    return page(title, "\n".join(section for section in sections if section))


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>\n{body}</section>" if body.strip() else ""


def _drawn(svgs: Mapping[str, str], file: str) -> str:
    return figure_of(svgs, file, _CAPTIONS[file])


def _choosers(verdict: VerdictReport) -> str:
    rules = [
        f'<tr><th scope="row">{escape(_RULES.get(name) or label(name))}</th>'
        f'<td class="n">{_percent(accuracy)}</td>{"<td></td>" * 3}</tr>'
        for name, accuracy in verdict.rules.items()
    ]
    levels = {
        "words": "Intervals resample the questions of every pair: they speak of these pairs.",
        "pairs_words": "Intervals of gains and regrets resample pairs, then their questions: they "
        "speak of pairs like these.",
    }
    first = table(
        header(("", ""), ("Accuracy", "n"), ("Minus random", "n"), ("p", "n"), ("Regret", "n")),
        rules + [_row(verdict, row, ("random",), (_percent(row.regret),), (_percent(row.accuracy),))
                 for row in verdict.choosers],
        f"In percent and points, with 95 % intervals. {levels[verdict.levels]}",
    )  # fmt: skip
    with_english = any(_gain(row, "en") for row in verdict.choosers)
    others = ("zero_shot", "en") if with_english else ("zero_shot",)
    heads = [(f"Minus {'English' if b == 'en' else 'zero-shot'}", "n") for b in others]
    columns = [column for head in heads for column in (head, ("p", "n"))]
    second = table(
        header(("", ""), *columns, ("Nats over random", "n")),
        [_row(verdict, row, others, (_nats(_nats_gain(row)),))
         for row in verdict.choosers],
        "Nats over random: the gain in the log-probability of right answers.",
    )  # fmt: skip
    told = "".join(
        f"<li>{escape(row.name)}: {escape(row.what)}</li>" for row in verdict.choosers if row.what
    )
    return f'{first}\n{second}\n<ul class="aside">{told}</ul>'


def _row(
    verdict: VerdictReport,
    row: ChooserRow,
    baselines: Sequence[str],
    after: Sequence[str],
    before: Sequence[str] = (),
) -> str:
    """A chooser's cells: those before, gains over the baselines with their p, those after."""
    cells = [*before]
    for baseline in baselines:
        gain = _gain(row, baseline)
        cells += [_percent(gain.gain), p_value(gain.p)] if gain else ["–", "–"]
    name = escape(row.name)
    name = f"<strong>{name}</strong>" if row is verdict.choosers[0] else name
    listed = "".join(f'<td class="n">{cell}</td>' for cell in (*cells, *after))
    return f'<tr><th scope="row">{name}</th>{listed}</tr>'


def _nats_gain(row: ChooserRow) -> Interval | None:
    return row.log_probability.gain if row.log_probability else None


def _gain(row: ChooserRow, baseline: str) -> GainRow | None:
    return next((gain for gain in row.gains if gain.baseline == baseline), None)


def _correlations(verdict: VerdictReport) -> str:
    rows = [
        f'<tr><th scope="row">{escape(row.name)}</th>'
        f'<td class="n">{_nats(row.correlation)}</td>'
        f'<td class="n">{p_value(row.correlation_p)}</td></tr>'
        for row in verdict.choosers
        if row.correlation is not None
    ]
    if not rows:
        return ""
    head = header(("Chooser", ""), ("Mean rank correlation", "n"), ("p", "n"))
    caption = (
        "Spearman's, over the bridges of a pair, averaged over pairs; p by permuting scores within "
        "pairs. Six bridges of one pair can hardly prove it."
    )
    return table(head, rows, caption)


def _wins(verdict: VerdictReport) -> str:
    if len(verdict.choosers) < 2:
        return ""
    names = [row.name for row in verdict.choosers]
    head = header(("", ""), *((name, "n") for name in names))
    rows = [
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(
            f'<td class="n">{"–" if i == j else number(100 * share, 0)}</td>'
            for j, share in enumerate(shares)
        )
        + "</tr>"
        for i, (name, shares) in enumerate(zip(names, verdict.win_share, strict=True))
    ]
    first = names[0]
    told = [
        f"<li>{escape(first)} and {escape(row.name)}: {only_judged:,} questions that only the "
        f"former gets right, {only_this:,} that only the latter does (McNemar, p {p_value(p)})</li>"
        for row in verdict.choosers[1:]
        if row.against_judged is not None
        for only_judged, only_this, p in [row.against_judged]
    ]
    listed = f'<ul class="aside">{"".join(told)}</ul>' if told else ""
    return table(head, rows, "Percent of pairs in which the row's bridge is more accurate than "
                 "the column's; ties count half.") + listed  # fmt: skip


def _percent(value: Interval) -> str:
    return _with_bounds(value, 100, 1)


def _nats(value: Interval | None) -> str:
    return _with_bounds(value, 1, 2) if value else "–"


def _with_bounds(value: Interval, scale: float, digits: int) -> str:
    text = number(scale * value.value, digits)
    if not is_number(value.low):
        return text
    low, high = number(scale * value.low, digits), number(scale * value.high, digits)
    return f'{text} <span class="aside">[{low}, {high}]</span>'
