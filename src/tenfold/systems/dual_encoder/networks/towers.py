"""The student's towers in ViLT's form: words alone, patches alone; no weight is shared and none is without use."""

import torch
from torch import Tensor, nn

from tenfold.systems.dual_encoder.networks.blocks import Pooler
from tenfold.systems.dual_encoder.networks.embeddings import Sizes, TextEmbeddings, Transformer, image_token_mask
from tenfold.systems.dual_encoder.networks.fusion_encoder import initialize


class TextTower(nn.Module):
    """Words through their own transformer; the vector of ``[CLS]`` is the text's.

    Args:
        sizes: see ``Sizes``.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes, self.width = sizes, sizes.width
        self.text_embeddings = TextEmbeddings(sizes)
        self.modality = nn.Parameter(torch.zeros(sizes.width))
        self.transformer = Transformer(sizes, images=False)
        self.pooler = Pooler(sizes.width)
        initialize(self)

    def tokens(self, text: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """``(batch, n)`` token numbers to ``(batch, n, D)`` after the last norm."""
        return self.transformer.run(self.text_embeddings(text) + self.modality, text_mask)

    def forward(self, text: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """``(batch, n)`` token numbers, and booleans that are true for words, to ``(batch, D)``."""
        return self.pooler(self.tokens(text, text_mask))


class ImageTower(nn.Module):
    """Patches through their own transformer; the vector of the class token is the image's.

    Args:
        sizes: see ``Sizes``; of a pair the second image has a modality embedding of its own.
    """

    prefix = 1

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes, self.width = sizes, sizes.width
        self.modality = nn.Parameter(torch.zeros(sizes.images, sizes.width))
        self.transformer = Transformer(sizes)
        self.pooler = Pooler(sizes.width)
        initialize(self)

    def forward(self, pixels: Tensor, patch_mask: Tensor | None = None, side: Tensor | int = 0) -> Tensor:
        """Vectors of images.

        Args:
            pixels: ``(batch, 3, height, width)`` normalized.
            patch_mask: ``(batch, rows, columns)`` booleans, true for real patches; all are where ``None``.
            side: which image of a pair, ``(batch,)`` or one number.

        Returns:
            ``(batch, D)``.
        """
        kind = self.modality[side]
        x = self.transformer.embed(pixels, patch_mask) + (kind if kind.ndim == 1 else kind[:, None])
        return self.pooler(self.transformer.run(x, image_token_mask(patch_mask)))
