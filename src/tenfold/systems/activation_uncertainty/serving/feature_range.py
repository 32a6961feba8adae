"""Which inputs are unlike the data on which an estimator was fitted."""

import torch
from torch import Tensor, nn


class FeatureRange(nn.Module):
    """The range of the features over the auxiliary rows, and which inputs leave it.

    A small estimate far from the data means nothing: look at ``outside`` first.

    Args:
        features: number of features.
    """

    low: Tensor
    high: Tensor
    limit: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("low", torch.full((features,), -torch.inf))
        self.register_buffer("high", torch.full((features,), torch.inf))
        self.register_buffer("limit", torch.ones(()))

    def fit(self, features: Tensor) -> "FeatureRange":
        """Take the 0.1 and 99.9 % quantiles of auxiliary rows, and how often those rows themselves leave them."""
        bounds = [
            torch.quantile(column, torch.tensor([0.001, 0.999], dtype=column.dtype))
            for column in features.double().unbind(1)
        ]
        low, high = torch.stack(bounds, dim=1)
        self.low.copy_(low)
        self.high.copy_(high)
        self.limit.copy_(torch.quantile(self.outside(features).double(), 0.999))
        return self

    def outside(self, features: Tensor) -> Tensor:
        """``(rows,)`` share of each row's features that are out of range."""
        inside = (features >= self.low) & (features <= self.high)  # which NaN is not
        return (~inside).float().mean(1)
