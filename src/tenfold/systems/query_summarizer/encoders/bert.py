"""A compact BERT, with the parameter names of the published checkpoints; needs torch alone.

Post-norm Transformer encoder with learnt positions and token types, exact GELU, layer norm epsilon 1e-12 (Devlin et
al., NAACL 2019).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tenfold.errors import UserError


@dataclass(frozen=True)
class BertShape:
    """Sizes of a BERT.

    Attributes:
        vocab_size: pieces.
        hidden_size: width.
        num_hidden_layers: blocks.
        num_attention_heads: heads; divide the width.
        intermediate_size: width of the feed-forward layer.
        max_position_embeddings: tokens at most.
        type_vocab_size: token types.
        layer_norm_eps: of layer norm.
        dropout: share of activations dropped in training.
    """

    vocab_size: int = 30522
    hidden_size: int = 128
    num_hidden_layers: int = 2
    num_attention_heads: int = 2
    intermediate_size: int = 512
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise UserError(f"{self.num_attention_heads} heads do not share a width of {self.hidden_size} evenly")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "BertShape":
        """Sizes of a published ``config.json``.

        Raises:
            UserError: it describes another kind of network.
        """
        if (
            config.get("hidden_act", "gelu") != "gelu"
            or config.get("position_embedding_type", "absolute") != "absolute"
        ):
            raise UserError("only BERT with exact GELU and absolute positions is read without transformers")
        names = cls.__dataclass_fields__
        found = {name: config[name] for name in names if name in config}
        if "hidden_dropout_prob" in config:
            found["dropout"] = config["hidden_dropout_prob"]
        return cls(**found)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class Bert(nn.Module):
    """The encoder: tokens to vectors.

    Args:
        shape: sizes.
        gradient_checkpointing: recompute blocks in the backward pass, for less memory.

    Attributes:
        width: size of a vector.
        max_tokens: tokens at most.
    """

    def __init__(self, shape: BertShape, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.shape = shape
        self.width, self.max_tokens = shape.hidden_size, shape.max_position_embeddings
        self.gradient_checkpointing = gradient_checkpointing
        self.embeddings = _Embeddings(shape)
        self.encoder = _Blocks(shape)
        self.apply(_initialise)

    def forward(self, ids: Tensor, types: Tensor, mask: Tensor) -> Tensor:
        """Vectors of tokens.

        Args:
            ids: ``(batch, tokens)`` numbers of pieces.
            types: ``(batch, tokens)`` 0 or 1.
            mask: ``(batch, tokens)`` bool, true for tokens that are there.

        Returns:
            ``(batch, tokens, width)``.
        """
        hidden = self.embeddings(ids, types)
        attend = mask[:, None, None, :]
        for block in self.encoder.layer:
            if self.gradient_checkpointing and self.training:
                hidden = checkpoint(block, hidden, attend, use_reentrant=False)
            else:
                hidden = block(hidden, attend)
        return hidden


class _Embeddings(nn.Module):
    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(shape.vocab_size, shape.hidden_size, padding_idx=0)
        self.position_embeddings = nn.Embedding(shape.max_position_embeddings, shape.hidden_size)
        self.token_type_embeddings = nn.Embedding(shape.type_vocab_size, shape.hidden_size)
        self.LayerNorm = nn.LayerNorm(shape.hidden_size, shape.layer_norm_eps)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, ids: Tensor, types: Tensor) -> Tensor:
        positions = torch.arange(ids.shape[1], device=ids.device)
        total = self.word_embeddings(ids) + self.token_type_embeddings(types) + self.position_embeddings(positions)
        return self.dropout(self.LayerNorm(total))


class _Blocks(nn.Module):  # gives the names of published checkpoints: encoder.layer.N
    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.layer = nn.ModuleList([_Block(shape) for _ in range(shape.num_hidden_layers)])


class _Output(nn.Module):
    def __init__(self, inner: int, shape: BertShape) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, shape.hidden_size)
        self.LayerNorm = nn.LayerNorm(shape.hidden_size, shape.layer_norm_eps)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(residual + self.dropout(self.dense(hidden)))


class _Block(nn.Module):
    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.heads, self.dropout = shape.num_attention_heads, shape.dropout
        names = ("query", "key", "value")
        width = shape.hidden_size
        self.attention = nn.ModuleDict(
            {"self": nn.ModuleDict({name: nn.Linear(width, width) for name in names}), "output": _Output(width, shape)}
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, shape.intermediate_size)})
        self.output = _Output(shape.intermediate_size, shape)

    def forward(self, hidden: Tensor, attend: Tensor) -> Tensor:
        batch, tokens, width = hidden.shape
        projections = self.attention["self"]
        query, key, value = (
            projections[name](hidden).view(batch, tokens, self.heads, -1).transpose(1, 2)  # type: ignore[index]
            for name in ("query", "key", "value")
        )
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attend, dropout_p=self.dropout if self.training else 0.0
        )
        hidden = self.attention["output"](mixed.transpose(1, 2).reshape(batch, tokens, width), hidden)
        return self.output(F.gelu(self.intermediate["dense"](hidden)), hidden)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx].detach())
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)


def published_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's part of a published state dict under the names of ``Bert``.

    Prefixes (``bert.``, ``model.``), old ``gamma``/``beta`` and heads that are not used (``pooler``, ``cls``) go.
    """
    found = {}
    for name, value in state.items():
        for prefix in ("module.", "bert.model.", "bert.", "model."):
            name = name.removeprefix(prefix)
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        if name.startswith(("embeddings.", "encoder.layer.")) and not name.endswith("position_ids"):
            found[name] = value
    return found
