"""A network trained on a condensed set, as it is served: pixels in, the range guard first, then the preprocessing."""

from pathlib import Path
from typing import Any

from tenfold.errors import UserError
from tenfold.export import load_manifest, load_weights
from tenfold.systems.condensation_audit.data.preprocessing import Preprocessing
from tenfold.systems.condensation_audit.defences.range_guard import RangeGuard
from tenfold.systems.condensation_audit.networks.factories import make_network
from tenfold.systems.condensation_audit.sets.files import load_set


def load_served(folder: str | Path, factory: str | None = None) -> tuple[RangeGuard, dict[str, Any]]:
    """The network of a run or model folder behind the range guard, in evaluation mode; and its manifest's extra values.

    Args:
        folder: holds ``model.safetensors``, ``model.json`` and, for a whitened set, the set.
        factory: must repeat the factory of a network of the user's own: a manifest alone never runs code.

    Raises:
        UserError: the folder holds no such network, or it was changed.
    """
    manifest = load_manifest(folder)
    if manifest.system != "condensation-audit":
        raise UserError(f"{folder} holds a model of {manifest.system!r}, not of condensation-audit")
    if manifest.builder == "factory" and factory != manifest.arguments.get("factory"):
        raise UserError(
            f"the network of {folder} is made by {manifest.arguments.get('factory')!r}: allow it with --factory"
        )
    arguments = dict(manifest.arguments)
    (channels, height, width), classes = arguments.pop("image_shape"), arguments.pop("num_classes")
    shape = (channels, height, width)
    network = make_network(manifest.builder, image_shape=shape, num_classes=classes, **arguments)
    load_weights(network, folder)
    extra = manifest.extra
    if extra.get("zca"):
        preprocessing = load_set(Path(folder) / extra["set"], allow_network=factory).preprocessing
    else:
        preprocessing = Preprocessing(tuple(extra["mean"]), tuple(extra["std"]), shape)
    return RangeGuard(network, preprocessing).eval(), extra
