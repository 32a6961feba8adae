"""Teachers and students by name and weights: the sizes of the settings, timm's networks, transformers' folders."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from tenfold.errors import UserError, require
from tenfold.export import load_manifest, load_weights
from tenfold.systems.relation_distillation.alignment import set_heads_per_block
from tenfold.systems.relation_distillation.model import freeze_positions, vision_transformer


def build_vit(
    name: str,
    *,
    image_size: int,
    channels: int,
    num_classes: int = 0,
    patch: int = 16,
    width: int = 192,
    depth: int = 12,
    heads: int | Sequence[int] = 3,
) -> Any:
    """A vision transformer to be pre-trained (no classes) or fine-tuned.

    Args:
        name: ``vit``, or ``timm/NAME``, whose own sizes then count.
        image_size: side of the images.
        channels: of the images.
        num_classes: 0 for pre-training.
        patch: side of the patches of ``vit``.
        width: of ``vit``.
        depth: of ``vit``.
        heads: of all blocks or one number per block; of ``timm/NAME`` only where one per block.

    Raises:
        UserError: an unknown name, or sizes that do not fit.
    """
    if name == "vit":
        return vision_transformer(
            image_size=image_size, patch=patch, width=width, depth=depth, heads=heads, channels=channels,
            num_classes=num_classes,
        )  # fmt: skip
    library, _, architecture = name.partition("/")
    if library != "timm" or not architecture:
        raise UserError(f"there is no network {name!r}; there are: vit, timm/NAME")
    timm = require("timm", "timm")
    options = {"img_size": image_size, "in_chans": channels, "num_classes": num_classes}
    try:
        model = timm.create_model(architecture, global_pool="avg" if num_classes else "", **options)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise UserError(f"timm cannot build {architecture!r} for images of {image_size} pixels: {error}") from error
    if not hasattr(model, "blocks") or not hasattr(model, "num_prefix_tokens"):
        raise UserError(f"timm's {architecture!r} is no vision transformer; choose a vit_..., deit3_... or eva02_...")
    if not isinstance(heads, int):
        set_heads_per_block(model, list(heads))
    return model


def pretraining_student(name: str, **sizes: Any) -> Any:
    """A student before its pre-training: positions of ``vit`` are fixed, as published."""
    model = build_vit(name, **sizes)
    if name == "vit":
        freeze_positions(model)
    return model


@dataclass(frozen=True)
class Teacher:
    """A frozen network with the statistics it was trained with.

    Attributes:
        network: in eval mode.
        mean: per channel; ``None`` for the data's.
        std: likewise.
        fingerprint: SHA-256 of its weights.
        source: where it comes from, in words.
    """

    network: Any
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    fingerprint: str
    source: str


def load_model_folder(folder: str | Path) -> Any:
    """The network of a model folder of this system, in eval mode.

    Raises:
        UserError: the folder holds no such network, or its weights are damaged or do not fit.
    """
    manifest = load_manifest(folder)
    if manifest.system != "relation-distillation":
        raise UserError(f"{folder} holds a model of {manifest.system!r}, not of relation-distillation")
    model = build_vit(manifest.builder, **manifest.arguments)
    load_weights(model, folder)
    return model.eval()


def load_transformers(folder: str | None) -> Any:
    """A transformers network from a local folder; nothing is fetched.

    Raises:
        UserError: transformers is missing, or the folder holds no model.
    """
    transformers = require("transformers", "transformers")
    if folder is None or not Path(folder).is_dir():
        raise UserError(f"teacher.weights must be a folder with a transformers model; got {folder!r}")
    try:
        return transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder} holds no transformers model: {' '.join(str(error).split())[:200]}") from error


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of a network's weights."""
    state = {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
    return hashlib.sha256(save(state)).hexdigest()


@torch.no_grad()
def largest_difference(one: Any, other: Any, images: torch.Tensor) -> float:
    """Largest difference of the tokens that two ViTs give after their blocks, both in eval mode."""
    found = []
    for model in (one, other):
        seen: list[torch.Tensor] = []
        training = model.training
        model.eval()
        handle = model.blocks[-1].register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output))
        try:
            model(images)
        finally:
            handle.remove()
            model.train(training)
        found.append(seen[0])
    return float((found[0] - found[1]).abs().max())
