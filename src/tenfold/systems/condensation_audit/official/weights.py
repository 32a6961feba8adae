"""Triggers, networks and expert buffers of the published programs: read as tensors, never executed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.models.checkpoints import load_strictly, read_checkpoint, read_torch_file
from tenfold.systems.condensation_audit.attacks.triggers import Trigger
from tenfold.systems.condensation_audit.condensers.experts import from_replay_buffer
from tenfold.systems.condensation_audit.data.preprocessing import Preprocessing
from tenfold.systems.condensation_audit.networks.factories import make_network
from tenfold.systems.condensation_audit.sets.condensed_set import TrainingRecipe

# The layers that tell the programs' networks apart: of the trunk, of the classifier.
_LAYERS = {
    "convnet": ({"features.0", "features.4", "features.8"}, {"classifier"}),
    "convnet_baadd": ({"features.0", "features.3", "features.6"}, {"classifier.0", "classifier.2"}),
    "alexnet_baadd": ({"features.0", "features.4"}, {"classifier.0", "classifier.2", "classifier.4"}),
}


def read_trigger(path: str | Path, preprocessing: Preprocessing) -> Trigger:
    """A trigger of baadd: ``vis_*_trigger.pth``, or ``trigger.pth`` of its DD.

    The file holds a whole normalized image, black around the patch: the mask is where it is not black. One that covers
    more than half of the image is the invisible variant, which is added, and whose strength is per pixel
    [reconstructed: the file does not tell].

    Args:
        path: the file.
        preprocessing: of the set that it belongs to; without whitening.

    Raises:
        UserError: the file is damaged, is not one image of this size, or is black all over.
    """
    content = read_torch_file(path)
    image = content.detach() if isinstance(content, Tensor) else torch.zeros(0)
    image = image[0] if image.ndim == 4 and len(image) == 1 else image
    if tuple(image.shape) != preprocessing.image_shape or not image.is_floating_point():
        raise UserError(f"{path} is not a trigger: one normalized image of shape {preprocessing.image_shape}")
    image = image.float()
    if not bool(image.isfinite().all()):
        raise UserError(f"the trigger {path} holds NaN or infinite values")
    mask = ((image - preprocessing.lowest).abs() > 1e-4).any(0)
    if not bool(mask.any()):
        raise UserError(f"the trigger {path} is black all over")
    pixels = preprocessing.pixels(image[None])[0]
    if float(mask.float().mean()) > 0.5:
        deviation = torch.tensor(preprocessing.std).view(-1, 1, 1)
        return Trigger(mask=torch.ones_like(mask), pattern=image * deviation, mode="additive")
    return Trigger(mask=mask, pattern=torch.where(mask, pixels, 0.0))


def read_network(
    path: str | Path, *, network: str | None = None, image_side: int = 32, num_classes: int | None = None
) -> nn.Module:
    """A network of DC, DM, MTT or baadd (``<iteration>/model_<k>.pth``), in eval mode.

    Args:
        path: its state dict, of one or of several devices.
        network: our name of it; found by its layers where ``None``.
        image_side: of the images that it takes.
        num_classes: found by its last layer where ``None``.

    Raises:
        UserError: the file is damaged, or the weights are of no network that is known or of another one.
    """
    state = _without_prefix(read_checkpoint(path))
    layers = {name.rpartition(".")[0] for name, value in state.items() if value.ndim > 1}
    name = network or next((known for known, (a, b) in _LAYERS.items() if a | b == layers), None)
    if name is None:
        raise UserError(f"{path} holds the weights of no network that is known: name it with network")
    first, last = (next((state[key] for key in keys if state[key].ndim > 1), None) for keys in (state, [*state][::-1]))
    if first is None or last is None:
        raise UserError(f"{path} holds no weights of a network")
    built = make_network(
        name,
        image_shape=(first.shape[1] if first.ndim == 4 else 1, image_side, image_side),
        num_classes=num_classes or last.shape[0],
        **_sizes(name, state),
    )
    load_strictly(built, state, path)
    return built.eval()


def _sizes(name: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments that the shapes tell."""
    if not name.startswith("convnet") or "features.0.weight" not in state:
        return {}
    sizes = {
        "width": len(state["features.0.weight"]),
        "depth": sum(value.ndim == 4 for value in state.values()),
    }
    if name == "convnet_baadd" and "classifier.0.weight" in state:
        sizes["hidden"] = len(state["classifier.0.weight"])
    return sizes


def _without_prefix(content: Mapping[str, Any]) -> dict[str, Tensor]:
    state = content.get("state_dict", content)
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError("the file holds no weights by name")
    return {str(name).removeprefix("module."): value.detach() for name, value in state.items()}


def initial_weights(
    path: str | Path, recipe: TrainingRecipe, image_shape: tuple[int, int, int], num_classes: int
) -> dict[str, Tensor]:
    """The weights that a set of DD was made for: by name, or as DD keeps them, one flat vector ``flat_w``.

    Args:
        path: the file.
        recipe: names the network.
        image_shape: that it takes.
        num_classes: that it tells apart.

    Raises:
        UserError: the file is damaged, or the weights do not fit the network.
    """
    state = _without_prefix(read_checkpoint(path))
    network = make_network(recipe.network, image_shape=image_shape, num_classes=num_classes, **recipe.arguments)
    if "flat_w" in state:
        flat, sizes = state["flat_w"].flatten(), [parameter.numel() for parameter in network.parameters()]
        if len(flat) != sum(sizes):
            raise UserError(f"{path} holds {len(flat)} weights; {recipe.network} has {sum(sizes)}")
        parts = zip(network.named_parameters(), flat.split(sizes), strict=True)
        state = {name: part.view(parameter.shape).clone() for (name, parameter), part in parts}
    load_strictly(network, state, path)
    return state


def read_replay_buffer(path: str | Path) -> list[Tensor]:
    """Expert trajectories of MTT: ``replay_buffer_<n>.pt``.

    Args:
        path: the file; only tensors are taken from it.

    Returns:
        For each expert ``(snapshots, parameters)``, as
        `train_experts` makes them.

    Raises:
        UserError: the file is damaged, holds something else, or the snapshots are all alike, as those that the
            official program writes on a CPU are.
    """
    content = read_torch_file(path)
    if not isinstance(content, list) or not content or not all(_is_trajectory(expert) for expert in content):
        raise UserError(f"{path} is not a buffer: [expert][epoch] lists of parameter tensors")
    try:
        found = from_replay_buffer(content)
    except RuntimeError as error:
        raise UserError(f"{path}: the snapshots of an expert are not of one size") from error
    for number, snapshots in enumerate(found):
        if not bool(snapshots.isfinite().all()):
            raise UserError(f"{path}: expert {number} holds NaN or infinite values")
        if len(snapshots) > 1 and torch.equal(snapshots[0], snapshots[-1]):
            raise UserError(f"{path}: all snapshots of expert {number} are alike: they were not copied when made")
    return found


def _is_trajectory(expert: Any) -> bool:
    return (
        isinstance(expert, list)
        and len(expert) > 0
        and all(isinstance(epoch, list | tuple) and len(epoch) > 0 for epoch in expert)
        and all(isinstance(part, Tensor) for epoch in expert for part in epoch)
    )
