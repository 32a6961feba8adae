"""The arms of an experiment over seeds: what was found, means and spreads, paired differences, claims, bars.

An experiment trains every arm (ours, baselines, ablations) with the same seeds. What an arm found with a seed is a
plain mapping of numbers; the runs of an arm stand in the order of the seeds, so that arms are compared seed by seed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tenfold.results import Claim, Series, claim

Runs = Sequence[Mapping[str, Any]]
"""What one arm found, a mapping per seed."""

Outcomes = Mapping[str, Runs]
"""For each arm, its runs in the order of the seeds."""

Quantity = str | Callable[[Mapping[str, Any]], Any]
"""A number (or list of numbers) of a run: its name, or a function of the run."""


@dataclass(frozen=True)
class PairedDifference:
    """Mean of ``ours - baseline`` over paired runs or paired test examples.

    Attributes:
        mean: mean difference.
        low: lower end of the confidence interval; NaN where there is no spread to judge by.
        high: upper end.
        pairs: number of pairs (seeds, or examples).
        by_seed: the difference with each seed, where pairs are seeds.
    """

    mean: float
    low: float
    high: float
    pairs: int
    by_seed: tuple[float, ...] = ()

    @property
    def interval(self) -> tuple[float, float]:
        """``(low, high)``."""
        return self.low, self.high

    def times(self, factor: float) -> "PairedDifference":
        """The difference in another unit, such as points for shares."""
        low, high = sorted((factor * self.low, factor * self.high))
        return PairedDifference(factor * self.mean, low, high, self.pairs, tuple(factor * x for x in self.by_seed))


def over_seeds(runs: Runs, quantity: Quantity) -> NDArray[np.float64]:
    """``(seeds, ...)`` a quantity of all runs; missing values are NaN."""
    value = quantity if callable(quantity) else lambda run: run[quantity]
    return np.asarray([value(run) for run in runs], dtype=np.float64)


def mean(runs: Runs, quantity: Quantity) -> Any:
    """Mean over seeds: a number, or a list where the quantity is one."""
    return over_seeds(runs, quantity).mean(axis=0).tolist()


def spread(runs: Runs, quantity: Quantity) -> Any:
    """Standard deviation over seeds (of a sample), in the form of ``mean``; ``None`` with one seed."""
    values = over_seeds(runs, quantity)
    return values.std(axis=0, ddof=1).tolist() if len(values) > 1 else None


def paired_difference(ours: ArrayLike, baseline: ArrayLike, confidence: float = 0.95) -> PairedDifference:
    """Student's paired interval of the mean difference over seeds.

    Args:
        ours: ``(seeds,)`` one number per seed.
        baseline: ``(seeds,)`` the same seeds, in the same order.
        confidence: coverage of the interval, in (0, 1).

    With one seed there is no spread to judge by: the interval is ``(nan, nan)``.
    """
    from scipy import stats

    a, b = _pair(ours, baseline)
    if a.ndim != 1:
        raise ValueError(f"paired runs must be two equal, non-empty rows; got shapes {a.shape} and {b.shape}")
    difference = float((a - b).mean())
    by_seed = tuple((a - b).tolist())
    if a.size == 1:
        return PairedDifference(difference, float("nan"), float("nan"), 1, by_seed)
    if np.ptp(a - b) == 0:  # no spread at all, where Student's statistic has no value
        return PairedDifference(difference, difference, difference, a.size, by_seed)
    interval = stats.ttest_rel(a, b).confidence_interval(confidence)
    return PairedDifference(difference, float(interval.low), float(interval.high), a.size, by_seed)


def paired_bootstrap(
    ours: ArrayLike, baseline: ArrayLike, confidence: float = 0.95, *, resamples: int = 2000, seed: int = 0
) -> PairedDifference:
    """Percentile bootstrap of the mean difference over test examples, for runs with too few seeds to pair.

    Args:
        ours: ``(examples,)`` a score per test example, or ``(seeds, examples)``, of which the mean over seeds counts.
        baseline: of the same shape, the same examples in the same order.
        confidence: coverage of the interval, in (0, 1).
        resamples: number of bootstrap samples.
        seed: of the resampling.
    """
    from scipy import stats

    a, b = _pair(ours, baseline)
    difference = a - b
    if difference.ndim == 2:
        difference = difference.mean(axis=0)
    if difference.size == 1 or np.ptp(difference) == 0:
        low, high = (float("nan"),) * 2 if difference.size == 1 else (float(difference.mean()),) * 2
        return PairedDifference(float(difference.mean()), low, high, difference.size)
    found = stats.bootstrap(
        (difference,),
        np.mean,
        confidence_level=confidence,
        n_resamples=resamples,
        method="percentile",
        batch=max(1, 4_000_000 // difference.size),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return PairedDifference(float(difference.mean()), float(found.low), float(found.high), difference.size)


def _pair(ours: ArrayLike, baseline: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = np.asarray(ours, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if a.shape != b.shape or a.size == 0:
        raise ValueError(f"what is paired must be equal in shape and not empty; got shapes {a.shape} and {b.shape}")
    return a, b


def difference(outcomes: Outcomes, quantity: Quantity, ours: str, baseline: str | None) -> PairedDifference:
    """Paired difference of a number between two arms, seed by seed.

    Args:
        outcomes: see ``Outcomes``.
        quantity: see ``Quantity``; must be one number.
        ours: an arm.
        baseline: the arm that is subtracted; nothing is where it is ``None``.
    """
    mine = over_seeds(outcomes[ours], quantity)
    return paired_difference(
        mine, np.zeros_like(mine) if baseline is None else over_seeds(outcomes[baseline], quantity)
    )


def claim_of_difference(
    id: str, statement: str, found: PairedDifference, *, baseline: str, target: str = "> 0", unit: str, note: str = ""
) -> Claim:
    """A claim about a paired difference; its verdict follows from the whole interval.

    Args:
        id: see ``tenfold.results.Claim``.
        statement: see there.
        found: what was measured.
        baseline: see there.
        target: see there.
        unit: see there.
        note: see there.
    """
    return claim(
        id,
        statement,
        value=found.mean,
        target=target,
        unit=unit,
        baseline=baseline,
        interval=found.interval,
        note=note,
        by_seed=found.by_seed,
    )


def bars(name: str, outcomes: Outcomes, quantity: Quantity, arms: Sequence[str] | None = None) -> Series:
    """A group of bars: one per arm, means over seeds with their spread (one standard deviation)."""
    chosen = list(outcomes) if arms is None else list(arms)
    errors = [spread(outcomes[arm], quantity) for arm in chosen]
    return Series(
        name=name,
        x=chosen,
        y=[mean(outcomes[arm], quantity) for arm in chosen],
        error=None if None in errors else errors,
    )
