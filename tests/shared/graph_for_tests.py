"""A small graph with structure and texts that say the same, and encoders of a user's own."""

import torch

from tenfold.systems.graph_fusion import KnowledgeGraph, QueryScorer
from tenfold.systems.graph_fusion.graph.query_batch import QueryBatch


def small_graph(entities=24, relations=3, seed=0, unseen=0):
    """Entities on a ring; relation r leads r + 1 steps on. Names tell the place."""
    triples = torch.tensor([[h, r, (h + r + 1) % entities] for h in range(entities) for r in range(relations)])
    order = torch.randperm(len(triples), generator=torch.Generator().manual_seed(seed))
    triples = triples[order]
    total = entities + unseen
    extra = torch.tensor([[entities + n, 0, n] for n in range(unseen)], dtype=torch.int64).reshape(-1, 3)
    n = len(triples)
    return KnowledgeGraph(
        entities=tuple(f"e{number:03d}" for number in range(total)),
        relations=tuple(f"r{number}" for number in range(relations)),
        train=triples[: n - 16],
        valid=triples[n - 16 : n - 8],
        test=torch.cat([triples[n - 8 :], extra]),
        names=tuple(f"place {number} {'even' if number % 2 == 0 else 'odd'}" for number in range(total)),
        descriptions=("",) * total,
        relation_texts=tuple(f"{number + 1} steps on" for number in range(relations)),
        name="ring",
    )


class Plain(QueryScorer):
    """A user's encoder: DistMult in five lines."""

    def __init__(self, graph, dim=8):
        super().__init__(graph.num_entities, graph.num_relations)
        self.entity = torch.nn.Embedding(graph.num_entities, dim)
        self.relation = torch.nn.Embedding(2 * graph.num_relations, dim)

    def query_vectors(self, heads, relations):
        return self.entity(heads) * self.relation(relations)

    def entity_vectors(self, entities=None):
        return self.entity.weight if entities is None else self.entity(entities)


def plain(graph, **arguments):
    return Plain(graph, **arguments)


class WrongShape(Plain):
    def score_all(self, heads, relations):
        return super().score_all(heads, relations)[:, 1:]


def wrong_shape(graph):
    return WrongShape(graph)


class NotANumber(Plain):
    def score_all(self, heads, relations):
        return super().score_all(heads, relations) * float("nan")


def not_a_number(graph):
    return NotANumber(graph)


def batch_of(answers, weights=None, observed=None):
    """One query per list of answers."""
    owner = torch.tensor([row for row, found in enumerate(answers) for _ in found])
    flat = torch.tensor([entity for found in answers for entity in found])
    counts = torch.bincount(owner)
    return QueryBatch(
        heads=torch.zeros(len(answers), dtype=torch.int64),
        relations=torch.zeros(len(answers), dtype=torch.int64),
        owner=owner,
        answers=flat,
        weights=1.0 / counts[owner] if weights is None else torch.tensor(weights),
        observed=torch.ones(len(flat), dtype=torch.bool) if observed is None else torch.tensor(observed),
    )
