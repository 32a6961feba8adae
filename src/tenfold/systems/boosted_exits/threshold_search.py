"""Thresholds from validation records: the geometric family of the official code, and a direct search.

The search looks for the front of accuracy against cost, in three steps, none of which knows a budget::

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
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from tenfold.errors import UserError
from tenfold.systems.boosted_exits.method import leaves
from tenfold.systems.boosted_exits.policies import (
    EVERYBODY_LEAVES,
    NOBODY_LEAVES,
    ExitPolicy,
    ExitRecords,
    assign_exits,
    make_policy,
)

OFFICIAL_Q = tuple(step / 20 for step in range(1, 40))
"""``0.05, 0.10, .., 1.95``: the ratios that the official evaluation goes through."""

_GRID = 512  # steps between "everyone at exit 1" and "everyone to the end"
_EDGES = 32  # edges of the hull that the search tries
_SWEEPS = 20  # of one coordinate ascent, which as a rule settles within five
_CELLS = 512  # cost resolution of the policies between supported points


@dataclass(frozen=True)
class Ranking:
    """Records sorted by confidence at every exit but the last, once for all solvers.

    Attributes:
        records: the validation samples.
    """

    records: ExitRecords

    @cached_property
    def confidences(self) -> Tensor:
        """``(exits, samples)``."""
        return self.records.confidences.T.contiguous()

    @cached_property
    def order(self) -> Tensor:
        """``(exits, samples)`` samples from most to least confident."""
        return self.confidences.argsort(dim=1, descending=True, stable=True)

    @cached_property
    def cuts(self) -> list[Tensor]:
        """For each exit the positions in ``order`` after which the confidence drops: samples that tie stay together."""
        ranked = self.confidences.gather(1, self.order)
        drops = torch.ones_like(ranked, dtype=torch.bool)
        drops[:, :-1] = ranked[:, :-1] > ranked[:, 1:]
        return [drop.nonzero().squeeze(1) for drop in drops]

    @cached_property
    def thresholds(self) -> list[Tensor]:
        """For each exit the threshold of each cut: the confidence of the last sample above it."""
        return [c[order[cuts]] for c, order, cuts in zip(self.confidences, self.order, self.cuts, strict=True)]

    @cached_property
    def correct(self) -> Tensor:
        """``(exits, samples)`` 1 where the exit is right."""
        return self.records.correct.T.double().contiguous()

    def gains_of_leaving(self, n: int, reach: Tensor, gains: Tensor) -> Tensor:
        """Total gain at exit n of each cut: of the samples above it, those that reach the exit leave.

        Args:
            n: exit.
            reach: ``(samples,)`` booleans, who gets to exit n.
            gains: ``(samples,)`` what each sample gains by leaving rather than going on.

        Returns:
            ``(cuts,)``.
        """
        return (gains * reach)[self.order[n]].cumsum(0)[self.cuts[n]]

    def reaches(self, thresholds: Sequence[float]) -> list[Tensor]:
        """For each exit ``(samples,)`` booleans: who gets there under a policy."""
        reach = torch.ones(self.records.samples, dtype=torch.bool)
        reached = [reach]
        for n in range(self.records.exits - 1):
            reach = reach & ~leaves(self.confidences[n], thresholds[n])
            reached.append(reach)
        return reached


# --- the geometric family -------------------------------------------------------------------------------------------


def exit_distribution(q: float, exits: int) -> Tensor:
    """Shares of samples aimed at each exit: ``p_n = q^n / sum_m q^m``, ``(exits,)`` float32 as in the official code.

    Args:
        q: ratio of one exit's share to the one before, above 0; 1 is uniform.
        exits: number of exits N.

    Raises:
        UserError: q is not a positive number, or ``q^N`` leaves the range of float32.
    """
    powers = torch.exp(torch.log(torch.tensor(q, dtype=torch.float32)) * torch.arange(1, exits + 1))
    shares = powers / powers.sum()
    if not (q > 0 and bool(shares.isfinite().all())):
        raise UserError(f"q must be a positive number, of moderate size for {exits} exits; got {q}")
    return shares


def geometric_family(records: ExitRecords, q: Iterable[float] | None = None) -> list[ExitPolicy]:
    """Policies of the official code: at exit n the share ``p_n`` of all samples leaves, the most confident first.

    ``k = floor(M p_n)``, in float32; the threshold is the confidence of the k-th most confident sample that has not
    left before; with ``k = 0``, or fewer than k samples there, nobody leaves. (Spec 2.9, from the official code.)

    Args:
        records: validation samples.
        q: ratios, see :func:`exit_distribution`; by default the official ``0.05, 0.10, .., 1.95``.

    Returns:
        One policy per q, in their order.
    """
    ranking = Ranking(records)
    shares = [exit_distribution(ratio, records.exits) for ratio in (OFFICIAL_Q if q is None else q)]
    return [_leave_by_counts(ranking, _leaving_counts(share, records.samples)) for share in shares]


def geometric_policy(records: ExitRecords, budget: float) -> ExitPolicy:
    """The policy of the geometric family that spends the most of a budget, by bisection on q.

    Bisected is ``t = q / (1 + q)``, in which "everyone at exit 1" (q = 0) and "everyone to the end" (q infinite) are
    the ends 0 and 1, in steps of 1/512.

    Args:
        records: validation samples.
        budget: mean cost of a sample, in the unit of the records' costs, not below the first exit's.
    """
    ranking = Ranking(records)
    grid = _grid_counts(records)
    within, beyond = 0, _GRID
    best = _leave_by_counts(ranking, grid[0].tolist())
    end = _leave_by_counts(ranking, grid[-1].tolist())
    if end.cost <= budget:
        return end
    while beyond - within > 1:
        middle = (within + beyond) // 2
        policy = _leave_by_counts(ranking, grid[middle].tolist())
        if policy.cost <= budget:
            within, best = middle, policy
        else:
            beyond = middle
    return best


def _grid_counts(records: ExitRecords) -> Tensor:
    """``(513, exits)`` numbers of samples aimed at each exit, for ``t = q / (1 + q)`` = 0, 1/512, .., 1."""
    t = torch.linspace(0, 1, _GRID + 1, dtype=torch.float64)[:, None]
    n = torch.arange(records.exits)
    powers = t**n * (1 - t) ** n.flip(0)
    return _leaving_counts(powers / powers.sum(1, keepdim=True), records.samples)


def _leaving_counts(shares: Tensor, samples: int) -> Tensor:
    return (samples * shares.float()).floor().long()


def _leave_by_counts(ranking: Ranking, counts: Sequence[int] | Tensor) -> ExitPolicy:
    open_samples = torch.ones(ranking.records.samples, dtype=torch.bool)
    thresholds = []
    for n, count in enumerate(map(int, counts[:-1])):
        position = ranking.records.samples
        if count > 0:
            position = int(torch.searchsorted(open_samples[ranking.order[n]].cumsum(0), count))
        if position == ranking.records.samples:
            thresholds.append(NOBODY_LEAVES)
            continue
        thresholds.append(float(ranking.confidences[n, ranking.order[n, position]]))
        open_samples &= ~leaves(ranking.confidences[n], thresholds[-1])
    return make_policy(ranking.records, (*thresholds, EVERYBODY_LEAVES), "geometric")


# --- the search -----------------------------------------------------------------------------------------------------


def search_front(records: ExitRecords) -> list[ExitPolicy]:
    """The best policies found, from the cheapest to the most accurate (this module's opening gives the algorithm).

    No policy of the list is beaten by another one, by :func:`geometric_policy` at any budget, by the official
    geometric family, or by leaving always at one exit. With two exits it is the exact front, to 1/512 of the range
    of costs.

    Args:
        records: validation samples.

    Returns:
        Policies with rising cost and rising accuracy. The first costs ``C_1``.
    """
    ranking = Ranking(records)
    distinct_counts = torch.unique(_grid_counts(records), dim=0)
    pool = [_leave_by_counts(ranking, counts) for counts in distinct_counts]
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
