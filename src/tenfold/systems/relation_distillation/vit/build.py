"""Vision transformers by name and sizes: those of the settings, and timm's."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tenfold.attention.heads import set_heads_per_block
from tenfold.errors import UserError, require
from tenfold.models.folder import Manifest, load_manifest, load_weights, no_larger_than_its_files, refuse_code
from tenfold.systems.relation_distillation.vit.preprocessing import preprocessing_of
from tenfold.systems.relation_distillation.vit.vision_transformer import freeze_positions, vision_transformer

SYSTEM = "relation-distillation"

TIMM_ARGUMENTS = frozenset(
    {
        "attn_drop_rate",
        "class_token",
        "depth",
        "drop_path_rate",
        "drop_rate",
        "dynamic_img_size",
        "embed_dim",
        "init_values",
        "mlp_ratio",
        "no_embed_class",
        "num_heads",
        "patch_size",
        "pos_drop_rate",
        "proj_drop_rate",
        "qk_norm",
        "qkv_bias",
        "reg_tokens",
        "use_abs_pos_emb",
        "use_rel_pos_bias",
        "use_rot_pos_emb",
    }
)
"""Arguments of timm's networks that settings and files may name: sizes and switches, no file and no class."""

_SIZES = {"image_size": 16384, "channels": 64, "num_classes": 10**7, "patch": 4096, "width": 65536, "depth": 1024}
"""The sizes that a model folder may name, and the largest that is taken from one."""


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
    arguments: Mapping[str, Any] | None = None,
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
        arguments: further ones of ``timm/NAME``, out of `TIMM_ARGUMENTS`.

    Raises:
        UserError: an unknown name, or sizes or arguments that do not fit.
    """
    if name == "vit":
        if arguments:
            raise UserError("only timm/NAME takes further arguments; the sizes of vit have settings of their own")
        return vision_transformer(
            image_size=image_size,
            patch=patch,
            width=width,
            depth=depth,
            heads=heads,
            channels=channels,
            num_classes=num_classes,
        )
    library, _, architecture = name.partition("/")
    if library != "timm" or not architecture:
        raise UserError(f"there is no network {name!r}; there are: vit, timm/NAME")
    options = {"img_size": image_size, "in_chans": channels, "num_classes": num_classes, **_plain(arguments or {})}
    timm = require("timm", "timm")
    if not timm.is_model(architecture):  # its own addresses of files and hubs among them
        near = ", ".join(timm.list_models(f"*{architecture.partition('_')[0]}*")[:3]) or "vit_tiny_patch16_224"
        raise UserError(f"timm has no network {architecture!r}; it has such as {near}")
    try:
        model = timm.create_model(architecture, pretrained=False, global_pool="avg" if num_classes else "", **options)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"timm cannot build {architecture!r} for images of {image_size} pixels: {said}") from error
    if not hasattr(model, "blocks") or not hasattr(model, "num_prefix_tokens"):
        raise UserError(f"timm's {architecture!r} is no vision transformer; choose a vit_..., deit3_... or eva02_...")
    if not isinstance(heads, int):
        set_heads_per_block(model, list(heads))
    return model


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in arguments.items():
        if name not in TIMM_ARGUMENTS:
            raise UserError(f"the argument {name!r} is not taken; there are: {', '.join(sorted(TIMM_ARGUMENTS))}")
        if not isinstance(value, bool | int | float):
            raise UserError(f"the argument {name!r} is a number or true or false; got {value!r}")
    return dict(arguments)


def pretraining_student(name: str, **sizes: Any) -> Any:
    """A student before its pre-training: positions of ``vit`` are fixed, as published."""
    model = build_vit(name, **sizes)
    if name == "vit":
        freeze_positions(model)
    return model


def network_of(manifest: Manifest) -> Any:
    """The network that a manifest describes, with weights of its own.

    Raises:
        UserError: the manifest is of another system, or names what no network here has.
    """
    if manifest.system != SYSTEM:
        raise UserError(f"the model is of {manifest.system!r}, not of {SYSTEM}")
    sizes = dict(manifest.arguments)
    heads, further = sizes.pop("heads", 3), sizes.pop("arguments", {})
    for name, value in sizes.items():
        if name not in _SIZES or type(value) is not int or not 0 <= value <= _SIZES[name]:
            raise UserError(f"the model's manifest names {name} = {value!r}, which no vision transformer here has")
    counts = heads if isinstance(heads, list) else [heads]
    if not all(type(count) is int and count > 0 for count in counts) or not isinstance(further, dict):
        raise UserError("the model's manifest names heads or arguments that no vision transformer here has")
    missing = {"image_size", "channels"} - set(sizes)
    if missing:
        raise UserError(f"the model's manifest lacks {sorted(missing)[0]}")
    return build_vit(manifest.builder, **sizes, heads=heads, arguments=further)


def load(folder: str | Path, *, factory: str | None = None) -> Any:
    """The served network of a run or model folder, in eval mode: maps normalized images to logits, or to tokens.

    Args:
        folder: of a run, of a verb's training, or of a model; ``RUN/pretrained`` is the student before fine-tuning.
        factory: code of the user's own that may run; models of this system have none.

    Returns:
        The network; ``preprocessing`` on it says what its images go through, ``classes`` what its logits mean (empty
        for a pre-trained one).

    Raises:
        UserError: the folder holds no such model, or its files are damaged.
    """
    manifest = load_manifest(folder, SYSTEM)
    refuse_code(manifest, factory)
    model = load_model_folder(folder)
    model.preprocessing, model.classes = preprocessing_of(manifest), tuple(manifest.extra.get("classes") or ())
    return model


def load_model_folder(folder: str | Path) -> Any:
    """The network of a model folder of this system, in eval mode.

    Raises:
        UserError: the folder holds no such network, or its weights are damaged or do not fit.
    """
    try:
        manifest = load_manifest(folder)
        with no_larger_than_its_files(folder, manifest.arguments):
            model = network_of(manifest)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
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
