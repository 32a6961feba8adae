"""Depth models on disk: rebuilt from plain named values, nothing in a file acts."""

import inspect
from pathlib import Path
from typing import Any

from tenfold.errors import UserError
from tenfold.files import printable
from tenfold.models.folder import (
    Manifest,
    load_manifest,
    load_weights,
    no_larger_than_its_files,
    plain_arguments,
)
from tenfold.systems.full_skip_depth.delivery.onnx import Served
from tenfold.systems.full_skip_depth.networks.depth_network import FullSkipDepth, build_network

SYSTEM, BUILDER = "full-skip-depth", "depth-network"


def load_network(folder: str | Path) -> tuple[FullSkipDepth, Manifest]:
    """Rebuild the network of a run or model folder, in eval mode.

    Raises:
        UserError: the folder holds no depth model of this system, or weights that are not its own.
    """
    manifest = load_manifest(folder, SYSTEM)
    if manifest.builder != BUILDER:
        raise UserError(f"{folder} holds a network {printable(manifest.builder)!r}, which is none of {SYSTEM}")
    known = inspect.signature(build_network).parameters
    encoder = str(manifest.arguments.get("encoder", "")).removeprefix("timm/")
    others = {name: value for name, value in manifest.arguments.items() if name != "encoder"}
    plain_arguments(others | {"backbone": encoder}, folder)
    unknown = [name for name in manifest.arguments if name not in known]
    if unknown:
        raise UserError(f"{folder}: the manifest's argument {printable(unknown[0])!r} is none of a depth network's")
    try:
        with no_larger_than_its_files(folder, manifest.arguments):
            network = build_network(**manifest.arguments)
    except TypeError as error:
        raise UserError(f"{folder}: the manifest's arguments are not right: {error}") from error
    load_weights(network, folder)
    return network.eval(), manifest


def load(folder: str | Path, *, factory: str | None = None) -> Served:
    """The served network of a run or model folder, ready to call: images in [0, 1] to metres, calibration inside.

    Args:
        folder: of the run or model.
        factory: depth models are built by name only; a factory is refused.

    Raises:
        UserError: the folder holds no depth model of this system.
    """
    if factory is not None:
        raise UserError("depth models are built by name: --factory has no effect here")
    return served(*load_network(folder))


def served(network: FullSkipDepth, manifest: Manifest) -> Served:
    """The network with the calibration that its manifest holds, if any.

    Raises:
        UserError: the calibration is not of numbers.
    """
    calibration: Any = manifest.extra.get("calibration") or {}
    try:
        scale, shift = float(calibration.get("scale", 1.0)), float(calibration.get("shift", 0.0))
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError("the manifest's calibration is not a scale and a shift") from error
    return Served(network, scale, shift).eval()
