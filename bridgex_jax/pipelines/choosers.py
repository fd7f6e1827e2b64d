"""All ways to choose a bridge for one pair, from what a run has: scores by chooser and bridge.

`bridgex select` writes those that its counts give beside its own choice (`choosers.json`);
`bridgex evaluate` reads them and adds what needs no model. Definitions: bridge/choosers.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bridgex_jax.bridge import choosers
from bridgex_jax.bridge.choosers import CHOOSERS, Scores
from bridgex_jax.data.bridge_scores import read_bridge_scores
from bridgex_jax.data.typology import lang2vec_file, read_typology
from bridgex_jax.errors import InputError
from bridgex_jax.report.ablation_figure import read_ablation
from bridgex_jax.store.manifest import read_file, verify_run
from bridgex_jax.store.paths import AnyPath

if TYPE_CHECKING:
    from bridgex_jax.pipelines.select import LanguageSets, Selection

FILE = "choosers.json"
ABLATION = "ablation.parquet"
LANG2VEC = "lang2vec"  # instead of a file: that of the installed package
ByChooser = dict[str, Scores]


def neuron_choosers(sets: LanguageSets, selection: Selection) -> ByChooser:
    """HSIC first, then what the same counts say without it."""
    source, target = selection.probe.source, selection.probe.target
    bridges = selection.spectrum.bridges
    members = dict(zip(sets.languages, sets.members, strict=True))
    rates = dict(zip(sets.languages, sets.rates, strict=True))
    means = selection.choice.means
    usable = {b: b in means and b not in selection.choice.not_comparable for b in bridges}
    found: ByChooser = {
        "hsic": {b: float(means[b]) if usable[b] else math.nan for b in bridges},
        "overlap": choosers.overlap_count(members, source, target, bridges),
        "set_size": choosers.set_size(selection.sets.bridges),
    }
    pairwise = {
        "jaccard": choosers.jaccard(members),
        "cosine": choosers.cosine(rates, members),
        "lape": choosers.lape_overlap(rates),
    }
    return found | {
        name: choosers.between(alike, source, target, bridges) for name, alike in pairwise.items()
    }


def choosers_of(pairs: Mapping[tuple[str, str], ByChooser]) -> dict[str, Any]:
    """What `choosers.json` holds."""
    return {
        "pairs": [
            {"source": source, "target": target, "scores": scores}
            for (source, target), scores in pairs.items()
        ]
    }


def read_choosers(
    directory: AnyPath, manifest: Mapping[str, Any], source: str, target: str
) -> ByChooser:
    """The scores of a pair from a run of `bridgex select` or `bridgex evaluate`.

    Raises InputError where the run has none of this pair.
    """
    for pair in json.loads(read_file(directory, manifest, FILE))["pairs"]:
        if (pair["source"], pair["target"]) == (source, target):
            found = pair["scores"]
            names = [name for name in CHOOSERS if name in found]
            names += [name for name in found if name not in names]
            return {name: _numbers(found[name]) for name in names}
    raise InputError(
        f"chose no bridge from {source} to {target}",
        file=directory,
        remedy="give the --out of bridgex select for this pair",
    )


def _numbers(scores: Mapping[str, float | None]) -> Scores:
    return {bridge: math.nan if s is None else float(s) for bridge, s in scores.items()}


def estimator_choosers(directory: AnyPath, source: str, target: str) -> ByChooser:
    """HSIC under every other estimator, from a run of `bridgex ablate`: `hsic_cka` and so on.

    Raises InputError for a run of another kind or pair, and one that did not vary the estimator.
    """
    manifest = verify_run(directory, (ABLATION,), ("ablate",))
    if manifest["inputs"]["pair"] != [source, target]:
        raise InputError(
            f"holds no ablation of {source}-{target}",
            file=directory,
            remedy="give the --out of bridgex ablate for this pair",
        )
    found = {
        f"hsic_{row.value.replace(' ', '_')}": _numbers(row.scores)
        for row in read_ablation(directory / ABLATION).rows
        if row.setting == "estimator" and row.scores and not row.is_base
    }
    if not found:
        raise InputError(
            "did not vary the estimator", file=directory, remedy="ablate with --vary estimator"
        )
    return found


def plain_choosers(
    source: str,
    target: str,
    bridges: Sequence[str],
    *,
    typology: str | None = None,
    table: str | None = None,
) -> ByChooser:
    """Choosers that need no model: English, typology and the user's own table.

    A random choice needs none of its own: it is the mean over all bridges.

    Raises InputError where the table has no score for this pair, and what the readers raise.
    """
    found: ByChooser = {}
    if "en" in bridges:
        found["english"] = choosers.fixed("en", bridges)
    if typology is not None:
        # The same features for all bridges: what is missing differs between languages.
        file = lang2vec_file() if typology == LANG2VEC else typology
        features = read_typology(file, (source, target, *bridges), kinds=["syntax"]).features
        alike = choosers.typological(choosers.known_to_all(features))
        found["typology"] = choosers.between(alike, source, target, bridges)
    if table is not None:
        found["table"] = choosers.table(read_bridge_scores(table), source, target, bridges)
        if choosers.pick(found["table"]) is None:
            raise InputError(
                f"has no score from {source} to {target}",
                file=table,
                remedy="add rows for this pair, or take the file out",
            )
    return found


def picks(scores: ByChooser) -> dict[str, str]:
    """The bridge that each chooser takes; choosers that cannot say are left out."""
    found = {name: choosers.pick(of_bridges) for name, of_bridges in scores.items()}
    return {name: bridge for name, bridge in found.items() if bridge is not None}
