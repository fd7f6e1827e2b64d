"""The error for bad input: one line that names the file, the line and the remedy.

The command line prints it as `bridgex: error: …` and exits with status 2; everything else that is
raised is a fault of the program and keeps its traceback.
"""

from __future__ import annotations

import os


def _one_line(text: str) -> str:
    """`text` with line ends and other unprintable characters as single spaces."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


class InputError(ValueError):
    """Something that the user gave cannot be used.

    `str()` is one line, `FILE:LINE: what; remedy`, with the parts that are not known left out.
    """

    def __init__(
        self,
        what: str,
        *,
        file: str | os.PathLike[str] | None = None,
        line: int | None = None,
        remedy: str | None = None,
    ) -> None:
        self.what = what
        self.file = file
        self.line = line
        self.remedy = remedy
        place = ""
        if file is not None:
            place = f"{file}: " if line is None else f"{file}:{line}: "
        elif line is not None:
            place = f"line {line}: "
        super().__init__(_one_line(f"{place}{what}" + (f"; {remedy}" if remedy else "")))
