"""The geometric family of policies, as the official code makes them, and the ranking that prices thresholds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tenfold.errors import UserError
from tenfold.systems.boosted_exits.method import leaves
from tenfold.systems.boosted_exits.policies.exit_policy import (
    EVERYBODY_LEAVES,
    NOBODY_LEAVES,
    ExitPolicy,
    ExitRecords,
    make_policy,
)

_GRID = 512  # steps between "everyone at exit 1" and "everyone to the end"

OFFICIAL_Q = tuple(step / 20 for step in range(1, 40))
"""``0.05, 0.10, .., 1.95``: the ratios that the official evaluation goes through."""


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
    left before; with ``k = 0``, or fewer than k samples there, nobody leaves. (As in the official code.)

    Args:
        records: validation samples.
        q: ratios, see ``exit_distribution``; by default the official ``0.05, 0.10, .., 1.95``.

    Returns:
        One policy per q, in their order.
    """
    ranking = Ranking(records)
    shares = [exit_distribution(ratio, records.exits) for ratio in (OFFICIAL_Q if q is None else q)]
    return [leave_by_counts(ranking, _leaving_counts(share, records.samples)) for share in shares]


def geometric_policy(records: ExitRecords, budget: float) -> ExitPolicy:
    """The policy of the geometric family that spends the most of a budget, by bisection on q.

    Bisected is ``t = q / (1 + q)``, in which "everyone at exit 1" (q = 0) and "everyone to the end" (q infinite) are
    the ends 0 and 1, in steps of 1/512.

    Args:
        records: validation samples.
        budget: mean cost of a sample, in the unit of the records' costs, not below the first exit's.
    """
    ranking = Ranking(records)
    grid = grid_counts(records)
    within, beyond = 0, _GRID
    best = leave_by_counts(ranking, grid[0].tolist())
    end = leave_by_counts(ranking, grid[-1].tolist())
    if end.cost <= budget:
        return end
    while beyond - within > 1:
        middle = (within + beyond) // 2
        policy = leave_by_counts(ranking, grid[middle].tolist())
        if policy.cost <= budget:
            within, best = middle, policy
        else:
            beyond = middle
    return best


def grid_counts(records: ExitRecords) -> Tensor:
    """``(513, exits)`` numbers of samples aimed at each exit, for ``t = q / (1 + q)`` = 0, 1/512, .., 1."""
    t = torch.linspace(0, 1, _GRID + 1, dtype=torch.float64)[:, None]
    n = torch.arange(records.exits)
    powers = t**n * (1 - t) ** n.flip(0)
    return _leaving_counts(powers / powers.sum(1, keepdim=True), records.samples)


def _leaving_counts(shares: Tensor, samples: int) -> Tensor:
    return (samples * shares.float()).floor().long()


def leave_by_counts(ranking: Ranking, counts: Sequence[int] | Tensor) -> ExitPolicy:
    """The policy by which so many of the samples still there leave at each exit; equal confidences leave together.

    Args:
        ranking: validation samples.
        counts: ``(exits,)`` numbers of samples.
    """
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
