"""What chance does to averages: the script's bootstrap with its own random stream, and tests of two systems."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tenfold.errors import UserError

RESAMPLES = 1000


@dataclass(frozen=True)
class Interval:
    """An average with its 95 % interval.

    Attributes:
        mean: mean of the means of 1000 resamples, as the script prints it; differs a little from ``plain_mean``.
        low: lower end.
        high: upper end.
        plain_mean: arithmetic mean over the topics.
    """

    mean: float
    low: float
    high: float
    plain_mean: float


def bootstrap_interval(values: Sequence[float]) -> Interval:
    """Average and 95 % interval over topics, to the fifth decimal those of ROUGE-1.5.5 (``-c 95 -r 1000``).

    Args:
        values: one score per topic, topics in the order of their ids as strings.
    """
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or not len(scores):
        raise UserError("an average needs at least one topic")
    sums = np.zeros(RESAMPLES)
    for places in drand48_indices(len(scores)):  # added one by one: the script's order of rounding
        sums += scores[places]
    means = np.sort(sums / len(scores))
    numbers = (means.mean(), means[int(RESAMPLES * 0.025)], means[int(RESAMPLES * 0.975) - 1], scores.mean())
    return Interval(*(float(f"{number:.5f}") for number in numbers))


@lru_cache(maxsize=8)
def drand48_indices(topics: int) -> NDArray[np.int64]:
    """``(topics, 1000)`` topics drawn by each resample; resample b seeds ``drand48`` with b."""
    state = (np.arange(RESAMPLES, dtype=np.uint64) << np.uint64(16)) + np.uint64(0x330E)
    mask = np.uint64(2**48 - 1)
    rows = np.empty((topics, RESAMPLES), dtype=np.int64)
    for row in rows:
        state = (state * np.uint64(0x5DEECE66D) + np.uint64(0xB)) & mask  # wraps modulo 2**64, of which 48 bits count
        row[:] = (state.astype(np.float64) / 2.0**48 * topics).astype(np.int64)
    return rows


@dataclass(frozen=True)
class PairedTest:
    """Two systems on the same topics.

    Attributes:
        difference: mean of the first minus mean of the second.
        low: lower end of the 95 % interval of the difference, by bootstrap over topics.
        high: upper end.
        p_value: two-sided, by random exchange of the two systems topic by topic.
        topics: number of topics.
    """

    difference: float
    low: float
    high: float
    p_value: float
    topics: int


def compare(first: Sequence[float], second: Sequence[float], *, resamples: int = 10_000, seed: int = 0) -> PairedTest:
    """Paired bootstrap interval and permutation test over topics.

    Args:
        first: scores of one system, one per topic.
        second: scores of the other on the same topics, in the same order.
        resamples: draws of either kind.
        seed: of the draws.

    Raises:
        UserError: the two have not the same topics, or none.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise UserError(f"a paired test needs the same topics on both sides; got {len(a)} and {len(b)}")
    difference = a - b
    random = np.random.default_rng(seed)
    means = np.concatenate(
        [difference[random.integers(0, len(a), (rows, len(a)))].mean(1) for rows in _chunks(resamples, len(a))]
    )
    flipped = np.concatenate(
        [(difference * random.choice((-1.0, 1.0), (rows, len(a)))).mean(1) for rows in _chunks(resamples, len(a))]
    )
    observed = float(difference.mean())
    # The observed order is one of the exchanges; a hair of tolerance counts ties in floating point as ties.
    at_least = int((np.abs(flipped) >= abs(observed) - 1e-12).sum())
    low, high = np.quantile(means, (0.025, 0.975))
    return PairedTest(observed, float(low), float(high), (at_least + 1) / (resamples + 1), len(a))


def _chunks(total: int, width: int) -> list[int]:
    """Rows at a time, so that no more than some ten million numbers are held at once."""
    step = max(1, 10_000_000 // width)
    return [min(step, total - start) for start in range(0, total, step)]
