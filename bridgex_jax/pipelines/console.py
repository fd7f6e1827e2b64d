"""What a person sees while a job runs: notices, warnings and progress, all on standard error.

Results go to standard output, so that a pipe gets them alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Console:
    """Says what happens, unless quiet; keeps every warning for the manifest and the report."""

    def __init__(self, quiet: bool = False):
        self.quiet = quiet
        self.warnings: list[str] = []

    def say(self, text: str) -> None:
        """One line of what is going on."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """Something that the user should know of the result; shown once."""
        if text not in self.warnings:
            self.warnings.append(text)
            self.say(f"warning: {text}")

    @contextmanager
    def progress(self, label: str, total: int, unit: str) -> Iterator[Callable[[int], object]]:
        """A bar with the time left on a terminal, once two seconds have passed."""
        from tqdm import tqdm

        off = self.quiet or not sys.stderr.isatty()
        with tqdm(
            total=total, desc=label, unit=f" {unit}", delay=2, leave=False, disable=off
        ) as bar:
            yield bar.update
