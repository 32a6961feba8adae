"""Heads for exits on any network, by the shape of the tensor that they read."""

from typing import Literal

import torch
from torch import Tensor, nn

from tenfold.errors import UserError

Pool = Literal["token", "mean"]


class TokenHead(nn.Module):
    """Layer normalization, pooling, linear: tokens ``(batch, tokens, dim)`` to logits ``(batch, classes)``.

    Args:
        dim: width of a token.
        classes: number of classes.
        pool: ``token`` reads the first token, ``mean`` the mean of the tokens (of those that the mask keeps).
    """

    def __init__(self, dim: int, classes: int, pool: Pool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.linear = nn.Linear(dim, classes)
        self.pool = pool

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits of a batch.

        Args:
            tokens: ``(batch, tokens, dim)``.
            mask: ``(batch, tokens)``, non-zero where a token counts; used by ``mean`` only.

        Raises:
            UserError: the mask does not fit the tokens.
        """
        if self.pool == "token":
            return self.linear(self.norm(tokens[:, 0]))
        tokens = self.norm(tokens)
        if mask is None:
            return self.linear(tokens.mean(1))
        if mask.shape != tokens.shape[:2]:
            raise UserError(
                f"attention_mask has shape {tuple(mask.shape)}, but the tapped tokens are {tuple(tokens.shape)}: "
                "choose pool='token' or give heads=[...]"
            )
        weights = (mask != 0).to(tokens.dtype).unsqueeze(-1)
        return self.linear((tokens * weights).sum(1) / weights.sum(1).clamp(min=1))


def automatic_head(shape: torch.Size, classes: int, pool: Pool) -> nn.Module:
    """A head for a tapped tensor.

    Args:
        shape: ``(batch, channels, height, width)``: 3x3 convolution of stride 2, batch normalization, ReLU, global
            average pool, linear; ``(batch, tokens, dim)``: ``TokenHead``; ``(batch, dim)``: linear.
        classes: number of classes.
        pool: see ``TokenHead``.

    Raises:
        UserError: another number of dimensions.
    """
    if len(shape) == 4:
        channels = shape[1]
        return nn.Sequential(
            nn.Conv2d(channels, channels, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(channels, classes),
        )
    if len(shape) == 3:
        return TokenHead(shape[2], classes, pool)
    if len(shape) == 2:
        return nn.Linear(shape[1], classes)
    raise UserError(f"there is no automatic head for a tapped tensor of shape {tuple(shape)}: give heads=[...]")


def run_head(head: nn.Module, tapped: Tensor, mask: Tensor | None) -> Tensor:
    """Logits of a head, which gets the attention mask if it pools over tokens."""
    return head(tapped, mask) if takes_mask(head) else head(tapped)


def takes_mask(head: nn.Module) -> bool:
    """Whether a head reads the attention mask."""
    return isinstance(head, TokenHead) and head.pool == "mean"
