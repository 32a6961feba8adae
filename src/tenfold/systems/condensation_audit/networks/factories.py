"""How networks are made, by name or by a function, and where their features are.

Every network of this library has ``embed(images) -> (n, d)``. Of any other module the features are the input of its
last `torch.nn.Linear`.
"""

import copy
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.models.builders import named_network
from tenfold.systems.condensation_audit.networks.small_networks import NETWORKS

Factory = Callable[[], nn.Module]
"""Makes a network with fresh random weights, from torch's global generator."""


def make_network(
    name: str, *, image_shape: Sequence[int], num_classes: int, from_file: str | None = None, **arguments: Any
) -> nn.Module:
    """A network with fresh weights.

    Args:
        name: one of `NETWORKS`, ``torchvision/NAME``, ``timm/NAME``, or ``factory``.
        image_shape: ``(channels, height, width)``.
        num_classes: number of classes.
        from_file: the file that gave name and arguments, if it was not the user: then only plain arguments are taken,
            and nothing is fetched or opened.
        arguments: further arguments of the network; for ``factory``, ``factory="package.module:function"``.

    Raises:
        UserError: there is none of this name, it does not take the arguments, or the images are too small for it.
    """
    if name not in NETWORKS:
        factory = arguments.pop("factory", None)
        return named_network(
            name,
            num_classes=num_classes,
            arguments=arguments,
            factory=factory,
            others=list(NETWORKS),
            from_file=from_file,
        )
    try:
        return NETWORKS[name](tuple(image_shape), num_classes, **arguments)
    except TypeError as error:
        raise UserError(f"the network {name!r} cannot be made: {error}") from error
    except (RuntimeError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"{name!r} does not fit images of {tuple(image_shape)}: {str(error).splitlines()[0]}"
        ) from error


def factory_of(
    network: str | Factory,
    *,
    image_shape: Sequence[int],
    num_classes: int,
    from_file: str | None = None,
    **arguments: Any,
) -> Factory:
    """What makes the network: a name with its arguments, see `make_network`, or a function as it is."""
    if not isinstance(network, str):
        return network
    return lambda: make_network(
        network, image_shape=image_shape, num_classes=num_classes, from_file=from_file, **arguments
    )


def seeded_network(factory: Factory, seed: int, device: torch.device | str = "cpu") -> nn.Module:
    """A network whose weights depend on the seed only; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        # Where no GPU is in use, torch.manual_seed keeps a call for later, with its stack: a leak in a loop.
        seeder = torch.manual_seed if torch.cuda.is_initialized() else torch.default_generator.manual_seed
        seeder(seed)
        network = factory()
    if not isinstance(network, nn.Module):
        raise UserError(f"the network factory gave a {type(network).__name__}, not a torch.nn.Module")
    return network.to(device)


def untrained_like(network: nn.Module) -> nn.Module:
    """A copy of a network with fresh weights: every module draws its own anew.

    Raises:
        UserError: a part of it has parameters, and no ``reset_parameters`` that draws them.
    """
    fresh = copy.deepcopy(network)
    for name, module in fresh.named_modules():
        own = list(module.parameters(recurse=False))
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
        elif own:
            raise UserError(
                f"no untrained network like this one can be made: its {type(module).__name__} {name!r} cannot draw its "
                "parameters anew"
            )
    return fresh


def last_linear(network: nn.Module) -> nn.Linear:
    """The last linear layer in the order of registration: the classifier.

    Raises:
        UserError: there is none.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise UserError("the network has no linear layer: its features are not known; give it a method embed(images)")
    return layers[-1]


def penultimate(network: nn.Module, images: Tensor) -> Tensor:
    """``(n, d)`` features before the classifier: ``network.embed``, or the input of the last linear layer."""
    embed: Any = getattr(network, "embed", None)
    if embed is not None:
        return embed(images)
    kept: list[Tensor] = []
    layer = last_linear(network)
    handle = layer.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].clone()))
    try:
        network(images)
    finally:
        handle.remove()
    return kept[-1].flatten(1)


def network_fingerprint(factory: Factory, seed: int) -> str:
    """SHA-256 of the names and weights of a network from a seed: another network, or another seed, has another."""
    made = hashlib.sha256()
    for name, value in seeded_network(factory, seed).state_dict().items():
        made.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        made.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return made.hexdigest()
