"""The section `evaluate` of a plan → `TaskSpec`: in which tasks every choice is evaluated, and how.

    evaluate:
      task: [bli, mrc]         # or one; a task's name, or a YAML file of one's own
      limit: 500               # options of `bridgex evaluate`
      shots: 0
      seed: 0
      batch_size: 256
      data: {en: FILE, …}      # of mrc, nli, qa; or `hub`; of several: {mrc: {en: FILE}, nli: hub}
      typology: features.npz   # further choosers
      scores: my_scores.csv

Word translation takes the words of the pair's dictionary. A pair whose languages have no data is no
mistake in the plan: its units of that task fail, the others are made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bridgex_jax.errors import InputError
from bridgex_jax.icl.task import WORDS, TaskForm, read_task
from bridgex_jax.pipelines.sweep.plan_values import integer, maybe, natural, positive
from bridgex_jax.pipelines.task_inputs import HUB, EvaluateSettings

if TYPE_CHECKING:
    from yaml import Node

    from bridgex_jax.pipelines.sweep.plan import _Reader

_OPTIONS = {
    "limit": maybe(positive),
    "shots": natural,
    "seed": integer,
    "batch_size": positive,
}
_CHOOSERS = ("typology", "scores")
Data = tuple[tuple[str, str], ...] | str


@dataclass(frozen=True)
class TaskSpec:
    """A task that pairs are evaluated in.

    data: (code, FILE) of the questions, or `hub`; None for words. choosers: (`typology` or
    `scores`, FILE) of those that are given.
    """

    form: TaskForm
    settings: EvaluateSettings
    data: Data | None = None
    choosers: tuple[tuple[str, str], ...] = ()

    @property
    def files(self) -> Mapping[str, str] | str:
        """The data as `task_inputs.read_records` takes them."""
        return self.data if isinstance(self.data, str) else dict(self.data or ())


def read_evaluate(plan: _Reader, node: Node) -> tuple[TaskSpec, ...]:
    """The tasks of the section at `node`.

    Raises InputError with file and line for unknown keys, tasks and values, a task given twice, a
    task of texts without data and data that are not of one of the tasks.
    """
    known = ("task", *_OPTIONS, "data", *_CHOOSERS)
    found = plan.options(node, "evaluate", known)
    if "task" not in found:
        raise plan.wrong(node, "evaluate has no task", "add task: bli, or mrc, nli, qa")
    forms = _forms(plan, found["task"])
    values: dict[str, Any] = {
        name: plan.read(found[name], f"evaluate: {name}", read, "see bridgex evaluate --help")
        for name, read in _OPTIONS.items()
        if name in found
    }
    settings = EvaluateSettings(**values)
    data = _data(plan, found, node, forms)
    choosers = tuple((n, plan.text(found[n], f"evaluate: {n}")) for n in _CHOOSERS if n in found)
    return tuple(TaskSpec(form, settings, data.get(form.name), choosers) for form in forms)


def _forms(plan: _Reader, node: Node) -> list[TaskForm]:
    forms: list[TaskForm] = []
    for name in plan.texts(node, "task"):
        try:
            form = read_task(name)
        except InputError as error:
            where = f"{error.file}: " if error.file else ""
            remedy = error.remedy or "see bridgex evaluate --help"
            raise plan.wrong(node, where + error.what, remedy) from None
        if form.name in [other.name for other in forms]:
            raise plan.wrong(node, f"task holds {form.name} twice", "keep one of them")
        forms.append(form)
    return forms


def _data(
    plan: _Reader, found: Mapping[str, Node], section: Node, forms: list[TaskForm]
) -> dict[str, Data]:
    """The data of every task that is not about words."""
    import yaml

    names = [form.name for form in forms if form.data != WORDS]
    example = f"data: {{{', '.join(f'{name}: {{en: FILE}}' for name in names)}}}"
    node = found.get("data")
    if node is None:
        if names:
            raise plan.wrong(section, f"no data of {names[0]}", f"add {example}, or data: {HUB}")
        return {}
    if not names:
        what = f"data are not for {forms[0].name}"
        raise plan.wrong(node, what, "take them out: its words are those of dictionary:")
    if isinstance(node, yaml.ScalarNode):
        return dict.fromkeys(names, _data_of(plan, node, names[0]))
    items = plan.mapping(node, "data")
    if not set(items) & {form.name for form in forms}:
        if len(names) > 1:
            what = f"data do not say of which task they are ({', '.join(names)})"
            raise plan.wrong(node, what, f"write {example}")
        return {names[0]: _data_of(plan, node, names[0])}
    of_task = {
        name: _data_of(plan, item, name) for name, item in plan.options(node, "data", names).items()
    }
    if missing := [name for name in names if name not in of_task]:
        raise plan.wrong(node, f"no data of {missing[0]}", f"add {missing[0]}: {{en: FILE}}")
    return of_task


def _data_of(plan: _Reader, node: Node, task: str) -> Data:
    """`hub`, or the file of every language."""
    import yaml

    if isinstance(node, yaml.ScalarNode):
        if plan.text(node, "data") != HUB:
            raise plan.wrong(node, f"data are neither files nor {HUB}", "write {en: FILE, …}")
        return HUB
    what = f"data of {task}"
    return tuple(plan.by_code(plan.mapping(node, what), what, f"files of {task}").items())
