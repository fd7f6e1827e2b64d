"""The training mix of the built-in model: which prompts it sees and which it never sees.

Four poor languages meet six bridges; for each poor language the share of concepts whose prompts
with a bridge are seen (the coverage) is a permutation of `COVERAGE`, drawn by seed before any
result, and so is the volume of each bridge. All poor–poor directions are left out, direct and as
the ends of a chain, so that a bridge can help. 60 % direct prompts, 25 % three-language
chains, 15 % monolingual text in packed rows, by tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from bridgex_jax.data.cldr import Concept, sentences, stable_fraction
from bridgex_jax.languages import language

Row = tuple[list[int], list[float]]  # token ids, loss weight of each as a target
COVERAGE = (0.95, 0.7, 0.5, 0.3, 0.15, 0.05)


@dataclass(frozen=True)
class MixConfig:
    """Languages and proportions of the mix; volumes are sampling weights relative to 1."""

    seed: int
    bridges: tuple[str, ...] = ("en", "de", "fr", "it", "pt", "es")
    ordinary: tuple[str, ...] = ("zh", "ja", "ar", "fi")
    poor: tuple[str, ...] = ("he", "id", "hu", "sw")
    coverage: tuple[float, ...] = COVERAGE
    volume_ratio: float = 4.0  # largest over smallest volume of a bridge
    poor_bridge_volume: float = 1.0
    poor_ordinary_volume: float = 0.25
    direct_share: float = 0.60
    chain_share: float = 0.25
    text_lines: int = 6000  # monolingual lines a language
    text_row_length: int = 128  # tokens; rows of running text, as activations are counted on

    @property
    def languages(self) -> tuple[str, ...]:
        return self.bridges + self.ordinary + self.poor


@dataclass(frozen=True)
class MixPlan:
    """What the seed decided: coverage of (poor, bridge) and the volume of each bridge."""

    coverage: dict[str, dict[str, float]]
    volume: dict[str, float]

    def to_json(self) -> dict:
        return asdict(self)


def draw_plan(config: MixConfig) -> MixPlan:
    """Draws coverage and volumes from the seed alone, before any model exists."""
    rng = np.random.default_rng(config.seed)
    coverage = {}
    for poor in config.poor:
        order = rng.permutation(len(config.bridges))
        coverage[poor] = {b: config.coverage[order[i]] for i, b in enumerate(config.bridges)}
    steps = np.geomspace(1.0, config.volume_ratio, len(config.bridges))
    steps = steps / steps.mean()
    order = rng.permutation(len(config.bridges))
    volume = {b: float(steps[order[i]]) for i, b in enumerate(config.bridges)}
    return MixPlan(coverage, volume)


class PromptMix:
    """Rows of token ids with loss weights, drawn at random under the plan.

    Args:
      encode: text -> token ids without special tokens; must not merge across prompt marks.
    """

    def __init__(
        self, config: MixConfig, concepts: Sequence[Concept], tokenizer, prompt_weight: float
    ):
        self.config, self.plan = config, draw_plan(config)
        self.prompt_weight = prompt_weight
        self._concepts = concepts

        def encode(text: str) -> list[int]:
            return tokenizer.encode(text, add_special_tokens=False)

        codes = config.languages
        self._bos = [tokenizer.bos_token_id]
        self._name = {code: encode(language(code).endonym) for code in codes}
        self._words = {code: [encode(c.words[code]) for c in concepts] for code in codes}
        self._open, self._arrow = encode(':"'), encode("→")
        self._colon, self._quote, self._newline = encode(":"), encode('"'), encode("\n")
        self._text = {code: self._packed_text(code, encode) for code in codes}
        self._pairs, self._pair_p = self._weigh(self._direct_pairs())
        self._chains, self._chain_p = self._weigh(self._direct_chains())
        self._kind_p = self._row_shares()

    def seen(self, concept: Concept, first: str, second: str) -> bool:
        """Whether prompts between two languages may show this concept (symmetric)."""
        poor, other = sorted((first, second), key=lambda code: code not in self.config.poor)
        if poor not in self.config.poor:
            return True
        if other in self.config.poor:
            return False
        share = self.plan.coverage[poor].get(other, 1.0)
        return stable_fraction(self.config.seed, "coverage", poor, other, concept.id) < share

    def rows(self, rng: np.random.Generator, n: int) -> list[Row]:
        """n rows of (token ids, loss weight of each token as a target)."""
        kinds = rng.choice(3, size=n, p=self._kind_p)
        return [self._row(rng, kind) for kind in kinds]

    def _row(self, rng: np.random.Generator, kind: int) -> Row:
        if kind == 2:
            return self._text_row(rng)
        routes = (self._pairs, self._pair_p) if kind == 0 else (self._chains, self._chain_p)
        return self._prompt_row(rng, *routes)

    def _row_shares(self) -> NDArray[np.float64]:
        """Shares of rows that give the configured shares of tokens."""
        rng = np.random.default_rng(self.config.seed)
        lengths = [
            np.mean([len(self._row(rng, kind)[0]) for _ in range(1000)]) for kind in range(3)
        ]
        direct, chain = self.config.direct_share, self.config.chain_share
        rows = np.array([direct, chain, 1 - direct - chain]) / lengths
        return rows / rows.sum()

    def _packed_text(self, code: str, encode: Callable[[str], list[int]]) -> list[list[int]]:
        lines = itertools.islice(sentences(code, self.config.seed), self.config.text_lines)
        stream = [token for line in lines for token in encode(line) + self._newline]
        n = self.config.text_row_length - 1
        return [stream[i : i + n] for i in range(0, len(stream) - n + 1, n)]

    def _direct_pairs(self) -> dict[tuple[str, ...], float]:
        codes = self.config.languages
        return {(s, t): self._volume(s, t) for s, t in itertools.permutations(codes, 2)}

    def _direct_chains(self) -> dict[tuple[str, ...], float]:
        codes = self.config.languages
        return {
            (s, b, t): self._volume(s, b) * self._volume(b, t) * self._volume(s, t)
            for s, b, t in itertools.permutations(codes, 3)
            if b in self.config.bridges
        }

    def _volume(self, first: str, second: str) -> float:
        config = self.config
        n_poor = (first in config.poor) + (second in config.poor)
        if n_poor == 2:
            return 0.0
        volume = self.plan.volume.get(first, 1.0) * self.plan.volume.get(second, 1.0)
        if n_poor == 1:
            other = first if second in config.poor else second
            ordinary = other in config.ordinary
            volume *= config.poor_ordinary_volume if ordinary else config.poor_bridge_volume
        return volume

    def _weigh(
        self, weights: dict[tuple[str, ...], float]
    ) -> tuple[list[tuple[tuple[str, ...], list[int]]], NDArray[np.float64]]:
        seen = {
            pair: np.array([self.seen(concept, *pair) for concept in self._concepts])
            for pair in itertools.combinations(self.config.languages, 2)
        }
        seen |= {(b, a): mask for (a, b), mask in seen.items()}
        routes, p = [], []
        for route, weight in weights.items():
            pairs = itertools.combinations(route, 2)
            allowed = np.flatnonzero(np.logical_and.reduce([seen[pair] for pair in pairs])).tolist()
            if weight > 0 and allowed:
                routes.append((route, allowed))
                p.append(weight * len(allowed))
        return routes, np.asarray(p) / np.sum(p)

    def _prompt_row(self, rng: np.random.Generator, routes: list, p: NDArray[np.float64]) -> Row:
        route, allowed = routes[rng.choice(len(p), p=p)]
        concept = allowed[rng.integers(len(allowed))]
        ids, weights = list(self._bos), [0.0]

        def add(piece: list[int], weight: float) -> None:
            ids.extend(piece)
            weights.extend([weight] * len(piece))

        low = self.prompt_weight
        add(self._name[route[0]] + self._open + self._words[route[0]][concept] + self._quote, low)
        for code in route[1:]:
            add(self._arrow + self._name[code] + self._colon, low)
            add(self._quote + self._words[code][concept] + self._quote, 1.0)
        add(self._newline, 1.0)
        return ids, weights

    def _text_row(self, rng: np.random.Generator) -> Row:
        rows = self._text[self.config.languages[rng.integers(len(self.config.languages))]]
        ids = self._bos + rows[rng.integers(len(rows))]
        return ids, [0.0] + [1.0] * (len(ids) - 1)
