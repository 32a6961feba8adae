"""The decoder (CMT, section 3.3): queries attend to each other, then to all tokens of all sensors at once."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Start = Literal["xavier", "tied"]


class Attention(nn.Module):
    """Multi-head attention on ``scaled_dot_product_attention``: the weights are never materialised.

    Named and packed as ``nn.MultiheadAttention``, whose state dict it takes.

    Args:
        dim: of queries, keys and values.
        heads: number of heads, of which ``dim`` is a multiple.
        dropout: of the attention weights, in training.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)  # the queries' content starts at zero, and stays so until tokens are seen

    def forward(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            query: ``(batch, queries, dim)``.
            key: ``(batch, tokens, dim)``.
            value: ``(batch, tokens, dim)``.
            visible: bool, broadcast to ``(batch, heads, queries, tokens)``: which tokens a query may see.
        """
        wq, wk, wv = self.in_proj_weight.chunk(3)
        bq, bk, bv = self.in_proj_bias.chunk(3)
        q, k, v = self._split(F.linear(query, wq, bq)), self._split(F.linear(key, wk, bk)), F.linear(value, wv, bv)
        found = F.scaled_dot_product_attention(
            q, k, self._split(v), attn_mask=visible, dropout_p=self.dropout if self.training else 0.0
        )
        return self.out_proj(found.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        batch, length, dim = x.shape
        return x.view(batch, length, self.heads, dim // self.heads).transpose(1, 2)


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward, each added and then normalized.

    Args:
        dim: of queries and tokens.
        heads: of both attentions.
        hidden: width of the feed-forward network.
        dropout: of self-attention's weights and of both attentions' outputs; cross-attention's weights and the
            feed-forward network have none (so in the official code).
    """

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = Attention(dim, heads, dropout)
        self.cross_attention = Attention(dim, heads)
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        code: Tensor,
        memory: Tensor,
        keys: Tensor,
        among_queries: Tensor | None = None,
        among_tokens: Tensor | None = None,
    ) -> Tensor:
        """One layer; see ``Decoder``. ``keys`` are the tokens with their codes added."""
        q = x + code
        x = self.norm1(x + self.dropout(self.self_attention(q, q, x, among_queries)))
        x = self.norm2(x + self.dropout(self.cross_attention(x + code, keys, memory, among_tokens)))
        return self.norm3(x + self.linear2(F.relu(self.linear1(x))))


class Decoder(nn.Module):
    """Layers that share the codes; every layer's output passes one shared normalization.

    Args:
        dim: of queries and tokens.
        layers: number of layers.
        heads: of the attentions.
        hidden: width of the feed-forward networks.
        dropout: see ``DecoderLayer``.
        start: ``xavier``: all matrices as DETR's; ``tied``: each cross-attention's query and key projections start as
            one random orthogonal matrix, so that equal codes attend to each other from the first step (not in the
            paper; for training from scratch).
    """

    def __init__(
        self, dim: int, layers: int, heads: int, hidden: int, *, dropout: float = 0.1, start: Start = "xavier"
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(dim, heads, hidden, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
        if start == "tied":
            for layer in self.layers:
                shared = nn.init.orthogonal_(torch.empty(dim, dim))
                with torch.no_grad():
                    layer.cross_attention.in_proj_weight[:dim] = shared  # type: ignore[union-attr, operator]
                    layer.cross_attention.in_proj_weight[dim : 2 * dim] = shared  # type: ignore[union-attr, operator]

    def forward(
        self,
        code: Tensor,
        memory: Tensor,
        memory_code: Tensor,
        *,
        blocked: Tensor | None = None,
        absent: Tensor | None = None,
    ) -> Tensor:
        """Decode.

        Args:
            code: ``(batch, queries, dim)`` of the queries; their content starts at zero.
            memory: ``(batch, tokens, dim)``; values are these, without codes.
            memory_code: ``(batch, tokens, dim)``, added to the keys anew in every layer.
            blocked: bool ``(queries, queries)``, true where a query (row) may not see another (column).
            absent: bool ``(batch, tokens)``, true for tokens that nobody may see.

        Returns:
            ``(layers, batch, queries, dim)``.
        """
        keys = memory + memory_code
        among_queries = None if blocked is None else ~blocked
        among_tokens = None if absent is None else ~absent[:, None, None, :]
        x = torch.zeros_like(code)
        outputs = []
        for layer in self.layers:
            x = layer(x, code, memory, keys, among_queries, among_tokens)
            outputs.append(self.norm(x))
        return torch.stack(outputs)


def materialised_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention with its weights in memory, ``(batch, heads, queries, dim)``: what the benchmark compares with."""
    weights = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1)
    return weights @ value
