"""How good an estimate of uncertainty is, against labels of independent passes."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tenfold.errors import UserError


def _pair(labels: ArrayLike, estimates: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = np.asarray(labels, dtype=np.float64), np.asarray(estimates, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or a.size < 2:
        raise ValueError(f"labels and estimates must be two equal rows of two or more; got {a.shape} and {b.shape}")
    return a, b


def r2_score(labels: ArrayLike, estimates: ArrayLike) -> float:
    """Share of the labels' variance that the estimates explain, with the labels' own mean.

    Args:
        labels: ``(rows,)`` U of passes that the estimates do not know.
        estimates: ``(rows,)``.

    Raises:
        UserError: all labels are the same.
    """
    a, b = _pair(labels, estimates)
    total = np.square(a - a.mean()).sum()
    if total == 0:
        raise UserError(f"R2 is not defined: all labels are {a[0]:g}")
    return float(1 - np.square(a - b).sum() / total)


def top_auc(labels: ArrayLike, estimates: ArrayLike, *, share: float = 0.2, bottom: bool = False) -> float:
    """Area under the ROC curve for being among the most (or least) uncertain ``share`` of the rows."""
    from sklearn.metrics import roc_auc_score

    a, b = _pair(labels, estimates)
    count = max(round(share * len(a)), 1)
    chosen = np.zeros(len(a), dtype=bool)
    order = np.argsort(a, kind="stable")
    chosen[order[:count] if bottom else order[-count:]] = True
    return float(roc_auc_score(chosen, -b if bottom else b))


def bucket_aucs(labels: ArrayLike, scores: ArrayLike, edges: ArrayLike) -> list[float | None]:
    """Area under the ROC curve of each bucket against the rest.

    Args:
        labels: ``(rows,)`` U.
        scores: ``(rows, buckets)`` probabilities.
        edges: ``(buckets - 1,)``.

    Returns:
        One number per bucket; ``None`` for a bucket without rows, or with all.
    """
    from sklearn.metrics import roc_auc_score

    of = np.searchsorted(np.asarray(edges, dtype=np.float64), np.asarray(labels, dtype=np.float64))
    scores = np.asarray(scores, dtype=np.float64)
    return [
        float(roc_auc_score(of == k, scores[:, k])) if 0 < (of == k).sum() < len(of) else None
        for k in range(scores.shape[1])
    ]


@dataclass(frozen=True)
class Quality:
    """An estimate against labels.

    Attributes:
        r2: see ``r2_score``.
        spearman: rank correlation.
        auc_top: area under the ROC curve for the most uncertain fifth.
        auc_bottom: for the least uncertain fifth.
        ratio: mean estimate over mean label.
    """

    r2: float
    spearman: float
    auc_top: float
    auc_bottom: float
    ratio: float


def quality(labels: ArrayLike, estimates: ArrayLike) -> Quality:
    """All numbers of ``Quality``; an estimate that never changes has rank correlation 0.

    Args:
        labels: ``(rows,)`` U of passes that the estimates do not know.
        estimates: ``(rows,)``.
    """
    from scipy import stats

    a, b = _pair(labels, estimates)
    spearman = 0.0 if np.ptp(b) == 0 else float(stats.spearmanr(a, b).statistic)
    return Quality(
        r2=r2_score(a, b),
        spearman=spearman,
        auc_top=top_auc(a, b),
        auc_bottom=top_auc(a, b, bottom=True),
        ratio=float(b.mean() / a.mean()),
    )


def equivalent_passes(r2: float, by_passes: Mapping[int, float]) -> tuple[float, bool]:
    """T-equivalent: how many Monte-Carlo passes reach an R2, interpolated in log T.

    Args:
        r2: of the estimate.
        by_passes: R2 of Monte-Carlo dropout by its number of passes, against the same labels.

    Returns:
        The number, and whether it is only a lower bound: the estimate is at least as good as the most passes.
        Below the fewest passes it is that fewest number.
    """
    passes = sorted(by_passes)
    values = np.maximum.accumulate([by_passes[t] for t in passes])  # R2 grows with T but for noise
    if r2 >= values[-1]:
        return float(passes[-1]), True
    if r2 <= values[0]:
        return float(passes[0]), False
    return float(np.exp(np.interp(r2, values, np.log(passes)))), False


def level_deciles(labels: ArrayLike, estimates: ArrayLike, parts: int = 10) -> tuple[list[float], list[float]]:
    """Mean estimate and mean label of each tenth of the rows, by rising estimate; equal where the level is right."""
    a, b = _pair(labels, estimates)
    pieces = np.array_split(np.argsort(b, kind="stable"), min(parts, len(a)))
    return [float(b[rows].mean()) for rows in pieces], [float(a[rows].mean()) for rows in pieces]


def retention_curve(errors: ArrayLike, uncertainty: ArrayLike, points: int = 20) -> tuple[list[float], list[float]]:
    """Mean error of the rows that are kept when the most uncertain are rejected.

    Args:
        errors: ``(rows,)`` the main model's error on each row: 0 or 1, or squared.
        uncertainty: ``(rows,)``.
        points: of the curve.

    Returns:
        Shares kept, rising to 1, and the mean error at each.
    """
    a, b = _pair(errors, uncertainty)
    means = np.cumsum(a[np.argsort(b, kind="stable")]) / np.arange(1, len(a) + 1)
    counts = np.unique(np.linspace(len(a) / points, len(a), points).round().astype(int))
    return [float(count / len(a)) for count in counts], [float(means[count - 1]) for count in counts]


def retention_area(errors: ArrayLike, uncertainty: ArrayLike) -> float:
    """Mean of the retention curve over all shares kept (area under the risk-coverage curve): smaller is better.

    Args:
        errors: ``(rows,)`` the main model's error on each row.
        uncertainty: ``(rows,)``.
    """
    a, b = _pair(errors, uncertainty)
    return float(np.mean(np.cumsum(a[np.argsort(b, kind="stable")]) / np.arange(1, len(a) + 1)))


def overlap_at(k: int, ours: ArrayLike, theirs: ArrayLike) -> float:
    """Share of the ``k`` most uncertain rows, as active learning would choose them, that two estimates share.

    Args:
        k: how many rows are chosen.
        ours: ``(rows,)`` uncertainty.
        theirs: ``(rows,)`` uncertainty by another method.
    """
    a, b = _pair(ours, theirs)
    if not 1 <= k <= len(a):
        raise ValueError(f"k must lie in 1..{len(a)}; got {k}")
    return len(np.intersect1d(np.argsort(-a, kind="stable")[:k], np.argsort(-b, kind="stable")[:k])) / k
