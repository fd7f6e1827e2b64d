"""`bridgex evaluate --task bli`: does translating through a bridge help, and through which?

Every direction is answered zero-shot and through every bridge; words that chose a bridge are not
evaluated (by source word and by English pivot). See icl/ for prompts, parsing and the verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jax.sharding import Mesh

from bridgex_jax import cluster, runtime
from bridgex_jax.data.dictionaries import Dictionary
from bridgex_jax.errors import InputError
from bridgex_jax.icl.answers import is_right, normalise, opens_with_quote, parse_answer
from bridgex_jax.icl.bli import ZERO_SHOT, Condition, Task, evaluate_conditions
from bridgex_jax.icl.completion import MAX_NEW_TOKENS, complete
from bridgex_jax.icl.verdict import Estimate, Verdict, judge, mean_rank_correlation
from bridgex_jax.models.load import Model
from bridgex_jax.pipelines.console import Console
from bridgex_jax.pipelines.count import Part
from bridgex_jax.pipelines.inputs import dictionary_facts, model_facts
from bridgex_jax.report.content import Accuracy, Direction, Evaluation, Interval, read_evaluation
from bridgex_jax.store.manifest import verify_run
from bridgex_jax.store.paths import AnyPath, as_path
from bridgex_jax.store.runs import create_run
from bridgex_jax.store.tables import Answer, read_answers, read_choice, write_answers

FEWEST_WORDS = 8
ANSWERS = "answers.parquet"


@dataclass(frozen=True)
class EvaluateSettings:
    """words: evaluate at most so many, drawn by seed (None: all)."""

    words: int | None = None
    seed: int = 0
    batch_size: int = 256
    max_new_tokens: int = MAX_NEW_TOKENS
    resamples: int = 2000


Conditions = list[dict[str, Condition]]  # one dictionary a direction, by condition name


def answer_directions(
    model: Model,
    tasks: Sequence[Task],
    bridges: Sequence[str],
    settings: EvaluateSettings,
    mesh: Mesh,
    console: Console,
    part: Part = lambda name, compute: compute(),
) -> Conditions:
    """Answers of every direction under every condition; `part` keeps what a hop generated."""
    hop = iter(("hop1", "hop2"))

    def complete_hop(prompts: Sequence[str]) -> list[str]:
        name = next(hop)
        with console.progress(f"translating, {name}", len(set(prompts)), "prompts") as progress:

            def run() -> Mapping[str, np.ndarray]:
                answers = complete(
                    model,
                    prompts,
                    mesh,
                    batch_size=settings.batch_size,
                    max_new_tokens=settings.max_new_tokens,
                    progress=progress,
                )
                return {"answers": np.array(answers, dtype=np.str_)}

            return [str(answer) for answer in part(name, run)["answers"]]

    return evaluate_conditions(tasks, bridges, complete_hop)


def answer_rows(
    tasks: Sequence[Task],
    results: Conditions,
    bridge_gold: Callable[[Task, str, str], Sequence[str]],
) -> list[Answer]:
    """One row for every word and condition; `bridge_gold(task, bridge, word)` judges hop 1."""
    rows = []
    for task, conditions in zip(tasks, results, strict=True):
        for name, condition in conditions.items():
            bridge = None if name == ZERO_SHOT else name
            for i, (word, gold) in enumerate(task.gold.items()):
                hop1 = condition.hop1_answers[i] if bridge else None
                golds = bridge_gold(task, bridge, word) if bridge else ()
                parsed = normalise(parse_answer(condition.answers[i]))
                rows.append(
                    Answer(
                        source=task.source,
                        target=task.target,
                        condition=name,
                        bridge=bridge,
                        word=word,
                        prompt=condition.prompts[i],
                        answer=condition.answers[i],
                        normalised=parsed or None,
                        gold=tuple(gold),
                        correct=bool(condition.correct[i]),
                        hop1_prompt=condition.hop1_prompts[i] if bridge else None,
                        hop1_answer=hop1,
                        hop1_correct=is_right(hop1, golds) if hop1 is not None and golds else None,
                    )
                )
    return rows


def summarise(
    tasks: Sequence[Task],
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
        ranked = _interval(found) if np.isfinite(found.value) else None
    nothing = Estimate(float("nan"), float("nan"), float("nan"))
    return Evaluation(
        task="bli",
        n_words=sum(len(task.gold) for task in tasks),
        pooled=_pooled(verdict, bridges, choosers),
        directions=tuple(
            Direction(
                source=task.source,
                target=task.target,
                n_words=len(task.gold),
                zero_shot=one[ZERO_SHOT].accuracy,
                bridges={bridge: one[bridge].accuracy for bridge in bridges},
                chosen=choosers[judged][i] if judged else None,
            )
            for i, (task, one) in enumerate(zip(tasks, results, strict=True))
        ),
        gain=_interval(verdict.gain[judged] if judged else nothing),
        regret=_interval(verdict.regret[judged] if judged else nothing),
        rank_correlation=ranked,
        notes=answer_notes(results),
    )


def _pooled(
    verdict: Verdict, bridges: Sequence[str], choosers: Mapping[str, Sequence[str]]
) -> tuple[Accuracy, ...]:
    judged = next(iter(choosers), None)
    kinds = {ZERO_SHOT: "baseline", "oracle": "oracle", "random": "chooser"}
    kinds |= dict.fromkeys(bridges, "bridge")
    kinds |= {name: "chosen" if name == judged else "chooser" for name in choosers}
    return tuple(
        Accuracy(name, kinds[name], _interval(estimate)) for name, estimate in verdict.rules.items()
    )


def _interval(estimate: Estimate) -> Interval:
    return Interval(estimate.value, estimate.low, estimate.high)


def answer_notes(results: Conditions) -> dict[str, Any]:
    """How many final answers are empty, and how many open with a quote as the prompt asks."""
    answers = [a for one in results for condition in one.values() for a in condition.answers]
    return {
        "answers": len(answers),
        "invalid": sum(not parse_answer(answer) for answer in answers),
        "opening_quote_share": round(sum(map(opens_with_quote, answers)) / max(1, len(answers)), 4),
    }


def bli_task(dictionary: Dictionary, settings: EvaluateSettings, excluded: set[str]) -> Task:
    """The words of a dictionary to evaluate on, without `excluded` source words and pivots.

    Raises InputError where fewer than 8 are left.
    """
    pivots = {pair.source: set(pair.pivots) for pair in dictionary.pairs}
    taken = {word.casefold() for word in excluded}
    taken |= {p.casefold() for word in excluded for p in pivots.get(word, ())}
    gold = {
        word: golds
        for word, golds in dictionary.translations().items()
        if word.casefold() not in taken and not {p.casefold() for p in pivots[word]} & taken
    }
    if len(gold) < FEWEST_WORDS:
        raise InputError(
            f"{len(gold)} words are left to evaluate {dictionary.source}-{dictionary.target} on",
            file=" and ".join(dictionary.files),
            remedy=f"give a dictionary with at least {FEWEST_WORDS} words more",
        )
    words = list(gold)
    if settings.words is not None and settings.words < len(words):
        rng = np.random.default_rng(settings.seed)
        words = [words[i] for i in sorted(rng.permutation(len(words))[: settings.words])]
    return Task(dictionary.source, dictionary.target, {word: gold[word] for word in words})


@dataclass(frozen=True)
class EvaluateResult:
    """What the command line prints."""

    evaluation: Evaluation
    out: AnyPath

    def to_json(self) -> dict[str, Any]:
        return asdict(self.evaluation) | {"run": str(self.out)}

    def text(self, show: int | None = None) -> str:
        direction = self.evaluation.directions[0]
        lines = [f"{direction.source} → {direction.target}, {direction.n_words:,} words"]
        for row in self.evaluation.pooled:
            a = row.accuracy
            lines.append(f"  {row.name:<10} {a.value:6.1%}  [{a.low:.1%}, {a.high:.1%}]")
        if show:
            for answer in read_answers(self.out / ANSWERS)[:show]:
                mark = "right" if answer.correct else "wrong"
                lines.append(f"  {mark}  {answer.prompt}{answer.answer}  (gold: {answer.gold[0]})")
        return "\n".join([*lines, f"Answers: {self.out / ANSWERS}"])


def read_selection(directory: str, source: str, target: str) -> tuple[str, set[str]]:
    """The chosen bridge and the probe words of a run of `bridgex select`.

    Raises InputError where the run is not complete, chose for another pair or chose nothing.
    """
    verify_run(directory, ("choice.json",))
    pair = next(
        (p for p in read_choice(as_path(directory) / "choice.json")["pairs"]
         if (p["source"], p["target"]) == (source, target)), None)  # fmt: skip
    if pair is None:
        raise InputError(
            f"chose no bridge from {source} to {target}",
            file=directory,
            remedy="give the --out of bridgex select for this pair",
        )
    if pair["bridge"] is None:
        raise InputError(
            f"found no comparable bridge from {source} to {target}",
            file=directory,
            remedy="run evaluate without --select",
        )
    return pair["bridge"], set(pair["probe_words"])


def run_evaluate(
    model: Model,
    dictionary: Dictionary,
    bridges: Sequence[str],
    chosen: str | None,
    excluded: set[str],
    settings: EvaluateSettings,
    out: AnyPath,
    console: Console,
) -> EvaluateResult:
    """Evaluates one direction into a run directory of kind `evaluate`; a killed run continues."""
    assert model.source is not None
    task = bli_task(dictionary, settings, excluded)
    inputs = {
        "model": model.source.hash,
        "dictionary": dictionary.sha256,
        "pair": [dictionary.source, dictionary.target],
        "bridges": list(bridges),
        "chosen": chosen,
        "excluded": sorted(excluded),
    }
    opened = create_run(
        out, kind="evaluate", settings=asdict(settings), inputs=inputs, peers=cluster.peers()
    )
    with opened as run:
        if run.notice:
            console.say(run.notice)
        if run.complete:
            return EvaluateResult(read_evaluation(run.directory), out)
        with run.stage("translate"):
            results = answer_directions(
                model, [task], bridges, settings, model.mesh, console, run.part
            )
        choosers = {"chosen": [chosen]} if chosen else {}
        evaluation = summarise([task], results, bridges, choosers, None, settings)
        write_answers(run.path(ANSWERS), answer_rows([task], results, lambda *_: ()))
        run.write_json("evaluation.json", asdict(evaluation))
        run.record(
            model=model_facts(model),
            devices=runtime.describe_devices(model.mesh),
            data={
                "dictionary": dictionary_facts(dictionary),
                "words": len(task.gold),
                "excluded": len(excluded),
            },
            notes={"warnings": console.warnings, **evaluation.notes},
        )
    return EvaluateResult(evaluation, out)
