"""Exit thresholds from validation records, by any of the three methods."""

import math
from collections.abc import Sequence
from typing import Literal

from tenfold.errors import UserError
from tenfold.systems.boosted_exits.policies.control_risk import control_risk
from tenfold.systems.boosted_exits.policies.exit_policy import ExitPolicy, ExitRecords
from tenfold.systems.boosted_exits.policies.geometric_family import geometric_policy
from tenfold.systems.boosted_exits.policies.search_front import search_front

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
            ``control_risk``.
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
        front: policies, such as those of ``search_front``, which need not be computed again for each budget.
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
