"""A main model that says how unsure it is, in one pass: ``UncertainModel(...)(x) -> (prediction, uncertainty)``."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.run import write_atomically
from tenfold.systems.activation_uncertainty.calls import (
    Chooser,
    Inputs,
    call,
    device_of,
    main_output,
    mask_of,
    to_device,
)
from tenfold.systems.activation_uncertainty.estimator import Estimator
from tenfold.systems.activation_uncertainty.features import ActivationFeatures
from tenfold.systems.activation_uncertainty.fingerprint import check_fingerprint
from tenfold.systems.activation_uncertainty.targets import Target

ESTIMATOR_WEIGHTS, ESTIMATOR_MANIFEST = "estimator.safetensors", "estimator.json"


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


class FeatureRange(nn.Module):
    """The range of the features over the auxiliary rows, and which inputs leave it.

    A small estimate far from the data means nothing (spec 9, trap 13): look at :meth:`outside` first.

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
        return ((features < self.low) | (features > self.high)).float().mean(1)


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
        feature_range: fitted range of the features, for :meth:`score`.

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
        self.target = target
        self.output = output
        self.to(device_of(main))
        self.eval()

    def train(self, mode: bool = True) -> "UncertainModel":
        """Stays in eval mode: the served pass has no dropout, and the estimator is fitted already."""
        return super().train(False)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The main model's prediction and the uncertainty ``(batch,)``, from one pass."""
        prediction, features = self._pass(args, kwargs)
        return prediction, self.estimator.link(self.folded(features))

    def _pass(self, args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        with self.features.collect(mask_of(kwargs)) as read:
            prediction = main_output(self.main(*args, **kwargs), self.output)
        return prediction, read.features(prediction)

    @torch.no_grad()
    def score(self, inputs: Inputs) -> Scores:
        """Prediction, uncertainty, and whether the inputs are like those on which the estimator was fitted."""
        inputs = to_device(inputs, device_of(self.main))
        with self.features.collect(mask_of(inputs)) as read:
            prediction = main_output(call(self.main, inputs), self.output)
        features = read.features(prediction)
        uncertainty = self.estimator.link(self.folded(features))
        outside = self.feature_range.outside(features)
        bucket = self.estimator.bucket_of(uncertainty) if self.estimator.buckets else None
        return Scores(prediction, uncertainty, outside, outside > self.feature_range.limit, bucket)

    def set_statistics(self, features: Tensor) -> None:
        """Take the features' statistics and range anew, as after the main model was quantised (spec 9, trap 14)."""
        self.estimator.set_statistics(features)
        self.folded = self.estimator.folded()
        self.feature_range.fit(features)


class EstimatorManifest(BaseModel):
    """``estimator.json``: what the estimator is, how it was made, and on which main model.

    Attributes:
        format: version of this layout.
        features: taps, form and widths, see :meth:`ActivationFeatures.to_dict`.
        estimator: arguments of :class:`~tenfold.systems.activation_uncertainty.estimator.Estimator`.
        target: definition of the uncertainty.
        passes: T of the labels.
        labels: where they come from: ``dropout`` or ``ensemble``.
        dropout: places and rates: path, kind and rate of each.
        inference_only: whether some of the dropout was added to a model trained without it.
        fingerprint: of the main model.
        rows: sizes of the splits.
        metrics: numbers measured when it was fitted.
        sha256: of ``estimator.safetensors``.
    """

    model_config = ConfigDict(extra="forbid")

    format: Literal["tenfold-estimator-1"] = "tenfold-estimator-1"
    features: dict[str, Any]
    estimator: dict[str, Any]
    target: str
    passes: int
    labels: str = "dropout"
    dropout: list[dict[str, Any]]
    inference_only: bool
    fingerprint: dict[str, Any]
    rows: dict[str, int]
    metrics: dict[str, float]
    sha256: str = ""


def save_estimator(folder: str | Path, uncertain: UncertainModel, manifest: EstimatorManifest) -> EstimatorManifest:
    """Write ``estimator.safetensors`` and ``estimator.json``, the manifest last.

    Args:
        folder: made if need be.
        uncertain: whose estimator and range are written; the main model is not.
        manifest: its description.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error
    parts = {"estimator": uncertain.estimator, "range": uncertain.feature_range}
    state = {
        f"{part}.{name}": value.detach().cpu().contiguous()
        for part, module in parts.items()
        for name, value in module.state_dict().items()
    }
    weights = save(state)
    manifest = manifest.model_copy(update={"sha256": hashlib.sha256(weights).hexdigest()})
    write_atomically(folder / ESTIMATOR_WEIGHTS, weights)
    write_atomically(folder / ESTIMATOR_MANIFEST, manifest.model_dump_json(indent=1) + "\n")
    return manifest


def load_estimator_manifest(folder: str | Path) -> EstimatorManifest:
    """Read ``estimator.json``.

    Raises:
        UserError: the folder holds none, or it is not one.
    """
    path = Path(folder) / ESTIMATOR_MANIFEST
    try:
        return EstimatorManifest.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{folder} holds no estimator ({ESTIMATOR_MANIFEST}): {error.strerror or error}") from error
    except (ValidationError, UnicodeDecodeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "it is not UTF-8 text"
        raise UserError(f"{path} is not an estimator's manifest: {reason}") from error


def load_estimator(folder: str | Path, main: nn.Module, output: Chooser | None = None) -> UncertainModel:
    """Put an estimator on its main model again.

    Args:
        folder: holds ``estimator.safetensors`` and ``estimator.json``.
        main: the main model that it was fitted on.
        output: picks the prediction from what the network gives.

    Raises:
        UserError: the files are missing or damaged, or ``main`` is another model.
    """
    manifest = load_estimator_manifest(folder)
    path = Path(folder) / ESTIMATOR_WEIGHTS
    check_fingerprint(main, manifest.fingerprint, str(folder), output)
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != manifest.sha256:
            raise UserError(f"{path} is not the file that {ESTIMATOR_MANIFEST} describes: it was changed or cut short")
        state = load(content)
        features = ActivationFeatures.from_dict(main, manifest.features)
        settings = manifest.estimator
        estimator = Estimator(**{**settings, "hidden": tuple(settings["hidden"])})
        feature_range = FeatureRange(features.width)
        for part, module in (("estimator", estimator), ("range", feature_range)):
            own = {key.partition(".")[2]: value for key, value in state.items() if key.startswith(f"{part}.")}
            module.load_state_dict(own)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (SafetensorError, RuntimeError, KeyError, TypeError) as error:
        raise UserError(f"{folder} holds a damaged estimator: {' '.join(str(error).split())[:200]}") from error
    return UncertainModel(main, features, estimator.eval(), Target(manifest.target), output, feature_range)  # type: ignore[arg-type]
