"""Differences between arms over seeds, with the interval that so few seeds allow."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from tenfold.results import Claim, claim

UNSETTLED = "The interval over seeds includes the target: this many seeds do not settle the verdict."


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


def claim_of_difference(
    id: str, statement: str, found: PairedDifference, *, baseline: str, target: str = "> 0", unit: str, note: str = ""
) -> Claim:
    """A claim about a paired difference; where its interval includes the target, a note says so.

    Args:
        id: see :class:`tenfold.results.Claim`.
        statement: see there.
        found: what was measured.
        baseline: see there.
        target: see there.
        unit: see there.
        note: comes before the note about the interval.
    """
    made = claim(
        id,
        statement,
        value=found.mean,
        target=target,
        unit=unit,
        baseline=baseline,
        interval=found.interval,
        note=note,
    )
    bound = float(target.split()[-1])
    unsettled = made.interval is not None and made.interval[0] <= bound <= made.interval[1]
    return made.model_copy(update={"note": f"{note} {UNSETTLED}".strip()}) if unsettled else made
