"""ConvE: a small convolution over head and relation."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.systems.graph_fusion.encoders.check_arguments import at_least, one_of
from tenfold.systems.graph_fusion.encoders.embeddings import Embeddings


class ConvE(Embeddings):
    """A small convolution over head and relation, then a dot product with every entity (Dettmers et al. 2018).

    Args:
        num_entities: N.
        num_relations: R.
        dim: width, ``width x (dim / width)`` as a picture.
        width: rows of the picture; a divisor of ``dim``, the one nearest to its root by default.
        channels: maps of the convolution.
        kernel: its side.
        arrange: ``stack`` head above relation (the original), or ``interleave`` their coordinates (CompGCN).
        input_dropout: of the picture.
        map_dropout: of whole maps.
        dropout: of the query vector.
        normalize: batch normalization, as published; graphs of a few thousand edges train better without it.
    """

    def __init__(
        self,
        num_entities: int,
        num_relations: int,
        dim: int = 100,
        width: int = 0,
        channels: int = 32,
        kernel: int = 3,
        arrange: Literal["stack", "interleave"] = "stack",
        input_dropout: float = 0.2,
        map_dropout: float = 0.2,
        dropout: float = 0.3,
        normalize: bool = True,
    ) -> None:
        super().__init__(num_entities, num_relations, dim, dim, "learned")
        self.tower = ConvTower(dim, width, channels, kernel, arrange, input_dropout, map_dropout, dropout, normalize)
        self.bias = nn.Parameter(torch.zeros(num_entities))

    def query_vectors(self, heads: Tensor, relations: Tensor) -> Tensor:
        """See `QueryScorer`."""
        return self.tower(self.entity_embedding[heads], self.relation_embedding[relations])

    def entity_bias(self) -> Tensor:
        """One bias per entity."""
        return self.bias


class ConvTower(nn.Module):
    """ConvE's query tower: head and relation vectors to a query vector; arguments as of `ConvE`.

    ``whole_maps``: dropout takes whole maps, as ConvE's, or single features, as CompGCN's decoder.
    """

    def __init__(
        self,
        dim: int,
        width: int = 0,
        channels: int = 32,
        kernel: int = 3,
        arrange: Literal["stack", "interleave"] = "stack",
        input_dropout: float = 0.2,
        map_dropout: float = 0.2,
        dropout: float = 0.3,
        normalize: bool = True,
        whole_maps: bool = True,
    ) -> None:
        super().__init__()
        at_least(1, dim=dim, channels=channels, kernel=kernel)
        at_least(0, width=width)
        one_of("arrange", arrange, ("stack", "interleave"))
        width = width or max(k for k in range(1, math.isqrt(dim) + 1) if dim % k == 0)
        if dim % width or 2 * width < kernel or dim // width < kernel:
            raise ValueError(
                f"ConvE cannot lay {dim} numbers out in rows of {dim // width} under a {kernel}x{kernel} kernel"
            )
        self.width, self.dim, self.arrange = width, dim, arrange
        bn1, bn2, bn3 = (
            (nn.BatchNorm2d(1), nn.BatchNorm2d(channels), nn.BatchNorm1d(dim))
            if normalize
            else [nn.Identity() for _ in range(3)]
        )
        self.bn0, self.bn1, self.bn2 = bn1, bn2, bn3
        self.convolution = nn.Conv2d(1, channels, kernel, bias=False)
        self.project = nn.Linear(channels * (2 * width - kernel + 1) * (dim // width - kernel + 1), dim)
        self.input_dropout = nn.Dropout(input_dropout)
        self.map_dropout = nn.Dropout2d(map_dropout) if whole_maps else nn.Dropout(map_dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, heads: Tensor, relations: Tensor) -> Tensor:
        """``(B, d)`` and ``(B, d)`` to ``(B, d)``."""
        if self.arrange == "stack":
            picture = torch.cat([heads, relations], 1)
        else:
            picture = torch.stack([heads, relations], 2).flatten(1)
        picture = picture.view(-1, 1, 2 * self.width, self.dim // self.width)
        maps = self.bn1(self.convolution(self.input_dropout(self.bn0(picture))))
        hidden = self.map_dropout(F.relu(maps, inplace=True)).flatten(1)
        return F.relu(self.bn2(self.dropout(self.project(hidden))))
