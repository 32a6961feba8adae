"""Words and patches as tokens, as ViLT embeds them; patches in raster order, drawn by nobody.

ViLT's own program permutes patches at random in every forward pass. Its scores do not depend on that, but its attention
maps do: teacher and student would be compared in two orders. Here all patches of the batch's grid are tokens, row by
row, and a mask says which are real; so two forward passes give the same queries and keys.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.systems.dual_encoder.networks.blocks import Block


@dataclass(frozen=True)
class Sizes:
    """Sizes of a ViLT-form encoder; the defaults are those of ViLT-B/32.

    Attributes:
        vocabulary: number of word pieces.
        width: D.
        layers: number of blocks.
        heads: attention heads; divides the width.
        patch: side of a patch in pixels.
        grid: rows and columns of the position table.
        max_tokens: longest question, ``[CLS]`` and ``[SEP]`` included.
        images: images per question: 1, or 2 for pairs (NLVR2).
        dropout: in training.
        norm_eps: of the blocks' norms.
    """

    vocabulary: int = 30522
    width: int = 768
    layers: int = 12
    heads: int = 12
    patch: int = 32
    grid: int = 12
    max_tokens: int = 40
    images: int = 1
    dropout: float = 0.1
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("vocabulary", "width", "layers", "heads", "patch", "grid", "max_tokens"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"{name} of an encoder must be a whole number above 0; got {value!r}")
        if self.width % self.heads:
            raise UserError(f"the width {self.width} is not a multiple of {self.heads} heads")
        if self.images not in (1, 2):
            raise UserError(f"a question is about 1 image or a pair of 2; got images={self.images!r}")
        if not 0 <= self.dropout < 1 or not self.norm_eps > 0:
            raise UserError(f"dropout must lie in [0, 1) and norm_eps above 0; got {self.dropout}, {self.norm_eps}")


class TextEmbeddings(nn.Module):
    """BERT's embeddings: word, position and token type 0, normalized.

    Args:
        sizes: see ``Sizes``.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(sizes.vocabulary, sizes.width, padding_idx=0)
        self.position_embeddings = nn.Embedding(sizes.max_tokens, sizes.width)
        self.token_type_embeddings = nn.Embedding(2, sizes.width)
        self.LayerNorm = nn.LayerNorm(sizes.width, eps=1e-12)
        self.drop = nn.Dropout(sizes.dropout)

    def forward(self, text: Tensor) -> Tensor:
        """``(batch, n)`` token numbers to ``(batch, n, D)``.

        Raises:
            UserError: the questions are longer than the position table.
        """
        limit = self.position_embeddings.num_embeddings
        if text.shape[1] > limit:
            raise UserError(f"a question of {text.shape[1]} tokens is longer than the model's limit of {limit}")
        x = self.word_embeddings(text) + self.token_type_embeddings.weight[0]
        return self.drop(self.LayerNorm(x + self.position_embeddings.weight[: text.shape[1]]))


class PatchEmbed(nn.Module):
    """Squares of pixels to vectors.

    Args:
        width: D.
        patch: side in pixels.
    """

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, pixels: Tensor) -> Tensor:
        """``(batch, 3, height, width)`` to ``(batch, D, rows, columns)``; what fills no patch is refused."""
        patch = self.proj.kernel_size[0]
        if pixels.shape[-2] % patch or pixels.shape[-1] % patch:
            raise UserError(f"images of {tuple(pixels.shape[-2:])} pixels are not whole patches of {patch}")
        return self.proj(pixels)


class Transformer(nn.Module):
    """Blocks and their last norm; with the tokens of images where it sees any, under the names of ViT.

    Args:
        sizes: see ``Sizes``.
        images: whether it embeds images: a text tower does not, so that no parameter is without use.
    """

    def __init__(self, sizes: Sizes, images: bool = True) -> None:
        super().__init__()
        if images:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, sizes.width))
            self.pos_embed = nn.Parameter(torch.zeros(1, 1 + sizes.grid**2, sizes.width))
            self.patch_embed = PatchEmbed(sizes.width, sizes.patch)
        self.pos_drop = nn.Dropout(sizes.dropout)
        self.blocks = nn.ModuleList(
            Block(sizes.width, sizes.heads, sizes.dropout, sizes.norm_eps) for _ in range(sizes.layers)
        )
        self.norm = nn.LayerNorm(sizes.width, eps=sizes.norm_eps)

    def run(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """All blocks and the norm on ``(batch, tokens, D)``; ``mask`` is true for real tokens."""
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)

    def embed(self, pixels: Tensor, patch_mask: Tensor | None = None) -> Tensor:
        """Class token and patches with positions: ``(batch, 3, height, width)`` to ``(batch, 1 + patches, D)``.

        The position table is brought to each image's own grid of real patches (bilinear, corners aligned) and is zero
        on padding, as in ViLT.

        Args:
            pixels: normalized images, padded at the right and at the bottom.
            patch_mask: ``(batch, rows, columns)`` booleans, true for real patches; all are where ``None``.
        """
        x = self.patch_embed(pixels)
        batch, _, rows, columns = x.shape
        if patch_mask is None or bool(patch_mask.all()):
            positions = self._positions(rows, columns)
        else:
            heights, widths = patch_mask.any(2).sum(1).tolist(), patch_mask.any(1).sum(1).tolist()
            tables = {
                (h, w): F.pad(self._positions(h, w), (0, columns - w, 0, rows - h))
                for h, w in set(zip(heights, widths, strict=True))
            }
            positions = torch.cat([tables[size] for size in zip(heights, widths, strict=True)])
        x = (x + positions).flatten(2).transpose(1, 2)
        first = (self.cls_token + self.pos_embed[:, :1]).expand(batch, -1, -1)
        return self.pos_drop(torch.cat([first, x], 1))

    def _positions(self, rows: int, columns: int) -> Tensor:
        """The position table at a grid, ``(1, D, rows, columns)``."""
        side = round((self.pos_embed.shape[1] - 1) ** 0.5)
        table = self.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        if (rows, columns) == (side, side):
            return table
        return F.interpolate(table, (rows, columns), mode="bilinear", align_corners=True)


def image_token_mask(patch_mask: Tensor | None) -> Tensor | None:
    """``(batch, rows, columns)`` real patches to ``(batch, 1 + patches)`` real tokens; the class token always is."""
    return None if patch_mask is None else F.pad(patch_mask.flatten(1), (1, 0), value=True)
