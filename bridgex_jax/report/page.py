"""The shell of `report.html`: one file, no script, nothing fetched, fit for a phone and paper.

The style sheet owns the colours; `inline_svg` makes figures follow them, so that they change with
the reader's light or dark setting.
"""

from __future__ import annotations

import re
from html import escape

from bridgex_jax.report import drawing

_LIGHT = {
    "--page": "#ffffff",
    "--ink": "#1d2126",
    "--muted": "#5f6772",
    "--grid": "#e2e5e9",
    "--band": "#f0f3f7",
    "--accent": "#0067b1",
    "--wash": "#f6f8fa",
    "--warn": "#8a5a00",
    "--warn-wash": "#fdf6e3",
} | {f"--series-{i}": color for i, color in enumerate(drawing.SERIES)}
_DARK = {
    "--page": "#14171b",
    "--ink": "#e4e7eb",
    "--muted": "#9aa3af",
    "--grid": "#2d333b",
    "--band": "#1f252d",
    "--accent": "#5db2f0",
    "--wash": "#1b1f25",
    "--warn": "#e8b84a",
    "--warn-wash": "#262012",
    "--series-0": "#f08a4b",
    "--series-1": "#35c79d",
    "--series-2": "#e58bb9",
    "--series-3": "#d9b44a",
    "--series-4": "#b4bcc8",
    "--series-5": "#b3a2f5",
}
_FIGURE_COLORS = {
    drawing.INK: "--ink",
    drawing.MUTED: "--muted",
    drawing.GRID: "--grid",
    drawing.BAND: "--band",
    drawing.PAGE: "--page",
    drawing.ACCENT: "--accent",
} | {color: f"--series-{i}" for i, color in enumerate(drawing.SERIES)}

_STYLE = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 46rem; margin: 0 auto; padding: 3rem 1.25rem 4rem; }
.kind { margin: 0; color: var(--muted); font-size: .875rem; }
h1 { margin: .15rem 0 0; font-size: 2rem; line-height: 1.2; font-weight: 650;
  letter-spacing: -.015em; text-wrap: balance; }
h2 { margin: 3.25rem 0 .5rem; padding-top: 1.1rem; border-top: 1px solid var(--grid);
  font-size: 1.25rem; line-height: 1.3; font-weight: 650; letter-spacing: -.005em; }
h3 { margin: 2rem 0 .35rem; font-size: 1rem; font-weight: 650; }
p { margin: .5rem 0; max-width: 40rem; }
.answer { margin: 1.1rem 0 1.4rem; max-width: none; font-size: 1.25rem; line-height: 1.45;
  text-wrap: pretty; }
.aside, figcaption { color: var(--muted); font-size: .875rem; line-height: 1.45; }
.facts { display: flex; flex-wrap: wrap; gap: .9rem 2.5rem; margin: 0; padding: 1rem 0;
  border-block: 1px solid var(--grid); }
.facts dt { color: var(--muted); font-size: .8125rem; }
.facts dd { margin: 0; font-weight: 600; overflow-wrap: anywhere;
  font-variant-numeric: tabular-nums; }
.warnings { margin: 1.25rem 0 0; padding: .7rem 1rem; background: var(--warn-wash);
  border-left: 3px solid var(--warn); border-radius: 2px; font-size: .9375rem; }
.warnings p { margin: 0; font-weight: 650; color: var(--warn); }
.warnings ul { margin: .2rem 0 0; padding-left: 1.1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: .9rem 0 .6rem; font-size: .875rem;
  line-height: 1.35; font-variant-numeric: tabular-nums lining-nums; }
th, td { padding: .36rem .9rem .36rem 0; text-align: left; vertical-align: baseline;
  border-bottom: 1px solid var(--grid); }
th:last-child, td:last-child { padding-right: 0; }
thead th { color: var(--muted); font-weight: 500; font-size: .8125rem; vertical-align: bottom; }
tbody th { font-weight: 400; white-space: nowrap; }
.n { text-align: right; white-space: nowrap; }
.chosen > *, td.chosen { color: var(--accent); font-weight: 650; }
.faint > * { color: var(--muted); }
.best { text-decoration: underline; text-underline-offset: .2em; }
.name { overflow-wrap: break-word; }
.value { width: 70%; overflow-wrap: anywhere; }
figure { margin: 1.4rem 0 1.8rem; }
figcaption { margin-top: .5rem; max-width: 40rem; }
figure svg { display: block; width: 100%; height: auto; max-width: calc(var(--width) * 1.344px); }
figure svg * { stroke-linejoin: round; }
figure svg text { font-variant-numeric: tabular-nums; }
.words { columns: 2; column-gap: 2.5rem; list-style: none; margin: .75rem 0; padding: 0;
  font-size: .9375rem; }
.words li { display: grid; grid-template-columns: minmax(0, 1fr) auto minmax(0, 1fr);
  overflow-wrap: anywhere; gap: .6rem; break-inside: avoid;
  padding: .18rem 0; }
.words li > :last-child { text-align: left; }
.words .to { color: var(--muted); }
details { border-bottom: 1px solid var(--grid); }
summary { padding: .6rem 0; cursor: pointer; }
summary span { color: var(--muted); }
ul.aside { list-style: none; padding: 0; }
code { font: .8125rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  overflow-wrap: anywhere; }
.command { display: block; padding: .7rem .9rem; background: var(--wash); border-radius: 4px; }
a { color: var(--accent); text-underline-offset: .15em; }
@media (max-width: 40rem) {
  main { padding: 1.75rem 1rem 3rem; }
  h1 { font-size: 1.625rem; }
  .answer { font-size: 1.125rem; }
  figure svg { min-width: calc(var(--width) * 0.92px); }
  .words { columns: 1; }
}
@media print {
  main { max-width: none; padding: 0; }
  h2 { break-after: avoid; margin-top: 2rem; }
  figure, tr, .facts { break-inside: avoid; }
  .scroll { overflow: visible; }
  figure svg { min-width: 0; }
  details::details-content { content-visibility: visible; block-size: auto; }
  a { color: inherit; }
}
"""


def page(title: str, body: str) -> str:
    """A whole HTML document around `body`, which is HTML already."""
    light, dark = (
        "".join(f"{key}: {value}; " for key, value in colors.items()) for colors in (_LIGHT, _DARK)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
        f"<title>{escape(title)}</title>\n"
        '<link rel="icon" href="data:,">\n'
        f"<style>\n:root {{ color-scheme: light dark; {light}}}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark}}} }}\n"
        f"@media print {{ :root {{ color-scheme: light; }} }}\n{_STYLE}</style>\n"
        f"</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def inline_svg(svg: str, prefix: str, description: str) -> str:
    """A figure's SVG as part of the page: its colours and fonts, ids of its own, a description.

    svg: as `drawing.to_svg` gives it; prefix: different for every figure of a page.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<title>.*?</title>", "", svg, flags=re.DOTALL)
    svg = svg.replace(f"font-family: {drawing.FONTS}; ", "")
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: _keep_id(m[1], prefix, used), svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{prefix}-", svg)
    for color, variable in _FIGURE_COLORS.items():
        svg = svg.replace(color, f"var({variable})")
    width, height = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0]
    return (
        f'<svg role="img" aria-label="{escape(description)}" style="--width: {width}" '
        f'viewBox="0 0 {width} {height}" xmlns:xlink="http://www.w3.org/1999/xlink">'
        + svg[svg.index(">") + 1 :].strip()
    )


def _keep_id(name: str, prefix: str, used: set[str]) -> str:
    return f' id="{prefix}-{name}"' if name in used else ""
