"""Vision transformers with the paper's settings, on timm's: sizes, positions, initialisation, heads of each block."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tenfold.attention.heads import set_heads_per_block
from tenfold.errors import UserError, require

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"width": 192, "depth": 12, "heads": 3},
    "small": {"width": 384, "depth": 12, "heads": 6},
    "base": {"width": 768, "depth": 12, "heads": 12},
    "large": {"width": 1024, "depth": 24, "heads": 16},
    "huge": {"width": 1280, "depth": 32, "heads": 16},
}
"""Widths, depths and heads by name; the patch is 16 pixels (14 for huge) and the MLP ratio 4 in all of them."""


def vision_transformer(
    *,
    image_size: int,
    patch: int,
    width: int,
    depth: int,
    heads: int | Sequence[int],
    channels: int = 3,
    num_classes: int = 0,
    prefix_tokens: int = 1,
    mlp_ratio: float = 4.0,
) -> Any:
    """A plain ViT as timm has it, with the keys of the official MAE and TinyMIM files.

    Without classes it is for pre-training: its output is all tokens after the final norm. With classes it is for
    fine-tuning: mean of the patch tokens, norm, linear head.

    Args:
        image_size: side of the images in pixels.
        patch: side of the patches; divides the image size.
        width: of the tokens.
        depth: number of blocks.
        heads: of all blocks, or one number per block.
        channels: of the images.
        num_classes: 0 for pre-training.
        prefix_tokens: tokens before the patches; the class token, then registers.
        mlp_ratio: width of the MLPs over ``width``.

    Raises:
        UserError: sizes that do not divide each other, or no depth.
    """
    timm_vit = require("timm.models.vision_transformer", "timm")
    per_block = [heads] * depth if isinstance(heads, int) else list(heads)
    if depth < 1 or patch < 1 or image_size % patch or prefix_tokens < 1:
        raise UserError(
            f"a ViT needs blocks, a class token, and a patch that divides its images of {image_size} pixels"
        )
    if len(per_block) != depth or any(count < 1 or width % count for count in per_block):
        raise UserError(f"heads must be {depth} numbers that divide the width {width}; got {per_block}")
    model = timm_vit.VisionTransformer(
        img_size=image_size,
        patch_size=patch,
        in_chans=channels,
        num_classes=num_classes,
        global_pool="avg" if num_classes else "",
        embed_dim=width,
        depth=depth,
        num_heads=per_block[0],
        mlp_ratio=mlp_ratio,
        reg_tokens=prefix_tokens - 1,
        norm_layer=_norm,
    )
    set_heads_per_block(model, per_block)
    initialise(model)
    return model


def _norm(width: int, **options: Any) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-6, **options)


def sincos_positions(width: int, grid: tuple[int, int], prefix: int = 1) -> Tensor:
    """Fixed two-dimensional sine-cosine positions in the official layout: first half by columns, second by rows.

    Args:
        width: of the tokens, a multiple of 4.
        grid: ``(rows, columns)`` of the patches.
        prefix: tokens before them, whose positions are zero.

    Returns:
        ``(1, prefix + rows * columns, width)`` float32.
    """
    if width % 4:
        raise UserError(f"sine-cosine positions need a width that is a multiple of 4; got {width}")
    frequencies = 1 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    parts = []
    for place in (columns, rows):  # the official meshgrid has columns first
        angle = place.reshape(-1, 1) * frequencies
        parts += [angle.sin(), angle.cos()]
    positions = torch.cat(parts, 1)
    return torch.cat([torch.zeros(prefix, width, dtype=torch.float64), positions]).float()[None]


@torch.no_grad()
def initialise(model: Any) -> None:
    """Xavier-uniform linears and patch projection (as a matrix), sine-cosine positions, class token of deviation 0.02.

    As MAE and TinyMIM pre-train; a classifier's head gets a deviation of 2e-5.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    projection = model.patch_embed.proj
    nn.init.xavier_uniform_(projection.weight.view(len(projection.weight), -1))
    nn.init.zeros_(projection.bias)
    for token in (model.cls_token, model.reg_token):
        if token is not None:
            nn.init.normal_(token, std=0.02)
    if isinstance(model.head, nn.Linear):
        nn.init.trunc_normal_(model.head.weight, std=2e-5)
    model.pos_embed.copy_(sincos_positions(model.embed_dim, model.patch_embed.grid_size, model.num_prefix_tokens))


def set_drop_path(model: Any, rate: float, shape: Literal["constant", "linear"] = "constant") -> None:
    """Drop paths of a timm ViT, per sample, in place.

    Args:
        model: the network.
        rate: ``constant``: in every block but the last, which has none (relation pre-training); ``linear``: of the
            last block, rising from 0 at the first (fine-tuning).
        shape: which of the two.
    """
    from timm.layers import DropPath

    if not 0 <= rate < 1:
        raise UserError(f"a drop path rate lies in [0, 1); got {rate}")
    last = len(model.blocks) - 1
    for number, block in enumerate(model.blocks):
        own = (rate if number < last else 0.0) if shape == "constant" else rate * number / max(last, 1)
        for name in ("drop_path1", "drop_path2"):
            setattr(block, name, DropPath(own) if own else nn.Identity())


def freeze_positions(model: Any) -> None:
    """Positions are fixed in pre-training and trained in fine-tuning."""
    model.pos_embed.requires_grad_(False)


def load_backbone(model: Any, state: Mapping[str, Tensor]) -> list[str]:
    """Start a classifier from a pre-trained ViT's weights.

    Positions are resized to the model's grid where they differ (bicubic). The pre-training norm is dropped: a
    classifier normalizes after its mean over patches, with a norm of its own.

    Args:
        model: a classifier of `vision_transformer`.
        state: weights of a pre-trained ViT, with or without a head.

    Returns:
        Names of the model's weights that were not in ``state`` and stay as they were.

    Raises:
        UserError: a weight that both have differs in shape.
    """
    own = model.state_dict()
    state = {name: value for name, value in state.items() if not name.startswith(("norm.", "decoder_", "mask_token"))}
    if "pos_embed" in state and state["pos_embed"].shape != own["pos_embed"].shape:
        state["pos_embed"] = resize_positions(state["pos_embed"], model.patch_embed.grid_size, model.num_prefix_tokens)
    for name, value in state.items():
        if name in own and value.shape != own[name].shape and not name.startswith("head."):
            raise UserError(
                f"the checkpoint is of another architecture: {name!r} has shape {tuple(value.shape)}, not "
                f"{tuple(own[name].shape)}"
            )
    fitting = {name: value for name, value in state.items() if name in own and value.shape == own[name].shape}
    if "blocks.0.attn.qkv.weight" not in fitting:
        raise UserError("the checkpoint holds no vision transformer of the official layout (blocks.0.attn.qkv.weight)")
    model.load_state_dict(fitting, strict=False)
    return [name for name in own if name not in fitting]


def resize_positions(positions: Tensor, grid: tuple[int, int], prefix: int) -> Tensor:
    """Positions ``(1, prefix + patches, width)`` of a square grid, resized bicubically to another grid.

    Without antialiasing, as MAE and TinyMIM resize theirs.
    """
    from timm.layers import resample_abs_pos_embed

    side = math.isqrt(positions.shape[1] - prefix)
    if side * side != positions.shape[1] - prefix:
        raise UserError(f"{positions.shape[1]} positions are no square grid after {prefix} prefix tokens")
    return resample_abs_pos_embed(
        positions, list(grid), old_size=[side, side], num_prefix_tokens=prefix, antialias=False
    )
