"""The simpler ways to choose a bridge, to compare HSIC with: each gives every bridge a score.

Scores are a dict in the order of the bridges; higher is better, NaN where a chooser cannot say;
`pick` takes the best. Most choosers know how alike two languages are (`Similarities`), and
`between` makes of that the scores of a pair:

    pick(between(cka(sentences), "id", "he", ["en", "de", "fr"]))

Everything is a pure function of arrays by language code, in float64 on the host. Sources: spec
bridgex-icl (other choosers to compare), and at each function. Axes: G language, L layer, F neuron,
D feature, V vocabulary entry, n sentence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from bridgex_jax.neurons import similarity
from bridgex_jax.neurons.lape import LapeRule, lape

Scores: TypeAlias = dict[str, float]
CkaEstimator = Literal["debiased", "biased"]
TypologicalDistance = Literal["unequal", "cosine"]

# What the choosers are called in tables and help texts, and what each of them looks at.
CHOOSERS: Mapping[str, str] = MappingProxyType(
    {
        "hsic": "HSIC of the bridge's neurons with those that source and target share",
        "overlap": "neurons that bridge, source and target all have",
        "jaccard": "Jaccard of the bridge's neurons with those of source and of target",
        "cosine": "cosine of activation rates over the neurons shared with source and with target",
        "set_size": "neurons of the bridge alone: what a score would follow that only counts",
        "lape": "Jaccard of language-specific neurons (LAPE) with source and with target",
        "embedding": "cosine of mean hidden states with source and with target",
        "cka": "linear CKA of parallel sentences with source and with target",
        "typology": "typological closeness (URIEL) to source and to target",
        "tokenizer": "tokens in common with source and with target",
        "english": "always English",
        "random": "any bridge: the mean over all of them",
        "table": "the user's own scores, from a file",
        "oracle": "the bridge that proved most accurate: an upper bound, known only afterwards",
    }
)


@dataclass(frozen=True)
class Similarities:
    """How alike every two languages are: higher is more alike, NaN where that is not known."""

    languages: tuple[str, ...]
    values: Float[np.ndarray, "G G"]


def pick(scores: Mapping[str, float]) -> str | None:
    """The bridge with the largest finite score, the first on ties; None where there is none."""
    finite = {bridge: score for bridge, score in scores.items() if math.isfinite(score)}
    return max(finite, key=finite.__getitem__) if finite else None


def between(similarities: Similarities, source: str, target: str, bridges: Sequence[str]) -> Scores:
    """Every bridge b by ½ (sim(s, b) + sim(b, t)): how well it stands between the two.

    Both halves count the same, so the direction of the pair does not matter, and a bridge that is
    close to one language and far from the other ties with one halfway. NaN where either half is.
    Raises ValueError for a language without similarities and a bridge that is source or target.
    """
    at = {code: index for index, code in enumerate(similarities.languages)}
    _check_pair(at, source, target, bridges)
    sim = similarities.values
    return {b: float(sim[at[source], at[b]] + sim[at[b], at[target]]) / 2 for b in bridges}


# Neuron sets -----------------------------------------------------------------------------------


def overlap_count(
    sets: Mapping[str, Bool[np.ndarray, "L F"]], source: str, target: str, bridges: Sequence[str]
) -> Scores:
    """|T_b ∩ X| of X = T_s ∩ T_t: the neurons that all three have.

    Raises ValueError for a language without a set and a bridge that is source or target.
    """
    _check_pair(sets, source, target, bridges)
    shared = sets[source] & sets[target]
    return {b: float((sets[b] & shared).sum()) for b in bridges}


def set_size(bridge_sets: Mapping[str, Bool[np.ndarray, "L F"]]) -> Scores:
    """|Y_b| of the bridge sets of a pair (`PairSets.bridges`), in their order.

    The confound: a maximum over more neurons is larger. A chooser that picks like this one has
    found no dependence.
    """
    return {bridge: float(members.sum()) for bridge, members in bridge_sets.items()}


def jaccard(sets: Mapping[str, Bool[np.ndarray, "L F"]]) -> Similarities:
    """|T_a ∩ T_b| ÷ |T_a ∪ T_b|; NaN where both are empty."""
    return Similarities(tuple(sets), similarity.jaccard(_stack(sets)))


def cosine(
    rates: Mapping[str, Float[np.ndarray, "L F"]], sets: Mapping[str, Bool[np.ndarray, "L F"]]
) -> Similarities:
    """Cosine of activation probabilities over T_a ∩ T_b; NaN where that is empty.

    Near 1 for any two languages (see `neurons.similarity`). Raises ValueError where rates and sets
    are of different languages.
    """
    if set(rates) != set(sets):
        raise ValueError(f"rates of {', '.join(rates)} and sets of {', '.join(sets)}")
    stacked = _stack({code: rates[code] for code in sets})
    return Similarities(tuple(sets), similarity.activation_cosine(stacked, _stack(sets)))


def lape_overlap(
    rates: Mapping[str, Float[np.ndarray, "L F"]],
    *,
    rule: LapeRule = "kthvalue",
    rate: float = 0.01,
) -> Similarities:
    """Jaccard of the language-specific neurons that LAPE finds among these languages.

    Adding a language changes which neurons are specific. NaN where neither language has one.
    Source: arXiv 2402.16438. Raises what `neurons.lape.lape` raises.
    """
    chosen = lape(_stack(rates), rule=rule, rate=rate).chosen
    return Similarities(tuple(rates), similarity.jaccard(chosen))


# Representations -------------------------------------------------------------------------------


def embedding_similarity(
    means: Mapping[str, Float[np.ndarray, " D"]], *, centred: bool = True
) -> Similarities:
    """Cosine of the languages' mean hidden states, of one layer and over parallel sentences.

    centred takes the mean over the languages away first. Hidden states of all languages share a
    large component (a few huge dimensions), which puts every plain cosine near 1; what is left
    without it is in what the languages differ. Centred cosines average about -1/(G - 1), and that
    of two languages alone is -1. NaN for a zero vector.
    """
    vectors = _stack(means).astype(np.float64)  # [G, D]
    if centred:
        vectors = vectors - vectors.mean(axis=0, keepdims=True)
    length = np.linalg.norm(vectors, axis=1)
    return Similarities(tuple(means), _normalised(vectors @ vectors.T, length))


def cka(
    representations: Mapping[str, Float[np.ndarray, "n D"]], *, estimator: CkaEstimator = "debiased"
) -> Similarities:
    """Linear CKA of the representations of n parallel sentences, in the same order: [G, G].

    `biased` is ‖XᵀY‖² ÷ ‖XᵀX‖‖YᵀY‖ of centred X and Y (Kornblith et al. 2019, arXiv 1905.00414),
    in 0…1, and near 1 for anything when D is far above n. `debiased` makes the same quotient of
    the unbiased estimator of HSIC (Song et al. 2012, equation 5): about 0 for independent
    representations, and may be negative. Both are 1 for equal representations, and rotation,
    scaling and shifts do not change them; D may differ between languages.

    NaN where a language's representations do not vary. Needs 8·G·n² bytes. Raises ValueError for
    an unknown estimator, different n, and n under 4 (debiased) or 2.
    """
    if estimator not in get_args(CkaEstimator):
        raise ValueError(f"estimator is {estimator!r}, not one of {get_args(CkaEstimator)}")
    lengths = {len(x) for x in representations.values()}
    least = 4 if estimator == "debiased" else 2
    if (
        len(lengths) != 1
        or min(lengths) < least
        or any(x.ndim != 2 for x in representations.values())
    ):
        shapes = ", ".join(f"{code} {x.shape}" for code, x in representations.items())
        raise ValueError(f"not [n, D] of one n of at least {least}: {shapes}")
    centre = _u_centred if estimator == "debiased" else _unchanged
    grams = np.stack([centre(_linear_gram(x)) for x in representations.values()])  # [G, n, n]
    products = np.einsum("anm,bnm->ab", grams, grams, optimize=True)  # [G, G], n(n - 3) HSIC
    own = np.sqrt(products.diagonal())
    return Similarities(tuple(representations), _normalised(products, own))


def _linear_gram(x: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n n"]:
    """X Xᵀ of X less its mean and over its size, so that no scale overflows; 0 if X is constant."""
    x = x.astype(np.float64)
    varies = np.ptp(x, axis=0, keepdims=True) > 0
    centred = np.where(varies, x - x.mean(axis=0, keepdims=True), 0.0)
    largest = np.abs(centred).max(initial=0.0)
    scaled = centred / largest if largest > 0 else centred
    return np.einsum("nd,md->nm", scaled, scaled, optimize=True)


def _unchanged(gram: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    return gram


def _u_centred(gram: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """The Gram matrix whose inner products are n(n - 3) times Song's unbiased HSIC.

    Székely and Rizzo 2014: centred without the diagonal, which becomes 0.
    """
    n = len(gram)
    off = gram - np.diag(gram.diagonal())
    rows = off.sum(axis=1, keepdims=True) / (n - 2)  # [n, 1]
    centred = off - rows - rows.T + rows.sum() / (n - 1)
    np.fill_diagonal(centred, 0.0)
    return centred


# Languages apart from the model ----------------------------------------------------------------


def typological(
    features: Mapping[str, Float[np.ndarray, " D"]], *, distance: TypologicalDistance = "unequal"
) -> Similarities:
    """Minus the distance of typological features (`data.typology.Typology.features`).

    Features lie in 0…1, and those that are missing (-1) in either language are left out.
    `unequal`  the share of features that differ; one on which the sources of a language disagree,
               and which so lies between 0 and 1, counts in part
    `cosine`   1 - cosine
    Two bridges may be compared over different features, since each pair has its own missing ones;
    `known_to_all` takes the same ones for all.
    NaN where two languages have no feature in common, or for `cosine` only zeros. Source: Littell
    et al. 2017 (URIEL). Raises ValueError for an unknown distance.
    """
    if distance not in get_args(TypologicalDistance):
        raise ValueError(f"distance is {distance!r}, not one of {get_args(TypologicalDistance)}")
    of = _unequal if distance == "unequal" else _cosine_distance
    values = _stack(features).astype(np.float64)  # [G, D]

    def closeness(a: Float[np.ndarray, " D"], b: Float[np.ndarray, " D"]) -> float:
        known = (a >= 0) & (b >= 0)
        return 0.0 - of(a[known], b[known]) if known.any() else math.nan

    return _each_pair(tuple(features), values, closeness)


def known_to_all(
    features: Mapping[str, Float[np.ndarray, " D"]],
) -> dict[str, Float[np.ndarray, " d"]]:
    """Only the features that are known (not -1) of every language here; there may be none."""
    known = (_stack(features) >= 0).all(axis=0)
    return {code: values[known] for code, values in features.items()}


def _unequal(a: Float[np.ndarray, " D"], b: Float[np.ndarray, " D"]) -> float:
    return float(np.abs(a - b).mean())


def _cosine_distance(a: Float[np.ndarray, " D"], b: Float[np.ndarray, " D"]) -> float:
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return 1.0 - float(a @ b) / norm if norm > 0 else math.nan


def tokenizer_overlap(counts: Mapping[str, Int[np.ndarray, " V"]]) -> Similarities:
    """Σ_v min(p_a, p_b) over the token frequencies of two corpora: 1 alike, 0 nothing in common.

    One less the total variation distance. NaN for a language without tokens. Raises ValueError
    for counts below 0.
    """
    stacked = _stack(counts).astype(np.float64)  # [G, V]
    if (stacked < 0).any():
        raise ValueError("a token was counted fewer than 0 times")
    totals = stacked.sum(axis=1, keepdims=True)
    p = np.divide(stacked, totals, out=np.full_like(stacked, np.nan), where=totals > 0)
    return _each_pair(tuple(counts), p, lambda a, b: float(np.minimum(a, b).sum()))


# Without looking at anything -------------------------------------------------------------------


def fixed(bridge: str, bridges: Sequence[str]) -> Scores:
    """1 for the bridge and 0 for the others; NaN for all where it is not a candidate."""
    if bridge not in bridges:
        return dict.fromkeys(bridges, math.nan)
    return {b: float(b == bridge) for b in bridges}


def table(
    given: Mapping[tuple[str, str], Mapping[str, float]],
    source: str,
    target: str,
    bridges: Sequence[str],
) -> Scores:
    """The user's scores (`data.bridge_scores.read_bridge_scores`); NaN where none was given."""
    scores = given.get((source, target), {})
    return {bridge: float(scores.get(bridge, math.nan)) for bridge in bridges}


# Shared ----------------------------------------------------------------------------------------


def _check_pair(known: Mapping[str, Any], source: str, target: str, bridges: Sequence[str]) -> None:
    if missing := [code for code in (source, target, *bridges) if code not in known]:
        raise ValueError(f"nothing is known of {', '.join(missing)}")
    if source == target or {source, target} & set(bridges):
        raise ValueError("source, target and bridges are not different languages")


def _stack(arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> Shaped[np.ndarray, "G ..."]:
    """The languages' arrays as one. Raises ValueError, naming shapes, where they differ."""
    if len({array.shape for array in arrays.values()}) != 1:
        shapes = ", ".join(f"{code} {array.shape}" for code, array in arrays.items())
        raise ValueError(f"not one shape for all languages: {shapes or 'there is none'}")
    return np.stack(list(arrays.values()))


def _each_pair(
    languages: tuple[str, ...],
    rows: Float[np.ndarray, "G D"],
    of: Callable[[Float[np.ndarray, " D"], Float[np.ndarray, " D"]], float],
) -> Similarities:
    """A symmetric function of every two rows."""
    values = np.full((len(rows), len(rows)), np.nan)
    for a in range(len(rows)):
        for b in range(a + 1):
            values[a, b] = values[b, a] = of(rows[a], rows[b])
    return Similarities(languages, values)


def _normalised(
    products: Float[np.ndarray, "G G"], own: Float[np.ndarray, " G"]
) -> Float[np.ndarray, "G G"]:
    """products[a, b] / own[a] own[b]; NaN where either is 0."""
    scale = np.outer(own, own)
    return np.divide(products, scale, out=np.full_like(products, np.nan), where=scale > 0)
