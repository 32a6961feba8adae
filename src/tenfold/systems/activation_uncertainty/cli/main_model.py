"""The main model that a verb works on: of a run of any system, or one that a function of the user's makes."""

from pathlib import Path
from typing import Any

from torch import nn

import tenfold
from tenfold.data import Preprocessing
from tenfold.errors import UserError
from tenfold.files import printable
from tenfold.models.builders import network_from_factory
from tenfold.models.checkpoints import load_strictly, read_checkpoint, unwrap_state
from tenfold.models.folder import MANIFEST, load_manifest
from tenfold.run import system_of
from tenfold.systems.activation_uncertainty.serving.loading import SYSTEM, MainModel, load_own


def load_main_model(source: str, *, factory: str | None = None, weights: str | None = None) -> MainModel:
    """A main model in eval mode.

    Args:
        source: folder of a run of any system; or ``package.module:function`` that makes the model.
        factory: must repeat the factory of a network of the user's own: a manifest alone never runs code.
        weights: checkpoint for a model that a function makes.

    Raises:
        UserError: there is no such model, or the weights are damaged or do not fit.
    """
    if Path(source).is_dir() or (Path(source) / MANIFEST).exists() or ":" not in source:
        if weights is not None:
            raise UserError(f"--weights is for a model that a function makes; {printable(source)} has its own")
        if system_of(source) == SYSTEM:
            return load_own(source, factory)
        served: Any = tenfold.load(source, factory=factory)
        if not isinstance(served, nn.Module):
            raise UserError(
                f"{printable(source)} is of {system_of(source)}, which serves a {type(served).__name__} and no network"
            )
        said = load_manifest(source).extra.get("preprocessing")
        return MainModel(served.eval(), preprocessing=None if said is None else Preprocessing.from_dict(said))
    model = network_from_factory(source, "the model")
    if weights is not None:
        load_strictly(model, unwrap_state(read_checkpoint(weights), weights), weights)
    return MainModel(model.eval())
