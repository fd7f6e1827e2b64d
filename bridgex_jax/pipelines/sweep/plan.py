"""PLAN.yaml → `Plan`: which models, which pairs, which settings.

    models: [builtin, {model: meta-llama/Meta-Llama-3-8B, revision: main, dtype: bfloat16}]
    pairs: [id-he, {source: id, target: sw, bridges: [en], dictionary: id-sw.txt}]
    bridges: [en, de, fr]                    # of all pairs, less their source and target
    languages: [it]                          # counted too, so that a later pair can use the counts
    dictionary: {id-he: [a.txt, b.txt]}      # or cldr
    corpus: {id: id.txt, he: he.txt, …}      # or cldr; both default to it with the built-in model
    select: {probe_filter: none}             # options of `bridgex select`
    grid: {top_rate: [0.01, 0.02]}           # lists of them: every combination
    count: {batch_size: 8}                   # of `bridgex count`
    evaluate: {task: [bli, mrc], …}          # every choice in these tasks: see plan_evaluate.py

Every scalar is read as text and then as its option reads it, so YAML's own guesses (`no` is false,
`1e-2` is a word) do no harm. What is wrong is one line with the file, the line and the remedy.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from bridgex_jax.data.batching import SCOPES
from bridgex_jax.errors import InputError
from bridgex_jax.languages import language
from bridgex_jax.neurons import sets as neuron_sets
from bridgex_jax.pipelines.inputs import BUILTIN, CLDR, check_languages
from bridgex_jax.pipelines.select import SelectSettings, settings_from
from bridgex_jax.pipelines.sweep.plan_evaluate import TaskSpec, read_evaluate
from bridgex_jax.pipelines.sweep.plan_values import (
    integer,
    layers,
    maybe,
    one_of,
    positive,
    rate,
    switch,
)

if TYPE_CHECKING:
    from yaml import Node

DTYPES = ("float32", "bfloat16", "float16")
Files = tuple[tuple[str, tuple[str, ...]], ...]  # ("id-he", (FILE, …)), …


@dataclass(frozen=True)
class ModelSpec:
    """A model as `bridgex select` takes it."""

    name: str
    revision: str | None = None
    dtype: str = "float32"

    @property
    def title(self) -> str:
        """What people and pins call it."""
        revision = f"@{self.revision}" if self.revision else ""
        return self.name + revision + ("" if self.dtype == "float32" else f" ({self.dtype})")


@dataclass(frozen=True)
class PairSpec:
    """A pair with its candidates; dictionary: its own files, which go before the plan's."""

    source: str
    target: str
    bridges: tuple[str, ...]
    dictionary: tuple[str, ...] = ()

    @property
    def languages(self) -> tuple[str, ...]:
        return (self.source, self.target, *self.bridges)


@dataclass(frozen=True)
class Plan:
    """What a sweep computes: every model with every pair and every one of the settings.

    languages: those that are counted. corpora: (code, FILE or `cldr`) of each. dictionaries:
    files of pairs; () means the words of the CLDR. evaluate: the tasks that every choice is
    evaluated in.
    """

    models: tuple[ModelSpec, ...]
    pairs: tuple[PairSpec, ...]
    languages: tuple[str, ...]
    corpora: tuple[tuple[str, str], ...]
    dictionaries: Files
    settings: tuple[SelectSettings, ...]
    evaluate: tuple[TaskSpec, ...] = ()


# The options of `bridgex select`: their defaults, and how their text is read.
_DEFAULTS = SelectSettings()
_OPTIONS: dict[str, tuple[Any, Callable[[str], Any]]] = {
    "top_rate": (_DEFAULTS.top_rate, rate),
    "rate_scope": (_DEFAULTS.rate_scope, one_of(*get_args(neuron_sets.Scope))),
    "bridge_set": (_DEFAULTS.bridge_set, one_of(*get_args(neuron_sets.BridgeSet))),
    "top_k": (None, maybe(positive)),
    "drop_common": (False, switch),
    "words": (_DEFAULTS.words, positive),
    "probe_filter": (_DEFAULTS.probe_filter, one_of("correct", "none")),
    "token_scope": (_DEFAULTS.token_scope, one_of(*SCOPES)),
    "template": (None, maybe(str)),
    "layers": (None, maybe(layers)),
    "seed": (_DEFAULTS.seed, integer),
    "batch_size": (_DEFAULTS.batch_size, positive),
    "resamples": (_DEFAULTS.resamples, positive),
    "permutations": (_DEFAULTS.permutations, positive),
    "parallel": (None, maybe(positive)),
    "estimator": (None, maybe(str)),
    "bandwidth": (None, maybe(one_of("variable_median", "set_median"))),
    "length_control": (None, maybe(str)),
    "no_size_matching": (False, switch),
    "compat": (None, maybe(str)),
    "tokens": (None, maybe(positive)),
    "row_length": (None, maybe(positive)),
}


# The file --------------------------------------------------------------------------------------


def read_plan(path: str | Path) -> Plan:
    """The plan in a YAML file.

    Raises InputError, with file, line and remedy, for a file that is no YAML, an unknown or
    repeated key, a value that its option does not take, an unknown language, a language without
    a corpus, and settings that contradict each other.
    """
    return _Reader(Path(path)).plan()


class _Reader:
    """Walks the nodes of one file; every error names its line."""

    def __init__(self, path: Path):
        self.path = path
        self.root = self._compose()

    def _compose(self) -> Node:
        import yaml

        try:
            node = yaml.compose(self.path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise InputError(reason, file=self.path, remedy="give a plan in YAML") from error
        except UnicodeDecodeError as error:
            raise InputError("is not UTF-8", file=self.path, remedy="save it as UTF-8") from error
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            raise InputError(
                f"is not YAML: {getattr(error, 'problem', None) or error}",
                file=self.path,
                line=mark.line + 1 if mark else None,
                remedy="mend that line",
            ) from error
        if node is None:
            raise InputError("is empty", file=self.path, remedy="name models: and pairs:")
        return node

    def wrong(self, node: Node, what: str, remedy: str) -> InputError:
        return InputError(what, file=self.path, line=node.start_mark.line + 1, remedy=remedy)

    # Shapes of nodes -------------------------------------------------------------------------

    def mapping(self, node: Node, what: str) -> dict[str, Node]:
        """Keys (with _ for -) and their nodes, in order. Raises InputError for one given twice."""
        import yaml

        if not isinstance(node, yaml.MappingNode):
            raise self.wrong(node, f"{what} is not a mapping", f"write {what}: and `KEY: VALUE`")
        found: dict[str, Node] = {}
        for key, value in node.value:
            name = self.text(key, f"a key of {what}")
            if name in found:
                raise self.wrong(key, f"{name!r} stands twice in {what}", "keep one of them")
            found[name] = value
        return found

    def options(self, node: Node, what: str, known: Iterable[str]) -> dict[str, Node]:
        """As `mapping`, for a fixed list of keys, in which - may stand for _."""
        known = tuple(known)
        found: dict[str, Node] = {}
        for key, value in self.mapping(node, what).items():
            name = key.replace("-", "_")
            if name not in known or name in found:
                close = difflib.get_close_matches(name, known, n=1)
                remedy = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
                where = next(k for k, v in node.value if v is value)
                raise self.wrong(where, f"unknown key {key!r} in {what}", remedy)
            found[name] = value
        return found

    def sequence(self, node: Node, what: str) -> list[Node]:
        """The items of a list that is not empty."""
        import yaml

        if not isinstance(node, yaml.SequenceNode) or not node.value:
            raise self.wrong(node, f"{what} is not a list of items", f"write {what}: [A, B]")
        return list(node.value)

    def text(self, node: Node, what: str) -> str:
        """One value."""
        import yaml

        if not isinstance(node, yaml.ScalarNode):
            remedy = "give one value" + ("; lists go under grid:" if what in _OPTIONS else "")
            raise self.wrong(node, f"{what} is not a single value", remedy)
        return str(node.value).strip()

    def texts(self, node: Node, what: str) -> tuple[str, ...]:
        """One value or a list of them."""
        import yaml

        items = [node] if isinstance(node, yaml.ScalarNode) else self.sequence(node, what)
        return tuple(self.text(item, what) for item in items)

    def value(self, node: Node, name: str) -> Any:
        """The value of an option of `bridgex select`."""
        return self.read(node, name, _OPTIONS[name][1], "see bridgex select --help")

    def read(self, node: Node, name: str, read: Callable[[str], Any], remedy: str) -> Any:
        """What `read` makes of one value."""
        text = self.text(node, name)
        try:
            return read(text)
        except ValueError as error:
            raise self.wrong(node, f"{name}: {text!r} {error}", remedy) from None

    def placed(self, node: Node, error: InputError) -> InputError:
        """An error of another module, at this place of the plan."""
        return self.wrong(node, error.what, error.remedy or "see bridgex sweep --help")

    # Sections --------------------------------------------------------------------------------

    def plan(self) -> Plan:
        sections = ("models", "pairs", "bridges", "languages", "dictionary", "corpus", "select",
                    "grid", "count", "evaluate")  # fmt: skip
        found = self.options(self.root, "the plan", sections)
        for name in ("models", "pairs"):
            if name not in found:
                raise self.wrong(self.root, f"the plan has no {name}", f"add {name}: [...]")
        models = tuple(self.model(node) for node in self.sequence(found["models"], "models"))
        bridges = self.codes(found["bridges"], "bridges") if "bridges" in found else ()
        pairs = tuple(self.pair(n, bridges) for n in self.sequence(found["pairs"], "pairs"))
        for items, name in ((models, "models"), (pairs, "pairs")):
            if len(set(items)) < len(items):
                raise self.wrong(found[name], f"{name} holds an item twice", "keep one of them")
        named = self.codes(found["languages"], "languages") if "languages" in found else ()
        spoken = [*named, *(code for pair in pairs for code in pair.languages)]
        languages = tuple(dict.fromkeys(spoken))
        only_builtin = all(model.name == BUILTIN for model in models)
        return Plan(
            models,
            pairs,
            languages,
            self.corpora(found.get("corpus"), languages, only_builtin),
            self.dictionaries(found.get("dictionary"), pairs, only_builtin),
            self.settings(found),
            read_evaluate(self, found["evaluate"]) if "evaluate" in found else (),
        )

    def model(self, node: Node) -> ModelSpec:
        import yaml

        if isinstance(node, yaml.ScalarNode):
            return ModelSpec(self.text(node, "models"))
        found = self.options(node, "models", ("model", "revision", "dtype"))
        if "model" not in found:
            raise self.wrong(node, "an item of models has no model", "add model: PATH_OR_ID")
        texts = {name: self.text(item, name) for name, item in found.items()}
        dtype = texts.get("dtype", DTYPES[0])
        if dtype not in DTYPES:
            remedy = f"one of {', '.join(DTYPES)}"
            raise self.wrong(found["dtype"], f"dtype {dtype!r} is unknown", remedy)
        return ModelSpec(texts["model"], texts.get("revision"), dtype)

    def codes(self, node: Node, what: str) -> tuple[str, ...]:
        found = []
        for item in self.sequence(node, what):
            try:
                found.append(language(self.text(item, what)).code)
            except InputError as error:
                raise self.placed(item, error) from None
        return tuple(found)

    def pair(self, node: Node, bridges: Sequence[str]) -> PairSpec:
        """`id-he`, or source, target and what is this pair's own."""
        import yaml

        files: tuple[str, ...] = ()
        own = None
        if isinstance(node, yaml.ScalarNode):
            source, mark, target = self.text(node, "pairs").partition("-")
            if not mark:
                raise self.wrong(node, f"{source!r} does not name two languages", "write id-he")
        else:
            found = self.options(node, "pairs", ("source", "target", "bridges", "dictionary"))
            if missing := [name for name in ("source", "target") if name not in found]:
                raise self.wrong(node, f"a pair has no {missing[0]}", f"add {missing[0]}: CODE")
            source, target = (self.text(found[name], name) for name in ("source", "target"))
            own = self.codes(found["bridges"], "bridges") if "bridges" in found else None
            files = self.texts(found["dictionary"], "dictionary") if "dictionary" in found else ()
        try:
            taken = {language(source).code, language(target).code}
            middle = own if own is not None else [code for code in bridges if code not in taken]
            first, last, candidates = check_languages(source, target, middle)
        except InputError as error:
            raise self.placed(node, error) from None
        if not candidates:
            raise self.wrong(node, f"{first}-{last} has no bridges", "add bridges: [en, de]")
        return PairSpec(first, last, tuple(candidates), files)

    def corpora(
        self, node: Node | None, languages: Sequence[str], only_builtin: bool
    ) -> tuple[tuple[str, str], ...]:
        import yaml

        if node is None and only_builtin:
            return tuple((code, CLDR) for code in languages)
        if node is None:
            raise self.wrong(self.root, "the plan has no corpus", "add corpus: {en: FILE} or cldr")
        if isinstance(node, yaml.ScalarNode):
            if self.text(node, "corpus") != CLDR:
                raise self.wrong(node, "corpus is neither files nor cldr", "write {en: FILE, …}")
            return tuple((code, CLDR) for code in languages)
        files = self.by_code(self.mapping(node, "corpus"), "corpus", "corpora")
        if missing := [code for code in languages if code not in files]:
            remedy = f"add {missing[0]}: FILE"
            raise self.wrong(node, f"no corpus of {', '.join(missing)}", remedy)
        return tuple((code, files[code]) for code in languages)

    def by_code(self, found: Mapping[str, Node], one: str, several: str) -> dict[str, str]:
        """The file of every language."""
        files: dict[str, str] = {}
        for key, item in found.items():
            try:
                code = language(key).code
            except InputError as error:
                raise self.placed(item, error) from None
            if code in files:
                raise self.wrong(item, f"two {several} of {code}", "join them into one file")
            files[code] = self.text(item, f"{one} of {code}")
        return files

    def dictionaries(
        self, node: Node | None, pairs: Sequence[PairSpec], only_builtin: bool
    ) -> Files:
        import yaml

        if node is None:
            if only_builtin or all(pair.dictionary for pair in pairs):
                return ()
            remedy = "add dictionary: {id-he: FILE} or cldr"
            raise self.wrong(self.root, "the plan has no dictionary", remedy)
        if isinstance(node, yaml.ScalarNode):
            if self.text(node, "dictionary") != CLDR:
                remedy = "write {id-he: FILE, …}"
                raise self.wrong(node, "dictionary is neither files nor cldr", remedy)
            return ()
        files = []
        for key, item in self.mapping(node, "dictionary").items():
            codes = key.split("-")
            if len(codes) != 2:
                raise self.wrong(item, f"{key!r} does not name two languages", "write id-he: FILE")
            try:
                both = "-".join(language(code).code for code in codes)
            except InputError as error:
                raise self.placed(item, error) from None
            files.append((both, self.texts(item, f"dictionary of {key}")))
        return tuple(files)

    def settings(self, found: Mapping[str, Node]) -> tuple[SelectSettings, ...]:
        """One `SelectSettings` for every combination of the grid, the last key fastest."""
        fixed = {name: default for name, (default, _) in _OPTIONS.items()}
        given: dict[str, Node] = {}
        if "select" in found:
            given = self.options(found["select"], "select", _OPTIONS)
            fixed |= {name: self.value(node, name) for name, node in given.items()}
        axes: dict[str, list[Any]] = {}
        if "grid" in found:
            for name, node in self.options(found["grid"], "grid", _OPTIONS).items():
                if name in given:
                    raise self.wrong(node, f"{name} is in select and in grid", "keep one of them")
                axes[name] = [self.value(item, name) for item in self.sequence(node, name)]
                if len(set(axes[name])) < len(axes[name]):
                    raise self.wrong(node, f"grid: {name} holds a value twice", "keep one of them")
        rows = None
        if "count" in found:
            own = self.options(found["count"], "count", ("batch_size",))
            rows = self.value(own["batch_size"], "batch_size") if own else None
        place = found.get("grid") or found.get("select") or self.root
        settings = []
        for values in itertools.product(*axes.values()):
            try:
                one = settings_from(fixed | dict(zip(axes, values, strict=True)))
            except InputError as error:
                raise self.placed(place, error) from None
            settings.append(replace(one, count=replace(one.count, batch_size=rows)))
        return tuple(settings)
