"""RotatE and HAKE: relations rotate, and stretch, the vectors of entities."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.systems.graph_fusion.encoders.embeddings import Embeddings, Inverse

_CHUNK_BYTES = 2**28


class _Distances(Embeddings):
    """Encoders whose score is a distance of no standard norm: ``(B, n)`` from broadcast vectors, in chunks."""

    def encode(self) -> Any:
        """Entity vectors."""
        return self.entity_embedding

    def distance(self, query: Any, entities: Tensor) -> Tensor:
        """Scores of a query with vectors ``(B, 1, .)`` against entity vectors ``(B or 1, n, .)``."""
        raise NotImplementedError

    def prepare(self, heads: Tensor, relations: Tensor) -> Any:
        """What `distance` needs of the queries."""
        raise NotImplementedError

    def score_all(self, heads: Tensor, relations: Tensor) -> Tensor:
        """See `QueryScorer`; entities are taken in chunks that keep memory bounded."""
        query = self.prepare(heads, relations)
        if torch.compiler.is_exporting():  # a chunk's size would fix the number of queries
            return self.distance(query, self.entity_embedding[None])
        return self._in_chunks(query, self.entity_embedding, len(heads))

    def score_candidates(self, heads: Tensor, relations: Tensor, candidates: Tensor) -> Tensor:
        """See `QueryScorer`; only the candidates are scored."""
        return self.distance(self.prepare(heads, relations), self.entity_embedding[candidates])

    def score_answers(
        self, heads: Tensor, relations: Tensor, owner: Tensor, answers: Tensor, shared: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `QueryScorer`; only these are scored, in chunks."""
        query = self.prepare(heads, relations)
        own, further = self.entity_embedding[torch.cat([answers, shared])].split([len(answers), len(shared)])
        positive = self.distance(tuple(part[owner] for part in query), own[:, None])[:, 0]
        return positive, self._in_chunks(query, further, len(heads))

    def _in_chunks(self, query: Any, entities: Tensor, queries: int) -> Tensor:
        chunk = max(1, _CHUNK_BYTES // (4 * entities.shape[1] * max(queries, 1)))
        return torch.cat([self.distance(query, part[None]) for part in entities.split(chunk)], 1)


class RotatE(_Distances):
    """``gamma - sum_i |h_i e^{i phi_i} - t_i|`` (Sun et al. 2019), as the official code computes it.

    Args:
        num_entities: N.
        num_relations: R.
        dim: number of complex coordinates.
        gamma: margin.
        inverse: see `Embeddings`; an algebraic inverse rotates back.
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
        inverse: see `Embeddings`; algebraic: the head is scored by the same formula.
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
