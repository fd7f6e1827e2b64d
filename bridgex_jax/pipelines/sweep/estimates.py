"""What every unit will cost, from the configuration of its model alone; no weights are read."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from bridgex_jax.errors import InputError
from bridgex_jax.models.config import read_config
from bridgex_jax.models.decoder import init_params
from bridgex_jax.models.hub import find_model
from bridgex_jax.models.load import Model
from bridgex_jax.pipelines.estimate import (
    GENERATED_TOKENS,
    PROMPT_TOKENS,
    cost_of_counting,
    cost_of_select,
    counted_tokens,
)
from bridgex_jax.pipelines.inputs import BUILTIN, builtin_directory
from bridgex_jax.pipelines.sweep.plan import ModelSpec
from bridgex_jax.pipelines.sweep.units import CountUnit, EvaluateUnit, Unit, with_needs


@dataclass(frozen=True)
class Work:
    """Tokens through the model and floating-point operations."""

    tokens: int = 0
    flops: float = 0.0


def estimate_unit(unit: Unit) -> Work | None:
    """The work of one unit; None where one of its inputs cannot be read."""
    if any(one.reason for one in with_needs(unit)):
        return None
    try:
        model = _shapes(unit.model)
    except (InputError, OSError):
        return None
    if isinstance(unit, CountUnit):
        sizes = [pin.size for _, _, pin in unit.corpora]
        cost = cost_of_counting(model, counted_tokens(sizes, unit.settings.tokens))
    elif isinstance(unit, EvaluateUnit):
        cost = cost_of_counting(model, _answered_tokens(unit))
    else:
        cost = cost_of_select(
            model,
            unit.settings,
            languages=len(unit.pair.languages),
            bridges=len(unit.pair.bridges),
            word_pairs=unit.words_pin.size,
            counted=0,
        )
    return Work(cost.tokens, cost.flops)


# Tokens of a question, and of the text in it that goes through the bridge, on average.
_TOKENS = {
    "dictionary": (PROMPT_TOKENS, GENERATED_TOKENS),
    "belebele": (300, 150),
    "xnli": (80, 30),
    "xquad": (300, 200),
}


def _answered_tokens(unit: EvaluateUnit) -> int:
    """Every question zero-shot and through every bridge, where none is known from before.

    Read and answered, and for all but choices read again for the probability of right answers.
    """
    select, settings, form = unit.select, unit.settings, unit.task.form
    asked = min((pin.size for pin in unit.data_pins), default=0)
    if not unit.data_pins:
        asked = max(0, select.words_pin.size - min(select.settings.words, select.words_pin.size))
    question, bridged = _TOKENS[form.data]
    prompt = question * (1 + settings.shots)
    answer = prompt if form.read == "choice" else 2 * prompt + 2 * GENERATED_TOKENS
    bridges = len(unit.pair.bridges)
    return min(asked, settings.limit or asked) * (
        (1 + bridges) * answer + bridges * (prompt + bridged)
    )


@functools.lru_cache(maxsize=64)
def _shapes(spec: ModelSpec) -> Model:
    """A model whose parameters are shapes."""
    place = builtin_directory() if spec.name == BUILTIN else spec.name
    source = find_model(place, revision=spec.revision, quiet=True)
    config = read_config(Path(source.path) / "config.json")
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    return Model(config, params, source)


@dataclass(frozen=True)
class Rate:
    """Seconds a floating-point operation takes, by kind of unit, from units that are complete."""

    seconds_per_flop: Mapping[str, float]

    def seconds(self, kind: str, flops: float | None) -> float | None:
        """How long a unit takes; None where that is not known yet."""
        rate = self.seconds_per_flop.get(kind)
        return None if rate is None or flops is None else rate * flops


def measured_rate(rows: Iterable[Mapping[str, Any]]) -> Rate:
    """From rows of status.py: kind, flops and seconds of units that are complete."""
    spent: dict[str, list[float]] = {}
    for row in rows:
        if row["seconds"] is not None and row["flops"]:
            total = spent.setdefault(row["kind"], [0.0, 0.0])
            total[0] += row["seconds"]
            total[1] += row["flops"]
    return Rate({kind: seconds / flops for kind, (seconds, flops) in spent.items()})
