"""The teacher's form: words and patches through one transformer (ViLT)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.systems.dual_encoder.networks.blocks import Attention, Pooler
from tenfold.systems.dual_encoder.networks.embeddings import Sizes, TextEmbeddings, Transformer, image_token_mask


def answer_head(sizes: Sizes, answers: int) -> nn.Sequential:
    """``Linear(images * D -> 2D), LayerNorm, GELU, Linear(2D -> answers)``, for one image or a pair.

    Args:
        sizes: see ``Sizes``.
        answers: number of scores.
    """
    hidden = 2 * sizes.width
    return nn.Sequential(
        nn.Linear(sizes.images * sizes.width, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, answers)
    )


class FusionEncoder(nn.Module):
    """ViLT: every question runs together with its image through all blocks (the teacher of the paper, section 3.1).

    Args:
        sizes: see ``Sizes``; or a mapping of them.
        answers: number of answers that it scores.

    Example:
        >>> model = FusionEncoder({"vocabulary": 9, "width": 8, "layers": 1, "heads": 2, "patch": 4, "grid": 2}, 3)
        >>> model(torch.ones(1, 5, dtype=torch.long), None, torch.rand(1, 1, 3, 8, 8)).shape
        torch.Size([1, 3])
    """

    def __init__(self, sizes: Sizes | Mapping[str, Any], answers: int) -> None:
        super().__init__()
        sizes = sizes if isinstance(sizes, Sizes) else Sizes(**sizes)
        self.sizes = sizes
        self.text_embeddings = TextEmbeddings(sizes)
        self.token_type_embeddings = nn.Embedding(1 + sizes.images, sizes.width)  # of the modality: words, images
        self.transformer = Transformer(sizes)
        self.pooler = Pooler(sizes.width)
        self.classifier = answer_head(sizes, answers)
        initialize(self)

    def encode(
        self, text: Tensor, text_mask: Tensor | None, pixels: Tensor, patch_mask: Tensor | None, side: Tensor | int = 0
    ) -> Tensor:
        """All tokens after the last norm, ``(batch, n + 1 + patches, D)``, text first.

        Args:
            text: ``(batch, n)`` token numbers.
            text_mask: ``(batch, n)`` booleans, true for words.
            pixels: ``(batch, 3, height, width)`` normalized.
            patch_mask: ``(batch, rows, columns)``, true for real patches.
            side: which image of a pair, ``(batch,)`` or one number.
        """
        words = self.text_embeddings(text) + self.token_type_embeddings.weight[0]
        kind = self.token_type_embeddings.weight[1 + side]
        patches = self.transformer.embed(pixels, patch_mask) + (kind if kind.ndim == 1 else kind[:, None])
        mask = None
        if text_mask is not None or patch_mask is not None:
            device = text.device
            if text_mask is None:
                text_mask = torch.ones(text.shape, dtype=torch.bool, device=device)
            image = image_token_mask(patch_mask)
            if image is None:
                image = torch.ones(patches.shape[:2], dtype=torch.bool, device=device)
            mask = torch.cat([text_mask, image], 1)
        return self.transformer.run(torch.cat([words, patches], 1), mask)

    def forward(
        self, text: Tensor, text_mask: Tensor | None, pixels: Tensor, patch_mask: Tensor | None = None
    ) -> Tensor:
        """Scores of all answers.

        Args:
            text: ``(batch, n)`` token numbers.
            text_mask: ``(batch, n)`` booleans, true for words; all are where ``None``.
            pixels: ``(batch, images, 3, height, width)`` normalized.
            patch_mask: ``(batch, images, rows, columns)`` booleans, true for real patches; all are where ``None``.

        Returns:
            ``(batch, answers)``.
        """
        images = images_per_question(pixels, self.sizes.images)
        sides = torch.arange(images, device=pixels.device).repeat(len(text)) if images > 1 else 0
        words = text.repeat_interleave(images, 0)
        real = None if text_mask is None else text_mask.repeat_interleave(images, 0)
        patches = None if patch_mask is None else patch_mask.flatten(0, 1)
        x = self.encode(words, real, pixels.flatten(0, 1), patches, sides)
        return self.classifier(self.pooler(x).unflatten(0, (-1, images)).flatten(1))


def images_per_question(pixels: Tensor, images: int) -> int:
    """The number of images of each question of a batch.

    Raises:
        UserError: the batch has another shape, or another number of images than the model takes.
    """
    if pixels.ndim != 5 or pixels.shape[1] != images:
        raise UserError(
            f"pixels must be (batch, {images}, 3, height, width), {images} image(s) per question; got "
            f"{tuple(pixels.shape)}"
        )
    return images


@torch.no_grad()
def initialize(module: nn.Module, deviation: float = 0.02) -> None:
    """BERT's initial weights: normal with a deviation of 0.02, zero biases, norms that do nothing.

    Args:
        module: all its linear layers, convolutions, embeddings and norms are set; class token and positions, too.
        deviation: of the normal distribution.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d | nn.Embedding):
            nn.init.normal_(part.weight, std=deviation)
            if getattr(part, "bias", None) is not None:
                nn.init.zeros_(part.bias)  # type: ignore[arg-type]
        if isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
        if isinstance(part, Transformer) and hasattr(part, "pos_embed"):
            nn.init.trunc_normal_(part.pos_embed, std=deviation)
            nn.init.trunc_normal_(part.cls_token, std=deviation)
        if isinstance(part, TextEmbeddings):
            part.word_embeddings.weight[0].zero_()


@torch.no_grad()
def sharpen(model: nn.Module, words: float = 0.3, patches: float = 1.0, sharper: float = 2.0) -> None:
    """Initial weights for small networks that start from nothing: positions that can be told apart from the start.

    With the usual small deviations a network of a few blocks stays at chance on questions of place for thousands of
    steps.

    Args:
        model: an encoder or tower of this package.
        words: deviation of word, position and modality embeddings.
        patches: deviation of image positions.
        sharper: factor of the weights of queries and keys.
    """
    for part in model.modules():
        if isinstance(part, TextEmbeddings):
            nn.init.normal_(part.word_embeddings.weight, std=words)
            nn.init.normal_(part.position_embeddings.weight, std=words)
        if isinstance(part, Transformer | Pooler):
            for linear in [m for m in part.modules() if isinstance(m, nn.Linear | nn.Conv2d)]:
                linear.reset_parameters()
            for attention in [m for m in part.modules() if isinstance(m, Attention)]:
                attention.qkv.weight[: 2 * attention.proj.in_features] *= sharper
        if isinstance(part, Transformer) and hasattr(part, "pos_embed"):
            nn.init.normal_(part.pos_embed, std=patches)
