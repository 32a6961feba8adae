"""Transformer layers over the sentences of a window, as BertSum's extractor has them (Liu and Lapata, 2019, 3.2)."""

import math

import torch
from torch import Tensor, nn


class InterSentence(nn.Module):
    """Sentence vectors that know each other.

    Sinusoidal positions, pre-norm blocks (the first without its input norm, as in the official code), a final norm.

    Args:
        width: of the sentence vectors.
        layers: blocks.
        heads: of attention.
        inner: width of the feed-forward layer.
        dropout: share of activations dropped in training.
    """

    def __init__(self, width: int, layers: int, heads: int = 8, inner: int = 2048, dropout: float = 0.1) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [_Block(width, heads, inner, dropout, first=number == 0) for number in range(layers)]
        )
        self.norm = nn.LayerNorm(width, 1e-6)

    def forward(self, vectors: Tensor, there: Tensor) -> Tensor:
        """Args: vectors ``(batch, sentences, width)``; there ``(batch, sentences)`` bool. Returns the same shape."""
        hidden = vectors * there[..., None] + sinusoidal_positions(vectors.shape[1], vectors.shape[2]).to(vectors)
        # A row of padding alone would attend to nothing; it may look at itself, nobody reads it.
        attend = there[:, None, :] | torch.eye(there.shape[1], dtype=torch.bool, device=there.device)
        for block in self.blocks:
            hidden = block(hidden, attend[:, None])
        return self.norm(hidden)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, inner: int, dropout: float, first: bool) -> None:
        super().__init__()
        self.heads, self.dropout, self.first = heads, dropout, first
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.input_norm, self.inner_norm = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, attend: Tensor) -> Tensor:
        normed = hidden if self.first else self.input_norm(hidden)
        batch, sentences, width = hidden.shape
        query, key, value = (
            layer(normed).view(batch, sentences, self.heads, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=attend, dropout_p=self.dropout if self.training else 0.0
        )
        hidden = hidden + self.drop(self.output(mixed.transpose(1, 2).reshape(batch, sentences, width)))
        inner = nn.functional.gelu(self.up(self.inner_norm(hidden)), approximate="tanh")  # as the official code
        return hidden + self.drop(self.down(self.drop(inner)))


def sinusoidal_positions(length: int, width: int) -> Tensor:
    """``(length, width)`` sine and cosine, interleaved (Vaswani et al., 2017, section 3.5)."""
    place = torch.arange(length)[:, None]
    rate = torch.exp(torch.arange(0, width, 2) * -(math.log(10000.0) / width))
    table = torch.zeros(length, width)
    table[:, 0::2], table[:, 1::2] = torch.sin(place * rate), torch.cos(place * rate)[:, : width // 2]
    return table
