"""What an early-exit network is judged by: accuracy against cost, calibration, and the hard samples of each exit."""

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from tenfold.cost import Convention, count_flops
from tenfold.data import Batches
from tenfold.errors import UserError
from tenfold.systems.boosted_exits.networks.early_exit_model import EarlyExitModel, State
from tenfold.systems.boosted_exits.policies.exit_policy import (
    ExitPolicy,
    ExitRecords,
    PolicyOutcome,
    check_costs,
    check_ensembles,
)
from tenfold.training.parallel import compute_rows


def predict(network: Any, batches: Batches, device: torch.device) -> tuple[list[Tensor], Tensor]:
    """Ensemble logits of all exits on all images, from all ranks.

    Args:
        network: a network with exits; evaluated in eval mode on ``device``, left there in its own mode.
        batches: see ``tenfold.data.Batches``.
        device: where it computes.

    Returns:
        N tensors ``(images, classes)`` and the labels ``(images,)``, on the CPU, the same on every rank.
    """
    training = network.training
    network.to(device).eval()
    ensembles, labels = compute_rows(
        lambda images: torch.stack(network.ensemble(network(images)), dim=1), batches, device
    )
    network.train(training)
    return list(ensembles.unbind(1)), labels


def exit_accuracies(records: ExitRecords) -> Tensor:
    """Anytime accuracy: share of samples that each exit gets right.

    Args:
        records: samples of a test set.

    Returns:
        ``(exits,)`` float64 in [0, 1].
    """
    return records.correct.double().mean(0)


def exit_costs(model: EarlyExitModel, example: State, convention: Convention = "multiply-adds") -> tuple[int, ...]:
    """Cost of leaving at each exit: ``C_n`` = stages 1..n and heads 1..n, for an ensemble needs all earlier heads.

    Args:
        model: left as it is, training mode and running statistics included.
        example: one input, as a batch of one.
        convention: how operations are counted, see ``tenfold.cost.Convention``; ``"msdnet"`` for the numbers of
            the official code.

    Returns:
        ``(exits,)`` cumulative operations per input.

    Raises:
        ValueError: the example is a tensor with another number of inputs than one.
    """
    if isinstance(example, Tensor) and example.shape[:1] != (1,):
        raise ValueError(f"the cost of one input is counted on a batch of one; got shape {tuple(example.shape)}")
    state = example

    def run_stage(n: int) -> None:
        nonlocal state
        state, _ = model.run_stage(n, state)

    return tuple(
        accumulate(count_flops(run_stage, n, convention=convention, modules=[model]) for n in range(model.exits))
    )


def area_under_curve(costs: Sequence[float], accuracies: Sequence[float] | Tensor) -> float:
    """Mean accuracy of the anytime curve over the range of costs, in the unit of the accuracies.

    The curve joins the points ``(C_n, accuracy_n)`` by straight lines; its area between ``C_1`` and ``C_N``
    (trapezoids) is divided by ``C_N - C_1``. A single exit has its accuracy.

    Args:
        costs: ``(exits,)`` cumulative costs ``C_n``, increasing.
        accuracies: ``(exits,)``.

    Raises:
        UserError: the numbers of costs and accuracies differ, or the costs do not increase.
    """
    values = [float(accuracy) for accuracy in accuracies]
    check_costs(costs, exits=len(values))
    if len(values) == 1:
        return values[0]
    area = math.fsum(
        (later - earlier) * (low + high) / 2
        for (earlier, later), (low, high) in zip(pairwise(costs), pairwise(values), strict=True)
    )
    return area / (costs[-1] - costs[0])


def area_under_budgeted_curve(outcomes: Sequence[PolicyOutcome | ExitPolicy], low: float, high: float) -> float:
    """Mean accuracy over the budgets between two costs, each budget answered by the best policy that keeps it.

    The curve is the upper envelope, a staircase: at budget c the best accuracy of the outcomes with cost at most c.
    Curves are comparable over the same ``low`` and ``high`` only, such as the larger ``C_1`` and the smaller ``C_N`` of
    the networks compared.

    Args:
        outcomes: what the policies achieved on the same samples, in any order.
        low: smallest budget; at least one outcome keeps it.
        high: largest budget, above ``low``.

    Raises:
        UserError: ``high`` is not above ``low``, or no outcome keeps the budget ``low``.
    """
    if not low < high:
        raise UserError(f"the interval of budgets must not be empty: low {low:g}, high {high:g}")
    within = sorted((outcome for outcome in outcomes if outcome.cost <= high), key=lambda outcome: outcome.cost)
    if not within or within[0].cost > low:
        raise UserError(f"no policy costs at most {low:g}: begin the interval of budgets at the cheapest policy's cost")
    steps = [*(max(outcome.cost, low) for outcome in within), high]
    area = best = 0.0
    for outcome, (start, end) in zip(within, pairwise(steps), strict=True):
        best = max(best, outcome.accuracy)
        area += best * (end - start)
    return area / (high - low)


def calibration_errors(records: ExitRecords, bins: int = 15) -> Tensor:
    """Expected calibration error of each exit: mean distance of confidence and accuracy over bins of confidence.

    Args:
        records: samples whose confidences are probabilities.
        bins: number of bins of equal width over [0, 1].

    Returns:
        ``(exits,)`` in [0, 1].

    Raises:
        UserError: a confidence lies outside [0, 1].
    """
    low, high = float(records.confidences.min()), float(records.confidences.max())
    if low < 0 or high > 1 + 1e-6:
        raise UserError(f"calibration is of probabilities in [0, 1]; got confidences from {low:g} to {high:g}")
    errors = []
    for confidences, correct in zip(records.confidences.double().T, records.correct.double().T, strict=True):
        # As torchmetrics has it, a confidence of 1 has a bin of its own.
        bin_of = (confidences.clamp(max=1) * bins).long()
        surplus = torch.bincount(bin_of, weights=correct - confidences, minlength=bins + 1)
        errors.append(surplus.abs().sum() / records.samples)
    return torch.stack(errors).float()


def hard_share(ensembles: Sequence[Tensor], labels: Tensor, easy_probability: float = 0.9) -> Tensor:
    """Share of samples from which each exit still has something to learn.

    A sample is hard for exit n when ``z_{n-1}`` is wrong or gives its class less than ``easy_probability``. For the
    first exit, which has no ensemble before it, all samples are.

    Args:
        ensembles: N tensors ``(samples, classes)``, the logits ``z_n`` on training samples.
        labels: ``(samples,)`` class indices.
        easy_probability: in [0, 1].

    Returns:
        ``(exits,)`` in [0, 1].

    Raises:
        UserError: there are no samples, the shapes disagree, or the labels are no class indices.
    """
    check_ensembles(ensembles, labels)
    shares = torch.ones(len(ensembles))
    for n, z in enumerate(ensembles[:-1], start=1):
        probabilities = z.softmax(-1).gather(1, labels[:, None]).squeeze(1)
        shares[n] = ((z.argmax(-1) != labels) | (probabilities < easy_probability)).float().mean()
    return shares
