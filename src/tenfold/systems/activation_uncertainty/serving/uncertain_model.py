"""A main model that says how unsure it is, in one pass: ``UncertainModel(...)(x) -> (prediction, uncertainty)``."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.systems.activation_uncertainty.estimator.estimator import Estimator
from tenfold.systems.activation_uncertainty.labels.targets import Target
from tenfold.systems.activation_uncertainty.network.calling import (
    Chooser,
    Inputs,
    call,
    device_of,
    main_output,
    mask_of,
    mask_places,
    to_device,
    valid_tokens,
)
from tenfold.systems.activation_uncertainty.network.features import ActivationFeatures
from tenfold.systems.activation_uncertainty.serving.feature_range import FeatureRange


@dataclass(frozen=True)
class Scores:
    """What is known about a batch.

    Attributes:
        prediction: what the main model gives, ``(batch, ...)``.
        uncertainty: ``(rows,)`` estimate of U.
        outside: ``(rows,)`` share of the features outside the range of the auxiliary rows.
        far: ``(rows,)`` whether that share is larger than for all but one in a thousand auxiliary rows: the input is
            unlike the data on which the estimator was fitted, and its estimate is not to be trusted.
        bucket: ``(rows,)`` bucket from 0, where the estimator was fitted to buckets.
    """

    prediction: Tensor
    uncertainty: Tensor
    outside: Tensor
    far: Tensor
    bucket: Tensor | None


class UncertainModel(nn.Module):
    """A main model with its estimator: the prediction is the main model's own, to the bit.

    It stays in eval mode. In eager mode features are read by hooks that live as long as a call; an export holds them
    as part of one graph with two outputs.

    Args:
        main: the main model; it is put in eval mode.
        features: which activations are read.
        estimator: fitted g.
        target: what the uncertainty is.
        output: picks the prediction from what the network gives.
        feature_range: fitted range of the features, for ``score``.

    Example:
        >>> from tenfold.systems.activation_uncertainty import ActivationUncertainty
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1)).eval()
        >>> rows = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
        >>> uncertain = ActivationUncertainty(net, rows[:2], passes=20).fit([rows]).serve()
        >>> prediction, uncertainty = uncertain(rows[:5])
        >>> prediction.shape, uncertainty.shape
        (torch.Size([5, 1]), torch.Size([5]))
    """

    def __init__(
        self,
        main: nn.Module,
        features: ActivationFeatures,
        estimator: Estimator,
        target: Target,
        output: Chooser | None = None,
        feature_range: FeatureRange | None = None,
    ) -> None:
        super().__init__()
        if estimator.features != features.width:
            raise ValueError(f"the estimator takes {estimator.features} features, the taps give {features.width}")
        self.main = main
        self.estimator = estimator
        self.folded = estimator.folded()
        self.feature_range = feature_range or FeatureRange(features.width)
        self.features = features
        self.mask_places = mask_places(main)
        self.target = target
        self.output = output
        self.to(device_of(main))
        self.eval()

    @property
    def network(self) -> nn.Module:
        """The main model, for systems that take any network (``tenfold.load_network``)."""
        return self.main

    def train(self, mode: bool = True) -> "UncertainModel":
        """Stays in eval mode: the served pass has no dropout, and the estimator is fitted already."""
        return super().train(False)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The main model's prediction and the uncertainty ``(batch,)``, from one pass."""
        prediction, features = self._pass(args, kwargs)
        return prediction, self.estimator.link(self.folded(features))

    def _pass(self, args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        with self.features.collect(valid_tokens(self.mask_places, args, kwargs)) as read:
            prediction = main_output(self.main(*args, **kwargs), self.output)
        return prediction, self._for_estimator(read.features(prediction))

    def _for_estimator(self, features: Tensor) -> Tensor:
        """In the estimator's precision, whatever the main model's is."""
        first: Any = self.folded[0]
        return features.to(first.weight.dtype)

    @torch.no_grad()
    def score(self, inputs: Inputs) -> Scores:
        """Prediction, uncertainty, and whether the inputs are like those on which the estimator was fitted."""
        inputs = to_device(inputs, device_of(self.main))
        with self.features.collect(mask_of(self.main, inputs)) as read:
            prediction = main_output(call(self.main, inputs), self.output)
        features = self._for_estimator(read.features(prediction))
        uncertainty = self.estimator.link(self.folded(features))
        outside = self.feature_range.outside(features)
        bucket = self.estimator.bucket_of(uncertainty) if self.estimator.buckets else None
        return Scores(prediction, uncertainty, outside, outside > self.feature_range.limit, bucket)

    def set_statistics(self, features: Tensor) -> None:
        """Take the features' statistics and range anew, as after the main model was quantised."""
        self.estimator.set_statistics(features)
        self.folded = self.estimator.folded()
        self.feature_range.fit(features)
