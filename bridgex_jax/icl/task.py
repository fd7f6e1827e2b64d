"""Tasks as data: how a question is asked, zero-shot and through a bridge, and how it is answered.

One YAML file a task (tasks/), with the prompts of bridgex-icl; a user's file is read the same way.
One field of a question is in the source language (`bridged`: a word, a passage, a premise) and goes
through the bridge; all others are in the target language.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Any, Literal, get_args

import yaml

from bridgex_jax.errors import InputError
from bridgex_jax.languages import language

Reading = Literal["quoted", "line", "choice"]
METRICS = ("exact", "accuracy", "f1")
_PLACE = Path(__file__).with_name("tasks")
# What the texts of a language may be called by in a prompt: its own name, or its FLORES-200 code.
_SIDES = ("source", "bridge", "target")
WORDS = "dictionary"  # the data of tasks that ask words
# The fields that the data of each kind have.
DATA_FIELDS: Mapping[str, tuple[str, ...]] = {
    WORDS: ("word",),
    "belebele": ("passage", "question", "a", "b", "c", "d"),
    "xnli": ("premise", "hypothesis"),
    "xquad": ("passage", "question"),
}


@dataclass(frozen=True)
class TaskForm:
    """A task.

    data: `dictionary`, or a reader of data/records.py. bridged: the field in the source language.
    translate: the prompt that translates it into the bridge. prompt: of the question, zero-shot;
    chain: the same with `{translation}`. example: what follows the prompt of an example, with
    `{gold}`. gold: a right answer as the model would write it after the prompt.
    read: how an answer is read: `quoted` (icl/answers.py), `line` (to the end of the line) or
    `choice` (the most probable of `choices`, label -> continuation).
    metrics: the first is what verdicts are about.
    """

    name: str
    version: int
    data: str
    bridged: str
    translate: str
    prompt: str
    chain: str
    example: str
    read: Reading
    metrics: tuple[str, ...]
    max_translation_tokens: int
    max_new_tokens: int = 0
    gold: str = "{gold}"
    choices: Mapping[str, str] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """All of it, for the identity of a run."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def fill(template: str, values: Mapping[str, str], **languages: str) -> str:
    """A prompt; languages: codes of source, bridge, target."""
    names = {f"{side}_language": language(code).endonym for side, code in languages.items()}
    codes = {f"{side}_code": language(code).flores for side, code in languages.items()}
    return template.format_map({**values, **names, **codes})


@cache
def builtin_tasks() -> tuple[str, ...]:
    """Names of the tasks that ship with the package."""
    return tuple(sorted(file.stem for file in _PLACE.glob("*.yaml")))


def read_task(name_or_file: str) -> TaskForm:
    """A task by name, or a user's own by file (`….yaml`).

    Raises InputError for an unknown name, and for a file that is no task: what it lacks, what is
    unknown in it, and a prompt with a field that its data do not have.
    """
    if name_or_file in builtin_tasks():
        return _read(_PLACE / f"{name_or_file}.yaml")
    file = Path(name_or_file)
    if file.suffix not in (".yaml", ".yml"):
        raise InputError(
            f"unknown task {name_or_file!r}",
            remedy=f"the tasks are {', '.join(builtin_tasks())}, or a YAML file of your own",
        )
    if not file.is_file():
        raise InputError("no such file", file=file, remedy="check the path")
    return _read(file)


def _read(file: Path) -> TaskForm:
    remedy = f"compare it with {_PLACE.name}/mrc.yaml of the package"
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        what = f"is not YAML: {' '.join(str(error).split())}"
        raise InputError(what, file=file, remedy=remedy) from error
    if not isinstance(found, dict):
        raise InputError("is no task: it has no fields", file=file, remedy=remedy)
    known = {f.name: f for f in fields(TaskForm)}
    needed = [n for n, f in known.items() if f.default is f.default_factory is MISSING]
    for wrong, what in (
        ([n for n in found if n not in known], "unknown field"),
        ([n for n in needed if n not in found], "lacks the field"),
    ):
        if wrong:
            raise InputError(f"{what} {wrong[0]!r}", file=file, remedy=remedy)
    kinds = {"version": int, "max_new_tokens": int, "max_translation_tokens": int,
             "metrics": list, "choices": dict}  # fmt: skip
    for name, value in found.items():
        if type(value) is not (kind := kinds.get(name, str)):
            what = f"{name} is {value!r}, not of the kind {kind.__name__}"
            raise InputError(what, file=file, remedy=remedy)
    task = TaskForm(**found | {"metrics": tuple(found["metrics"])})
    if problem := _problem(task):
        raise InputError(problem, file=file, remedy=remedy)
    return task


def _problem(task: TaskForm) -> str | None:
    """The first thing that is wrong with a task."""
    if task.data not in DATA_FIELDS:
        return f"data is {task.data!r}, not one of {', '.join(DATA_FIELDS)}"
    own = DATA_FIELDS[task.data]
    if task.bridged not in own:
        return f"bridged is {task.bridged!r}, not one of {', '.join(own)}"
    if task.read not in get_args(Reading):
        return f"read is {task.read!r}, not one of {', '.join(get_args(Reading))}"
    if not task.metrics or not set(task.metrics) <= set(METRICS):
        return f"metrics are {list(task.metrics) or 'none'}, not of {', '.join(METRICS)}"
    if (task.read == "choice") != bool(task.choices):
        return "choices go with read: choice, and it with them"
    if task.read != "choice" and task.max_new_tokens < 1:
        return "max_new_tokens is missing"
    sides = {side: {f"{side}_language", f"{side}_code"} for side in _SIDES}
    both = sides["source"] | sides["target"]
    allowed = {
        "translate": {task.bridged} | sides["source"] | sides["bridge"],
        "prompt": {*own} | both,
        "chain": {*own, "translation"} | both | sides["bridge"],
        "example": {"gold"},
        "gold": {"gold"},
    }
    required = {
        "translate": {task.bridged},
        "prompt": {task.bridged},
        "chain": {"translation"},
        "example": {"gold"},
        "gold": {"gold"},
    }
    for name, fields_ in allowed.items():
        try:
            used = {f for _, f, _, _ in Formatter().parse(getattr(task, name)) if f is not None}
        except (ValueError, TypeError) as error:
            return f"{name}: {error}"
        if unknown := sorted(used - fields_):
            return f"{name}: unknown field {{{unknown[0]}}}"
        if missing := sorted(required[name] - used):
            return f"{name}: lacks {{{missing[0]}}}"
    return None
