"""`bridgex evaluate`: does a bridge help in a task, and which one?

A pair is answered zero-shot and through every bridge; what chose a bridge is not evaluated (by
source word and by English pivot). See icl/ for tasks, prompts, answers and the verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from bridgex_jax import cluster, runtime
from bridgex_jax.icl.answers import is_right, opens_with_quote
from bridgex_jax.icl.conditions import (
    ZERO_SHOT,
    Answerer,
    Condition,
    PairTask,
    evaluate_conditions,
)
from bridgex_jax.icl.significance import judge_gains
from bridgex_jax.icl.task import WORDS, TaskForm
from bridgex_jax.icl.verdict import Correct, Estimate, Verdict, judge, mean_rank_correlation
from bridgex_jax.models.load import Model
from bridgex_jax.pipelines.answering import ModelAnswerer
from bridgex_jax.pipelines.choosers import FILE as CHOOSERS
from bridgex_jax.pipelines.choosers import choosers_of
from bridgex_jax.pipelines.console import Console
from bridgex_jax.pipelines.count import OpenRun
from bridgex_jax.pipelines.inputs import added_language_names, model_facts
from bridgex_jax.pipelines.task_inputs import EvaluateSettings, Exam, copied
from bridgex_jax.report.content import Accuracy, Direction, Evaluation, Interval, read_evaluation
from bridgex_jax.report.verdict_text import subject, verdict_sentence
from bridgex_jax.store.paths import AnyPath
from bridgex_jax.store.runs import create_run
from bridgex_jax.store.tables import Answer, read_answers, write_answers

ANSWERS = "answers.parquet"


Conditions = list[dict[str, Condition]]  # one dictionary a pair, by condition name


def answer_rows(
    form: TaskForm,
    tasks: Sequence[PairTask],
    results: Conditions,
    bridge_gold: Callable[[PairTask, str, str], Sequence[str]] = lambda *_: (),
) -> list[Answer]:
    """One row for every item and condition; `bridge_gold(task, bridge, item key)` judges hop 1."""
    rows = []
    for task, conditions in zip(tasks, results, strict=True):
        for name, found in conditions.items():
            bridge = None if name == ZERO_SHOT else name
            f1 = found.scores.get("f1")
            for i, item in enumerate(task.items):
                hop1 = found.hop1_answers[i] if bridge else None
                golds = bridge_gold(task, bridge, item.key) if bridge else ()
                value = None if found.log_prob is None else float(found.log_prob[i])
                rows.append(
                    Answer(
                        task=form.name,
                        source=task.source,
                        target=task.target,
                        condition=name,
                        bridge=bridge,
                        item=item.key,
                        prompt=found.prompts[i],
                        answer=found.answers[i],
                        normalised=found.read[i] or None,
                        gold=item.golds,
                        correct=bool(found.correct[i] >= 1),  # an F1 of less is not
                        f1=None if f1 is None else float(f1[i]),
                        log_probability=None if value is None or np.isnan(value) else value,
                        hop1_prompt=found.hop1_prompts[i] if bridge else None,
                        hop1_answer=hop1,
                        hop1_correct=is_right(hop1, golds) if hop1 is not None and golds else None,
                    )
                )
    return rows


def summarise(
    form: TaskForm,
    tasks: Sequence[PairTask],
    results: Conditions,
    bridges: Sequence[str],
    choosers: Mapping[str, Sequence[str]],
    scores: Sequence[Mapping[str, float]] | None,
    settings: EvaluateSettings,
) -> Evaluation:
    """The report's evaluation. The first of `choosers` is the one that is judged."""
    correct = [{name: c.correct for name, c in one.items()} for one in results]
    verdict = judge(correct, bridges, choosers, resamples=settings.resamples, seed=settings.seed)
    judged = next(iter(choosers), None)
    ranked = None
    if scores is not None:
        found = mean_rank_correlation(
            scores, correct, resamples=settings.resamples, seed=settings.seed
        )
        ranked = Interval.of(found) if np.isfinite(found.value) else None
    nothing = Estimate(float("nan"), float("nan"), float("nan"))
    return Evaluation(
        task=form.name,
        n_words=sum(len(task.items) for task in tasks),
        pooled=_pooled(verdict, bridges, choosers),
        directions=tuple(
            Direction(
                source=task.source,
                target=task.target,
                n_words=len(task.items),
                zero_shot=one[ZERO_SHOT].accuracy,
                bridges={bridge: one[bridge].accuracy for bridge in bridges if bridge in one},
                chosen=choosers[judged][i] if judged else None,
            )
            for i, (task, one) in enumerate(zip(tasks, results, strict=True))
        ),
        gain=Interval.of(verdict.gain[judged] if judged else nothing),
        regret=Interval.of(verdict.regret[judged] if judged else nothing),
        rank_correlation=ranked,
        notes=answer_notes(form, results),
        log_probability=_log_probabilities(results),
        sentence=_sentence(correct, bridges, choosers, verdict, settings) if judged else "",
    )


def _log_probabilities(results: Conditions) -> dict[str, float]:
    """Mean over pairs and questions, by condition, where there was a prompt."""
    values: dict[str, list[np.ndarray]] = {}
    for one in results:
        for name, condition in one.items():
            if condition.log_prob is not None:
                values.setdefault(name, []).append(condition.log_prob)
    joined = {name: np.concatenate(of_pairs) for name, of_pairs in values.items()}
    return {n: float(np.nanmean(v)) for n, v in joined.items() if np.isfinite(v).any()}


def _sentence(
    correct: Sequence[Correct],
    bridges: Sequence[str],
    choosers: Mapping[str, Sequence[str]],
    verdict: Verdict,
    settings: EvaluateSettings,
) -> str:
    judged = next(iter(choosers))
    gains = judge_gains(correct, bridges, choosers, judged, verdict, seed=settings.seed)
    return verdict_sentence(gains, subject=subject(judged))


def _pooled(
    verdict: Verdict, bridges: Sequence[str], choosers: Mapping[str, Sequence[str]]
) -> tuple[Accuracy, ...]:
    judged = next(iter(choosers), None)
    kinds = {ZERO_SHOT: "baseline", "oracle": "oracle", "random": "chooser"}
    kinds |= dict.fromkeys(bridges, "bridge")
    kinds |= {name: "chosen" if name == judged else "chooser" for name in choosers}
    return tuple(
        Accuracy(name, kinds[name], Interval.of(found)) for name, found in verdict.rules.items()
    )


def answer_notes(form: TaskForm, results: Conditions) -> dict[str, Any]:
    """Prompts that were answered, answers that could not be read, and steps that gave nothing.

    Where prompts ask for quotes: the share of answers that open with one.
    """
    found = [condition for one in results for condition in one.values()]
    asked = [
        (a, r) for c in found for p, a, r in zip(c.prompts, c.answers, c.read, strict=True) if p
    ]
    notes: dict[str, Any] = {
        "answers": len(asked),
        "invalid": sum(not read for _, read in asked),
        "no_translation": sum(not p for c in found for p in c.prompts),
    }
    if form.read == "quoted":
        share = sum(opens_with_quote(answer) for answer, _ in asked) / max(1, len(asked))
        notes["opening_quote_share"] = round(share, 4)
    return notes


@dataclass(frozen=True)
class EvaluateResult:
    """What the command line prints."""

    evaluation: Evaluation
    out: AnyPath

    def to_json(self) -> dict[str, Any]:
        return asdict(self.evaluation) | {"run": str(self.out)}

    def text(self, show: int | None = None) -> str:
        direction = self.evaluation.directions[0]
        lines = [
            f"{self.evaluation.task}, {direction.source} → {direction.target}, "
            f"{direction.n_words:,} questions"
        ]
        width = max(len(row.name) for row in self.evaluation.pooled)
        for row in self.evaluation.pooled:
            a = row.accuracy
            value = self.evaluation.log_probability.get(row.name)
            nats = "" if value is None else f"  log p of the right answer {value:.2f}"
            lines.append(f"  {row.name:<{width}} {a.value:6.1%}  [{a.low:.1%}, {a.high:.1%}]{nats}")
        if show:
            lines += [shown(answer) for answer in read_answers(self.out / ANSWERS)[:show]]
        notes = self.evaluation.notes
        told = f"{notes['invalid']:,} of {notes['answers']:,} answers cannot be read"
        if notes["no_translation"]:
            told += f"; for {notes['no_translation']:,} more a bridge gave no translation"
        if "copying_the_source" in notes:
            told += f"; copying the source would be right in {notes['copying_the_source']:.1%}"
        lines.append(f"{told}.")
        lines += [self.evaluation.sentence] if self.evaluation.sentence else []
        return "\n".join([*lines, f"Answers: {self.out / ANSWERS}"])


def shown(answer: Answer) -> str:
    """An answer for the terminal: prompt and answer as they are, and the gold."""
    mark = "right" if answer.correct else "wrong"
    if not answer.prompt:
        return f"  {mark}  {answer.item}: no translation into {answer.bridge}"
    text = f"{answer.prompt}{answer.answer}".replace("\n", "\n         ")
    return f"  {mark}  {text}  (gold: {answer.gold[0]})"


def run_evaluate(
    model: Model,
    exam: Exam,
    settings: EvaluateSettings,
    out: AnyPath,
    console: Console,
    answerer: Answerer | None = None,
    *,
    open_run: OpenRun = create_run,
) -> EvaluateResult:
    """Evaluates one pair into a run directory of kind `evaluate`; a killed run continues.

    answerer: None for the model itself, with its answers in the user's cache. open_run:
    `create_run` with what a sweep sets.
    """
    assert model.source is not None
    task, form = exam.task, exam.form
    inputs = {
        "model": model.source.hash,
        "task": form.facts(),
        "pair": [task.source, task.target],
        "bridges": list(exam.bridges),
        "choosers": dict(exam.choosers),
        "scores": exam.scores,
        **exam.hashes,
        **added_language_names(),
    }
    opened = open_run(
        out, kind="evaluate", settings=asdict(settings), inputs=inputs, peers=cluster.peers()
    )
    with opened as run:
        if run.notice:
            console.say(run.notice)
        if run.complete:
            return EvaluateResult(read_evaluation(run.directory), out)
        answerer = answerer or ModelAnswerer(
            model, console, batch_size=settings.batch_size, chat=settings.chat
        )
        with run.stage("answer"):
            results = evaluate_conditions(
                form, [task], exam.bridges, answerer, log_probs=settings.log_probs
            )
        choosers = {name: [bridge] for name, bridge in exam.choosers.items()}
        evaluation = summarise(form, [task], results, exam.bridges, choosers, None, settings)
        if form.data == WORDS:
            more = {**evaluation.notes, "copying_the_source": round(copied(task), 4)}
            evaluation = replace(evaluation, notes=more)
        write_answers(run.path(ANSWERS), answer_rows(form, [task], results))
        run.write_json("evaluation.json", asdict(evaluation))
        run.write_json(CHOOSERS, choosers_of({(task.source, task.target): exam.scores}))
        notes: dict[str, Any] = {"warnings": console.warnings, **evaluation.notes}
        if isinstance(answerer, ModelAnswerer):
            notes["prompts"] = answerer.facts()
        run.record(
            model=model_facts(model),
            devices=runtime.describe_devices(model.mesh),
            data={**exam.facts, "questions": len(task.items), "examples": len(task.examples)},
            notes=notes,
        )
    return EvaluateResult(evaluation, out)
