"""Non-dominated sorting with constraints, crowding, survival (Deb et al., NSGA-II, 2002), and hypervolume.

All objectives are minimised here; a violation is 0 where a candidate is feasible. A value that is NaN ranks last.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def dominates(values: Values, violations: Values) -> NDArray[np.bool_]:
    """Which candidate dominates which, under constrained domination.

    Feasible beats infeasible; of two infeasible ones the smaller violation wins; of two feasible ones the one that is
    nowhere worse and somewhere better.

    Args:
        values: ``(n, objectives)``.
        violations: ``(n,)``.

    Returns:
        ``(n, n)``: whether the row dominates the column.
    """
    values = np.where(np.isnan(values), np.inf, values)
    broken = np.asarray(np.isinf(values).any(1))
    no_worse = (values[:, None] <= values[None]).all(2)
    better = no_worse & (values[:, None] < values[None]).any(2)
    # A candidate without a finite value loses against all that have one.
    better = np.where(broken[:, None] != broken[None], ~broken[:, None], better)
    return np.where(
        (violations[:, None] == 0) & (violations[None] == 0), better, violations[:, None] < violations[None]
    )


def non_dominated_ranks(values: Values, violations: Values | None = None) -> NDArray[np.int64]:
    """``(n,)`` rank of each candidate: 0 for those that none dominates, 1 for those that only rank 0 does, ...

    Args:
        values: ``(n, objectives)`` to be made small; NaN where a candidate has none.
        violations: ``(n,)`` by how much limits are broken, 0 where none is; none is where ``None``.
    """
    values = np.asarray(values, dtype=np.float64)
    violations = np.zeros(len(values)) if violations is None else np.asarray(violations, dtype=np.float64)
    beats = dominates(values, violations)
    ranks = np.full(len(values), -1)
    left, rank = np.ones(len(values), dtype=bool), 0
    while left.any():
        front = left & ~(beats & left[:, None]).any(0)
        ranks[front] = rank
        left &= ~front
        rank += 1
    return ranks


def crowding_distances(values: Values) -> Values:
    """``(n,)`` how lonely each candidate of one front is; infinite at the ends of an objective.

    An objective without extent adds nothing and makes no end; ties keep their order.

    Args:
        values: ``(n, objectives)`` of one front.
    """
    values = np.asarray(values, dtype=np.float64)
    distances = np.zeros(len(values))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        extent = column[order[-1]] - column[order[0]] if len(order) else 0.0
        if not np.isfinite(extent) or extent == 0:
            continue
        distances[order[[0, -1]]] = np.inf
        distances[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / extent
    return distances


def ranks_and_crowding(values: Values, violations: Values) -> tuple[NDArray[np.int64], Values]:
    """Rank of each candidate, and its crowding distance within its rank."""
    ranks = non_dominated_ranks(values, violations)
    crowding = np.zeros(len(ranks))
    for rank in range(int(ranks.max(initial=-1)) + 1):
        crowding[ranks == rank] = crowding_distances(np.asarray(values)[ranks == rank])
    return ranks, crowding


def survivors(values: Values, violations: Values, count: int) -> NDArray[np.int64]:
    """Numbers of the ``count`` candidates that survive: by rank, the last rank by larger crowding, then by number."""
    ranks, crowding = ranks_and_crowding(values, violations)
    order = np.lexsort((np.arange(len(ranks)), -crowding, ranks))
    return np.sort(order[:count])


def front(values: Values, violations: Values) -> NDArray[np.int64]:
    """Numbers of the feasible candidates that none dominates."""
    values, violations = np.asarray(values, dtype=np.float64), np.asarray(violations, dtype=np.float64)
    if len(values) == 0:
        return np.zeros(0, dtype=np.int64)
    return np.flatnonzero((non_dominated_ranks(values, violations) == 0) & (violations == 0))


def hypervolume(points: Values | Sequence[Sequence[float]], reference: Sequence[float]) -> float:
    """Volume that points dominate up to a reference point, all objectives minimised.

    Args:
        points: ``(n, objectives)``; those that are not below the reference everywhere add nothing.
        reference: ``(objectives,)``.
    """
    limit = np.asarray(reference, dtype=np.float64)
    chosen = np.asarray(points, dtype=np.float64).reshape(-1, len(limit))
    chosen = np.unique(chosen[(chosen < limit).all(1)], axis=0)
    if len(chosen) == 0:
        return 0.0
    if len(limit) == 1:
        return float(limit[0] - chosen.min())
    # Slices along the first objective: each is as thick as the way to the next point, and holds all points before it.
    chosen = chosen[np.argsort(chosen[:, 0], kind="stable")]
    ends = np.append(chosen[1:, 0], limit[0])
    if len(limit) == 2:
        return float(np.sum((ends - chosen[:, 0]) * (limit[1] - np.minimum.accumulate(chosen[:, 1]))))
    thickness = ends - chosen[:, 0]
    return sum(
        float(t) * hypervolume(chosen[: row + 1, 1:], limit[1:].tolist()) for row, t in enumerate(thickness) if t > 0
    )


def knee(values: Values) -> int:
    """Number of the point of a front that is farthest below the chord between its ends, both objectives scaled to 1."""
    points = np.asarray(values, dtype=np.float64)
    extent = np.ptp(points, axis=0)
    scaled = (points - points.min(0)) / np.where(extent > 0, extent, 1)
    return int(np.argmin(scaled.sum(1)))
