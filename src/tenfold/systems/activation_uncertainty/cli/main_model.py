"""The main model that a verb works on: of a run of any system, or one that a function of the user's makes."""

from pathlib import Path

import tenfold
from tenfold.errors import UserError
from tenfold.files import printable
from tenfold.models.builders import network_from_factory
from tenfold.models.checkpoints import load_strictly, read_checkpoint, unwrap_state
from tenfold.models.folder import MANIFEST
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
        network, preprocessing = tenfold.load_network(source, factory=factory)
        return MainModel(network, preprocessing=preprocessing)
    model = network_from_factory(source, "the model")
    if weights is not None:
        load_strictly(model, unwrap_state(read_checkpoint(weights), weights), weights)
    return MainModel(model.eval())
