"""The model that answers the prompts of an evaluation, and keeps what it has answered.

Equal prompts are computed once, in a run and across runs (store/completions.py). Prompts are handed
to the model in portions whose answers are written at once, so that a killed run loses one portion.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float

from bridgex_jax import cluster
from bridgex_jax.errors import InputError
from bridgex_jax.icl.completion import answer_stops, complete
from bridgex_jax.icl.likelihood import score_continuations
from bridgex_jax.models.load import Model
from bridgex_jax.models.stopping import stop_at_ids
from bridgex_jax.pipelines.console import Console
from bridgex_jax.store.completions import Completions
from bridgex_jax.store.files import json_bytes
from bridgex_jax.store.paths import cache_directory

# Part of the key under which answers are kept: to be raised when generation or scoring changes.
GENERATION = 1
PORTION = 16  # batches whose answers are written together

_Asked = TypeVar("_Asked", str, tuple[str, str])
_Told = TypeVar("_Told")


class ModelAnswerer:
    """Answers prompts: `icl.conditions.Answerer`.

    place: where answers are kept; None for the user's cache. chat: prompts are messages of a user,
    in the form of the tokenizer's chat template. computed, known: how many distinct prompts the
    model answered or scored here, and how many it had before.
    """

    def __init__(
        self,
        model: Model,
        console: Console,
        *,
        batch_size: int,
        chat: bool = False,
        place: Path | None = None,
    ) -> None:
        if chat and not getattr(model.tokenizer, "chat_template", None):
            raise InputError(
                "the tokenizer has no chat template",
                file=model.source.path if model.source else None,
                remedy="take --chat out",
            )
        self.computed = self.known = 0
        self._model, self._console = model, console
        self._batch_size, self._chat = batch_size, chat
        self._place = place or cache_directory() / "answers"
        self._kept: dict[str, Completions] = {}

    def complete(
        self, what: str, prompts: Sequence[str], max_new_tokens: int, *, quoted: bool
    ) -> list[str]:
        """See `Answerer`."""
        model = self._model
        key = {"max_new_tokens": max_new_tokens, "stop": "answer" if quoted else "line"}

        def compute(some: Sequence[str], progress: Callable[[int], object]) -> dict[str, str]:
            vocabulary = model.config.vocab_size
            stops = answer_stops(model) if quoted else stop_at_ids(model.line_end_ids, vocabulary)
            texts = complete(
                model,
                [self._as_asked(prompt) for prompt in some],
                model.mesh,
                batch_size=self._batch_size,
                max_new_tokens=max_new_tokens,
                stops=stops,
                special_tokens=not self._chat,
                progress=progress,
            )
            return dict(zip(some, texts, strict=True))

        if not prompts:
            return []
        kept = self._completions(key)
        return self._ask(what, prompts, kept.answers, kept.add_answers, compute)

    def score(
        self, what: str, prompts: Sequence[str], continuations: Sequence[str]
    ) -> Float[np.ndarray, " n"]:
        """See `Answerer`."""
        pairs = list(zip(prompts, continuations, strict=True))

        def compute(
            some: Sequence[tuple[str, str]], progress: Callable[[int], object]
        ) -> dict[tuple[str, str], float]:
            found = score_continuations(
                self._model,
                [self._as_asked(prompt) for prompt, _ in some],
                [text for _, text in some],
                self._model.mesh,
                batch_size=self._batch_size,
                special_tokens=not self._chat,
                progress=progress,
            )
            return dict(zip(some, found.log_prob.tolist(), strict=True))

        if not pairs:
            return np.zeros(0)
        kept = self._completions({"scores": True})
        return np.array(self._ask(what, pairs, kept.scores, kept.add_scores, compute))

    def _ask(
        self,
        what: str,
        asked: Sequence[_Asked],
        look_up: Callable[[list[_Asked]], list[_Told | None]],
        keep: Callable[[dict[_Asked, _Told]], None],
        compute: Callable[[Sequence[_Asked], Callable[[int], object]], dict[_Asked, _Told]],
    ) -> list[_Told]:
        """What is known, and what is not: computed in portions, sorted so that they share most."""
        distinct = list(dict.fromkeys(asked))
        found = dict(zip(distinct, self._shared(lambda: look_up(distinct)), strict=True))
        missing = sorted(item for item, told in found.items() if told is None)
        self.computed += len(missing)
        self.known += len(distinct) - len(missing)
        told = {item: answer for item, answer in found.items() if answer is not None}
        size = PORTION * self._batch_size
        with self._console.progress(what, len(missing), "prompts") as progress:
            for start in range(0, len(missing), size):
                some = compute(missing[start : start + size], progress)
                if cluster.is_leader():
                    keep(some)
                told |= some
        return [told[item] for item in asked]

    def _shared(self, look_up: Callable[[], list[Any]]) -> list[Any]:
        """What the leader knows, on every process: all must compute the same."""
        peers = cluster.peers()
        if peers is None:
            return look_up()
        return json.loads(peers.share(json_bytes(look_up()) if peers.is_leader else None))

    def _completions(self, key: dict[str, Any]) -> Completions:
        name = json_bytes(key).decode()
        if name not in self._kept:
            model = self._model
            assert model.source is not None
            whole = {
                "generation": GENERATION,
                "model": model.source.hash,
                "dtype": str(model.params["embed"]["embedding"].dtype),
                "chat": self._chat,
                **key,
            }
            self._kept[name] = Completions(self._place, whole)
            for file in self._kept[name].damaged:
                self._console.warn(f"{file}: is damaged; its answers are computed again")
        return self._kept[name]

    def _as_asked(self, prompt: str) -> str:
        if not self._chat:
            return prompt
        message = [{"role": "user", "content": prompt}]
        return self._model.tokenizer.apply_chat_template(
            message, tokenize=False, add_generation_prompt=True
        )

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        return {"computed": self.computed, "known_before": self.known}
