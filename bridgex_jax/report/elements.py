"""Parts of pages: tables, figures, how a run was made, its files. Pure: values in, HTML out.

All that comes from users' files is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from bridgex_jax.report.page import inline_svg


def warnings_list(warnings: Sequence[str]) -> str:
    """A box of warnings; "" without any."""
    if not warnings:
        return ""
    items = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
    return f'<aside class="warnings"><p>Worth knowing</p><ul>{items}</ul></aside>\n'


# How it was made ---------------------------------------------------------------------------------


def how_it_was_made(manifest: Mapping[str, Any]) -> str:
    """The section of command, settings, inputs and versions."""
    groups = (
        ("Settings", manifest.get("settings")),
        ("Model", manifest.get("model")),
        ("Inputs", manifest.get("inputs")),
        ("Data", manifest.get("data")),
        ("Implementation", manifest.get("implementation")),
        ("Devices", manifest.get("devices")),
        ("Seconds per stage", manifest.get("timings")),
        ("Versions", manifest.get("versions")),
        ("Notes", manifest.get("notes")),
    )
    command = " ".join(str(word) for word in manifest.get("command", ()))
    parts = [f'<code class="command">{escape(command)}</code>'] if command else []
    parts += [_group(title, value, is_open=title == "Settings") for title, value in groups if value]
    if not parts:
        return ""
    return "<section><h2>How it was made</h2>\n" + "\n".join(parts) + "</section>"


def _group(title: str, value: Any, *, is_open: bool) -> str:
    pairs = _flat(value) if isinstance(value, Mapping) else [("", value)]
    rows = [
        f'<tr><th scope="row">{escape(key)}</th><td class="value">{escape(shown(item))}</td></tr>'
        for key, item in pairs
    ]
    return (
        f"<details{' open' if is_open else ''}><summary>{escape(title)}</summary>"
        f"{table('', rows)}</details>"
    )


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, item in value.items():
        if isinstance(item, Mapping):
            found += _flat(item, f"{prefix}{key} · ")
        else:
            found.append((f"{prefix}{key}", item))
    return found


def shown(value: Any) -> str:
    """A value as people read it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(shown(item) for item in value) or "–"
    return str(value)


def files_of_run(files: Sequence[str], known_files: Mapping[str, str]) -> str:
    """The section that links to files; known_files: what each of them is."""
    known = [file for file in known_files if file in files]
    if not known:
        return ""
    rows = [
        f'<tr><th scope="row"><a href="{escape(file)}">{escape(file)}</a></th>'
        f"<td>{escape(known_files[file])}</td></tr>"
        for file in known
    ]
    return f"<section><h2>Files of this run</h2>\n{table('', rows)}</section>"


# Tables and figures ------------------------------------------------------------------------------


def figure_of(svgs: Mapping[str, str], file: str, caption: str) -> str:
    """A figure with its caption; "" where it was not drawn."""
    if file not in svgs:
        return ""
    svg = inline_svg(svgs[file], file.removesuffix(".svg"), caption)
    below = f"<figcaption>{escape(caption)}</figcaption>"
    return f'<figure><div class="scroll">{svg}</div>\n{below}</figure>'


def header(*columns: tuple[str, str]) -> str:
    """The head of a table: (text, class) of every column."""
    cells = "".join(f'<th scope="col" class="{kind}">{escape(text)}</th>' for text, kind in columns)
    return f"<thead><tr>{cells}</tr></thead>"


def table(head: str, rows: Sequence[str], caption: str = "") -> str:
    """A table that scrolls where it is too wide."""
    below = f'<p class="aside">{escape(caption)}</p>' if caption else ""
    body = "\n".join(rows)
    return f'<div class="scroll"><table>{head}<tbody>\n{body}\n</tbody></table></div>{below}'


def model_name(manifest: Mapping[str, Any]) -> str:
    """What the model of a run is called."""
    model = manifest.get("model")
    return str(model.get("id", "–")) if isinstance(model, Mapping) else "–"
