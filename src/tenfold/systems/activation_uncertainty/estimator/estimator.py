"""The auxiliary model g: activation features to uncertainty.

Three losses, for labels of T passes:

    mse_std   squared error on the standardised U            as published; needs many passes
    mse_var   squared error on s^2 / mean(s^2)
    gamma     s^2 exp(-eta) + eta, eta the predicted log variance (up to a constant, the likelihood of a Gamma variable)

E[s^2] is the variance for every T >= 2, but E[s] is smaller than its root (by 0.80 at T = 2, 0.97 at T = 10 for
Gaussian outputs): with few passes ``mse_std`` learns too small a level, the other two do not. ``auto`` takes ``gamma``
below 50 passes and ``mse_std`` from there on.
"""

import copy
import itertools
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.errors import UserError

Loss = Literal["auto", "mse_std", "mse_var", "gamma"]


FLOOR = 1e-6
"""Features whose standard deviation is not above this are left out."""


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
            ``Target.power``.
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
    """Mean loss of raw outputs ``(rows, 1)`` for labels as ``scaled_labels`` makes them."""
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
