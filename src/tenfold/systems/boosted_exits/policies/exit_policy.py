"""When to leave: exit policies, and what they do to recorded samples.

A policy is one confidence threshold per exit. A sample leaves at the first exit whose confidence reaches its
threshold; the last exit takes whoever is left. ``assign_exits`` is that rule, for the solvers as for every
report; it compares through ``leaves``, as serving does.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tenfold.errors import UserError
from tenfold.systems.boosted_exits.method import confidence, leaves

NOBODY_LEAVES = 1e8
EVERYBODY_LEAVES = -1e8
"""Thresholds above and below every confidence, as in the official files."""


@dataclass(frozen=True)
class ExitRecords:
    """What a pass over validation or test samples leaves behind, on the CPU.

    Attributes:
        confidences: ``(samples, exits)`` floating point, confidence of ``z_n`` at every exit.
        correct: ``(samples, exits)`` booleans, whether ``z_n`` predicts the label.
        costs: ``(exits,)`` cost ``C_n`` of leaving at exit n: stages 1..n and heads 1..n, in any one unit.

    Raises:
        UserError: there are no samples, the shapes disagree, a confidence is NaN or infinite, or the costs do not
            increase from a positive first one.
    """

    confidences: Tensor
    correct: Tensor
    costs: tuple[float, ...]

    def __post_init__(self) -> None:
        shape = tuple(self.confidences.shape)
        if self.confidences.ndim != 2 or 0 in shape or not self.confidences.is_floating_point():
            raise UserError(
                "confidences must be floating point (samples, exits), with at least one of each; "
                f"got {shape} {self.confidences.dtype}"
            )
        if tuple(self.correct.shape) != shape or self.correct.dtype != torch.bool:
            raise UserError(
                f"correct must be booleans {shape} like confidences; "
                f"got {tuple(self.correct.shape)} {self.correct.dtype}"
            )
        if not bool(self.confidences.isfinite().all()):
            bad = int((~self.confidences.isfinite()).any(dim=1).sum())
            raise UserError(f"confidences of {bad} samples are NaN or infinite: check the inputs and the model")
        check_costs(self.costs, exits=shape[1])

    @property
    def samples(self) -> int:
        """Number of samples M."""
        return self.confidences.shape[0]

    @property
    def exits(self) -> int:
        """Number of exits N."""
        return self.confidences.shape[1]

    def subset(self, indices: Tensor) -> "ExitRecords":
        """The records of some samples: ``indices`` is ``(samples,)`` integers."""
        return ExitRecords(self.confidences[indices], self.correct[indices], self.costs)


def check_costs(costs: Sequence[float], exits: int) -> None:
    """Check that there is one cost per exit, finite, positive and increasing.

    Raises:
        UserError: the costs are not that.
    """
    if len(costs) != exits:
        raise UserError(f"costs must hold one number per exit: got {len(costs)} for {exits} exits")
    increasing = all(later > earlier for earlier, later in zip((0.0, *costs), costs, strict=False))
    if not increasing or not all(math.isfinite(cost) for cost in costs):
        raise UserError(f"costs must be positive and increase with the exit (cumulative costs C_n); got {tuple(costs)}")


def record_exits(ensembles: Sequence[Tensor], labels: Tensor, costs: Sequence[float] | Tensor) -> ExitRecords:
    """Record what the policies need of a pass over labelled samples.

    Args:
        ensembles: N tensors ``(samples, classes)``, the logits ``z_n`` (not the heads' own ``f_n``).
        labels: ``(samples,)`` class indices.
        costs: ``(exits,)`` cumulative costs ``C_n``, see ``ExitRecords``.

    Raises:
        UserError: see ``ExitRecords``; or the logits hold NaN, or the labels are no class indices.
    """
    check_ensembles(ensembles, labels)
    # One row per exit in memory: policies read the confidences of one exit at a time.
    confidences = torch.stack([confidence(z) for z in ensembles]).T
    correct = torch.stack([z.argmax(-1) == labels for z in ensembles]).T
    return ExitRecords(confidences.cpu(), correct.cpu(), tuple(float(cost) for cost in costs))


def check_ensembles(ensembles: Sequence[Tensor], labels: Tensor) -> None:
    """Check that every exit has logits ``(samples, classes)``, none of them NaN, and that labels are class indices.

    Raises:
        UserError: they are not.
    """
    shapes = {tuple(z.shape) for z in ensembles}
    if len(shapes) != 1 or len(shape := next(iter(shapes))) != 2 or 0 in shape:
        raise UserError(f"ensembles must be tensors (samples, classes) of one shape, not empty; got {sorted(shapes)}")
    samples, classes = shape
    if any(bool(z.isnan().any()) for z in ensembles):
        raise UserError("ensembles hold NaN: check the inputs and the model")
    if tuple(labels.shape) != (samples,) or labels.is_floating_point() or labels.is_complex():
        raise UserError(
            f"labels must be {samples} class indices, one per sample; got {tuple(labels.shape)} {labels.dtype}"
        )
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= classes:
        raise UserError(f"labels must lie in 0..{classes - 1}; got {lowest}..{highest}")


@dataclass(frozen=True)
class PolicyOutcome:
    """What a policy does to a set of samples.

    Attributes:
        accuracy: share of samples that the exit they take gets right, in [0, 1].
        cost: mean cost of a sample, in the unit of the records' costs.
        exit_shares: ``(exits,)`` share of samples that take each exit; equal confidences leave together, so that
            the shares may differ from what a solver aimed at.
        exits: ``(samples,)`` int64, the exit each sample takes, counted from 0.
    """

    accuracy: float
    cost: float
    exit_shares: tuple[float, ...]
    exits: Tensor


@dataclass(frozen=True)
class ExitPolicy:
    """Thresholds, and what they achieved on the samples that chose them.

    Attributes:
        thresholds: ``(exits,)`` one per exit; 1e8 where nobody leaves, the last is -1e8.
        method: what found them: ``"search"``, ``"geometric"`` or ``"risk"``.
        accuracy: accuracy on the samples that chose them, in [0, 1].
        cost: their mean cost.
        exit_shares: ``(exits,)`` share of them that took each exit.
    """

    thresholds: tuple[float, ...]
    method: str
    accuracy: float
    cost: float
    exit_shares: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """The policy as numbers, lists and a string, for JSON."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ExitPolicy":
        """The policy that ``to_dict`` wrote.

        Raises:
            UserError: a value is missing, unknown or not a number.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if set(values) != names:
            raise UserError(f"an exit policy holds {sorted(names)}; got {sorted(values)}")
        try:
            policy = cls(
                thresholds=tuple(float(value) for value in values["thresholds"]),
                method=str(values["method"]),
                accuracy=float(values["accuracy"]),
                cost=float(values["cost"]),
                exit_shares=tuple(float(value) for value in values["exit_shares"]),
            )
        except (TypeError, ValueError) as error:
            raise UserError(f"an exit policy holds numbers: {error}") from error
        if not policy.thresholds or len(policy.exit_shares) != len(policy.thresholds):
            raise UserError(
                "an exit policy holds one threshold and one share per exit; "
                f"got {len(policy.thresholds)} and {len(policy.exit_shares)}"
            )
        require_numbers(policy.thresholds)
        return policy


def require_numbers(thresholds: Sequence[float]) -> None:
    """Refuse a threshold that is NaN (``UserError``): no confidence ever reaches it, and none ever misses it."""
    if any(math.isnan(threshold) for threshold in thresholds):
        raise UserError(f"thresholds of exits are numbers; got {tuple(thresholds)}")


def assign_exits(confidences: Tensor, thresholds: Sequence[float]) -> Tensor:
    """The exit each sample takes: the first whose threshold its confidence reaches, else the last.

    Args:
        confidences: ``(samples, exits)``.
        thresholds: ``(exits,)``; the last one is not looked at, the last exit takes everyone who is left.

    Returns:
        ``(samples,)`` int64 exits, counted from 0.

    Raises:
        ValueError: the number of thresholds is not the number of exits.
        UserError: a threshold is NaN.
    """
    require_numbers(thresholds)
    if confidences.ndim != 2 or confidences.shape[1] != len(thresholds):
        raise ValueError(f"{len(thresholds)} thresholds do not fit confidences {tuple(confidences.shape)}")
    samples = confidences.shape[0]
    stays = torch.ones(samples, dtype=torch.bool, device=confidences.device)
    exits = torch.zeros(samples, dtype=torch.int64, device=confidences.device)
    for n, threshold in enumerate(thresholds[:-1]):
        stays &= ~leaves(confidences[:, n], threshold)
        exits += stays
    return exits


def evaluate_policy(records: ExitRecords, thresholds: Sequence[float]) -> PolicyOutcome:
    """Simulate a policy on recorded samples.

    Args:
        records: the samples; those of a test set for an honest number.
        thresholds: ``(exits,)``, see ``assign_exits``.
    """
    exits = assign_exits(records.confidences, thresholds)
    counts = torch.bincount(exits, minlength=records.exits).tolist()
    shares = tuple(count / records.samples for count in counts)
    right = int(records.correct.gather(1, exits[:, None]).sum())
    cost = sum(share * cost for share, cost in zip(shares, records.costs, strict=True))
    return PolicyOutcome(right / records.samples, cost, shares, exits)


def make_policy(records: ExitRecords, thresholds: Sequence[float], method: str) -> ExitPolicy:
    """The policy of these thresholds, with what it achieves on ``records``."""
    outcome = evaluate_policy(records, thresholds)
    return ExitPolicy(tuple(thresholds), method, outcome.accuracy, outcome.cost, outcome.exit_shares)
