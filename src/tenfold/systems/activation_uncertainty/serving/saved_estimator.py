"""An estimator on disk: ``estimator.safetensors`` with ``estimator.json``."""

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from tenfold.errors import UserError
from tenfold.files import write_atomically
from tenfold.systems.activation_uncertainty.estimator.estimator import Estimator
from tenfold.systems.activation_uncertainty.labels.targets import Target, TargetName
from tenfold.systems.activation_uncertainty.network.calling import Chooser
from tenfold.systems.activation_uncertainty.network.dropout_sites import DropoutSite
from tenfold.systems.activation_uncertainty.network.features import ActivationFeatures
from tenfold.systems.activation_uncertainty.network.fingerprint import Fingerprint, check_fingerprint
from tenfold.systems.activation_uncertainty.serving.feature_range import FeatureRange
from tenfold.systems.activation_uncertainty.serving.uncertain_model import UncertainModel

ESTIMATOR_WEIGHTS, ESTIMATOR_MANIFEST = "estimator.safetensors", "estimator.json"


class EstimatorSettings(BaseModel):
    """Arguments of ``Estimator``, as a file may hold them.

    Attributes:
        features: number of features.
        hidden: widths of the hidden layers.
        loss: ``mse_std``, ``mse_var`` or ``gamma``.
        power: of the label that makes it an uncertainty.
        buckets: number of buckets, or 0.
    """

    model_config = ConfigDict(extra="forbid")

    features: Annotated[int, Field(ge=1)]
    hidden: list[Annotated[int, Field(ge=1)]]
    loss: Literal["mse_std", "mse_var", "gamma"]
    power: Annotated[float, Field(ge=0.5, le=1)]
    buckets: Annotated[int, Field(ge=0)]


class EstimatorManifest(BaseModel):
    """``estimator.json``: what the estimator is, how it was made, and on which main model.

    Attributes:
        format: version of this layout.
        features: taps, form and widths, see ``ActivationFeatures.to_dict``.
        estimator: arguments of ``Estimator``.
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
    estimator: EstimatorSettings
    target: TargetName
    passes: Annotated[int, Field(ge=2)]
    labels: str = "dropout"
    dropout: list[DropoutSite]
    inference_only: bool
    fingerprint: Fingerprint
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
    write_atomically(folder / ESTIMATOR_MANIFEST, manifest.model_dump_json(indent=1, exclude_none=True) + "\n")
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
        settings = manifest.estimator.model_dump()
        with torch.device("meta"):  # sizes that a file claims take no memory before they are those of its weights
            estimator = Estimator(**{**settings, "hidden": tuple(settings["hidden"])})
            feature_range = FeatureRange(features.width)
        for part, module in (("estimator", estimator), ("range", feature_range)):
            own = {key.partition(".")[2]: value for key, value in state.items() if key.startswith(f"{part}.")}
            module.load_state_dict(own, assign=True)
        served = UncertainModel(main, features, estimator.eval(), Target(manifest.target), output, feature_range)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise UserError(f"{folder} holds a damaged estimator: {' '.join(str(error).split())[:200]}") from error
    return served
