"""`bridgex report`: the figures and the page of a finished run, made again from its files."""

from __future__ import annotations

from pathlib import Path

from bridgex_jax.errors import InputError
from bridgex_jax.pipelines.publish import rendered
from bridgex_jax.report.content import read_report
from bridgex_jax.store.manifest import MANIFEST, read_manifest, replace_files

KINDS = ("select", "demo")


def run_report(directory: Path) -> Path:
    """Writes figures and report.html anew; returns the page. Raises InputError for another run."""
    manifest = read_manifest(directory)
    if manifest["kind"] not in KINDS:
        raise InputError(
            f"holds a run of kind {manifest['kind']}, which has no report",
            file=directory,
            remedy="give the --out of bridgex select or bridgex demo",
        )
    report = read_report(directory, manifest)
    replace_files(directory, rendered(report, sorted({*manifest["files"], MANIFEST})))
    return directory / "report.html"
