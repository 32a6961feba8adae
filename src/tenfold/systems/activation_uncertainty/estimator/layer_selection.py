"""Which layers are worth reading: a subset of them estimates uncertainty almost as well as all (paper A)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from tenfold.systems.activation_uncertainty.estimator.fitting import FittedEstimator

Fit = Callable[[list[int]], FittedEstimator]
"""Fits an estimator on some columns of the features; the split must be the same in every call."""


@dataclass(frozen=True)
class LayerScore:
    """An estimator that reads some of the layers.

    Attributes:
        names: of the taps, in order of execution.
        kind: how the subset came about: ``all``, ``single``, ``prefix``, ``suffix`` or ``greedy``.
        features: number of features.
        multiply_adds: of the estimator, per input.
        r2: on the validation rows.
    """

    names: tuple[str, ...]
    kind: str
    features: int
    multiply_adds: int
    r2: float


@dataclass(frozen=True)
class LayerSelection:
    """All subsets that were tried, and the one to serve.

    Attributes:
        scores: in the order in which they were fitted, all layers first.
        chosen: the cheapest whose R2 is within the tolerance of all layers'.
    """

    scores: tuple[LayerScore, ...]
    chosen: LayerScore


def select_layers(slices: Mapping[str, slice], fit: Fit, *, tolerance: float = 0.01, most: int = 4) -> LayerSelection:
    """Fit every single layer, every prefix and suffix, and greedy forward choices; take the cheapest good one.

    Args:
        slices: where each layer's features stand.
        fit: see ``Fit``; its R2 on validation rows decides, the test rows play no part.
        tolerance: how far below all layers' R2 a subset may be.
        most: layers that the greedy search adds at most.
    """
    names = list(slices)
    done: dict[tuple[str, ...], LayerScore] = {}

    def score(subset: Iterable[str], kind: str) -> LayerScore:
        chosen = tuple(name for name in names if name in set(subset))
        if chosen not in done:
            columns = [column for name in chosen for column in range(slices[name].start, slices[name].stop)]
            fitted = fit(columns)
            done[chosen] = LayerScore(chosen, kind, len(columns), fitted.estimator.multiply_adds, fitted.r2)
        return done[chosen]

    everything = score(names, "all")
    enough = everything.r2 - tolerance
    for name in names:
        score([name], "single")
    for k in range(2, len(names)):
        score(names[:k], "prefix")
        score(names[-k:], "suffix")
    greedy: list[str] = []
    while len(greedy) < min(most, len(names)):
        best = max((score([*greedy, name], "greedy") for name in names if name not in greedy), key=lambda s: s.r2)
        greedy = list(best.names)
        if best.r2 >= enough:
            break
    good = [found for found in done.values() if found.r2 >= enough]
    chosen = min(good, key=lambda found: (found.multiply_adds, -found.r2))
    return LayerSelection(tuple(done.values()), chosen)
