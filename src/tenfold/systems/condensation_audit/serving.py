"""A network trained on a condensed set, as it is served: pixels in, the range guard first, then the preprocessing."""

from pathlib import Path

import torch
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.export import load_manifest, load_weights
from tenfold.systems.condensation_audit.networks import make_network
from tenfold.systems.condensation_audit.set_files import load_set
from tenfold.systems.condensation_audit.sets import Preprocessing


class GuardedNetwork(nn.Module):
    """Takes pixels and clamps them to [0, 1] before anything else: a trigger outside that range never gets in.

    Args:
        network: takes normalised images.
        preprocessing: of the set that it was trained on.
    """

    mean: Tensor
    std: Tensor
    whitening_mean: Tensor
    whitening: Tensor

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, -1, 1, 1))
        self.whitened = preprocessing.zca is not None
        if preprocessing.zca is not None:
            self.register_buffer("whitening_mean", preprocessing.zca.mean)
            self.register_buffer("whitening", preprocessing.zca.matrix)

    def forward(self, pixels: Tensor) -> Tensor:
        """``(n, classes)`` logits of ``(n, channels, height, width)`` pixels in [0, 1]."""
        images = (pixels.clamp(0, 1) - self.mean) / self.std
        if self.whitened:
            images = ((images.flatten(1) - self.whitening_mean) @ self.whitening).view_as(images)
        return self.network(images)


def load_served(folder: str | Path, factory: str | None = None) -> tuple[GuardedNetwork, dict]:
    """The network of a run or model folder, guarded, in evaluation mode; and its manifest's extra values.

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
    shape, classes = arguments.pop("image_shape"), arguments.pop("num_classes")
    network = make_network(manifest.builder, image_shape=shape, num_classes=classes, **arguments)
    load_weights(network, folder)
    extra = manifest.extra
    if extra.get("zca"):
        preprocessing = load_set(Path(folder) / extra["set"]).preprocessing
    else:
        channels, height, width = shape
        preprocessing = Preprocessing(tuple(extra["mean"]), tuple(extra["std"]), (channels, height, width))
    return GuardedNetwork(network, preprocessing).eval(), extra
