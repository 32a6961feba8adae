"""Intervals over test rows, where there is one seed: paired bootstrap of what each row contributes."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from tenfold.arms import PairedDifference, paired_bootstrap
from tenfold.systems.activation_uncertainty.estimator.metrics import equivalent_passes
from tenfold.systems.activation_uncertainty.experiment.baselines import MC_PASSES, Comparison

_RESAMPLES = 1000


def r2_by_row(labels: ArrayLike, estimates: ArrayLike) -> np.ndarray:
    """``(rows,)`` what each row contributes to R2, which is their mean: ``1 - error^2 / variance of the labels``."""
    a, b = np.asarray(labels, dtype=np.float64), np.asarray(estimates, dtype=np.float64)
    return 1 - np.square(a - b) / a.var()


def r2_difference(labels: ArrayLike, ours: ArrayLike, other: ArrayLike | None = None) -> PairedDifference:
    """Difference of R2 between two estimates of the same rows; of one alone where there is no other."""
    mine = r2_by_row(labels, ours)
    return paired_bootstrap(mine, np.zeros_like(mine) if other is None else r2_by_row(labels, other))


def equivalent_passes_interval(
    labels: ArrayLike, estimates: ArrayLike, by_passes: Mapping[int, ArrayLike]
) -> tuple[float, float]:
    """95 % interval of the T-equivalent over resampled test rows.

    Args:
        labels: ``(rows,)`` U.
        estimates: ``(rows,)``.
        by_passes: ``(rows,)`` estimates of Monte-Carlo dropout by the number of its passes.
    """
    a = np.asarray(labels, dtype=np.float64)
    everyone = np.stack([np.asarray(values, dtype=np.float64) for values in (estimates, *by_passes.values())])
    rows = np.random.default_rng(0).integers(0, len(a), (_RESAMPLES, len(a)))
    chosen = a[rows]
    total = np.square(chosen - chosen.mean(1, keepdims=True)).sum(1)
    r2 = np.stack([1 - np.square(chosen - values[rows]).sum(1) / total for values in everyone])
    found = [
        equivalent_passes(ours, dict(zip(by_passes, theirs, strict=True)))[0]
        for ours, theirs in zip(r2[0].tolist(), r2[1:].T.tolist(), strict=True)
    ]
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def intervals_of(table: Comparison) -> dict[str, list[float]]:
    """Intervals of what is claimed of one main model: differences of R2 by ``ours - other``, T-equivalents by row."""
    labels, estimates = table.test.uncertainty, table.estimates
    by_passes = {t: estimates[f"Monte-Carlo dropout, T = {t}"] for t in MC_PASSES}
    found: dict[str, list[float]] = {}
    for row in ("all layers", "chosen layers"):
        found[row] = [*equivalent_passes_interval(labels, estimates[row], by_passes)]
        for other in estimates:
            if other != row:
                found[f"{row} - {other}"] = [*r2_difference(labels, estimates[row], estimates[other]).interval]
    return found
