"""Networks by name, for the recipe and for the manifests of saved models."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenfold.errors import UserError
from tenfold.files import first_line
from tenfold.models.builders import named_network
from tenfold.models.folder import plain_arguments
from tenfold.systems.boosted_exits.attach.attach_exits import AttachedExits, attach_exits, trainable_parameter_groups
from tenfold.systems.boosted_exits.attach.cut import cut
from tenfold.systems.boosted_exits.networks.early_exit_model import EarlyExitModel
from tenfold.systems.boosted_exits.networks.msdnet import PUBLISHED_MSDNETS, MSDNet
from tenfold.systems.boosted_exits.networks.ranet import PUBLISHED_RANETS, RANet
from tenfold.systems.boosted_exits.networks.small_cnn import small_cnn

ExitNetwork = EarlyExitModel | AttachedExits

STAGED: dict[str, tuple[Callable[..., EarlyExitModel], dict[str, Any]]] = {
    "tiny-cnn": (small_cnn, {"widths": (4, 4, 6, 6, 8)}),  # a wider one has nothing left to gain on the digits
    "small-cnn": (small_cnn, {}),
    "msdnet": (MSDNet, {}),
    "ranet": (RANet, {}),
    **{name: (MSDNet, settings) for name, settings in PUBLISHED_MSDNETS.items()},
    **{name: (RANet, settings) for name, settings in PUBLISHED_RANETS.items()},
}
"""Networks with exits of their own, by name, with the settings that the name stands for."""


def build_network(
    name: str,
    *,
    num_classes: int,
    image_shape: Sequence[int],
    arguments: dict[str, Any] | None = None,
    taps: Sequence[str] = (),
    factory: str | None = None,
    weights: str | None = None,
    reweight: float | Sequence[float] = 0.5,
    rescale: bool = True,
    from_file: str | Path | None = None,
) -> ExitNetwork:
    """A network with exits, by name.

    Args:
        name: one of ``STAGED``, ``torchvision/NAME``, ``timm/NAME`` or ``factory``.
        num_classes: number of classes.
        image_shape: ``(channels, height, width)`` of the inputs.
        arguments: further arguments of the network.
        taps: modules that get an exit, for networks that have none of their own.
        factory: ``package.module:function`` of a network of the user's.
        weights: checkpoint of the trunk, for networks that get exits attached.
        reweight: see ``expand_reweight``.
        rescale: whether training rescales gradients.
        from_file: the file that gave name and arguments, if it was not the user: only plain arguments are then taken.

    Raises:
        UserError: unknown name, arguments that the network does not take, or a tap that does not exist.
    """
    arguments = dict(arguments or {}) if from_file is None else plain_arguments(arguments or {}, from_file)
    exits: dict[str, Any] = {"reweight": reweight, "rescale": rescale}
    if name in STAGED:
        if taps or weights:
            raise UserError(f"model {name!r} has exits of its own: leave model.taps and model.weights out")
        make, settings = STAGED[name]
        settings = {**settings, "num_classes": num_classes, "image_channels": image_shape[0], **arguments}
        try:
            network = make(**settings, **exits)
            network.eval()
            with torch.no_grad():  # a network too deep for its images fails here, not in the middle of a run
                network(torch.zeros(1, *image_shape))
            return network.train()
        except Exception as error:  # a network ends in any way on arguments that it does not expect
            raise UserError(
                f"model {name!r} cannot be built on images {tuple(image_shape)}: {first_line(error)}"
            ) from error
    trunk = named_network(
        name,
        num_classes=num_classes,
        arguments=arguments,
        factory=factory,
        weights=weights,
        others=[*STAGED],
        from_file=from_file,
    )
    if not taps:
        raise UserError(f"model {name!r} has no exits of its own: name modules that get one with model.taps")
    return attach_exits(trunk, list(taps), num_classes, example=torch.zeros(2, *image_shape), **exits)


def stages_of(network: ExitNetwork, example: Tensor) -> EarlyExitModel:
    """The network as stages that can stop; one with attached exits is cut.

    Args:
        network: the network, left in the mode it is in.
        example: ``(2, ...)`` batch by which a cut is checked.
    """
    if isinstance(network, EarlyExitModel):
        return network
    training = network.training
    stages = cut(network.eval(), example)
    network.train(training)
    return stages


def parameter_groups(
    network: ExitNetwork, mode: str, learning_rate: float, weight_decay: Sequence[float]
) -> list[dict[str, Any]]:
    """Groups for the optimizer, with their own weight decay and learning rate.

    Args:
        network: the network.
        mode: ``joint``, ``heads`` or ``finetune``; the latter two need attached exits.
        learning_rate: of the heads.
        weight_decay: one number; or two, interpolated linearly over the stages of a staged network, as the official
            MSDNet training does.

    Raises:
        UserError: the mode does not fit the network, or there are more than two weight decays.
    """
    if len(weight_decay) not in (1, 2):
        raise UserError(f"optimizer.weight_decay takes one or two numbers; got {list(weight_decay)}")
    if isinstance(network, AttachedExits):
        groups = trainable_parameter_groups(network, mode, learning_rate)
        return [{**group, "weight_decay": weight_decay[0]} for group in groups]
    if mode != "joint":
        raise UserError(f"model.mode {mode!r} needs a trunk with attached exits; this network is trained jointly")
    first, last = weight_decay[0], weight_decay[-1]
    return [
        {
            "params": [*stage.parameters(), *head.parameters()],
            "weight_decay": first + (last - first) * n / max(network.exits - 1, 1),
        }
        for n, (stage, head) in enumerate(zip(network.stages, network.heads, strict=True))
    ]
