"""Networks by name: torchvision's, timm's, and those that a user's own function makes."""

import re
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from tenfold.errors import UserError, require
from tenfold.files import first_line, printable
from tenfold.models.checkpoints import load_strictly, read_checkpoint, unwrap_state
from tenfold.models.folder import plain_arguments


def named_network(
    name: str,
    *,
    num_classes: int,
    arguments: Mapping[str, Any] | None = None,
    factory: str | None = None,
    weights: str | None = None,
    others: Sequence[str] = (),
    from_file: str | Path | None = None,
) -> nn.Module:
    """A classification network by name, in training mode.

    Args:
        name: ``torchvision/NAME``, ``timm/NAME`` or ``factory``.
        num_classes: number of classes.
        arguments: further arguments of the network.
        factory: for ``factory``, see ``network_from_factory``.
        weights: checkpoint to load strictly: safetensors, or a torch file of plain tensors.
        others: names that the caller knows beside these, for the message about an unknown name.
        from_file: the file that gave name and arguments, if it was not the user: then nothing is fetched or opened, and
            only plain arguments are taken (``tenfold.models.folder.plain_arguments``).

    Raises:
        UserError: unknown name, arguments that the network does not take, or weights that do not fit.
    """
    given = dict(arguments or {}) if from_file is None else plain_arguments(arguments or {}, from_file)
    network = _build(name, num_classes, given, factory, others)
    if weights is not None:
        load_strictly(network, unwrap_state(read_checkpoint(weights), weights), weights)
    return network


_ARCHITECTURE = re.compile(r"[A-Za-z0-9_.]+")  # without timm's "hf-hub:" and "local-dir:", which fetch and open


def _build(
    name: str, num_classes: int, arguments: dict[str, Any], factory: str | None, others: Sequence[str]
) -> nn.Module:
    library, _, architecture = name.partition("/")
    if library in ("torchvision", "timm") and architecture and not _ARCHITECTURE.fullmatch(architecture):
        raise UserError(
            f"{printable(name)!r} is no name of a {library} network; nothing is fetched or opened by a name"
        )
    if library == "torchvision" and architecture:
        models = require("torchvision.models", "all")
        try:
            return models.get_model(architecture, num_classes=num_classes, **arguments)
        except Exception as error:  # a network ends in any way on arguments that it does not expect
            raise UserError(f"torchvision cannot build {architecture!r}: {first_line(error)}") from error
    if library == "timm" and architecture:
        timm = require("timm", "timm")
        try:
            return timm.create_model(architecture, num_classes=num_classes, **arguments)
        except Exception as error:
            raise UserError(f"timm cannot build {architecture!r}: {first_line(error)}") from error
    if name == "factory":
        return network_from_factory(factory, num_classes=num_classes, **arguments)
    known = ", ".join([*others, "torchvision/NAME", "timm/NAME", "factory"])
    raise UserError(f"there is no model {name!r}; there are: {known}")


def arguments_to_keep(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a network as its manifest keeps them: without those that fetch weights."""
    fetching = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "weights",
                "weights_backbone")  # fmt: skip
    return {name: value for name, value in arguments.items() if name not in fetching}


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
    # A console script does not have the current folder on its path, where a user's own module lies. It comes last, so
    # that no file there takes the place of an installed package.
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        return getattr(import_module(module_name), name)
    except Exception as error:  # the user's module runs here, and may end in any way
        raise UserError(
            f"{setting} {path!r} cannot be imported: {type(error).__name__}: {first_line(error)}"
        ) from error


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
    except Exception as error:
        given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        raise UserError(
            f"{setting} {factory!r} failed when called with {given}: {type(error).__name__}: {first_line(error)}"
        ) from error
    if not isinstance(network, nn.Module):
        raise UserError(f"{setting} {factory!r} gave a {type(network).__name__}, not a torch.nn.Module")
    return network
