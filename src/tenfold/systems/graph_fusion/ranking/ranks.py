"""Filtered ranking in both directions, with ties, groups of entities, and paired intervals.

A rank is 1 + #better + #ties / 2 (realistic), 1 + #better (optimistic), 1 + #better + #ties (pessimistic); other known
answers do not count.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tenfold.errors import UserError
from tenfold.systems.graph_fusion.encoders.query_scorer import QueryScorer, check_scores
from tenfold.systems.graph_fusion.graph.answers import AnswerIndex, with_inverses
from tenfold.systems.graph_fusion.graph.knowledge_graph import KnowledgeGraph, Split
from tenfold.systems.graph_fusion.scale.memory import rows_within
from tenfold.training.parallel import gather_rows, rank, world_size


@dataclass(frozen=True)
class Ranks:
    """For each query of a split, how many candidates beat the answer or tie with it.

    Attributes:
        triples: ``(n, 3)`` directed: the answer is the third; relations from R on predict heads.
        better: ``(n,)`` candidates with a higher score, known answers left out.
        ties: ``(n,)`` others with the same score.
        candidates: ``(n,)`` candidates in all.
        num_relations: R.
    """

    triples: Tensor
    better: Tensor
    ties: Tensor
    candidates: Tensor
    num_relations: int

    def realistic(self) -> Tensor:
        """``(n,)`` float64 ranks in the middle of their ties."""
        return 1 + self.better.double() + self.ties.double() / 2

    def optimistic(self) -> Tensor:
        """``(n,)`` float64 ranks before all ties."""
        return 1 + self.better.double()

    def pessimistic(self) -> Tensor:
        """``(n,)`` float64 ranks behind all ties."""
        return 1 + self.better.double() + self.ties.double()

    @property
    def predicts_head(self) -> Tensor:
        """``(n,)`` bool."""
        return self.triples[:, 1] >= self.num_relations

    def reciprocal(self) -> Tensor:
        """``(n,)`` reciprocal realistic ranks."""
        return 1 / self.realistic()

    def by_triple(self) -> Tensor:
        """``(n / 2,)`` mean reciprocal rank of each triple's two queries, in the order of the split."""
        both = self.reciprocal().view(2, -1)
        return both.mean(0)


@torch.no_grad()
def rank_queries(
    scorer: QueryScorer,
    triples: Tensor,
    known: AnswerIndex | None,
    *,
    batch_size: int = 512,
    what: str = "evaluated",
) -> Ranks:
    """Rank the answers of directed triples among all entities.

    Each distinct query is scored once, in float32 whatever the encoder computes in: half precision would make ties.
    Entities that the encoder must score alike (`QueryScorer.same_candidates`) tie whatever the batch size. Processes
    share the queries; each gets all ranks.

    Args:
        scorer: the encoder; evaluated in eval mode.
        triples: ``(n, 3)`` directed, relations in [0, 2R).
        known: answers that do not count against the target; nothing is filtered where ``None``.
        batch_size: distinct queries scored at a time; the ranks do not depend on it.
        what: name of the encoder in messages.

    Raises:
        UserError: there is nothing to rank, or the scores are not finite or of a wrong shape.
    """
    if not len(triples):
        raise UserError("there is no triple to evaluate: the split is empty")
    device = next((p.device for p in scorer.parameters()), torch.device("cpu"))
    training = scorer.training
    scorer.eval()
    batch_size = rows_within(scorer.num_entities, batch_size)
    queries, place = triples[:, :2].unique(dim=0, return_inverse=True)
    order = place.argsort(stable=True)
    bounds = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(place, minlength=len(queries)).cumsum(0)])
    starts = range(0, len(queries), batch_size)
    own = starts[rank() :: world_size()] if world_size() > 1 else starts
    counts, places = [torch.empty(0, 3, dtype=torch.int64)], [torch.empty(0, dtype=torch.int64)]
    with scorer.encoded():
        same = scorer.same_candidates()
        for start in own:
            part = queries[start : start + batch_size]
            scores = scorer.score_all(part[:, 0].to(device), part[:, 1].to(device)).float()
            scores = scores if same is None else scores[:, same.to(device)]
            check_scores(scores, len(part), scorer.num_entities, what)
            mine = order[bounds[start] : bounds[start + len(part)]]
            counts.append(torch.stack(_count(scores, place[mine] - start, triples[mine, 2], part, known), 1))
            places.append(mine)
    scorer.train(training)
    found = gather_rows(torch.cat(counts).to(device), torch.cat(places).to(device), len(triples)).cpu()
    better, ties, filtered = found.unbind(1)
    return Ranks(triples, better, ties, scorer.num_entities - filtered, scorer.num_relations)


def _count(
    scores: Tensor, rows: Tensor, targets: Tensor, queries: Tensor, known: AnswerIndex | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Better candidates and ties of each target, and how many candidates were filtered."""
    device = scores.device
    rows, targets = rows.to(device), targets.to(device)
    own = scores[rows, targets]
    compared = scores if len(rows) == len(scores) else scores[rows]
    # Comparisons as floats in one buffer: making and summing booleans takes several times as long. Sums of so many ones
    # are exact in single precision up to 2^24.
    beats, exact = torch.empty_like(compared), torch.float32 if compared.shape[1] <= 2**24 else torch.float64
    better = torch.gt(compared, own[:, None], out=beats).sum(1, dtype=exact).long()
    ties = torch.eq(compared, own[:, None], out=beats).sum(1, dtype=exact).long() - 1
    filtered = torch.zeros_like(better)
    if known is not None:
        owner, answers, _ = known.of(known.find(queries[rows.cpu()]))
        owner, answers = owner.to(device), answers.to(device)
        others = answers != targets[owner]
        owner, answers = owner[others], answers[others]
        theirs, mine = scores[rows[owner], answers], own[owner]
        one = torch.ones_like(owner)
        better = better.index_add(0, owner, -(theirs > mine).long())
        ties = ties.index_add(0, owner, -(theirs == mine).long())
        filtered = filtered.index_add(0, owner, one)
    return better.cpu(), ties.cpu(), filtered.cpu()


def evaluate_encoder(
    scorer: QueryScorer,
    graph: KnowledgeGraph,
    split: Split = "test",
    *,
    batch_size: int = 512,
    filter_hidden: bool = False,
    limit: int = 0,
    seed: int = 0,
    what: str = "evaluated",
) -> Ranks:
    """Rank a split's triples in both directions, filtered by all three splits.

    Args:
        scorer: the encoder.
        graph: the graph. Injected triples are never part of the filter.
        split: what is ranked.
        batch_size: see `rank_queries`.
        filter_hidden: filter the hidden true triples of a thinned graph, too.
        limit: rank a random choice of so many triples; all where 0.
        seed: of that choice.
        what: name of the encoder in messages.
    """
    triples = graph.split(split)
    if limit and len(triples) > limit:
        triples = triples[torch.randperm(len(triples), generator=torch.Generator().manual_seed(seed))[:limit]]
    known = graph.known()
    if filter_hidden and len(graph.hidden):
        everything = torch.cat([graph.train, graph.valid, graph.test, graph.hidden])
        known = AnswerIndex(with_inverses(everything, graph.num_relations), graph.num_relations)
    return rank_queries(scorer, with_inverses(triples, graph.num_relations), known, batch_size=batch_size, what=what)


@torch.no_grad()
def agreement(first: QueryScorer, second: QueryScorer, graph: KnowledgeGraph, *, limit: int = 250) -> float:
    """Share of validation queries to which two encoders give the same first answer, training answers left out.

    Args:
        first: an encoder, in eval mode.
        second: another one.
        graph: the graph.
        limit: validation triples asked for, the first ones; each in both directions.
    """
    queries = with_inverses(graph.valid[:limit], graph.num_relations)[:, :2].unique(dim=0)
    known, same = graph.known("train"), 0
    with first.encoded(), second.encoded():
        for part in queries.split(rows_within(graph.num_entities, len(queries))):
            owner, answers, _ = known.of(known.find(part))
            best = []
            for encoder in (first, second):
                device = next((p.device for p in encoder.parameters()), torch.device("cpu"))
                scores = encoder.score_all(part[:, 0].to(device), part[:, 1].to(device)).float().cpu()
                scores[owner, answers] = -torch.inf
                best.append(scores.argmax(1))
            same += int((best[0] == best[1]).sum())
    return same / len(queries)
