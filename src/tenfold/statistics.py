"""Differences between arms over seeds, with the interval that so few seeds allow."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class PairedDifference:
    """Mean of ``ours - baseline`` over paired runs.

    Attributes:
        mean: mean difference.
        low: lower end of the confidence interval.
        high: upper end.
        pairs: number of pairs (seeds).
    """

    mean: float
    low: float
    high: float
    pairs: int

    @property
    def interval(self) -> tuple[float, float]:
        """``(low, high)``."""
        return self.low, self.high


def paired_difference(ours: ArrayLike, baseline: ArrayLike, confidence: float = 0.95) -> PairedDifference:
    """Student's paired interval of the mean difference.

    Args:
        ours: ``(seeds,)`` one number per seed.
        baseline: ``(seeds,)`` the same seeds, in the same order.
        confidence: coverage of the interval, in (0, 1).

    With one seed there is no spread to judge by: the interval is ``(nan, nan)``.
    """
    from scipy import stats

    a, b = np.asarray(ours, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or a.size == 0:
        raise ValueError(f"paired runs must be two equal, non-empty rows; got shapes {a.shape} and {b.shape}")
    difference = a - b
    mean = float(difference.mean())
    if difference.size == 1:
        return PairedDifference(mean, float("nan"), float("nan"), 1)
    half = float(stats.t.ppf((1 + confidence) / 2, difference.size - 1) * difference.std(ddof=1) / difference.size**0.5)
    return PairedDifference(mean, mean - half, mean + half, int(difference.size))
