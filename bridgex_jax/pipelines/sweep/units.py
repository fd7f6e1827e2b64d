"""Units: what a sweep does one by one, each under a key that is the hash of all that decides it.

A count unit is one model with the text of all languages of the plan; the pairs of the model share
it. A select unit is one model, pair and settings; an evaluate unit is a task for one of them. The
hashes of models and data are part of the key, and so are the batch sizes (rounding follows them)
and the code.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bridgex_jax import kernels
from bridgex_jax.pipelines.count import CountSettings
from bridgex_jax.pipelines.inputs import CLDR
from bridgex_jax.pipelines.select import SelectSettings
from bridgex_jax.pipelines.sweep.plan import Files, ModelSpec, PairSpec, Plan
from bridgex_jax.pipelines.sweep.plan_evaluate import TaskSpec
from bridgex_jax.pipelines.task_inputs import EvaluateSettings
from bridgex_jax.store.files import json_bytes, plain
from bridgex_jax.store.manifest import collect_versions

KEY_DIGITS = 32
_COMPUTING = ("jax", "jaxlib", "numpy", "tokenizers", "transformers", "babel")


@functools.cache
def code_version() -> str:
    """Version of the package, a hash over its source files, and a hash over the libraries.

    The version alone would not show that somebody edits a checkout between two calls.
    """
    package = Path(__file__).resolve().parents[2]
    roots = [package, *(Path(place).resolve() for place in kernels.__path__)]
    digest = hashlib.sha256()
    for root in dict.fromkeys(roots):
        for file in sorted([*root.rglob("*.py"), *root.rglob("*.yaml")]):
            digest.update(f"{file.relative_to(root).as_posix()}\n".encode())
            digest.update(file.read_bytes())
    versions = collect_versions()
    libraries = " ".join(f"{name}={versions.get(name)}" for name in _COMPUTING)
    return (
        f"{versions.get('bridgex_jax', 'unknown')}+{digest.hexdigest()[:12]}"
        f" with {hashlib.sha256(libraries.encode()).hexdigest()[:8]} (jax {versions.get('jax')})"
    )


@dataclass(frozen=True)
class Pinned:
    """An input as the plan found it: hash and size, or why it cannot be read.

    size: characters of a corpus, pairs of a dictionary, questions of a task, 0 of others.
    """

    name: str
    sha256: str | None
    size: int = 0
    reason: str | None = None


@dataclass(frozen=True)
class CountUnit:
    """Counts of one model. corpora: (code, FILE or `cldr`, its pin); seed: of `cldr` text."""

    code: str
    model: ModelSpec
    model_pin: Pinned
    corpora: tuple[tuple[str, str, Pinned], ...]
    seed: int
    settings: CountSettings

    kind = "count"
    needs = None

    @functools.cached_property
    def key(self) -> str:
        return _key(
            {
                "kind": self.kind,
                "code": self.code,
                "model": self.model_pin.sha256 or self.model.title,
                "dtype": self.model.dtype,
                "corpora": {code: pin.sha256 or pin.name for code, _, pin in self.corpora},
                "settings": asdict(self.settings),
            }
        )

    @property
    def reason(self) -> str | None:
        """Why the unit cannot be made, where one of its inputs could not be read."""
        return next((pin.reason for pin in self.pins if pin.reason), None)

    @property
    def pins(self) -> list[Pinned]:
        """What it reads."""
        return [self.model_pin, *(pin for _, _, pin in self.corpora)]

    @property
    def title(self) -> str:
        return f"count {len(self.corpora)} languages"

    @property
    def batch_size(self) -> int | None:
        return self.settings.batch_size

    def with_batch(self, size: int) -> CountUnit:
        return replace(self, settings=replace(self.settings, batch_size=size))


@dataclass(frozen=True)
class SelectUnit:
    """The choice of one pair. files: of all dictionaries, () for the words of the CLDR."""

    count: CountUnit
    pair: PairSpec
    files: Files
    words_pin: Pinned
    settings: SelectSettings

    kind = "select"

    @property
    def needs(self) -> CountUnit:
        """The unit that must be complete before."""
        return self.count

    @functools.cached_property
    def key(self) -> str:
        return _key(
            {
                "kind": self.kind,
                "count": self.count.key,
                "pair": [self.pair.source, self.pair.target],
                "bridges": list(self.pair.bridges),
                "dictionary": self.words_pin.sha256 or self.words_pin.name,
                "settings": asdict(self.settings),
            }
        )

    @property
    def code(self) -> str:
        return self.count.code

    @property
    def model(self) -> ModelSpec:
        return self.count.model

    @property
    def reason(self) -> str | None:
        """Why the unit cannot be made, where one of its inputs could not be read."""
        return self.count.reason or self.words_pin.reason

    @property
    def pins(self) -> list[Pinned]:
        """What it reads itself, beside its count unit."""
        return [self.words_pin]

    @property
    def title(self) -> str:
        return f"select {self.pair.source}→{self.pair.target}"

    @property
    def batch_size(self) -> int:
        return self.settings.batch_size

    def with_batch(self, size: int) -> SelectUnit:
        return replace(self, settings=replace(self.settings, batch_size=size))

    def with_count(self, count: CountUnit) -> SelectUnit:
        settings = replace(self.settings, count=count.settings)
        return replace(self, count=count, settings=settings)


@dataclass(frozen=True)
class EvaluateUnit:
    """A task for the pair of a select unit, whose choosers are judged and whose words not asked.

    data_pins: of the questions in both languages, () of words, which are the select unit's.
    chooser_pins: of the files of further choosers.
    """

    select: SelectUnit
    task: TaskSpec
    data_pins: tuple[Pinned, ...] = ()
    chooser_pins: tuple[Pinned, ...] = ()

    kind = "evaluate"

    @property
    def needs(self) -> SelectUnit:
        """The unit that must be complete before."""
        return self.select

    @functools.cached_property
    def key(self) -> str:
        return _key(
            {
                "kind": self.kind,
                "select": self.select.key,
                "task": self.task.form.facts(),
                "data": [pin.sha256 or pin.name for pin in self.data_pins],
                "choosers": {
                    name: pin.sha256 or pin.name
                    for (name, _), pin in zip(self.task.choosers, self.chooser_pins, strict=True)
                },
                "settings": asdict(self.settings),
            }
        )

    @property
    def count(self) -> CountUnit:
        return self.select.count

    @property
    def code(self) -> str:
        return self.count.code

    @property
    def model(self) -> ModelSpec:
        return self.select.model

    @property
    def pair(self) -> PairSpec:
        return self.select.pair

    @property
    def settings(self) -> EvaluateSettings:
        return self.task.settings

    @property
    def reason(self) -> str | None:
        """Why the unit cannot be made, where one of its own inputs could not be read."""
        return next((pin.reason for pin in self.pins if pin.reason), None)

    @property
    def pins(self) -> list[Pinned]:
        """What it reads itself, beside what its select unit has read."""
        return [*self.data_pins, *self.chooser_pins]

    @property
    def title(self) -> str:
        return f"evaluate {self.task.form.name} {self.pair.source}→{self.pair.target}"

    @property
    def batch_size(self) -> int:
        return self.settings.batch_size

    def with_batch(self, size: int) -> EvaluateUnit:
        settings = replace(self.settings, batch_size=size)
        return replace(self, task=replace(self.task, settings=settings))

    def with_select(self, select: SelectUnit) -> EvaluateUnit:
        return replace(self, select=select)


Unit = CountUnit | SelectUnit | EvaluateUnit


def in_order(units: Iterable[Unit], last: frozenset[str] = frozenset()) -> list[Unit]:
    """Every unit once, in the given order, each after those that it needs.

    last: keys of units that go to the end.
    """
    found: dict[str, Unit] = {}
    for unit in sorted(units, key=lambda unit: any(one.key in last for one in with_needs(unit))):
        for one in with_needs(unit):
            found.setdefault(one.key, one)
    return list(found.values())


def with_needs(unit: Unit) -> list[Unit]:
    """The unit after all that must be complete before it."""
    return [unit] if unit.needs is None else [*with_needs(unit.needs), unit]


def _key(identity: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json_bytes(identity)).hexdigest()
    return f"{identity['kind']}-{digest[:KEY_DIGITS]}"


def list_selects(plan: Plan, pin: Any, code: str) -> list[SelectUnit]:
    """The select units of a plan in its order: models, then settings, then pairs.

    pin: `Inputs` of inputs.py, which knows the hash of everything that a unit reads.
    """
    units = []
    for model in plan.models:
        for settings in plan.settings:
            count = _count_unit(plan, model, settings, pin, code)
            for pair in plan.pairs:
                files = pair_files(plan, pair)
                words = pin.words(pair, files)
                units.append(SelectUnit(count, pair, files, words, settings))
    return units


def list_evaluations(plan: Plan, selects: Iterable[SelectUnit], pin: Any) -> list[EvaluateUnit]:
    """The evaluate units of a plan: of every select unit each task. pin: see `list_selects`."""
    return [
        EvaluateUnit(
            select,
            task,
            tuple(pin.questions(task, code) for code in _asked_in(task, select.pair)),
            tuple(pin.chooser(name, file) for name, file in task.choosers),
        )
        for select in selects
        for task in plan.evaluate
    ]


def _asked_in(task: TaskSpec, pair: PairSpec) -> tuple[str, ...]:
    return () if task.data is None else (pair.source, pair.target)


def _count_unit(
    plan: Plan, model: ModelSpec, settings: SelectSettings, pin: Any, code: str
) -> CountUnit:
    # The seed decides text that is made from the CLDR, and nothing else of a count.
    made = any(file == CLDR for _, file in plan.corpora)
    seed = settings.seed if made else 0
    corpora = tuple((c, file, pin.corpus(c, file, seed)) for c, file in plan.corpora)
    return CountUnit(code, model, pin.model(model), corpora, seed, settings.count)


def pair_files(plan: Plan, pair: PairSpec) -> Files:
    """The dictionaries among which the words of a pair are found; () for the CLDR."""
    if pair.dictionary == (CLDR,):
        return ()
    if not pair.dictionary:
        return plan.dictionaries
    name = f"{pair.source}-{pair.target}"
    return ((name, pair.dictionary), *((k, v) for k, v in plan.dictionaries if k != name))


def settings_title(settings: SelectSettings, among: Iterable[SelectSettings]) -> str:
    """`top_rate=0.1 seed=1`: the settings in which those of a plan differ."""
    flat = [_flat(plain(one)) for one in among]
    mine = _flat(plain(settings))
    names = [name for name in mine if len({str(one[name]) for one in flat}) > 1]
    return " ".join(f"{name}={mine[name]}" for name in names)


def _flat(value: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= _flat(item) if isinstance(item, Mapping) else {key: item}
    return found
