"""What a trained network is worth: anytime and budgeted numbers, thresholds from validation, accuracies from test."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tenfold.data import Splits
from tenfold.systems.boosted_exits.builders import ExitNetwork
from tenfold.systems.boosted_exits.policies.exit_policy import (
    ExitPolicy,
    ExitRecords,
    PolicyOutcome,
    evaluate_policy,
    record_exits,
)
from tenfold.systems.boosted_exits.policies.geometric_family import geometric_policy
from tenfold.systems.boosted_exits.policies.metrics import (
    area_under_curve,
    calibration_errors,
    exit_accuracies,
    hard_share,
    predict,
)
from tenfold.systems.boosted_exits.policies.search_front import search_front
from tenfold.systems.boosted_exits.policies.solve_thresholds import best_within

_BUDGETS = 24


def measure(
    network: ExitNetwork, splits: Splits, costs: Sequence[float], device: torch.device, *, examples: bool = False
) -> dict[str, Any]:
    """Anytime and budgeted numbers of a trained network: thresholds from validation, accuracies from test.

    Args:
        network: the network.
        splits: the data.
        costs: ``(exits,)`` cumulative costs.
        device: where it computes.
        examples: keep the scores of every test image, too, for intervals where there is one seed only.

    Returns:
        ``accuracy`` (per exit, in percent), ``area``, ``calibration_error``, ``hard_share`` (of training images),
        ``budgets`` with the test accuracy and cost of ``searched`` and ``geometric`` thresholds at each; and
        ``examples``, see ``example_scores``.
    """
    validation = record_exits(*predict(network, splits.validation_batches(), device), costs)
    test = record_exits(*predict(network, splits.test_batches(), device), costs)
    hard = hard_share(*predict(network, splits.plain_training_batches(), device))
    accuracies = (100 * exit_accuracies(test)).tolist()
    budgets = torch.linspace(costs[0], costs[-1], _BUDGETS, dtype=torch.float64).tolist()
    front = search_front(validation)
    policies = {
        "searched": [best_within(front, budget) for budget in budgets],
        "geometric": [geometric_policy(validation, budget) for budget in budgets],
    }
    outcomes = {
        name: [evaluate_policy(test, policy.thresholds) for policy in found] for name, found in policies.items()
    }
    return {
        "costs": list(costs),
        "accuracy": accuracies,
        "area": area_under_curve(costs, accuracies),
        "calibration_error": calibration_errors(test).tolist(),
        "hard_share": hard.tolist(),
        "budgets": budgets,
        **{name: _on_test(found, outcomes[name]) for name, found in policies.items()},
        **({"examples": example_scores(test, outcomes["searched"], outcomes["geometric"])} if examples else {}),
    }


def _on_test(policies: Sequence[ExitPolicy], outcomes: Sequence[PolicyOutcome]) -> dict[str, list[float]]:
    return {
        "validation_accuracy": [100 * policy.accuracy for policy in policies],
        "accuracy": [100 * outcome.accuracy for outcome in outcomes],
        "cost": [outcome.cost for outcome in outcomes],
    }


def example_scores(
    test: ExitRecords, searched: Sequence[PolicyOutcome], geometric: Sequence[PolicyOutcome]
) -> dict[str, list[float]]:
    """What each test image adds to the numbers that are compared: their means over the images are these numbers.

    Args:
        test: the test images.
        searched: outcomes of searched thresholds, one per budget.
        geometric: outcomes of the geometric family, one per budget.

    Returns:
        In points, ``(images,)`` each: ``area``, ``later`` (mean of exits 2 to N-1), ``last``, ``first``, ``budgeted``
        (mean over the budgets) and ``search_gain`` (over the family's curve at the same cost).
    """
    correct = test.correct.double().numpy()
    area = np.array([area_under_curve(test.costs, row) for row in torch.eye(test.exits, dtype=torch.float64)])
    by_search, by_family = (
        np.stack([np.take_along_axis(correct, found.exits.numpy()[:, None], 1)[:, 0] for found in outcomes], axis=1)
        for outcomes in (searched, geometric)
    )
    # Interpolation between the family's policies is linear in what they get right.
    at = [[found.cost for found in outcomes] for outcomes in (searched, geometric)]
    weights = np.stack([np.interp(at[0], at[1], row) for row in np.eye(len(at[1]))])
    later = correct[:, 1:-1] if test.exits > 2 else correct[:, 1:]
    scores = {
        "area": correct @ area,
        "later": later.mean(1),
        "last": correct[:, -1],
        "first": correct[:, 0],
        "budgeted": by_search.mean(1),
        "search_gain": (by_search - by_family @ weights).mean(1),
    }
    return {name: np.round(100 * values, 4).tolist() for name, values in scores.items()}
