"""Structure encoders: TransE, DistMult, ComplEx, RotatE, HAKE, ConvE (spec 2.3).

Each scores the answer t of (h, r). Inverse relations either have vectors of their own (``learned``, 2R of them) or
follow from those of the R relations (``algebraic``), as in the official RotatE and HAKE and in LibKGE's models.
"""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.systems.graph_fusion.scorers import QueryScorer, Similarity

Inverse = Literal["learned", "algebraic"]
_CHUNK_BYTES = 2**28


class Embeddings(QueryScorer):
    """Base of encoders with a vector per entity and relation.

    Args:
        num_entities: N.
        num_relations: R.
        entity_dim: width of an entity's vector.
        relation_dim: width of a relation's vector.
        inverse: ``learned``: 2R relation vectors; ``algebraic``: R.
        dropout: of query vectors.
    """

    def __init__(
        self,
        num_entities: int,
        num_relations: int,
        entity_dim: int,
        relation_dim: int,
        inverse: Inverse,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_entities, num_relations)
        self.inverse = inverse
        rows = num_relations * (2 if inverse == "learned" else 1)
        self.entity_embedding = nn.Parameter(torch.empty(num_entities, entity_dim))
        self.relation_embedding = nn.Parameter(torch.empty(rows, relation_dim))
        nn.init.xavier_normal_(self.entity_embedding)
        nn.init.xavier_normal_(self.relation_embedding)
        self.dropout = nn.Dropout(dropout)

    def relation(self, relations: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, k)`` relation vectors, and ``(B, 1)`` 1 or, for an algebraic inverse, -1."""
        if self.inverse == "learned":
            return self.relation_embedding[relations], torch.ones_like(relations, dtype=torch.float32)[:, None]
        sign = torch.where(relations < self.num_relations, 1.0, -1.0)[:, None]
        return self.relation_embedding[relations % self.num_relations], sign

    def entity_vectors(self, entities: Tensor | None = None) -> Tensor:
        """See :class:`~.scorers.QueryScorer`."""
        return self.entity_embedding if entities is None else self.entity_embedding[entities]


class TransE(Embeddings):
    """``-||h + r - t||`` (Bordes et al. 2013).

    Args:
        num_entities: N.
        num_relations: R.
        dim: width.
        norm: 1 or 2.
        inverse: see :class:`Embeddings`.
        dropout: see :class:`Embeddings`.
    """

    def __init__(
        self,
        num_entities: int,
        num_relations: int,
        dim: int = 100,
        norm: int = 1,
        inverse: Inverse = "learned",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_entities, num_relations, dim, dim, inverse, dropout)
        self.similarity: Similarity = "l1" if norm == 1 else "l2"

    def query_vectors(self, heads: Tensor, relations: Tensor) -> Tensor:
        """``h + r``."""
        r, sign = self.relation(relations)
        return self.dropout(self.entity_embedding[heads] + sign * r)


class DistMult(Embeddings):
    """``<h, r, t>`` (Yang et al. 2015).

    Args:
        num_entities: N.
        num_relations: R.
        dim: width.
        inverse: see :class:`Embeddings`; an algebraic inverse equals its relation.
        dropout: see :class:`Embeddings`.
    """

    def __init__(
        self, num_entities: int, num_relations: int, dim: int = 100, inverse: Inverse = "learned", dropout: float = 0.0
    ) -> None:
        super().__init__(num_entities, num_relations, dim, dim, inverse, dropout)

    def query_vectors(self, heads: Tensor, relations: Tensor) -> Tensor:
        """``h * r``."""
        r, _ = self.relation(relations)
        return self.dropout(self.entity_embedding[heads] * r)


class ComplEx(Embeddings):
    """``Re <h, r, conj t>`` (Trouillon et al. 2016); vectors are real halves, then imaginary halves.

    Args:
        num_entities: N.
        num_relations: R.
        dim: number of complex coordinates.
        inverse: see :class:`Embeddings`; an algebraic inverse is the complex conjugate.
        dropout: see :class:`Embeddings`.
    """

    def __init__(
        self, num_entities: int, num_relations: int, dim: int = 100, inverse: Inverse = "learned", dropout: float = 0.0
    ) -> None:
        super().__init__(num_entities, num_relations, 2 * dim, 2 * dim, inverse, dropout)

    def query_vectors(self, heads: Tensor, relations: Tensor) -> Tensor:
        """``h * r``, complex; its real dot product with t is the score."""
        r, sign = self.relation(relations)
        re_h, im_h = self.entity_embedding[heads].chunk(2, -1)
        re_r, im_r = r.chunk(2, -1)
        im_r = sign * im_r
        return self.dropout(torch.cat([re_h * re_r - im_h * im_r, re_h * im_r + im_h * re_r], -1))


class _Distances(Embeddings):
    """Encoders whose score is a distance of no standard norm: ``(B, n)`` from broadcast vectors, in chunks."""

    def encode(self) -> Any:
        """Entity vectors."""
        return self.entity_embedding

    def distance(self, query: Any, entities: Tensor) -> Tensor:
        """Scores of a query with vectors ``(B, 1, .)`` against entity vectors ``(B or 1, n, .)``."""
        raise NotImplementedError

    def prepare(self, heads: Tensor, relations: Tensor) -> Any:
        """What :meth:`distance` needs of the queries."""
        raise NotImplementedError

    def score_all(self, heads: Tensor, relations: Tensor) -> Tensor:
        """See :class:`~.scorers.QueryScorer`; entities are taken in chunks that keep memory bounded."""
        query = self.prepare(heads, relations)
        if torch.compiler.is_exporting():  # a chunk's size would fix the number of queries
            return self.distance(query, self.entity_embedding[None])
        width = self.entity_embedding.shape[1]
        chunk = max(1, _CHUNK_BYTES // (4 * width * max(len(heads), 1)))
        return torch.cat([self.distance(query, part[None]) for part in self.entity_embedding.split(chunk)], 1)

    def score_candidates(self, heads: Tensor, relations: Tensor, candidates: Tensor) -> Tensor:
        """See :class:`~.scorers.QueryScorer`; only the candidates are scored."""
        return self.distance(self.prepare(heads, relations), self.entity_embedding[candidates])


class RotatE(_Distances):
    """``gamma - sum_i |h_i e^{i phi_i} - t_i|`` (Sun et al. 2019), as the official code computes it.

    Args:
        num_entities: N.
        num_relations: R.
        dim: number of complex coordinates.
        gamma: margin.
        inverse: see :class:`Embeddings`; an algebraic inverse rotates back.
        dropout: unused; distances have no dropout.
    """

    def __init__(
        self,
        num_entities: int,
        num_relations: int,
        dim: int = 100,
        gamma: float = 9.0,
        inverse: Inverse = "algebraic",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_entities, num_relations, 2 * dim, dim, inverse, 0.0)
        self.gamma = gamma
        self.embedding_range = (gamma + 2.0) / dim
        nn.init.uniform_(self.entity_embedding, -self.embedding_range, self.embedding_range)
        nn.init.uniform_(self.relation_embedding, -self.embedding_range, self.embedding_range)

    def prepare(self, heads: Tensor, relations: Tensor) -> tuple[Tensor, Tensor]:
        """The rotated head, real and imaginary, ``(B, 1, dim)`` each."""
        r, sign = self.relation(relations)
        phase = sign * r / (self.embedding_range / math.pi)
        re, im = self.entity_embedding[heads].chunk(2, -1)
        cos, sin = phase.cos(), phase.sin()
        return (re * cos - im * sin)[:, None], (re * sin + im * cos)[:, None]

    def distance(self, query: tuple[Tensor, Tensor], entities: Tensor) -> Tensor:
        """Sum of complex moduli, negated, plus the margin."""
        re, im = entities.chunk(2, -1)
        squared = (query[0] - re).square() + (query[1] - im).square()
        # The modulus has no gradient at 0, where an entity meets itself.
        return self.gamma - squared.clamp(min=1e-12).sqrt().sum(-1)


class HAKE(_Distances):
    """Modulus and phase (Zhang et al. 2020), as the official code computes it.

    Entity: phase, then modulus. Relation: phase, modulus, bias.

    Args:
        num_entities: N.
        num_relations: R.
        dim: width of phase and of modulus.
        gamma: margin.
        modulus_weight: first value of w_m.
        phase_weight: first value of w_p, times the embedding range.
        inverse: see :class:`Embeddings`; algebraic: the head is scored by the same formula.
        dropout: unused; distances have no dropout.
    """

    def __init__(
        self,
        num_entities: int,
        num_relations: int,
        dim: int = 100,
        gamma: float = 9.0,
        modulus_weight: float = 1.0,
        phase_weight: float = 0.5,
        inverse: Inverse = "algebraic",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_entities, num_relations, 2 * dim, 3 * dim, inverse, 0.0)
        self.gamma = gamma
        self.embedding_range = (gamma + 2.0) / dim
        nn.init.uniform_(self.entity_embedding, -self.embedding_range, self.embedding_range)
        nn.init.uniform_(self.relation_embedding, -self.embedding_range, self.embedding_range)
        with torch.no_grad():
            self.relation_embedding[:, dim : 2 * dim] = 1.0
            self.relation_embedding[:, 2 * dim :] = 0.0
        self.modulus_weight = nn.Parameter(torch.tensor([[modulus_weight]]))
        self.phase_weight = nn.Parameter(torch.tensor([[phase_weight * self.embedding_range]]))

    def prepare(self, heads: Tensor, relations: Tensor) -> tuple[Tensor, ...]:
        """Phases, moduli, modulus and bias of the relation, and its direction, ``(B, 1, .)`` each."""
        r, sign = self.relation(relations)
        phase_r, modulus, bias = r[:, None].chunk(3, -1)
        phase_h, modulus_h = self.entity_embedding[heads][:, None].chunk(2, -1)
        modulus = modulus.abs()
        bias = bias.clamp(max=1.0)
        bias = torch.where(bias < -modulus, -modulus, bias)
        return phase_h, modulus_h, phase_r, modulus, bias, sign[:, :, None]

    def distance(self, query: tuple[Tensor, ...], entities: Tensor) -> Tensor:
        """The official score: for an inverse relation the given entity is the tail and the candidates are heads."""
        phase_q, modulus_q, phase_r, modulus, bias, sign = query
        phase_e, modulus_e = entities.chunk(2, -1)
        scale = self.embedding_range / math.pi
        # tail: h + r - t; head: h' + r - t with h' the candidate, which is minus (t - r - h').
        phase = ((phase_q + sign * phase_r - phase_e) / scale / 2).sin().abs().sum(-1)
        stretch, shrink = modulus + bias, 1 - bias
        forward = sign > 0
        own, other = torch.where(forward, stretch, shrink), torch.where(forward, shrink, stretch)
        radial = modulus_q * own - modulus_e * other
        length = radial.square().sum(-1).clamp(min=1e-12).sqrt()
        return self.gamma - self.phase_weight * phase - self.modulus_weight * length


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
        """See :class:`~.scorers.QueryScorer`."""
        return self.tower(self.entity_embedding[heads], self.relation_embedding[relations])

    def entity_bias(self) -> Tensor:
        """One bias per entity."""
        return self.bias


class ConvTower(nn.Module):
    """ConvE's query tower: head and relation vectors to a query vector; arguments as of :class:`ConvE`."""

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
    ) -> None:
        super().__init__()
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
        self.input_dropout, self.map_dropout = nn.Dropout(input_dropout), nn.Dropout2d(map_dropout)
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
