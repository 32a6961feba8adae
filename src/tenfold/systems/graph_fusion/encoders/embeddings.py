"""Structure encoders: TransE, DistMult, ComplEx, RotatE, HAKE, ConvE.

Each scores the answer t of (h, r). Inverse relations either have vectors of their own (``learned``, 2R of them) or
follow from those of the R relations (``algebraic``), as in the official RotatE and HAKE and in LibKGE's models.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from tenfold.systems.graph_fusion.encoders.check_arguments import at_least, one_of
from tenfold.systems.graph_fusion.encoders.query_scorer import QueryScorer, Similarity

Inverse = Literal["learned", "algebraic"]


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
        one_of("inverse", inverse, ("learned", "algebraic"))
        at_least(1, dim=entity_dim, relation_dim=relation_dim)
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
        """See `QueryScorer`."""
        return self.entity_embedding if entities is None else self.entity_embedding[entities]


class TransE(Embeddings):
    """``-||h + r - t||`` (Bordes et al. 2013).

    Args:
        num_entities: N.
        num_relations: R.
        dim: width.
        norm: 1 or 2.
        inverse: see `Embeddings`.
        dropout: see `Embeddings`.
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
        one_of("norm", norm, (1, 2))
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
        inverse: see `Embeddings`; an algebraic inverse equals its relation.
        dropout: see `Embeddings`.
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
        inverse: see `Embeddings`; an algebraic inverse is the complex conjugate.
        dropout: see `Embeddings`.
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
