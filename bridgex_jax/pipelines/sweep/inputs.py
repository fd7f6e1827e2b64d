"""What the units read, each file once, under the hash with which the sweep began.

The first call of a sweep pins every model, corpus and dictionary by its hash. Once a unit made of
them is complete, later calls, shards and workers plan with the pins and read nothing; what they
then load must have the pinned hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bridgex_jax.data.corpora import Corpus
from bridgex_jax.data.dictionaries import Dictionary
from bridgex_jax.errors import InputError
from bridgex_jax.models.hub import find_model
from bridgex_jax.models.load import Model
from bridgex_jax.pipelines.console import Console
from bridgex_jax.pipelines.inputs import (
    BUILTIN,
    CLDR,
    builtin_directory,
    read_corpora,
    read_model,
    read_words,
)
from bridgex_jax.pipelines.sweep.plan import Files, ModelSpec, PairSpec
from bridgex_jax.pipelines.sweep.plan_evaluate import TaskSpec
from bridgex_jax.pipelines.sweep.units import CountUnit, EvaluateUnit, Pinned, SelectUnit
from bridgex_jax.pipelines.task_inputs import (
    HUB,
    Asked,
    Exam,
    read_chosen,
    read_records,
    record_exam,
    word_exam,
)
from bridgex_jax.store.files import plain
from bridgex_jax.store.paths import AnyPath, read_bytes


class Inputs:
    """Models, corpora and dictionaries; keeps texts, and the model that was loaded last.

    mesh: see `runtime.make_mesh`.
    """

    def __init__(self, mesh: str | None = None):
        self._mesh = mesh
        self._pins: dict[str, Pinned] = {}
        self._corpora: dict[str, Corpus] = {}
        self._words: dict[str, Dictionary] = {}
        self._model: tuple[ModelSpec, Model] | None = None

    @property
    def pins(self) -> dict[str, Any]:
        """All pins by name, as plain values."""
        return plain(self._pins)

    def adopt(self, pins: Mapping[str, Mapping[str, Any]]) -> None:
        """Takes pins of an earlier call or of another process, as `pins` gives them."""
        self._pins |= {name: Pinned(**pin) for name, pin in pins.items()}

    # Pins, for the plan ------------------------------------------------------------------------

    def model(self, spec: ModelSpec) -> Pinned:
        """The pin of a model: reads its files from end to end, and loads nothing."""
        place = builtin_directory() if spec.name == BUILTIN else spec.name

        def read() -> tuple[str, int]:
            return find_model(place, revision=spec.revision, quiet=True).hash, 0

        return self._pin(_model_name(spec), read)

    def corpus(self, code: str, file: str, seed: int) -> Pinned:
        """The pin of a corpus."""

        def read() -> tuple[str, int]:
            corpus = self._read_corpus(code, file, seed)
            return corpus.sha256, sum(map(len, corpus.lines))

        return self._pin(_corpus_name(code, file, seed), read)

    def words(self, pair: PairSpec, files: Files) -> Pinned:
        """The pin of a pair's dictionary."""

        def read() -> tuple[str, int]:
            words = self._read_words(pair, files)
            return words.sha256, len(words.pairs)

        return self._pin(_words_name(pair, files), read)

    def questions(self, task: TaskSpec, code: str) -> Pinned:
        """The pin of a task's questions in one language."""

        def read() -> tuple[str, int]:
            records = read_records(task.form, task.files, code)
            return records.sha256, len(records.records)

        return self._pin(_questions_name(task, code), read)

    def chooser(self, name: str, file: str) -> Pinned:
        """The pin of the file of a chooser."""
        return self._pin(f"{name} {file}", lambda: (_sha256(file), 0))

    def _pin(self, name: str, read: Any) -> Pinned:
        if name not in self._pins:
            try:
                self._pins[name] = Pinned(name, *read())
            except (InputError, OSError) as error:
                self._pins[name] = Pinned(name, None, reason=str(error))
        return self._pins[name]

    # Values, for the work ----------------------------------------------------------------------

    def load_model(self, spec: ModelSpec, pin: Pinned) -> Model:
        """The model of a unit. Raises InputError where it cannot be loaded or has changed."""
        if self._model is None or self._model[0] != spec:
            self._model = None  # its memory must be free before the next one comes
            model = read_model(
                spec.name, dtype=spec.dtype, revision=spec.revision, mesh=self._mesh, quiet=True
            )
            assert model.source is not None
            _must_be(pin, model.source.hash, spec.name)  # hashed after the weights were read
            self._model = spec, model
        return self._model[1]

    def load_corpora(self, unit: CountUnit) -> dict[str, Corpus]:
        """The corpora of a unit. Raises InputError where one cannot be read or has changed."""
        found = {}
        for code, file, pin in unit.corpora:
            found[code] = self._read_corpus(code, file, unit.seed)
            _must_be(pin, found[code].sha256, file)
        return found

    def load_words(self, unit: SelectUnit) -> Dictionary:
        """The dictionary of a unit. Raises InputError where it cannot be read or has changed."""
        words = self._read_words(unit.pair, unit.files)
        _must_be(unit.words_pin, words.sha256, " and ".join(words.files))
        return words

    def make_exam(self, unit: EvaluateUnit, selection: AnyPath, console: Console) -> Exam:
        """What a unit asks. selection: the run of its select unit.

        Raises InputError where something cannot be read, has changed or is too little.
        """
        pair, task = unit.pair, unit.task
        asked = Asked(task.form, pair.source, pair.target, pair.bridges, unit.settings)
        for (_, file), pin in zip(task.choosers, unit.chooser_pins, strict=True):
            _must_be(pin, _sha256(file), file)
        files = dict(task.choosers)
        chosen = read_chosen(
            asked,
            str(selection),
            typology=files.get("typology"),
            table=files.get("scores"),
        )
        if task.data is None:
            return word_exam(asked, self.load_words(unit.select), chosen)
        exam = record_exam(asked, task.files, chosen, console)
        for code, pin in zip((pair.source, pair.target), unit.data_pins, strict=True):
            _must_be(pin, exam.hashes["data"][code], _questions_name(task, code))
        return exam

    def _read_corpus(self, code: str, file: str, seed: int) -> Corpus:
        name = _corpus_name(code, file, seed)
        if name not in self._corpora:
            self._corpora |= {name: read_corpora([f"{code}={file}"], [code], seed)[code]}
        return self._corpora[name]

    def _read_words(self, pair: PairSpec, files: Files) -> Dictionary:
        name = _words_name(pair, files)
        if name not in self._words:
            by_pair = {(k.split("-")[0], k.split("-")[1]): list(paths) for k, paths in files}
            self._words[name] = read_words(by_pair or CLDR, pair.source, pair.target)
        return self._words[name]


def _must_be(pin: Pinned, sha256: str, file: str | Path) -> None:
    if sha256 != pin.sha256:
        raise InputError(
            f"has changed since the sweep began (sha256 {str(pin.sha256)[:12]}… then, "
            f"{sha256[:12]}… now)",
            file=file,
            remedy="put the old one back, or sweep into another --out",
        )


def _sha256(file: str) -> str:
    return hashlib.sha256(read_bytes(file)).hexdigest()


def _model_name(spec: ModelSpec) -> str:
    return f"model {spec.name}" + (f"@{spec.revision}" if spec.revision else "")


def _corpus_name(code: str, file: str, seed: int) -> str:
    return f"corpus {code} {file}" + (f" seed {seed}" if file == CLDR else "")


def _words_name(pair: PairSpec, files: Files) -> str:
    """All files that could be used: which are, follows from the pair."""
    shown = " ".join(f"{name}={','.join(paths)}" for name, paths in files) or CLDR
    return f"dictionary {pair.source}-{pair.target} {shown}"


def _questions_name(task: TaskSpec, code: str) -> str:
    file = HUB if isinstance(task.files, str) else task.files.get(code, "without a file")
    return f"{task.form.data} {code} {file}"
