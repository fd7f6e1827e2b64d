"""Which units are this process's: `--shard 3/16`, or the index that a cluster gives.

Slurm arrays set SLURM_ARRAY_TASK_ID, _MIN, _STEP and _COUNT; Kubernetes Indexed Jobs set
JOB_COMPLETION_INDEX, and their number of completions is put into BRIDGEX_SHARDS by the manifest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from bridgex_jax.errors import InputError

T = TypeVar("T")
FROM_ENVIRONMENT = "auto"


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count`, from 0."""

    index: int = 0
    count: int = 1

    def part(self, items: Sequence[T]) -> Sequence[T]:
        """Neighbours in the given order, so that a shard loads as few models as it can.

        Together the shards have every item once, and only the number of items decides which.
        """
        first, last = (len(items) * at // self.count for at in (self.index, self.index + 1))
        return items[first:last]


def read_shard(text: str | None, environment: Mapping[str, str]) -> Shard:
    """The shard of `I/N`, of the environment for `auto`, and all of it for None.

    Raises InputError for what is none of these, and where the environment does not say.
    """
    if text is None:
        return Shard()
    if text == FROM_ENVIRONMENT:
        return _from_environment(environment)
    index, mark, count = text.partition("/")
    if not mark:
        raise InputError(f"--shard {text!r} is not I/N", remedy="write --shard 0/8, or auto")
    return _checked(index, count, f"--shard {text}")


def _from_environment(environment: Mapping[str, str]) -> Shard:
    if "SLURM_ARRAY_TASK_ID" in environment:
        names = ("TASK_ID", "TASK_MIN", "TASK_STEP", "TASK_COUNT")
        values = [environment.get(f"SLURM_ARRAY_{name}", "") for name in names]
        task, least, step = (_number(value, default) for value, default in zip(
            values, (-1, 0, 1), strict=False))  # fmt: skip
        return _checked(str((task - least) // max(1, step)), values[3], "the Slurm array")
    if "JOB_COMPLETION_INDEX" in environment:
        count = environment.get("BRIDGEX_SHARDS", "")
        if not count:
            raise InputError(
                "--shard auto: the Kubernetes Job says its index but not how many there are",
                remedy="set BRIDGEX_SHARDS to its completions (experiments/sweep_kubernetes.yaml)",
            )
        return _checked(environment["JOB_COMPLETION_INDEX"], count, "the Kubernetes Job")
    raise InputError(
        "--shard auto: this is neither a Slurm array nor a Kubernetes Indexed Job",
        remedy="write --shard I/N",
    )


def _checked(index: str, count: str, where: str) -> Shard:
    shard = Shard(_number(index, -1), _number(count, 0))
    if not 0 <= shard.index < shard.count:
        raise InputError(
            f"{where}: {index or 'nothing'} of {count or 'nothing'} is no shard",
            remedy="the first is 0/N, the last N-1/N",
        )
    return shard


def _number(text: str, default: int) -> int:
    return int(text) if text.isascii() and text.isdigit() else default
