"""Thresholds from validation records: the geometric family of the official code, and a direct search.

The search looks for the front of accuracy against cost, in three steps, none of which knows a budget:

    pool = geometric policies on a grid of q, and "everyone leaves at exit n" for each n
    repeat:                                                  supported points, dichotomically
        take the longest edge (a, b) not yet tried of the pool's upper hull; lambda = its slope
        coordinate ascent on accuracy - lambda * cost, from a and from b; add both results to the pool
    for neighbours (a, b) on the hull:                       points between the supported ones
        turn a into b threshold by threshold; add the policies on the way to the pool
    the front = the policies that no other one of the pool beats

Given the other thresholds, the samples that reach exit n gain or lose by leaving there, whatever the rest do: with
the samples sorted by confidence, a cumulative sum of these gains prices every threshold of exit n at once. So each
step of the ascent is exact over all thresholds, and costs one pass over the samples.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from tenfold.systems.boosted_exits.method import leaves
from tenfold.systems.boosted_exits.policies.exit_policy import (
    EVERYBODY_LEAVES,
    NOBODY_LEAVES,
    ExitPolicy,
    ExitRecords,
    assign_exits,
    make_policy,
)
from tenfold.systems.boosted_exits.policies.geometric_family import (
    Ranking,
    geometric_family,
    grid_counts,
    leave_by_counts,
)

_EDGES = 32  # edges of the hull that the search tries
_SWEEPS = 20  # of one coordinate ascent, which as a rule settles within five
_CELLS = 512  # cost resolution of the policies between supported points


def search_front(records: ExitRecords) -> list[ExitPolicy]:
    """The best policies found, from the cheapest to the most accurate (this module's opening gives the algorithm).

    No policy of the list is beaten by another one, by ``geometric_policy`` at any budget, by the official
    geometric family, or by leaving always at one exit. With two exits it is the exact front, to 1/512 of the range
    of costs.

    Args:
        records: validation samples.

    Returns:
        Policies with rising cost and rising accuracy. The first costs ``C_1``.
    """
    ranking = Ranking(records)
    distinct_counts = torch.unique(grid_counts(records), dim=0)
    pool = [leave_by_counts(ranking, counts) for counts in distinct_counts]
    pool += geometric_family(records)
    pool += [make_policy(records, _only_exit(n, records.exits), "search") for n in range(records.exits)]
    pool += _supported_policies(ranking, pool)
    rows = [_policies_between(ranking, low.thresholds, high.thresholds) for low, high in pairwise(_upper_hull(pool))]
    if rows:
        pool += [make_policy(records, row, "search") for row in _best_per_cell(records, torch.cat(rows))]
    return [ExitPolicy(p.thresholds, "search", p.accuracy, p.cost, p.exit_shares) for p in _front(pool)]


def _only_exit(n: int, exits: int) -> tuple[float, ...]:
    return (*[NOBODY_LEAVES] * n, *[EVERYBODY_LEAVES] * (exits - n))


def _front(pool: Iterable[ExitPolicy]) -> list[ExitPolicy]:
    """The policies of a pool that no other one beats, with rising cost."""
    front: list[ExitPolicy] = []
    for policy in sorted(pool, key=lambda p: (p.cost, -p.accuracy)):
        if not front or policy.accuracy > front[-1].accuracy:
            front.append(policy)
    return front


def _slope(low: ExitPolicy, high: ExitPolicy) -> float:
    return (high.accuracy - low.accuracy) / (high.cost - low.cost)


def _upper_hull(pool: Iterable[ExitPolicy]) -> list[ExitPolicy]:
    """The policies of a pool that are best for some price of cost, with rising cost."""
    hull: list[ExitPolicy] = []
    for policy in _front(pool):
        while len(hull) > 1 and _slope(hull[-1], policy) >= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(policy)
    return hull


def _supported_policies(ranking: Ranking, known: Sequence[ExitPolicy]) -> list[ExitPolicy]:
    """Policies that maximise ``accuracy - price * cost`` for prices that the known ones and themselves suggest."""
    records = ranking.records
    if records.exits == 1:
        return []
    # A price at which all the cost there is weighs half a sample: accuracy first, then cost.
    hull = _upper_hull(known)
    price = 0.5 / records.samples / (records.costs[-1] - records.costs[0])
    found = [make_policy(records, _ascend(ranking, hull[-1].thresholds, price), "search")]
    tried = set()
    for _ in range(_EDGES):
        hull = _upper_hull([*hull, *found])
        edges = [edge for edge in pairwise(hull) if edge not in tried]
        if not edges:
            break
        low, high = max(edges, key=lambda edge: (edge[1].accuracy - edge[0].accuracy) * (edge[1].cost - edge[0].cost))
        tried.add((low, high))
        for start in (low, high):
            thresholds = _ascend(ranking, start.thresholds, _slope(low, high))
            found.append(make_policy(records, thresholds, "search"))
    return found


def _ascend(ranking: Ranking, thresholds: Sequence[float], price: float) -> tuple[float, ...]:
    """Coordinate ascent on ``accuracy - price * cost``: afterwards no change of one threshold improves it.

    Args:
        ranking: validation samples.
        thresholds: ``(exits,)`` where to start.
        price: accuracy that one unit of cost is worth.
    """
    current = list(thresholds)
    values = ranking.correct - price * torch.tensor(ranking.records.costs, dtype=torch.float64)[:, None]
    best = -math.inf
    for _ in range(_SWEEPS):
        reaches = ranking.reaches(current)
        later = values[-1]  # what a sample is worth that goes on; from the last exit backwards
        for n in reversed(range(ranking.records.exits - 1)):
            gains = ranking.gains_of_leaving(n, reaches[n], values[n] - later)
            cut = int(gains.argmax())
            current[n] = float(ranking.thresholds[n][cut]) if gains[cut] > 0 else NOBODY_LEAVES
            later = torch.where(leaves(ranking.confidences[n], current[n]), values[n], later)
        total = float(later.sum())
        if total <= best + 1e-6:  # in samples: below what one sample can change, above rounding
            break
        best = total
    return (*current[:-1], EVERYBODY_LEAVES)


def _policies_between(ranking: Ranking, start: Sequence[float], end: Sequence[float]) -> Tensor:
    """Policies met while the thresholds of one become those of another, from the last exit to the first.

    Returns:
        ``(policies, 2 + exits)`` float64: share right, mean cost, thresholds; only those that are efficient for their
        coordinate, and one for each cell of the cost range.
    """
    records = ranking.records
    costs = torch.tensor(records.costs, dtype=torch.float64)
    exits = assign_exits(records.confidences, start)
    start_correct, start_cost = ranking.correct.gather(0, exits[None])[0], costs[exits]
    reaches = ranking.reaches(start)
    later_correct, later_cost = ranking.correct[-1], costs[-1].expand(records.samples)
    rows = []
    for n in reversed(range(records.exits - 1)):
        correct = torch.where(reaches[n], later_correct, start_correct).sum()
        correct = correct + ranking.gains_of_leaving(n, reaches[n], ranking.correct[n] - later_correct)
        cost = torch.where(reaches[n], later_cost, start_cost).sum()
        cost = cost + ranking.gains_of_leaving(n, reaches[n], costs[n] - later_cost)
        row = torch.empty(len(cost), 2 + records.exits, dtype=torch.float64)
        row[:, 0], row[:, 1] = correct / records.samples, cost / records.samples
        row[:, 2:] = torch.tensor([*start[:n], 0.0, *end[n + 1 :]], dtype=torch.float64)
        row[:, 2 + n] = ranking.thresholds[n]
        rows.append(row[_efficient(records, row)])
        leaving = leaves(ranking.confidences[n], end[n])
        later_correct = torch.where(leaving, ranking.correct[n], later_correct)
        later_cost = torch.where(leaving, costs[n], later_cost)
    return torch.cat(rows)


def _efficient(records: ExitRecords, rows: Tensor) -> Tensor:
    """Indices of the rows ``(share right, mean cost, ..)`` that none beats, thinned to the best of each cost cell."""
    accuracy, cost = rows[:, 0].numpy(), rows[:, 1].numpy()
    order = np.lexsort((-accuracy, cost))
    best_before = np.maximum.accumulate(np.concatenate(([-np.inf], accuracy[order][:-1])))
    order = order[accuracy[order] > best_before]
    cells = np.floor((cost[order] - records.costs[0]) / (records.costs[-1] - records.costs[0]) * _CELLS)
    return torch.from_numpy(order[np.append(cells[:-1] != cells[1:], True)])


def _best_per_cell(records: ExitRecords, rows: Tensor) -> list[tuple[float, ...]]:
    return [tuple(row) for row in rows[_efficient(records, rows), 2:].tolist()]
