"""Teachers and students by name and weights: the sizes of the settings, timm's networks, transformers' folders."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tenfold.errors import UserError, require
from tenfold.export import load_manifest, load_weights
from tenfold.systems.relation_distillation.attention.heads import set_heads_per_block
from tenfold.systems.relation_distillation.vit.vision_transformer import freeze_positions, vision_transformer


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
