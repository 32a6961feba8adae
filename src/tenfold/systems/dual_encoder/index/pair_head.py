"""Fusion and head of a dual encoder, arranged for many questions about many images; the same numbers, less work.

W1 [t ; v] = W1_t t + W1_v v        the first layer is split: each half is computed once per text, once per image
Wh W2                               fusion's last and the head's first linear layer are one: nothing lies between
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.systems.dual_encoder.networks.dual_encoder import DualEncoder

_LARGEST = 2**23
"""Numbers that a block of pairs may hold at once: what stays near the processor."""


class PairHead(nn.Module):
    """Scores of texts with images from their vectors; equal to ``DualEncoder.combine`` up to rounding.

    Args:
        model: its weights are copied.
    """

    @torch.no_grad()
    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        parts: list[Any] = [*model.fusion, *model.classifier]
        first, norm, _, last, joined, second, _, out = parts
        texts, width = model.text_tower.width, last.out_features
        self.images = model.images
        self.text = nn.Linear(texts, first.out_features)
        self.image = nn.Linear(first.in_features - texts, first.out_features, bias=False)
        self.text.weight.copy_(first.weight[:, :texts])
        self.text.bias.copy_(first.bias)
        self.image.weight.copy_(first.weight[:, texts:])
        self.norm = nn.LayerNorm(norm.normalized_shape, norm.eps)
        self.norm.load_state_dict(norm.state_dict())
        # In float64: the product of two rounded matrices would be rounded once more.
        blocks = joined.weight.double().split(width, 1)
        merged = torch.cat([block @ last.weight.double() for block in blocks], 1)
        bias = joined.bias.double() + sum(block @ last.bias.double() for block in blocks)
        self.merged = nn.Linear(merged.shape[1], merged.shape[0])
        self.merged.weight.copy_(merged)
        self.merged.bias.copy_(bias)
        self.second = nn.LayerNorm(second.normalized_shape, second.eps)
        self.second.load_state_dict(second.state_dict())
        self.out = nn.Linear(out.in_features, out.out_features)
        self.out.load_state_dict(out.state_dict())
        self.to(first.weight.device).requires_grad_(False).eval()

    def forward(self, t: Tensor, v: Tensor) -> Tensor:
        """Texts ``(m, width)`` with one row of images each, ``(m, images, width)``: ``(m, answers)``."""
        return self._finish(self.text(t)[:, None] + self.image(v))

    def every_pair(
        self, t: Tensor, v: Tensor, answers: Sequence[int] | None = None, *, projected: bool = False
    ) -> Tensor:
        """Scores of every text with every image (or pair of images).

        Args:
            t: ``(m, width)`` vectors of texts.
            v: ``(n, images, width)`` vectors of images.
            answers: numbers of the answers that are scored; all where ``None``.
            projected: whether ``v`` holds projections already (``self.image`` of the vectors).

        Returns:
            ``(m, n, answers)``.
        """
        texts = self.text(t)
        images = v if projected else self.image(v)
        step = max(1, _LARGEST // (images[0].numel() * max(1, len(texts))))
        parts = [self._finish(texts[:, None, None] + part, answers) for part in images.split(step)]
        return torch.cat(parts, 1)

    def _finish(self, x: Tensor, answers: Sequence[int] | None = None) -> Tensor:
        x = self.merged(F.gelu(self.norm(x)).flatten(-2))
        x = F.gelu(self.second(x))
        if answers is None:
            return self.out(x)
        return F.linear(x, self.out.weight[list(answers)], self.out.bias[list(answers)])
