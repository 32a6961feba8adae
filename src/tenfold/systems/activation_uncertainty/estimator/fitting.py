"""Fitting the estimator on auxiliary rows, which must not have trained the main model."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.systems.activation_uncertainty.estimator.estimator import (
    FLOOR,
    Estimator,
    Loss,
    estimator_loss,
    scaled_labels,
)
from tenfold.systems.activation_uncertainty.estimator.metrics import r2_score

Task = Literal["regression", "buckets"]
_SMALLEST_ROWS = 20
_MANY_PASSES = 50


@contextmanager
def one_thread() -> Iterator[None]:
    """Within the block torch computes on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class FittedEstimator:
    """An estimator and how it came about.

    Attributes:
        estimator: in eval mode.
        r2: on the validation rows, against their labels.
        epochs: after which the best was reached.
        train_rows: rows it learnt from.
        validation_rows: rows that chose the epoch.
        dead: features left out because they never change.
    """

    estimator: Estimator
    r2: float
    epochs: int
    train_rows: int
    validation_rows: int
    dead: int


def resolve_loss(loss: str, passes: int) -> str:
    """The loss that ``auto`` stands for at T passes.

    Raises:
        UserError: there is no such loss.
    """
    if loss not in get_args(Loss):
        raise UserError(f"loss must be one of {', '.join(get_args(Loss))}; got {loss!r}")
    return ("mse_std" if passes >= _MANY_PASSES else "gamma") if loss == "auto" else loss


def check_auxiliary(features: Tensor, spread: Tensor) -> None:
    """Refuse rows from which nothing can be learnt.

    Raises:
        UserError: too few rows, NaN, labels that are all the same (no dropout, or a rate of 0), dead features only.
    """
    if len(features) != len(spread) or features.ndim != 2:
        raise UserError(f"features {tuple(features.shape)} and labels {tuple(spread.shape)} do not belong together")
    if len(features) < _SMALLEST_ROWS:
        raise UserError(
            f"{len(features)} auxiliary rows are too few to fit an estimator; give at least {_SMALLEST_ROWS}"
        )
    if not torch.isfinite(features).all():
        row, column = (~torch.isfinite(features)).nonzero()[0].tolist()
        raise UserError(f"feature {column} of auxiliary row {row} is NaN or infinite; look for bad inputs")
    if not torch.isfinite(spread).all() or (spread < 0).any():
        raise UserError("the labels hold NaN, infinite or negative values")
    if float(spread.max()) == float(spread.min()):
        raise UserError(
            f"all labels are {float(spread.max()):g}: there is nothing to learn; is dropout on, at a rate above 0, "
            "where it changes the output?"
        )
    if not (features.double().std(0) > FLOOR).any():
        raise UserError("no feature changes over the auxiliary rows; tap other modules")


def fit_estimator(
    features: Tensor,
    spread: Tensor,
    *,
    power: float = 0.5,
    passes: int = 100,
    loss: Loss = "auto",
    task: Task = "regression",
    buckets: int = 5,
    hidden: tuple[int, ...] = (100, 50),
    validation: float = 0.2,
    epochs: int = 300,
    patience: int = 10,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-4,
    averaging: float = 0.97,
    seed: int = 0,
    start: Estimator | None = None,
) -> FittedEstimator:
    """Fit g on auxiliary rows, which must not have trained the main model.

    Args:
        features: ``(rows, features)``.
        spread: ``(rows,)`` labels, see ``DropoutLabels``.
        power: see ``Estimator``.
        passes: T of the labels; decides what ``auto`` is.
        loss: see the module's description; for the task ``regression``.
        task: ``regression``, or ``buckets``: classify into equal-frequency buckets of U.
        buckets: how many.
        hidden: widths of g.
        validation: share of the rows that chooses the epoch.
        epochs: at most so many passes over the rows.
        patience: epochs without a better validation loss after which fitting ends.
        batch_size: rows of a step.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        averaging: share of the running average of the weights that stays at a step; the average is what is validated
            and kept. It steadies a fit on few rows.
        seed: of split, start and order.
        start: an estimator to go on from, as after joint training.

    Raises:
        UserError: see ``check_auxiliary``.
    """
    check_auxiliary(features, spread)
    if task not in get_args(Task):
        raise UserError(f"task must be one of {', '.join(get_args(Task))}; got {task!r}")
    if task == "buckets" and buckets < 2:
        raise UserError(f"buckets must be at least 2; got {buckets}")
    loss_name = resolve_loss(loss, passes)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(features), generator=generator)
    held = max(int(len(order) * validation), 1)
    chosen, rest = order[:held], order[held:]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        estimator = Estimator(
            features.shape[1], hidden=hidden, loss=loss_name, power=power, buckets=buckets if task == "buckets" else 0
        )
    if start is not None:
        estimator.network.load_state_dict(start.network.state_dict())
    estimator.set_statistics(features[rest])
    uncertainty = spread.double() ** power
    _set_levels(estimator, spread[rest].double(), uncertainty[rest])

    if estimator.buckets:
        labels = estimator.bucket_of(uncertainty.float())

        def criterion(raw: Tensor, rows: Tensor) -> Tensor:
            return F.cross_entropy(raw, labels[rows])
    else:
        scaled = scaled_labels(loss_name, spread.double(), power, estimator.level).float()

        def criterion(raw: Tensor, rows: Tensor) -> Tensor:
            return estimator_loss(loss_name, raw, scaled[rows])

    with one_thread():  # matrices this small lose time in a second one
        best_epoch = _descend(
            estimator.network,
            estimator.standardise(features),
            criterion,
            rest,
            chosen,
            generator=generator,
            epochs=epochs,
            patience=patience,
            batch_size=batch_size,
            averaging=averaging,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
        )
    estimator.eval()
    with torch.no_grad():
        predicted = estimator(features[chosen])
    return FittedEstimator(
        estimator,
        r2=r2_score(uncertainty[chosen], predicted),
        epochs=best_epoch,
        train_rows=len(rest),
        validation_rows=held,
        dead=int((estimator.scale == 0).sum()),
    )


def _descend(
    network: nn.Sequential,
    inputs: Tensor,
    criterion: Callable[[Tensor, Tensor], Tensor],
    rows: Tensor,
    held: Tensor,
    *,
    generator: torch.Generator,
    epochs: int,
    patience: int,
    batch_size: int,
    averaging: float,
    learning_rate: float,
    weight_decay: float,
) -> int:
    """Train; leave the average weights of the best epoch in the network; give that epoch."""
    average = copy.deepcopy(network)
    weights, averages = list(network.parameters()), [p.detach() for p in average.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=weight_decay, fused=True)
    best, best_epoch, kept = math.inf, 0, copy.deepcopy(network.state_dict())
    step = 0
    for epoch in range(1, epochs + 1):
        for batch in rows[torch.randperm(len(rows), generator=generator)].split(batch_size):
            optimizer.zero_grad(set_to_none=True)
            with torch.enable_grad():
                loss = criterion(network(inputs[batch]), batch)
            loss.backward()
            optimizer.step()
            step += 1
            with torch.no_grad():  # a plain mean at first, so that the start is forgotten
                torch._foreach_lerp_(averages, [w.detach() for w in weights], 1 - min(averaging, step / (step + 10)))
        with torch.no_grad():
            value = criterion(average(inputs[held]), held).item()
        if value < best:
            best, best_epoch, kept = value, epoch, copy.deepcopy(average.state_dict())
        if epoch - best_epoch >= patience:
            break
    network.load_state_dict(kept)
    return best_epoch


def _set_levels(estimator: Estimator, spread: Tensor, uncertainty: Tensor) -> None:
    """What the labels' scale is: mean and deviation of U, or the mean variance; the buckets' edges and levels."""
    if estimator.loss == "mse_std":
        estimator.level.copy_(torch.stack([uncertainty.mean(), uncertainty.std().clamp(min=1e-12)]))
    else:
        estimator.level.copy_(torch.stack([torch.zeros(()), spread.mean().clamp(min=1e-30)]))
    if estimator.buckets:
        shares = torch.arange(1, estimator.buckets, dtype=torch.float64) / estimator.buckets
        edges = torch.quantile(uncertainty, shares)
        estimator.bucket_edges.copy_(edges)
        of = estimator.bucket_of(uncertainty.float())
        estimator.bucket_levels.copy_(
            torch.stack(
                [uncertainty[of == k].mean() if (of == k).any() else edges[0] for k in range(estimator.buckets)]
            )
        )
