"""Official checkpoints and settings of BoostNet, MSDNet-PyTorch and RANet-pytorch.

============================  ======================================================
official key                  ours
============================  ======================================================
``blocks.n.`` (MSDNet)        ``stages.n.``
``FirstLayer.`` (RANet)       ``stages.0.stem.``
``scale_flows.s.j.`` (RANet)  ``stages.n.blocks.k.``: block j of sub-network s belongs
                              to stage ``n = max(B_s, j)``, ``k = j`` if ``n = B_s``
``classifier.n.``             ``heads.n.``
============================  ======================================================

The rest of a key is the same. The files that lie beside a checkpoint are read by
``official_files``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenfold.errors import UserError
from tenfold.systems.boosted_exits.networks.msdnet import PUBLISHED_MSDNETS, MSDNet, published_msdnet
from tenfold.systems.boosted_exits.networks.official_files import read_lines, read_saved
from tenfold.systems.boosted_exits.networks.ranet import PUBLISHED_RANETS, RANet, published_ranet

Backbone = MSDNet | RANet

BOOSTED_REWEIGHT = 0.5
"""Factor of the older ensemble in all of BoostNet's published settings."""


def load_official(path: str | Path, model: Backbone | str | None = None) -> Backbone:
    """Read an official checkpoint.

    Args:
        path: BoostNet's ``model_latest.pth`` or ``model_best.pth``; ``checkpoint_NNN.pth.tar`` or
            ``model_best.pth.tar`` of MSDNet-PyTorch and RANet-pytorch; or their ``latest.txt``, which names one.
        model: what the weights go into, in place; the name of a published network; or ``None`` for the published
            network that the shapes fit. For the latter two, the numbers of classes and of image channels follow
            from the file, and so does the ensemble: 0.5 for BoostNet's files, 0 (none) for the others'.

    Returns:
        The model, in training mode as a new module is.

    Raises:
        UserError: the file cannot be read, is not such a checkpoint, holds other objects than tensors and plain values,
            has weights that are not finite, or does not fit the model exactly: the message names the first key.
    """
    path = _follow_latest(Path(path))
    weights, boosted = _find_weights(read_saved(path), path)
    if model is None or isinstance(model, str):
        model = _published_for(weights, path, model, BOOSTED_REWEIGHT if boosted else 0.0)
    try:
        model.load_state_dict(official_to_ours(weights, model))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return model


def official_to_ours(state_dict: Mapping[str, Tensor], model: Backbone) -> dict[str, Tensor]:
    """State dict of ``model`` from one with official keys, with or without the prefix ``module.``.

    Counters of batches, which files older than PyTorch 0.4.1 lack, become 0 where missing.

    Args:
        state_dict: tensors by official key.
        model: the network they are for; left as it is.

    Raises:
        UserError: a key is missing, unexpected or of another shape, or a weight is not finite.
    """
    given = {key.removeprefix("module."): value for key, value in state_dict.items()}
    kind = type(model).__name__
    converted = {}
    for ours, current in model.state_dict().items():
        official = _official_name(ours, model)
        value = given.pop(official, None)
        if value is None and ours.endswith(".num_batches_tracked"):
            value = torch.zeros_like(current)
        if value is None:
            raise UserError(f"key {official!r} is missing for this {kind}; give the settings the file was made with")
        if value.shape != current.shape:
            raise UserError(
                f"key {official!r} has shape {tuple(value.shape)}, but this {kind} needs {tuple(current.shape)}; "
                f"give the settings the file was made with"
            )
        if not value.isfinite().all():
            raise UserError(f"key {official!r} holds values that are not finite; the training had diverged")
        converted[ours] = value
    if given:
        raise UserError(f"key {next(iter(given))!r} is none of this {kind}'s; give the settings the file was made with")
    return converted


def ours_to_official(model: Backbone) -> dict[str, Tensor]:
    """The model's state dict with official keys, without the prefix ``module.``.

    Args:
        model: an MSDNet or a RANet.
    """
    return {_official_name(key, model): value for key, value in model.state_dict().items()}


def _official_name(key: str, model: Backbone) -> str:
    part, index, rest = key.split(".", 2)
    if part == "heads":
        return f"classifier.{index}.{rest}"
    if isinstance(model, MSDNet):
        return f"blocks.{index}.{rest}"
    if rest.startswith("stem."):
        return f"FirstLayer.{rest.removeprefix('stem.')}"
    # Stage n opens sub-network s where n = B_s, and holds its blocks 0..n; else it holds block n alone.
    stage = int(index)
    _, position, rest = rest.split(".", 2)
    sub_network = sum(until <= stage for until in model.blocks_until) - 1
    block = position if stage == model.blocks_until[sub_network] else index
    return f"scale_flows.{sub_network}.{block}.{rest}"


def _follow_latest(path: Path) -> Path:
    if path.suffix != ".txt":
        return path
    lines = read_lines(path)
    if not lines:
        raise UserError(f"{path} is empty; it should hold the path of a checkpoint")
    # The path was written on the machine of the training; moved, checkpoint and latest.txt still lie side by side.
    named = Path(lines[0].strip())
    for candidate in (path.parent / named, path.parent / named.name):
        if candidate.is_file():
            return candidate
    raise UserError(f"{path} names the checkpoint {named.name}, which is not in its folder; put it there")


def _find_weights(content: Any, path: Path) -> tuple[Mapping[str, Tensor], bool]:
    """The state dict, and whether the file is BoostNet's."""
    weights = content.get("state_dict") if isinstance(content, dict) else None
    boosted = False
    if isinstance(weights, dict) and set(weights) == {"model"}:
        weights, boosted = weights["model"], True
    if not isinstance(weights, dict) or not weights:
        raise UserError(f"{path} is no checkpoint of BoostNet, MSDNet-PyTorch or RANet-pytorch: it has no 'state_dict'")
    for key, value in weights.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(f"{path} is no checkpoint: its state_dict holds {key!r}, which is not a tensor's name")
    return weights, boosted


def _published_for(weights: Mapping[str, Tensor], path: Path, name: str | None, reweight: float) -> Backbone:
    weights = {key.removeprefix("module."): value for key, value in weights.items()}
    is_ranet = any(key.startswith("scale_flows.") for key in weights)
    stem = "FirstLayer.layers.0" if is_ranet else "blocks.0.0.layers.0"
    first = weights.get(f"{stem}.net.0.weight", weights.get(f"{stem}.0.weight"))
    last = weights.get("classifier.0.linear.weight")
    if first is None or last is None or first.ndim != 4 or last.ndim != 2 or not first.numel() * last.numel():
        raise UserError(f"{path} holds weights of neither MSDNet nor RANet")
    changes = {"num_classes": len(last), "image_channels": first.shape[1], "reweight": reweight}
    if name is not None:
        return _published(name, changes)
    candidates = list(PUBLISHED_RANETS if is_ranet else PUBLISHED_MSDNETS)
    for candidate in candidates:
        with torch.device("meta"):
            shapes = _shapes(ours_to_official(_published(candidate, changes)))
        if shapes == _shapes(weights):
            return _published(candidate, changes)
    raise UserError(
        f"{path} fits none of the published settings ({', '.join(candidates)}): give the settings it was trained with, "
        "in --settings (args.pth, args.txt, log.txt or the script), or a model of parse_official_arguments"
    )


def _published(name: str, changes: dict[str, Any]) -> Backbone:
    if name in PUBLISHED_RANETS:
        return published_ranet(name, **changes)
    if name in PUBLISHED_MSDNETS:
        return published_msdnet(name, **changes)
    names = ", ".join([*PUBLISHED_MSDNETS, *PUBLISHED_RANETS])
    raise UserError(f"there is no published network {name!r}; choose one of {names}")


def _shapes(state_dict: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Shapes of all but the counters of batches, which old files lack."""
    return {key: value.shape for key, value in state_dict.items() if not key.endswith(".num_batches_tracked")}
