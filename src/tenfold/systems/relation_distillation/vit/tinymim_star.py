"""TinyMIM*: the strongest published tiny network, fine-tuned with a distillation token.

The layout follows the released file's keys. That both tokens go through one bottleneck and that their logits are
averaged in use is reconstructed from DeiT.
"""

from typing import Any

import torch
from torch import Tensor, nn

from tenfold.systems.relation_distillation.vit.vision_transformer import vision_transformer


class TinyMIMStar(nn.Module):
    """A ViT with class and distillation token, a wide bottleneck and two heads.

    Args:
        image_size: side of the images in pixels.
        patch: side of the patches.
        width: of the tokens.
        depth: number of blocks.
        heads: of all blocks; 12 as published.
        channels: of the images.
        num_classes: of both heads.
        bottleneck: width before the heads; 1280 as published.
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch: int,
        width: int,
        depth: int,
        heads: int = 12,
        channels: int = 3,
        num_classes: int = 1000,
        bottleneck: int = 1280,
    ) -> None:
        super().__init__()
        base = vision_transformer(
            image_size=image_size,
            patch=patch,
            width=width,
            depth=depth,
            heads=heads,
            channels=channels,
            prefix_tokens=2,
        )
        self.cls_token, self.dist_token = base.cls_token, base.reg_token
        self.pos_embed, self.patch_embed, self.blocks = base.pos_embed, base.patch_embed, base.blocks
        self.embed_dim, self.num_prefix_tokens, self.num_classes = width, 2, num_classes
        self.conv1x1 = nn.Sequential(nn.LayerNorm(width, eps=1e-6), nn.Linear(width, bottleneck), nn.GELU())
        self.head, self.head_dist = nn.Linear(bottleneck, num_classes), nn.Linear(bottleneck, num_classes)

    def forward(self, images: Tensor) -> Any:
        """Logits ``(batch, classes)``: in training of both heads as a pair, in use their mean."""
        x = self.patch_embed(images)
        tokens = [token.expand(len(x), -1, -1) for token in (self.cls_token, self.dist_token)]
        x = self.blocks(torch.cat([*tokens, x], 1) + self.pos_embed)
        own, distilled = self.conv1x1(x[:, :2]).unbind(1)
        pair = self.head(own), self.head_dist(distilled)
        return pair if self.training else (pair[0] + pair[1]) / 2
