"""The auxiliary model g: activation features to uncertainty.

Three losses (spec 2.3), for labels of T passes::

    mse_std   squared error on the standardised U            as published; needs many passes
    mse_var   squared error on s^2 / mean(s^2)
    gamma     s^2 exp(-eta) + eta, eta the predicted log variance (up to a constant, the likelihood of a Gamma variable)

E[s^2] is the variance for every T >= 2, but E[s] is smaller than its root (by 0.80 at T = 2, 0.97 at T = 10 for
Gaussian outputs): with few passes ``mse_std`` learns too small a level, the other two do not. ``auto`` takes ``gamma``
below 50 passes and ``mse_std`` from there on.
"""

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.systems.activation_uncertainty.calls import one_thread
from tenfold.systems.activation_uncertainty.metrics import r2_score

Loss = Literal["auto", "mse_std", "mse_var", "gamma"]
Task = Literal["regression", "buckets"]
FLOOR = 1e-6
"""Features whose standard deviation is not above this are left out."""
_SMALLEST_ROWS = 20
_MANY_PASSES = 50


def dense_network(inputs: int, hidden: tuple[int, ...], outputs: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    widths = [inputs, *hidden]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))


class Estimator(nn.Module):
    """``(rows, features)`` to uncertainty ``(rows,)``: standardisation, a small dense network, the loss's inverse link.

    Args:
        features: number of features.
        hidden: widths of the hidden layers.
        loss: ``mse_std``, ``mse_var`` or ``gamma``.
        power: of the label that makes it an uncertainty, see
            :attr:`~tenfold.systems.activation_uncertainty.targets.Target.power`.
        buckets: number of equal-frequency buckets where the task is ``buckets``; 0 for regression.

    Buffers hold what was learnt from the auxiliary rows beside the weights: mean and scale of the features, the labels'
    own level, and the uncertainty that each bucket stands for.
    """

    mean: Tensor
    scale: Tensor
    level: Tensor
    bucket_levels: Tensor
    bucket_edges: Tensor

    def __init__(
        self,
        features: int,
        *,
        hidden: tuple[int, ...] = (100, 50),
        loss: str = "gamma",
        power: float = 0.5,
        buckets: int = 0,
    ) -> None:
        super().__init__()
        self.features, self.hidden, self.loss, self.power, self.buckets = features, tuple(hidden), loss, power, buckets
        self.network = dense_network(features, self.hidden, buckets or 1)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))  # 0 for features that never change
        self.register_buffer("level", torch.tensor([0.0, 1.0]))  # mean and deviation of what the network predicts
        self.register_buffer("bucket_levels", torch.zeros(buckets))
        self.register_buffer("bucket_edges", torch.zeros(max(buckets - 1, 0)))

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments that make such an estimator."""
        return {
            "features": self.features,
            "hidden": list(self.hidden),
            "loss": self.loss,
            "power": self.power,
            "buckets": self.buckets,
        }

    @property
    def multiply_adds(self) -> int:
        """Of one row."""
        widths = [self.features, *self.hidden, self.buckets or 1]
        return sum(a * b for a, b in itertools.pairwise(widths))

    def standardise(self, features: Tensor) -> Tensor:
        """Zero mean and unit deviation over the auxiliary rows; constant features are 0."""
        return (features - self.mean) * self.scale

    def forward(self, features: Tensor) -> Tensor:
        """``(rows, features)`` to U ``(rows,)``, never negative."""
        return self.link(self.network(self.standardise(features)))

    def link(self, raw: Tensor) -> Tensor:
        """The network's outputs as uncertainties."""
        if self.buckets:
            return raw.softmax(-1) @ self.bucket_levels
        raw = raw[:, 0]
        if self.loss == "mse_std":
            return torch.addcmul(self.level[0], self.level[1], raw).relu()
        spread = self.level[1] * (raw.clamp(-30, 30).exp() if self.loss == "gamma" else raw.relu())
        return spread.sqrt() if self.power == 0.5 else spread

    def bucket_probabilities(self, features: Tensor) -> Tensor:
        """``(rows, buckets)`` from the lowest uncertainty to the highest; only for the task ``buckets``."""
        if not self.buckets:
            raise UserError("this estimator was fitted as a regression; fit it with task buckets")
        return self.network(self.standardise(features)).softmax(-1)

    def bucket_of(self, uncertainty: Tensor) -> Tensor:
        """``(rows,)`` bucket of each uncertainty, counted from 0."""
        return torch.bucketize(uncertainty, self.bucket_edges)

    def folded(self) -> nn.Sequential:
        """The network with the standardisation inside its first layer: the same function of raw features."""
        network = copy.deepcopy(self.network)
        first: Any = network[0]
        with torch.no_grad():
            first.weight *= self.scale
            first.bias -= first.weight @ self.mean
        return network

    def set_statistics(self, features: Tensor) -> None:
        """Take mean and scale of the features from auxiliary rows, for instance after the main model was quantised."""
        deviation, mean = torch.std_mean(features.double(), dim=0, correction=0)
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(deviation > FLOOR, 1 / deviation.clamp(min=FLOOR), torch.zeros_like(deviation)))


def estimator_loss(loss: str, raw: Tensor, label: Tensor) -> Tensor:
    """Mean loss of raw outputs ``(rows, 1)`` for labels as :func:`scaled_labels` makes them."""
    raw = raw[:, 0]
    if loss == "gamma":
        raw = raw.clamp(-30, 30)
        return (label * torch.exp(-raw) + raw).mean()
    return F.mse_loss(raw, label)


def scaled_labels(loss: str, spread: Tensor, power: float, level: Tensor) -> Tensor:
    """Labels in the scale of the loss."""
    if loss == "mse_std":
        return (spread**power - level[0]) / level[1]
    return spread / level[1]


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
    """Fit g on auxiliary rows, which must not have trained the main model (spec 2.4).

    Args:
        features: ``(rows, features)``.
        spread: ``(rows,)`` labels, see :class:`~tenfold.systems.activation_uncertainty.passes.DropoutLabels`.
        power: see :class:`Estimator`.
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
        UserError: see :func:`check_auxiliary`.
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
            estimator.network, estimator.standardise(features), criterion, rest, chosen, generator=generator,
            epochs=epochs, patience=patience, batch_size=batch_size, averaging=averaging,
            learning_rate=learning_rate, weight_decay=weight_decay,
        )  # fmt: skip
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
