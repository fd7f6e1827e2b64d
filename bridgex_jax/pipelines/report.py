"""`bridgex report`: the figures and the page of a finished run, made again from its files."""

from __future__ import annotations

from bridgex_jax.errors import InputError
from bridgex_jax.pipelines.publish import rendered
from bridgex_jax.report.content import read_report
from bridgex_jax.store.manifest import MANIFEST, parse_manifest, replace_files
from bridgex_jax.store.paths import AnyPath, as_path

KINDS = ("select", "demo")


def run_report(directory: str | AnyPath) -> AnyPath:
    """Writes figures and report.html anew; returns the page. Raises InputError for another run."""
    directory = as_path(directory)
    manifest = parse_manifest(directory)
    if manifest["kind"] not in KINDS:
        raise InputError(
            f"holds a run of kind {manifest['kind']}, which has no report",
            file=directory,
            remedy="give the --out of bridgex select or bridgex demo",
        )
    # The page and figures may be damaged: replace_files checks all the others.
    report = read_report(directory, manifest)
    replace_files(directory, rendered(report, sorted({*manifest["files"], MANIFEST})))
    return directory / "report.html"
