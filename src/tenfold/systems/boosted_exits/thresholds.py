"""Exit thresholds from validation records: :func:`solve_thresholds`, and risk control.

What a policy is and does is in :mod:`~tenfold.systems.boosted_exits.policies`; the geometric family and the search are
in :mod:`~tenfold.systems.boosted_exits.threshold_search`. All of their public names can be had from here.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch

from tenfold.errors import UserError
from tenfold.systems.boosted_exits.policies import (
    EVERYBODY_LEAVES,
    NOBODY_LEAVES,
    ExitPolicy,
    ExitRecords,
    PolicyOutcome,
    assign_exits,
    evaluate_policy,
    make_policy,
    record_exits,
)
from tenfold.systems.boosted_exits.threshold_search import (
    OFFICIAL_Q,
    exit_distribution,
    geometric_family,
    geometric_policy,
    search_front,
)

__all__ = [
    "OFFICIAL_Q",
    "ExitPolicy",
    "ExitRecords",
    "PolicyOutcome",
    "accept_policies",
    "assign_exits",
    "best_within",
    "control_risk",
    "evaluate_policy",
    "exit_distribution",
    "flat_curve",
    "geometric_family",
    "geometric_policy",
    "hoeffding_bentkus",
    "record_exits",
    "search_front",
    "solve_thresholds",
]

Method = Literal["search", "geometric", "risk"]


def solve_thresholds(
    records: ExitRecords,
    method: Method = "search",
    *,
    budget: float | None = None,
    epsilon: float = 0.01,
    delta: float = 0.05,
    seed: int = 0,
) -> ExitPolicy:
    """Choose exit thresholds on validation samples.

    Args:
        records: validation samples; not those that trained the network, and not augmented.
        method: ``"search"`` finds the most accurate policy within the budget; its validation accuracy is never below
            that of ``"geometric"`` and never falls as the budget rises. ``"geometric"`` is the family of the
            official code. ``"risk"`` finds a cheap policy that is hardly worse than the last exit, see
            :func:`control_risk`.
        budget: mean cost that a sample may have, in the unit of the records' costs; kept on the validation samples.
            ``None``: no limit, for ``"search"``.
        epsilon: for ``"risk"``, the loss of accuracy against the last exit that is tolerated, in (0, 1).
        delta: for ``"risk"``, the probability with which it may be exceeded, in (0, 1).
        seed: for ``"risk"``, of the split into halves.

    Raises:
        UserError: the budget is below the cost of the first exit, is missing, or does not belong to the method; or
            epsilon or delta lie outside (0, 1).
    """
    if method == "risk":
        if budget is not None:
            raise UserError("method 'risk' takes epsilon and delta, not a budget; the cost follows from them")
        return control_risk(records, epsilon=epsilon, delta=delta, seed=seed)
    if method == "search":
        return best_within(search_front(records), math.inf if budget is None else budget)
    if method == "geometric":
        if budget is None:
            raise UserError("method 'geometric' needs a budget; geometric_family gives the policies of all ratios q")
        _check_budget(budget, records.costs[0])
        return geometric_policy(records, budget)
    raise UserError(f"method must be 'search', 'geometric' or 'risk'; got {method!r}")


def best_within(front: Sequence[ExitPolicy], budget: float) -> ExitPolicy:
    """The most accurate policy of a front that keeps a budget; of equally accurate ones the cheapest.

    Args:
        front: policies, such as those of :func:`search_front`, which need not be computed again for each budget.
        budget: mean cost that a sample may have.

    Raises:
        UserError: no policy is that cheap.
    """
    _check_budget(budget, min(policy.cost for policy in front))
    return max((policy for policy in front if policy.cost <= budget), key=lambda p: (p.accuracy, -p.cost))


def _check_budget(budget: float, smallest: float) -> None:
    if not budget >= smallest:
        raise UserError(f"budget {budget:g} cannot be kept: the smallest possible one is {smallest:.12g}")


def flat_curve(validation_accuracies: Sequence[float], test_accuracies: Sequence[float]) -> list[float]:
    """Test accuracies of a family of policies, as the official code flattens them.

    Args:
        validation_accuracies: ``(policies,)`` in the order of rising q.
        test_accuracies: ``(policies,)`` of the same policies.

    Returns:
        ``(policies,)``: where a policy does not improve on the validation accuracy of those before, the test accuracy
        of the last one that did.
    """
    flat: list[float] = []
    best = -math.inf
    for validation, test in zip(validation_accuracies, test_accuracies, strict=True):
        flat.append(test if validation > best else flat[-1])
        best = max(best, validation)
    return flat


def control_risk(records: ExitRecords, *, epsilon: float = 0.01, delta: float = 0.05, seed: int = 0) -> ExitPolicy:
    """A cheap policy whose loss of accuracy against the last exit is bounded: learn then test.

    A sample is lost when the last exit would have been right and the one it takes is wrong. The expected share of lost
    samples is an upper bound of the loss of accuracy (samples that only the early exit gets right do not count
    against it). One half of the records makes a sequence of policies, from the costliest of :func:`search_front`
    down; the other half tests them in that order and stops at the first that cannot be shown to lose at most
    epsilon. (Angelopoulos et al., "Learn then Test", 2021: fixed-sequence testing.)

    The guarantee: with probability at least ``1 - delta`` over the draw of the calibration samples, the policy loses
    at most ``epsilon`` on average over samples of the same distribution. It says nothing about any single sample, nor
    about data that differ from the calibration's.

    Args:
        records: calibration samples, independent of those that trained the network.
        epsilon: tolerated share of lost samples, in (0, 1).
        delta: tolerated probability of a worse policy, in (0, 1).
        seed: of the split into halves.

    Returns:
        The last policy that passed, with its numbers on the testing half; where none passed, the policy that
        runs every sample to the end.

    Raises:
        UserError: epsilon or delta lie outside (0, 1), or there are fewer than two samples.
    """
    if records.samples < 2:
        raise UserError(f"risk control splits the samples into halves: it needs at least 2, got {records.samples}")
    shuffled = torch.randperm(records.samples, generator=torch.Generator().manual_seed(seed))
    making, testing = shuffled.tensor_split(2)
    sequence = search_front(records.subset(making))[::-1]
    tested = records.subset(testing)
    accepted = accept_policies(sequence, tested, epsilon=epsilon, delta=delta)
    to_the_end = (*[NOBODY_LEAVES] * (records.exits - 1), EVERYBODY_LEAVES)
    return make_policy(tested, accepted[-1].thresholds if accepted else to_the_end, "risk")


def accept_policies(
    sequence: Sequence[ExitPolicy], records: ExitRecords, *, epsilon: float, delta: float
) -> Sequence[ExitPolicy]:
    """The policies at the head of a sequence that lose at most epsilon, jointly with confidence ``1 - delta``.

    Args:
        sequence: policies in the order of testing; must not depend on ``records``.
        records: the samples that test them.
        epsilon: tolerated share of lost samples, in (0, 1), see :func:`control_risk`.
        delta: tolerated probability that a policy in the result is worse, in (0, 1).

    Raises:
        UserError: epsilon or delta lie outside (0, 1).
    """
    for name, value in (("epsilon", epsilon), ("delta", delta)):
        if not 0 < value < 1:
            raise UserError(f"{name} must lie between 0 and 1; got {value}")
    for number, policy in enumerate(sequence):
        exits = assign_exits(records.confidences, policy.thresholds)
        right = records.correct.gather(1, exits[:, None]).squeeze(1)
        lost = int((records.correct[:, -1] & ~right).sum())
        if hoeffding_bentkus(lost, records.samples, epsilon) > delta:
            return sequence[:number]
    return sequence


def hoeffding_bentkus(lost: int, samples: int, epsilon: float) -> float:
    """P-value of "the expected loss is above epsilon" after so many losses: Hoeffding-Bentkus inequality.

    ``min(exp(-M h(min(R, epsilon), epsilon)), e P[Binomial(M, epsilon) <= M R])`` with the observed share ``R`` of
    lost samples and ``h(a, b) = a log(a/b) + (1-a) log((1-a)/(1-b))`` (Bates et al., "Distribution-free,
    risk-controlling prediction sets", 2021).

    Args:
        lost: number of samples with loss 1; the others have loss 0.
        samples: their number M.
        epsilon: in (0, 1).
    """
    from scipy.special import rel_entr
    from scipy.stats import binom

    share = min(lost / samples, epsilon)
    hoeffding = math.exp(-samples * (rel_entr(share, epsilon) + rel_entr(1 - share, 1 - epsilon)))
    bentkus = math.e * float(binom.cdf(lost, samples, epsilon))
    return min(hoeffding, bentkus, 1.0)
