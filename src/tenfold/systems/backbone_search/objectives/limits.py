"""Limits on costs: how far a candidate is over them."""

from collections.abc import Mapping

from tenfold.errors import UserError

COSTS = ("multiply_adds", "parameters", "latency_ms", "activation_bytes")
"""What can be an objective or have a limit."""


def violations(costs: Mapping[str, float], limits: Mapping[str, float]) -> dict[str, float]:
    """``max(0, cost / limit - 1)`` for every limit: 0 is feasible.

    Args:
        costs: by name.
        limits: by name, positive.

    Raises:
        UserError: a limit is not positive, or of no cost that was counted.
    """
    found = {}
    for name, limit in limits.items():
        if name not in costs:
            raise UserError(f"there is no cost {name!r} to limit; there are: {', '.join(costs)}")
        if not limit > 0:
            raise UserError(f"the limit of {name} must be positive; got {limit}")
        found[name] = max(0.0, costs[name] / limit - 1)
    return found
