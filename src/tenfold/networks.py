"""Networks by name: torchvision's, timm's, and those that a user's own function makes."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from torch import nn

from tenfold.errors import UserError, require
from tenfold.export import load_strictly, read_checkpoint


def named_network(
    name: str,
    *,
    num_classes: int,
    arguments: Mapping[str, Any] | None = None,
    factory: str | None = None,
    weights: str | None = None,
    others: Sequence[str] = (),
) -> nn.Module:
    """A classification network by name, in training mode.

    Args:
        name: ``torchvision/NAME``, ``timm/NAME`` or ``factory``.
        num_classes: number of classes.
        arguments: further arguments of the network.
        factory: for ``factory``, see :func:`network_from_factory`.
        weights: checkpoint to load strictly: safetensors, or a torch file of plain tensors.
        others: names that the caller knows beside these, for the message about an unknown name.

    Raises:
        UserError: unknown name, arguments that the network does not take, or weights that do not fit.
    """
    network = _build(name, num_classes, dict(arguments or {}), factory, others)
    if weights is not None:
        found = read_checkpoint(weights)
        load_strictly(network, found.get("state_dict", found), weights)
    return network


def _build(
    name: str, num_classes: int, arguments: dict[str, Any], factory: str | None, others: Sequence[str]
) -> nn.Module:
    library, _, architecture = name.partition("/")
    if library == "torchvision" and architecture:
        models = require("torchvision.models", "all")
        try:
            return models.get_model(architecture, num_classes=num_classes, **arguments)
        except (ValueError, TypeError) as error:
            raise UserError(f"torchvision cannot build {architecture!r}: {error}") from error
    if library == "timm" and architecture:
        timm = require("timm", "timm")
        try:
            return timm.create_model(architecture, num_classes=num_classes, **arguments)
        except (RuntimeError, ValueError, TypeError) as error:
            raise UserError(f"timm cannot build {architecture!r}: {error}") from error
    if name == "factory":
        return network_from_factory(factory, num_classes=num_classes, **arguments)
    known = ", ".join([*others, "torchvision/NAME", "timm/NAME", "factory"])
    raise UserError(f"there is no model {name!r}; there are: {known}")


def import_object(path: str | None, setting: str) -> Any:
    """What ``package.module:name`` names.

    Args:
        path: the module's import name, a colon, and the name in it.
        setting: the setting that holds it, for the message.

    Raises:
        UserError: it has another form, or cannot be imported.
    """
    module_name, _, name = (path or "").partition(":")
    if not (module_name and name):
        raise UserError(f"{setting} must be package.module:function; got {path!r}")
    try:
        return getattr(import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{setting} {path!r} cannot be imported: {error}") from error


def network_from_factory(factory: str | None, setting: str = "model.factory", **arguments: Any) -> nn.Module:
    """The network that a function of the user's makes.

    Args:
        factory: ``package.module:function``.
        setting: the setting that names it, for the messages.
        arguments: what the function is called with.

    Raises:
        UserError: there is no such function, it does not take the arguments, or gives no module.
    """
    make = import_object(factory, setting)
    try:
        network = make(**arguments)
    except TypeError as error:
        raise UserError(f"{setting} {factory!r} cannot be called: {error}") from error
    if not isinstance(network, nn.Module):
        raise UserError(f"{setting} {factory!r} gave a {type(network).__name__}, not a torch.nn.Module")
    return network
