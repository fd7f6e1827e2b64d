"""The choice of a bridge from a language spectrum: the highest mean over the middle layers.

bridgex-icl Stage 7. The mean runs over the layers where every compared bridge is present, since
base levels differ by layer; layers keep their true numbers. Axes: G bridges, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bridgex_jax.bridge.spectrum import Compat, Spectrum


@dataclass(frozen=True)
class BridgeChoice:
    """The chosen bridge (None where none is comparable) and how it stands to the others.

    means: mean score of every comparable bridge over `layers`, the common layers of the window.
    margin: to `runner_up`. coverage: share of the window in which a bridge is present.
    """

    bridge: str | None
    means: dict[str, float]
    margin: float
    runner_up: str | None
    coverage: dict[str, float]
    layers: tuple[int, ...]
    not_comparable: tuple[str, ...]


def layer_window(n_layers: int) -> list[int]:
    """Layers 10–21 of 32, scaled: l with 20·L ≤ 32·(2l + 1) ≤ 44·L; else those at mid-depth."""
    window = [k for k in range(n_layers) if 20 * n_layers <= 32 * (2 * k + 1) <= 44 * n_layers]
    return window or sorted({(n_layers - 1) // 2, n_layers // 2})


def choose_bridge(
    spectrum: Spectrum, window: Sequence[int] | None = None, compat: Compat | None = None
) -> BridgeChoice:
    """The bridge of the highest mean score, the first in the given order on ties.

    A bridge that is present in under half of the window is not comparable. `compat="paper"` takes
    each bridge's mean over its own layers; `"reference"` also renumbers the layers that a
    bridge has before it applies the window, as the released code does.
    """
    n_layers = spectrum.score.shape[1]
    window = layer_window(n_layers) if window is None else list(window)
    present = np.isfinite(spectrum.score)
    coverage = {b: float(present[g, window].mean()) for g, b in enumerate(spectrum.bridges)}
    if compat is None:
        compared = [g for g, b in enumerate(spectrum.bridges) if coverage[b] >= 0.5]
        layers = [k for k in window if compared and present[compared, k].all()]
        means = {
            spectrum.bridges[g]: float(spectrum.score[g, layers].mean()) for g in compared if layers
        }
    else:
        layers = [k for k in window if present[:, k].any()]
        means = {}
        for g, bridge in enumerate(spectrum.bridges):
            own = _own_layers(spectrum.score[g], window, renumber=compat == "reference")
            if len(own):
                means[bridge] = float(own.mean())
    order = sorted(means, key=lambda b: -means[b])  # stable: ties keep the given order
    best = order[0] if order else None
    runner_up = order[1] if len(order) > 1 else None
    return BridgeChoice(
        bridge=best,
        means=means,
        margin=means[best] - means[runner_up] if best and runner_up else float("nan"),
        runner_up=runner_up,
        coverage=coverage,
        layers=tuple(layers),
        not_comparable=tuple(b for b in spectrum.bridges if b not in means),
    )


def _own_layers(scores: np.ndarray, window: list[int], *, renumber: bool) -> np.ndarray:
    if renumber:
        left = scores[np.isfinite(scores)]
        return left[[k for k in window if k < len(left)]]
    inside = scores[window]
    return inside[np.isfinite(inside)]
