"""Masked autoencoders (He et al., CVPR 2022): how teachers are pre-trained, and the baseline on the student itself.


visible = encoder on a quarter of the patches
decoder on all tokens, a learnt mask token for each that is missing
loss = mean square over the missing patches' pixels, each patch normalized by its own mean and deviation
"""

from typing import Any

import torch
from torch import Tensor, nn

from tenfold.errors import UserError, require
from tenfold.systems.relation_distillation.vit.patch_masks import PatchMasks, keep_patches
from tenfold.systems.relation_distillation.vit.vision_transformer import sincos_positions


class MAEDecoder(nn.Module):
    """Reconstructs the pixels of the patches that an encoder did not see; names as in the official files.

    Args:
        encoder: a timm ViT whose output is all its tokens; gives width, patch size and grid.
        width: of the decoder's tokens; 512 as published.
        depth: number of blocks; 8 as published.
        heads: of each block; 16 as published.
        normalize: predict pixels normalized within each patch, as published.
    """

    def __init__(
        self, encoder: Any, *, width: int = 512, depth: int = 8, heads: int = 16, normalize: bool = True
    ) -> None:
        super().__init__()
        block = require("timm.models.vision_transformer", "timm").Block
        if width % heads:
            raise UserError(f"the decoder's width {width} is not a multiple of its {heads} heads")
        self.patch = int(encoder.patch_embed.patch_size[0])
        self.normalize = normalize
        self.prefix = int(encoder.num_prefix_tokens)
        channels = encoder.patch_embed.proj.in_channels
        positions = sincos_positions(width, encoder.patch_embed.grid_size, self.prefix)
        self.decoder_embed = nn.Linear(encoder.embed_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_pos_embed = nn.Parameter(positions, requires_grad=False)
        self.decoder_blocks = nn.ModuleList(block(width, heads, 4.0, qkv_bias=True) for _ in range(depth))
        self.decoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder_pred = nn.Linear(width, self.patch**2 * channels)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.mask_token, std=0.02)

    def predict(self, tokens: Tensor, keep: Tensor) -> Tensor:
        """Pixels of all patches ``(batch, patches, patch * patch * channels)``.

        Args:
            tokens: ``(batch, prefix + visible, encoder width)`` the encoder's output.
            keep: ``(batch, visible)`` which patches they are of.
        """
        embedded = self.decoder_embed(tokens)
        patches = self.decoder_pos_embed.shape[1] - self.prefix
        everywhere = self.mask_token.to(embedded.dtype).expand(len(tokens), patches, -1)
        index = keep[..., None].expand(-1, -1, embedded.shape[-1])
        filled = everywhere.scatter(1, index, embedded[:, self.prefix :])
        x = torch.cat([embedded[:, : self.prefix], filled], 1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, self.prefix :]

    def forward(self, tokens: Tensor, keep: Tensor, images: Tensor) -> Tensor:
        """Reconstruction loss over the missing patches, a scalar.

        Args:
            tokens: see `predict`.
            keep: see `predict`.
            images: ``(batch, channels, height, width)`` as the encoder saw them.
        """
        target = patchify(images, self.patch)
        if self.normalize:
            variance, mean = torch.var_mean(target, -1, keepdim=True)
            target = (target - mean) / (variance + 1e-6).sqrt()
        errors = (self.predict(tokens, keep).float() - target.float()).square().mean(-1)
        missing = torch.ones_like(errors).scatter(1, keep, 0.0)
        return (errors * missing).sum() / missing.sum()


def patchify(images: Tensor, patch: int) -> Tensor:
    """``(batch, channels, height, width)`` to ``(batch, patches, patch * patch * channels)``, channels last."""
    x = images.unfold(2, patch, patch).unfold(3, patch, patch)  # batch, channels, rows, columns, patch, patch
    return x.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)


class MaskedAutoencoder(nn.Module):
    """An encoder with its decoder; the forward pass is the loss of a batch.

    Args:
        encoder: a pre-training ViT of `vision_transformer`.
        mask_ratio: share of the patches that is masked; 0.75 as published.
        decoder_width: see `MAEDecoder`.
        decoder_depth: see `MAEDecoder`.
        decoder_heads: see `MAEDecoder`.
        normalize: see `MAEDecoder`.
    """

    def __init__(
        self,
        encoder: Any,
        *,
        mask_ratio: float = 0.75,
        decoder_width: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        if not 0 < mask_ratio < 1:
            raise UserError(f"mask_ratio is a share of the patches, in (0, 1); got {mask_ratio}")
        self.encoder = encoder
        self.masks = PatchMasks(mask_ratio)
        self.decoder = MAEDecoder(
            encoder, width=decoder_width, depth=decoder_depth, heads=decoder_heads, normalize=normalize
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """``{"loss"}`` of images ``(batch, channels, height, width)``, masked anew in every call."""
        keep = self.masks(self.encoder, images)
        with keep_patches(self.encoder, keep):
            tokens = self.encoder(images)
        return {"loss": self.decoder(tokens, keep, images)}
