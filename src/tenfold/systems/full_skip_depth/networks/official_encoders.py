"""Encoder weights of BTS and AdaBins checkpoints, under timm's names."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.models.checkpoints import read_checkpoint
from tenfold.systems.full_skip_depth.networks.encoders import TimmEncoder

OfficialFormat = Literal["bts", "adabins"]
_PREFIXES = {"bts": "encoder.base_model.", "adabins": "encoder.original_model."}


def encoder_state(path: str | Path, format: OfficialFormat) -> dict[str, Tensor]:
    """The encoder's tensors of an official checkpoint, without the programs' own prefixes.

    Args:
        path: the file; ``{"model": {"module.encoder...": tensor}}``. Nothing in it is executed.
        format: ``bts`` (torchvision's encoders) or ``adabins`` (timm's EfficientNet-B5).

    Raises:
        UserError: the file holds no such encoder.
    """
    if format not in _PREFIXES:
        raise UserError(f"there is no checkpoint format {format!r}; there are: bts, adabins")
    content = read_checkpoint(path)
    state = content.get("model", content)
    if not isinstance(state, Mapping):
        raise UserError(f"{path}: 'model' is no state dict")
    named = {str(name).removeprefix("module."): value for name, value in state.items()}
    prefix = _PREFIXES[format]
    found = {n.removeprefix(prefix): v for n, v in named.items() if n.startswith(prefix) and isinstance(v, Tensor)}
    if not found:
        raise UserError(f"{path} holds no encoder of {format} (no key begins with 'module.{prefix}')")
    return found


def load_encoder(encoder: nn.Module, path: str | Path, format: OfficialFormat) -> list[str]:
    """Load an official checkpoint's encoder into one of timm.

    torchvision's ResNets and ResNeXts have timm's names but for nothing; its DenseNets differ by timm's ``features.``
    and the old ``norm.1`` for ``norm1``; AdaBins' EfficientNet is timm's, with ``blocks.1.0.`` as it stands.

    Args:
        encoder: a ``TimmEncoder`` of the same network.
        path: see ``encoder_state``.
        format: see there.

    Returns:
        Names of the checkpoint's tensors that the encoder does not use (classifier and layers after the last tap).

    Raises:
        UserError: a tensor of the encoder is missing, or has another shape.
    """
    if not isinstance(encoder, TimmEncoder):
        raise UserError("official encoders load into timm/NAME encoders only")
    own = encoder.body.state_dict()
    state = {_timm_name(name): value for name, value in encoder_state(path, format).items()}
    # features_only flattens some networks' children: blocks.0.0 becomes blocks_0_0 or keeps its name.
    by_flat = {_flat(name): name for name in state}
    chosen: dict[str, Tensor] = {}
    used: set[str] = set()
    for name, value in own.items():
        source = by_flat.get(_flat(name))
        if source is None:
            if name.endswith("num_batches_tracked"):
                chosen[name] = value
                continue
            raise UserError(f"{path} does not fit the encoder: it lacks {name!r}")
        if state[source].shape != value.shape:
            raise UserError(
                f"{path} does not fit the encoder: {name!r} has shape {tuple(state[source].shape)}, "
                f"not {tuple(value.shape)}"
            )
        chosen[name] = state[source]
        used.add(source)
    encoder.body.load_state_dict(chosen)
    return sorted(set(state) - used)


def _timm_name(name: str) -> str:
    """Timm's name of a tensor of an old torchvision network."""
    return re.sub(r"\.(norm|relu|conv)\.(\d)\.", r".\1\2.", name)


def _flat(name: str) -> str:
    return name.removeprefix("features.").replace(".", "_").removeprefix("features_")
