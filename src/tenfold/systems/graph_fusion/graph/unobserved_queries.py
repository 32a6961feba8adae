"""Queries with unknown answers on which the encoders learn from each other.

Residual: a query of the training split, its known answers left out: who else? Cross: a relation that an entity does
not have, but that entities with its relations do. Neither looks at validation or test queries.
"""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from tenfold.systems.graph_fusion.graph.answers import AnswerIndex
from tenfold.systems.graph_fusion.graph.knowledge_graph import KnowledgeGraph

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")


@dataclass(frozen=True)
class UnobservedQueries:
    """Queries and where they come from.

    Attributes:
        queries: ``(U, 2)`` head and relation in [0, 2R).
        cross: ``(U,)`` bool; the others are residual.
    """

    queries: Tensor
    cross: Tensor

    def __len__(self) -> int:
        return len(self.queries)


def relation_cooccurrence(known: AnswerIndex) -> Tensor:
    """``(2R, 2R)`` number of entities that have both directed relations; the diagonal counts those with one."""
    return _incidence_product(known)[0]


def _incidence_product(known: AnswerIndex) -> tuple[Tensor, Tensor]:
    """Co-occurrence, and ``(entities that have relations,)`` in order."""
    heads, place = known.queries[:, 0].unique(return_inverse=True)
    shape = (len(heads), 2 * known.num_relations)
    incidence = torch.sparse_coo_tensor(
        torch.stack([place, known.queries[:, 1]]), torch.ones(len(known)), shape, check_invariants=False
    ).coalesce()
    return torch.sparse.mm(incidence.t().coalesce(), incidence).to_dense(), heads


def sample_unobserved(
    graph: KnowledgeGraph,
    known: AnswerIndex,
    *,
    seed: int,
    cross: int = 4,
    residual: bool = True,
    limit: int = 0,
    extra: Tensor | None = None,
) -> UnobservedQueries:
    """Draw the unobserved queries of one round.

    Cross queries ``(h, r)`` are drawn without replacement with weights
    ``w(h, r) = sum over the relations a of h of cooc(a, r) / cooc(a, a)``, 0 for relations that h has.

    Args:
        graph: the graph.
        known: its training answers.
        seed: of this round; independent of torch's own generator.
        cross: queries drawn per entity that has an edge.
        residual: whether the queries of the training split take part.
        limit: at most so many queries, drawn at random; 0 for all.
        extra: ``(n, 2)`` further queries, for experiments that look at test queries and say so.
    """
    generator = torch.Generator().manual_seed(seed)
    parts, kinds = [], []
    if residual:
        parts.append(known.queries)
        kinds.append(torch.zeros(len(known), dtype=torch.bool))
    if cross > 0 and len(known):
        drawn = _cross_queries(known, cross, generator)
        parts.append(drawn)
        kinds.append(torch.ones(len(drawn), dtype=torch.bool))
    if extra is not None:
        parts.append(extra)
        kinds.append(known.find(extra) < 0)
    if not parts:
        return UnobservedQueries(torch.empty(0, 2, dtype=torch.int64), torch.empty(0, dtype=torch.bool))
    queries, kind = torch.cat(parts), torch.cat(kinds)
    if limit and len(queries) > limit:
        chosen = torch.randperm(len(queries), generator=generator)[:limit].sort().values
        queries, kind = queries[chosen], kind[chosen]
    return UnobservedQueries(queries, kind)


def plausible_weights(known: AnswerIndex, heads: Tensor) -> Tensor:
    """``(len(heads), 2R)`` weights w(h, r) of `sample_unobserved`, for sorted ``heads``."""
    cooccurrence = relation_cooccurrence(known)
    given = cooccurrence / cooccurrence.diagonal().clamp(min=1)[:, None]
    return _weights(known, heads, given)


def _weights(known: AnswerIndex, heads: Tensor, given: Tensor) -> Tensor:
    """Rows of w for sorted heads; the queries of an index are sorted by head, so that only theirs are looked at."""
    owners = known.queries[:, 0].contiguous()
    first = torch.searchsorted(owners, heads[:1])
    last = torch.searchsorted(owners, heads[-1:], right=True)
    queries = known.queries[int(first) : int(last)]
    has = torch.zeros(len(heads), given.shape[0])
    place = torch.searchsorted(heads, queries[:, 0].contiguous()).clamp(max=len(heads) - 1)
    mine = heads[place] == queries[:, 0]
    has[place[mine], queries[mine, 1]] = 1.0
    return (has @ given).masked_fill_(has > 0, 0.0)


def _cross_queries(known: AnswerIndex, count: int, generator: torch.Generator, block: int = 20_000) -> Tensor:
    cooccurrence, heads = _incidence_product(known)
    given = cooccurrence / cooccurrence.diagonal().clamp(min=1)[:, None]
    drawn = []
    for part in heads.split(block):
        weights = _weights(known, part, given)
        # Exponential races: the smallest of Exp(w) variables are a draw without replacement proportional to w.
        races = torch.empty_like(weights).exponential_(generator=generator) / weights.clamp(min=1e-12)
        races[weights <= 0] = float("inf")
        times, relations = races.topk(min(count, weights.shape[1]), dim=1, largest=False)
        there = torch.isfinite(times)
        owner = part[:, None].expand_as(relations)
        drawn.append(torch.stack([owner[there], relations[there]], 1))
    return torch.cat(drawn)
