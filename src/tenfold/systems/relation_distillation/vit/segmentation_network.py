"""Semantic segmentation with a pre-trained ViT: relative positions, a pyramid of four scales, UPerNet."""

import math
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.attention.heads import heads_per_block
from tenfold.errors import UserError, require
from tenfold.systems.relation_distillation.data.ade20k import CLASSES
from tenfold.systems.relation_distillation.vit.vision_transformer import (
    load_backbone,
    vision_transformer,
)


class SegmentationNetwork(nn.Module):
    """A ViT with relative positions and layer scale in every block, a pyramid of four scales, UPerNet, auxiliary head.

    Tables of relative positions begin at zero and layer scales at one, so that the network begins as the pre-trained
    one computes (the zero is reconstructed).

    Args:
        backbone: pre-training ViT of ours; its weights and head counts are taken over.
        classes: number of classes.
        crop: side of the images in pixels, a multiple of the patch.
        channels: of the decoder; 768 as published.
        auxiliary_channels: of the auxiliary head; 256 as published.
        layer_scale: initial value.
    """

    def __init__(
        self,
        backbone: Any,
        *,
        classes: int = CLASSES,
        crop: int = 512,
        channels: int = 768,
        auxiliary_channels: int = 256,
        layer_scale: float = 1.0,
    ) -> None:
        super().__init__()
        upernet = require("transformers.models.upernet.modeling_upernet", "transformers")
        settings = require("transformers", "transformers").UperNetConfig(
            pool_scales=[1, 2, 3, 6],
            hidden_size=channels,
            auxiliary_channels=auxiliary_channels,
            auxiliary_num_convs=1,
            auxiliary_in_channels=None,
            auxiliary_concat_input=False,
            num_labels=classes,
        )
        width, patch = backbone.embed_dim, backbone.patch_embed.patch_size[0]
        if crop % patch:
            raise UserError(f"the crop of {crop} pixels is not a multiple of the patch of {patch}")
        self.classes, self.crop = classes, crop
        self.backbone = vision_transformer(
            image_size=crop,
            patch=patch,
            width=width,
            depth=len(backbone.blocks),
            heads=heads_per_block(backbone),
            channels=backbone.patch_embed.proj.in_channels,
            prefix_tokens=backbone.num_prefix_tokens,
        )
        load_backbone(self.backbone, backbone.state_dict())
        _add_relative_positions(self.backbone, layer_scale)
        self.backbone.norm = nn.Identity()
        depth = len(backbone.blocks)
        # 4, 6, 8 and 12 of 12.
        self.taken = [max(1, round(depth * share)) - 1 for share in (1 / 3, 1 / 2, 2 / 3, 1)]
        self.neck = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(width, width, 2, 2),
                    nn.BatchNorm2d(width),
                    nn.GELU(),
                    nn.ConvTranspose2d(width, width, 2, 2),
                ),
                nn.ConvTranspose2d(width, width, 2, 2),
                nn.Identity(),
                nn.MaxPool2d(2, 2),
            ]
        )
        self.decoder = upernet.UperNetHead(settings, [width] * 4)
        self.decoder.classifier = nn.Sequential(nn.Dropout2d(0.1), self.decoder.classifier)
        self.auxiliary = upernet.UperNetFCNHead(settings, [width] * 4)

    def scales(self, images: Tensor) -> list[Tensor]:
        """Features at 4, 2, 1 and half times the patch grid, ``(batch, width, height, width)`` each."""
        kept: list[Tensor] = []
        x = self.backbone.patch_embed(images)
        x = self.backbone._pos_embed(x)
        for number, block in enumerate(self.backbone.blocks):
            x = block(x)
            kept += [x] * self.taken.count(number)
        rows = columns = math.isqrt(x.shape[1] - self.backbone.num_prefix_tokens)
        maps = [t[:, self.backbone.num_prefix_tokens :].transpose(1, 2).unflatten(2, (rows, columns)) for t in kept]
        return [scale(one) for scale, one in zip(self.neck, maps, strict=True)]

    def forward(self, images: Tensor) -> Any:
        """Logits ``(batch, classes, crop, crop)``; in training also those of the auxiliary head."""
        scales = self.scales(images)
        resize = partial(F.interpolate, size=images.shape[-2:], mode="bilinear", align_corners=False)
        logits = resize(self.decoder(scales))
        return (logits, resize(self.auxiliary(scales))) if self.training else logits


def _add_relative_positions(model: Any, layer_scale: float) -> None:
    """Give each block's attention a table of relative positions of its own, and both branches a layer scale."""
    relpos = require("timm.models.vision_transformer_relpos", "timm")
    layers = require("timm.layers", "timm")

    class RelativeAttention(relpos.RelPosAttention):  # type: ignore[name-defined]
        def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
            return super().forward(x)

    for block in model.blocks:
        old = block.attn
        bias = partial(
            layers.RelPosBias, window_size=model.patch_embed.grid_size, prefix_tokens=model.num_prefix_tokens
        )
        new = RelativeAttention(model.embed_dim, old.num_heads, qkv_bias=True, rel_pos_cls=bias)
        new.load_state_dict(old.state_dict(), strict=False)
        nn.init.zeros_(new.rel_pos.relative_position_bias_table)
        block.attn = new
        block.ls1, block.ls2 = (layers.LayerScale(model.embed_dim, init_values=layer_scale) for _ in range(2))
