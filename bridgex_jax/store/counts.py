"""Activation counts of languages on disk: the output of `count`, the input of `select --counts`.

One safetensors file a language. The two halves of a corpus are kept apart, because their sets are
compared (split-half stability) and their sum is exactly the count. Axis letters: L layer, F neuron.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from bridgex_jax.errors import InputError
from bridgex_jax.store.manifest import read_file, read_manifest
from bridgex_jax.store.paths import AnyPath, as_path
from bridgex_jax.store.runs import RunDirectory

_INDEX = "counts.json"


@dataclass(frozen=True)
class LanguageCounts:
    """What was counted in one language.

    halves: [2, L, F] int32, tokens of each half of the corpus at which the neuron was positive.
    sums: [L, F] float64, its activation summed over all tokens.
    half_tokens: tokens of each half. corpus: facts about the text (file, sha256, lines, notes).
    """

    language: str
    halves: Int[np.ndarray, "2 L F"]
    sums: Float[np.ndarray, "L F"]
    half_tokens: tuple[int, int]
    corpus: dict[str, Any] = field(default_factory=dict)

    @property
    def counts(self) -> Int[np.ndarray, "L F"]:
        """Tokens of the whole corpus at which the neuron was positive, int32."""
        return self.halves[0] + self.halves[1]

    @property
    def digest(self) -> str:
        """SHA-256 of what was counted: text, tokens and rows all show in it."""
        return hashlib.sha256(self.halves.tobytes() + repr(self.half_tokens).encode()).hexdigest()

    @property
    def n_tokens(self) -> int:
        """Tokens of the whole corpus."""
        return sum(self.half_tokens)


def save_counts(
    run: RunDirectory,
    languages: Iterable[LanguageCounts],
    *,
    model_sha256: str,
    site: str = "mlp_gate_act",
) -> None:
    """Writes the counts of every language into a run of kind "count"."""
    from safetensors.numpy import save

    index: dict[str, Any] = {"model_sha256": model_sha256, "site": site, "languages": {}}
    for item in languages:
        _check(item)
        tensors = {"halves": item.halves, "sums": item.sums}
        run.write_bytes(
            _file(item.language),
            save({name: np.ascontiguousarray(array) for name, array in tensors.items()}),
        )
        index["languages"][item.language] = {
            "half_tokens": item.half_tokens,
            "corpus": item.corpus,
        }
    run.write_json(_INDEX, index)


def load_counts(
    directory: str | AnyPath,
    *,
    model_sha256: str,
    languages: Iterable[str],
    site: str = "mlp_gate_act",
) -> dict[str, LanguageCounts]:
    """Counts of the wanted languages from a finished `count` run of the same model and site.

    Raises InputError for a directory that is no such run, a file that is missing or changed,
    another model or site, and a language that was not counted.
    """
    directory = as_path(directory)
    manifest = read_manifest(directory)
    if manifest["kind"] != "count":
        raise InputError(
            f"holds a run of kind {manifest['kind']}, not count",
            file=directory,
            remedy="give the --out of bridgex count",
        )
    index = json.loads(read_file(directory, manifest, _INDEX))
    if index["model_sha256"] != model_sha256:
        raise InputError(
            f"was counted with another model (sha256 {index['model_sha256'][:12]}…, "
            f"here {model_sha256[:12]}…)",
            file=directory,
            remedy="run bridgex count with this model",
        )
    if index["site"] != site:
        raise InputError(
            f"was counted at {index['site']}, not at {site}",
            file=directory,
            remedy="run bridgex count at this site",
        )
    found = {}
    for language in languages:
        if language not in index["languages"]:
            raise InputError(
                f"holds no counts of {language}, only of {', '.join(sorted(index['languages']))}",
                file=directory,
                remedy=f"run bridgex count with --corpus {language}=FILE",
            )
        data = read_file(directory, manifest, _file(language))
        found[language] = _load(data, language, index["languages"][language])
    return found


def _load(data: bytes, language: str, entry: dict[str, Any]) -> LanguageCounts:
    from safetensors.numpy import load

    tensors = load(data)
    first, second = entry["half_tokens"]
    return LanguageCounts(
        language, tensors["halves"], tensors["sums"], (first, second), entry["corpus"]
    )


def _check(item: LanguageCounts) -> None:
    halves, sums = item.halves, item.sums
    if halves.dtype != np.int32 or sums.dtype != np.float64:
        raise ValueError(
            f"{item.language}: halves are int32 and sums float64, not {halves.dtype}, {sums.dtype}"
        )
    if halves.ndim != 3 or halves.shape != (2, *sums.shape):
        raise ValueError(
            f"{item.language}: halves [2, L, F] against sums [L, F]: {halves.shape}, {sums.shape}"
        )


def _file(language: str) -> str:
    return f"counts/{language}.safetensors"
