"""The main model that the command line's verbs work on: of a run, or of the user's."""

from pathlib import Path

from torch import nn

from tenfold.errors import UserError
from tenfold.export import MANIFEST, Manifest, load_manifest, load_strictly, load_weights, read_checkpoint
from tenfold.networks import network_from_factory
from tenfold.systems.activation_uncertainty.main_models.build import build_model

SYSTEM = "activation-uncertainty"


def load_main_model(
    source: str, *, factory: str | None = None, weights: str | None = None
) -> tuple[nn.Module, Manifest | None]:
    """A main model in eval mode, with its manifest where it has one.

    Args:
        source: folder of a run; or ``package.module:function`` that makes the model.
        factory: must repeat the factory of a network of the user's own: a manifest alone never runs code.
        weights: checkpoint for a model that a function makes.

    Raises:
        UserError: there is no such model, or the weights are damaged or do not fit.
    """
    if (Path(source) / MANIFEST).exists() or ":" not in source:
        manifest = load_manifest(source)
        if manifest.system != SYSTEM:
            raise UserError(f"{source} holds a model of {manifest.system!r}, not of {SYSTEM}")
        if manifest.builder == "factory" and factory != manifest.arguments.get("factory"):
            raise UserError(
                f"the network of {source} is made by {manifest.arguments.get('factory')!r}: allow it with --factory"
            )
        model = build_model(manifest.builder, **manifest.arguments)
        load_weights(model, source)
        return model.eval(), manifest
    model = network_from_factory(source, "the model")
    if weights is not None:
        found = read_checkpoint(weights)
        load_strictly(model, found.get("state_dict", found), weights)
    return model.eval(), None
