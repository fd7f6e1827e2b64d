"""`report.html`: the answer in one sentence, then everything that it rests on, in one file.

Pure: a `Report` in, text out. All that comes from users' files is escaped, and words carry
`dir="auto"`, so that Hebrew and Arabic read right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from bridgex_jax.report import drawing, figures
from bridgex_jax.report.content import (
    BridgeRank,
    Direction,
    Evaluation,
    PairReport,
    Report,
    Source,
    is_number,
)
from bridgex_jax.report.elements import (
    figure_of,
    files_of_run,
    header,
    how_it_was_made,
    model_name,
    shown,
    table,
    warnings_list,
)
from bridgex_jax.report.page import page
from bridgex_jax.report.text import (
    choice_sentence,
    evaluation_sentence,
    label,
    name,
    number,
    p_value,
    percent,
    points,
)

_FILES = {
    "choice.json": "the choice, ranking and data notes, for scripts",
    "spectrum.parquet": "score of every bridge in every layer, with the sizes of the neuron sets",
    "overlap.parquet": "shared neurons, Jaccard index and cosine of every pair of languages",
    "answers.parquet": "every evaluated word: prompt, answer, gold",
    "evaluation.json": "the accuracies",
    "manifest.json": "model, data, settings, versions, and the hash of every file",
}


def render_figures(report: Report) -> dict[str, str]:
    """Name and standalone SVG of every figure of the report, as they lie beside `report.html`."""
    drawn: dict[str, str] = {}
    for pair in report.pairs:
        suffix = "" if len(report.pairs) == 1 else f"-{pair.source}-{pair.target}"
        title = f"{label(pair.source)} to {label(pair.target)}"
        if pair.ranking:
            figure = figures.ranking_figure(pair, report.score_name)
            drawn[f"ranking{suffix}.svg"] = drawing.to_svg(figure, f"Ranking of bridges, {title}")
        if pair.spectrum is not None:
            figure = figures.spectrum_figure(
                pair.spectrum, pair.window, pair.bridge, report.score_name
            )
            drawn[f"spectrum{suffix}.svg"] = drawing.to_svg(figure, f"Language spectrum, {title}")
    if report.overlap is not None:
        figure = figures.overlap_figure(report.overlap)
        drawn["overlap.svg"] = drawing.to_svg(figure, "Neurons that languages share")
    if report.evaluation is not None:
        figure = figures.accuracy_figure(report.evaluation)
        drawn["accuracy.svg"] = drawing.to_svg(figure, "Accuracy, all directions pooled")
        figure = figures.directions_figure(report.evaluation)
        drawn["directions.svg"] = drawing.to_svg(figure, "Accuracy in every direction")
    return drawn


def render_html(report: Report, svgs: Mapping[str, str], files: Sequence[str]) -> str:
    """The whole page. svgs: from `render_figures`; files: names in the run directory to link to."""
    sections = [
        _head(report),
        *(_evaluation(report, report.evaluation, svgs) if report.evaluation else []),
        *_pairs(report, svgs),
        _overlap(report, svgs),
        _data(report),
        how_it_was_made(report.manifest),
        files_of_run(files, _FILES),
    ]
    return page(_title(report), "\n".join(section for section in sections if section))


def _title(report: Report) -> str:
    if len(report.pairs) == 1:
        pair = report.pairs[0]
        return f"{name(pair.source)} → {name(pair.target)}"
    return f"Bridges for {len(report.pairs)} directions"


def _head(report: Report) -> str:
    facts = {
        "Model": model_name(report.manifest),
        "Candidates": ", ".join(_candidates(report.pairs)),
    }
    if len(report.pairs) == 1:
        pair = report.pairs[0]
        answer = choice_sentence(pair)
        facts |= {"Probe words": f"{pair.n_words:,}", "Layer window": _span(pair.window)}
    elif report.evaluation is not None:
        answer = evaluation_sentence(report.evaluation)
        facts |= {"Directions": f"{len(report.pairs)}", "Words": f"{report.evaluation.n_words:,}"}
    else:
        answer = f"A bridge was chosen for each of {len(report.pairs)} directions."
    facts["Made"] = str(report.manifest.get("created", "–"))[:10]
    cells = "".join(
        f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items()
    )
    return (
        f'<header>\n<p class="kind">bridgex {escape(str(report.manifest.get("kind", "")))}</p>\n'
        f'<h1>{escape(_title(report))}</h1>\n<p class="answer">{escape(answer)}</p>\n'
        f'<dl class="facts">{cells}</dl>\n{warnings_list(report.warnings)}</header>'
    )


def _candidates(pairs: Sequence[PairReport]) -> tuple[str, ...]:
    """All bridges, in the order in which they were given where that is known."""
    given = (b for p in pairs if p.spectrum is not None for b in p.spectrum.bridges)
    ranked = (row.bridge for p in pairs for row in p.ranking)
    return tuple(dict.fromkeys([*given, *ranked]))


# The choice --------------------------------------------------------------------------------------


def _pairs(report: Report, svgs: Mapping[str, str]) -> list[str]:
    if len(report.pairs) == 1:
        return [_ranking(report.pairs[0], report, svgs, ""), _spectrum(report.pairs[0], svgs, "")]
    parts = [_choices(report.pairs)]
    for pair in report.pairs:
        suffix = f"-{pair.source}-{pair.target}"
        parts.append(
            f"<details><summary>{escape(f'{name(pair.source)} → {name(pair.target)}')} "
            f"<span>{escape(label(pair.bridge) if pair.bridge else 'none')}</span></summary>\n"
            f"<p>{escape(choice_sentence(pair))}</p>\n"
            f"{_ranking_table(pair, report.score_name)}\n"
            f"{figure_of(svgs, f'ranking{suffix}.svg', _ranking_caption(pair))}\n"
            f"{figure_of(svgs, f'spectrum{suffix}.svg', _SPECTRUM_CAPTION)}\n"
            f"{_words(pair)}</details>"
        )
    return parts


def _choices(pairs: Sequence[PairReport]) -> str:
    rows = []
    for pair in pairs:
        chosen = pair.chosen
        rows.append(
            f'<tr><th scope="row">{escape(f"{name(pair.source)} → {name(pair.target)}")}</th>'
            f"<td>{escape(label(chosen.bridge)) if chosen else 'none'}</td>"
            f'<td class="n">{number(chosen.score.value if chosen else None)}</td>'
            f'<td class="n">{percent(chosen.p_best if chosen else None)}</td>'
            f'<td class="n">{escape(p_value(chosen.p_value)) if chosen else "–"}</td>'
            f"<td>{escape(', '.join(pair.tied_with)) or '–'}</td></tr>"
        )
    head = header(("Direction", ""), ("Chosen", ""), ("Score", "n"), ("P(best)", "n"), ("p", "n"),
                   ("Not told apart from", ""))  # fmt: skip
    return f"<section><h2>The bridge of every direction</h2>\n{table(head, rows)}</section>"


def _ranking(pair: PairReport, report: Report, svgs: Mapping[str, str], suffix: str) -> str:
    return (
        f"<section><h2>Ranking</h2>\n{_ranking_table(pair, report.score_name)}\n"
        f"{figure_of(svgs, f'ranking{suffix}.svg', _ranking_caption(pair))}</section>"
    )


def _ranking_table(pair: PairReport, score_name: str) -> str:
    head = header(("Bridge", ""), ("Score", "n"), ("P(best)", "n"), ("p", "n"),
                   ("95 % interval", "n"), ("Layers", "n"), ("Neurons", "n"))  # fmt: skip
    rows = [_ranking_row(row, pair) for row in pair.ranking]
    caption = (
        f"Score: {score_name}, the mean over the {len(pair.compared)} layers of the window "
        f"{_span(pair.window)} in which every compared bridge is present. "
        "P(best): share of resamples of the words in which the bridge scores highest. "
        "p: permutation test against the largest score of all bridges. "
        "Layers: of the window, those in which the bridge is present. Neurons: in its own set."
    )
    return table(head, rows, caption)


def _ranking_row(row: BridgeRank, pair: PairReport) -> str:
    kind = "chosen" if row.bridge == pair.bridge else "" if row.comparable else "faint"
    interval = "–"
    if is_number(row.score.low):
        interval = f"{number(row.score.low)} to {number(row.score.high)}"
    cells = (
        number(row.score.value),
        percent(row.p_best),
        p_value(row.p_value),
        interval,
        f"{row.layers} of {len(pair.window)}",
        f"{row.neurons:,}",
    )
    numbers = "".join(f'<td class="n">{escape(cell)}</td>' for cell in cells)
    return f'<tr class="{kind}"><th scope="row">{escape(label(row.bridge))}</th>{numbers}</tr>'


def _ranking_caption(pair: PairReport) -> str:
    text = "Dots are scores on all words, bars 95 % bootstrap intervals over the words"
    if pair.resamples:
        text += f" ({pair.resamples:,} resamples)"
    return f"{text}. They hold for these neuron sets, which are not drawn again."


_SPECTRUM_CAPTION = (
    "How strongly the neurons of each bridge depend on the neurons that source and target share, "
    "layer by layer. A gap is a layer in which a set has too few neurons."
)


def _spectrum(pair: PairReport, svgs: Mapping[str, str], suffix: str) -> str:
    if pair.spectrum is None:
        return ""
    figure = figure_of(svgs, f"spectrum{suffix}.svg", _SPECTRUM_CAPTION)
    return f"<section><h2>Language spectrum</h2>\n{figure}</section>"


def _overlap(report: Report, svgs: Mapping[str, str]) -> str:
    if report.overlap is None:
        return ""
    caption = (
        "Below the diagonal: neurons that two languages share. Above it: their Jaccard index in "
        "percent, which also sets the shade. On it: the size of each language’s own set."
    )
    drawn = figure_of(svgs, "overlap.svg", caption)
    return f"<section><h2>Overlap of languages</h2>\n{drawn}</section>"


# The evaluation ----------------------------------------------------------------------------------


_ACCURACY_CAPTION = (
    "Filled grey: one fixed bridge for all directions. Hollow: zero-shot, and other rules of "
    "choice. Oracle: the best bridge of every direction, known only afterwards."
)


def _evaluation(report: Report, evaluation: Evaluation, svgs: Mapping[str, str]) -> list[str]:
    if len(report.pairs) == 1:
        sentence = evaluation_sentence(evaluation)
    else:  # that sentence is the head of the page
        sentence = (
            f"Chosen minus random: {points(evaluation.gain)}. "
            f"Regret, the oracle minus chosen: {points(evaluation.regret)}."
        )
    notes = "".join(f"<li>{escape(f'{k}: {shown(v)}')}</li>" for k, v in evaluation.notes.items())
    pooled = (
        "<section><h2>Does the choice help?</h2>\n"
        f"<p>{escape(sentence)}</p>\n{_correlation(evaluation)}"
        + figure_of(svgs, "accuracy.svg", _ACCURACY_CAPTION)
        + (f'<ul class="aside">{notes}</ul>' if notes else "")
        + "</section>"
    )
    caption = (
        "One dot a bridge; at the right the chosen and the best one, blue where they are the same."
    )
    directions = (
        "<section><h2>Direction by direction</h2>\n"
        f"{figure_of(svgs, 'directions.svg', caption)}\n{_directions_table(evaluation)}</section>"
    )
    return [pooled, directions]


def _correlation(evaluation: Evaluation) -> str:
    if evaluation.rank_correlation is None:
        return ""
    value = evaluation.rank_correlation
    text = f"Rank correlation of score and accuracy over bridges: {number(value.value, 2)}"
    if is_number(value.low):
        text += f" (95 % interval {number(value.low, 2)} to {number(value.high, 2)})"
    return f"<p>{text}.</p>\n"


def _directions_table(evaluation: Evaluation) -> str:
    bridges = tuple(dict.fromkeys(b for row in evaluation.directions for b in row.bridges))
    head = header(("Direction", ""), ("Words", "n"), ("Zero-shot", "n"),
                   *((bridge, "n") for bridge in bridges))  # fmt: skip
    rows = [_direction_row(row, bridges) for row in evaluation.directions]
    caption = "Accuracy in percent. Blue: the chosen bridge. Underlined: the best one."
    return table(head, rows, caption)


def _direction_row(row: Direction, bridges: Sequence[str]) -> str:
    cells = []
    for bridge in bridges:
        kind = "n" + (" chosen" if bridge == row.chosen else "")
        text = number(100 * row.bridges[bridge], 1) if bridge in row.bridges else "–"
        if bridge == row.best:
            text = f'<span class="best">{text}</span>'
        cells.append(f'<td class="{kind}">{text}</td>')
    return (
        f'<tr><th scope="row">{escape(f"{name(row.source)} → {name(row.target)}")}</th>'
        f'<td class="n">{row.n_words:,}</td><td class="n">{number(100 * row.zero_shot, 1)}</td>'
        f"{''.join(cells)}</tr>"
    )


# What went in ------------------------------------------------------------------------------------


def _data(report: Report) -> str:
    parts = []
    if len(report.pairs) == 1 and (report.pairs[0].words or report.pairs[0].examples):
        parts.append(f"<h3>Words</h3>\n{_words(report.pairs[0])}")
    if report.dictionaries:
        head = header(("Languages", ""), ("Dictionary", ""), ("Pairs", "n"), ("Found in it", ""))
        rows = [_source_row(item, with_tokens=()) for item in report.dictionaries]
        parts.append(f"<h3>Dictionaries</h3>\n{table(head, rows)}")
    if report.corpora:
        head = header(("Language", ""), ("Corpus", ""), ("Lines", "n"), ("Tokens", "n"),
                       ("Stability", "n"), ("Found in it", ""))  # fmt: skip
        rows = [
            _source_row(
                item,
                with_tokens=(
                    "–" if item.tokens is None else f"{item.tokens:,}",
                    number(item.stability, 2),
                ),
            )
            for item in report.corpora
        ]
        caption = "Stability: Jaccard index of the neuron sets of the two halves of the corpus."
        parts.append(f"<h3>Corpora</h3>\n{table(head, rows, caption)}")
    if not parts:
        return ""
    return "<section><h2>Words and texts</h2>\n" + "\n".join(parts) + "</section>"


def _words(pair: PairReport) -> str:
    rows = [
        f'<tr><th scope="row">{escape(step)}</th><td class="n">{count:,}</td></tr>'
        for step, count in pair.words.items()
    ]
    funnel = table(header(("From dictionary to probe", ""), ("Words", "n")), rows) if rows else ""
    items = "".join(
        f'<li><span dir="auto" lang="{escape(pair.source)}">{escape(word.source)}</span>'
        f'<span class="to">→</span>'
        f'<span dir="auto" lang="{escape(pair.target)}">{escape(word.target)}</span></li>'
        for word in pair.examples
    )
    if not items:
        return funnel
    return (
        f'{funnel}\n<p class="aside">Some of the probe words:</p>\n<ul class="words">{items}</ul>\n'
    )


def _source_row(item: Source, with_tokens: tuple[str, ...]) -> str:
    numbers = (f"{item.size:,}", *with_tokens)
    notes = ", ".join(f"{what}: {count:,}" for what, count in item.notes.items() if count)
    return (
        f'<tr><th scope="row">{escape(" → ".join(name(c) for c in item.languages))}</th>'
        f'<td class="name">{escape(item.name)}</td>'
        + "".join(f'<td class="n">{cell}</td>' for cell in numbers)
        + f"<td>{escape(notes) or '–'}</td></tr>"
    )


# Small parts -------------------------------------------------------------------------------------


def _span(layers: Sequence[int]) -> str:
    if not layers:
        return "–"
    return f"{layers[0]}–{layers[-1]}" if len(layers) > 1 else f"{layers[0]}"
