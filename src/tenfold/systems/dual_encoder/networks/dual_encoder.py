"""The student: two towers that never meet, a fusion of their two vectors, a head."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.systems.dual_encoder.networks.embeddings import Sizes
from tenfold.systems.dual_encoder.networks.fusion_encoder import answer_head, images_per_question, initialize
from tenfold.systems.dual_encoder.networks.towers import ImageTower, TextTower


class DualEncoder(nn.Module):
    """``head(W2 GELU(LN(W1 [t ; v] + b1)) + b2)`` of a text's vector t and an image's vector v (paper, section 3.1).

    Of a pair of images each is fused with the text, and the head sees both results side by side (NLVR2).

    Args:
        text_tower: takes ``text`` and ``text_mask``, gives ``(batch, width)``.
        image_tower: takes ``pixels``, ``patch_mask`` and ``side``, gives ``(batch, width)``.
        answers: number of answers that it scores.
        images: images per question, 1 or 2.
        width: D of fusion and head; the text tower's where ``None``.
    """

    def __init__(
        self, text_tower: Any, image_tower: Any, answers: int, *, images: int = 1, width: int | None = None
    ) -> None:
        super().__init__()
        if answers < 1:
            raise UserError(f"a model scores at least one answer; got {answers}")
        self.text_tower, self.image_tower, self.images = text_tower, image_tower, images
        width = width or text_tower.width
        both = text_tower.width + image_tower.width
        self.fusion = nn.Sequential(nn.Linear(both, both), nn.LayerNorm(both), nn.GELU(), nn.Linear(both, width))
        self.classifier = answer_head(Sizes(width=width, heads=1, images=images), answers)
        initialize(self.fusion)
        initialize(self.classifier)

    @classmethod
    def from_sizes(cls, sizes: Sizes, answers: int) -> "DualEncoder":
        """A student of two towers in ViLT's form, with random weights.

        Args:
            sizes: of both towers.
            answers: number of answers.
        """
        return cls(TextTower(sizes), ImageTower(sizes), answers, images=sizes.images)

    @property
    def answers(self) -> int:
        """Number of answers."""
        return self.classifier[-1].out_features  # type: ignore[return-value]

    def image_inputs(self, pixels: Tensor, patch_mask: Tensor | None = None, **others: Any) -> dict[str, Any]:
        """A batch's images as the image tower takes them: ``(batch * images, ...)``, each with its side.

        Args:
            pixels: ``(batch, images, 3, height, width)``.
            patch_mask: ``(batch, images, rows, columns)``.
            others: ignored: the rest of a batch.
        """
        images = images_per_question(pixels, self.images)
        side = torch.arange(images, device=pixels.device).repeat(len(pixels)) if images > 1 else 0
        patches = None if patch_mask is None else patch_mask.flatten(0, 1)
        return {"pixels": pixels.flatten(0, 1), "patch_mask": patches, "side": side}

    def encode_text(self, text: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """``(batch, n)`` token numbers to vectors ``(batch, width)``; needs no image."""
        return self.text_tower(text, text_mask)

    def encode_images(self, pixels: Tensor, patch_mask: Tensor | None = None) -> Tensor:
        """``(batch, images, 3, height, width)`` to vectors ``(batch, images, width)``; needs no text."""
        images = pixels.shape[1]
        return self.image_tower(**self.image_inputs(pixels, patch_mask)).unflatten(0, (-1, images))

    def combine(self, t: Tensor, v: Tensor) -> Tensor:
        """Scores ``(batch, answers)`` of texts ``(batch, width)`` with their images ``(batch, images, width)``."""
        both = torch.cat([t[:, None].expand(-1, v.shape[1], -1), v], -1)  # the text comes first
        return self.classifier(self.fusion(both).flatten(1))

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
        return self.combine(self.encode_text(text, text_mask), self.encode_images(pixels, patch_mask))


def require_answers(answers: Sequence[str]) -> tuple[str, ...]:
    """A closed list of answers.

    Raises:
        UserError: it is empty, or holds one twice.
    """
    known = tuple(map(str, answers))
    twice = (
        next((answer for answer in known if known.count(answer) > 1), None) if len(set(known)) < len(known) else None
    )
    if not known or twice is not None:
        raise UserError(f"the list of answers {'holds ' + repr(twice) + ' twice' if known else 'is empty'}")
    return known
