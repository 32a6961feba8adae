"""The transformer block of ViT and ViLT: normalization first, one packed projection."""

import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention whose masked tokens are keys for nobody.

    Args:
        dim: width.
        num_heads: number of heads; divides the width.
        dropout: after the output projection.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``(batch, tokens, dim)`` to the same shape; ``mask`` is ``(batch, tokens)``, true for real tokens."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        keys = None if mask is None else mask[:, None, None, :]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
        return self.drop(self.proj(out.transpose(1, 2).flatten(2)))


class Mlp(nn.Module):
    """Two linear layers with GELU between.

    Args:
        dim: width in and out.
        hidden: width between.
        dropout: after each.
    """

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., dim)`` to the same shape."""
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


class Block(nn.Module):
    """``x + attention(norm1(x))``, then ``x + mlp(norm2(x))``.

    Args:
        dim: width.
        num_heads: see ``Attention``.
        dropout: see ``Attention``.
        norm_eps: of both norms; 1e-6 in the official program, 1e-12 in transformers.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0, norm_eps: float = 1e-6) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads, dropout)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, 4 * dim, dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """See ``Attention.forward``."""
        x = x + self.attn(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class Pooler(nn.Module):
    """``tanh(W x_0 + b)`` of the first token.

    Args:
        dim: width.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, tokens, dim)`` to ``(batch, dim)``."""
        return self.dense(x[:, 0]).tanh()
