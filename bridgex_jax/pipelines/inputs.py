"""What a job reads: the model, dictionaries and corpora, from files or from the CLDR.

`builtin` names the model that ships with the package, `cldr` its words and its text; with that
model they are also the default, so that nobody needs files for a first try.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from bridgex_jax import cluster, runtime
from bridgex_jax.data.cldr import concepts_digest, read_concepts, sentences
from bridgex_jax.data.corpora import Corpus, read_corpus
from bridgex_jax.data.dictionaries import Dictionary, WordPair, find_dictionary
from bridgex_jax.errors import InputError
from bridgex_jax.languages import added_languages, language
from bridgex_jax.models.load import Model, load_model
from bridgex_jax.store.paths import AnyPath

BUILTIN = "builtin"
CLDR = "cldr"
CLDR_LINES = 6_000  # about 50,000 tokens of the built-in model's tokenizer


def builtin_directory() -> Path:
    """Where the model lies that ships with the package."""
    return Path(__file__).resolve().parent.parent / BUILTIN


def read_model(
    name: str, *, dtype: str, revision: str | None, quiet: bool, mesh: str | None = None
) -> Model:
    """A model by directory or hub id, or `builtin`, on a mesh of all devices.

    mesh: see `runtime.make_mesh`. Raises InputError as that and `load_model` do.
    """
    place = builtin_directory() if name == BUILTIN else name
    devices = runtime.make_mesh(mesh)
    model = load_model(place, dtype=dtype, revision=revision, mesh=devices, quiet=quiet)
    if team := cluster.peers():  # one process alone reads all bytes
        assert model.source is not None
        digest = team.share(model.source.hash.encode() if team.is_leader else None).decode()
        model = replace(model, source=replace(model.source, sha256=digest))
    return model


def model_facts(model: Model) -> dict[str, Any]:
    """Where the model came from, its hash and its shape, for the manifest."""
    assert model.source is not None
    config = model.config
    return {
        "id": model.source.id or Path(model.source.path).resolve().name,
        "path": model.source.path,
        "revision": model.source.revision,
        "sha256": model.source.hash,
        "family": config.family,
        "layers": config.n_layers,
        "neurons_per_layer": config.d_ff,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model.params)),
        "dtype": str(jax.tree.leaves(model.params)[0].dtype),
        "attention": model.layout.attention if model.layout else "products",
    }


def added_language_names() -> dict[str, Any]:
    """What prompts call languages that the user added: a part of what a run was made from."""
    added = added_languages()
    return {"languages": added} if added else {}


def dictionary_facts(words: Dictionary) -> dict[str, Any]:
    """Which files a dictionary came from, how, and what reading them met, for the manifest."""
    return {
        "files": words.files,
        "sha256": words.sha256,
        "route": words.route,
        "notes": words.notes,
    }


def check_languages(source: str, target: str, bridges: Sequence[str]) -> tuple[str, str, list[str]]:
    """Codes in their short form. Raises InputError where one is unknown or two are the same."""
    start, goal = language(source).code, language(target).code
    middle = [language(code).code for code in bridges]
    if start == goal:
        raise InputError(
            f"source and target are both {start}", remedy="give two different languages"
        )
    if taken := [code for code in middle if code in (start, goal)]:
        raise InputError(
            f"bridge {taken[0]} is the source or the target",
            remedy=f"take {taken[0]} out of --bridges",
        )
    if twice := [code for code in middle if middle.count(code) > 1]:
        raise InputError(f"bridge {twice[0]} is given twice", remedy="give every bridge once")
    return start, goal, middle


def keyed(items: Iterable[str], option: str, example: str) -> list[tuple[str, str]]:
    """`KEY=FILE` arguments as pairs. Raises InputError for one without `=`."""
    pairs = []
    for item in items:
        key, mark, file = item.partition("=")
        if not mark or not key or not file:
            raise InputError(f"{option} {item!r} is not KEY=FILE", remedy=f"write {example}")
        pairs.append((key, file))
    return pairs


def dictionary_files(items: Iterable[str]) -> dict[tuple[str, str], list[str]]:
    """`id-he=FILE` arguments as {(source, target): files}; several files of a pair are merged."""
    files: dict[tuple[str, str], list[str]] = {}
    for key, file in keyed(items, "--dictionary", "--dictionary id-he=FILE"):
        codes = key.split("-")
        if len(codes) != 2:
            raise InputError(
                f"--dictionary {key!r} does not name two languages",
                remedy="write --dictionary id-he=FILE",
            )
        first, second = language(codes[0]).code, language(codes[1]).code
        files.setdefault((first, second), []).append(file)
    return files


def read_words(
    files: Mapping[tuple[str, str], Sequence[str | AnyPath]] | str, source: str, target: str
) -> Dictionary:
    """The dictionary of a pair: from files (direct, reversed, pivoted) or `cldr`."""
    if isinstance(files, str):
        return cldr_dictionary(source, target)
    return find_dictionary(files, source, target)


def cldr_dictionary(source: str, target: str) -> Dictionary:
    """CLDR's names in two languages; a word that is the same in both is counted and kept."""
    concepts = read_concepts((source, target))
    pairs = tuple(WordPair(c.words[source], c.words[target]) for c in concepts)
    same = sum(pair.source.lower() == pair.target.lower() for pair in pairs)
    notes = {"identical": same} if same else {}
    digest = concepts_digest(concepts)
    return Dictionary(source, target, pairs, notes, (CLDR,), digest)


def cldr_corpus(code: str, seed: int, n_lines: int = CLDR_LINES) -> Corpus:
    """Lines that the locale's formatters write: dates, amounts, units, lists."""
    lines = tuple(itertools.islice(sentences(code, seed), n_lines))
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return Corpus(code, lines, {}, digest, CLDR)


def read_corpora(
    items: Sequence[str] | str, languages: Sequence[str], seed: int
) -> dict[str, Corpus]:
    """A corpus for every language that is needed: `en=FILE` arguments, or `cldr` for all.

    Raises InputError for a language without a corpus and for two corpora of one language.
    """
    if isinstance(items, str):
        return {code: cldr_corpus(code, seed) for code in languages}
    files: dict[str, str] = {}
    for key, file in keyed(items, "--corpus", "--corpus en=FILE"):
        code = language(key).code
        if code in files:
            raise InputError(f"two corpora of {code}", remedy="join them into one file")
        files[code] = file
    if missing := [code for code in languages if code not in files]:
        raise InputError(
            f"no corpus of {', '.join(missing)}",
            remedy=f"give --corpus {missing[0]}=FILE, or --counts DIR made by bridgex count",
        )
    return {
        code: cldr_corpus(code, seed) if files[code] == CLDR else read_corpus(files[code], code)
        for code in languages
    }
