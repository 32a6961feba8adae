"""Supervised losses that score some candidates and not all: for encoders trained so, and for graphs too large."""

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.nn.functional import all_gather as gather_from_ranks

from tenfold.systems.graph_fusion.encoders.previous_vectors import PreviousVectors
from tenfold.systems.graph_fusion.encoders.query_scorer import QueryScorer
from tenfold.systems.graph_fusion.graph.query_batch import QueryBatch
from tenfold.training.parallel import mean_over_ranks, world_size


def self_adversarial_loss(scorer: QueryScorer, batch: QueryBatch, negatives: int = 256, alpha: float = 1.0) -> Tensor:
    """RotatE's and HAKE's loss: one positive against random negatives, weighed by how likely the model finds them.

    Args:
        scorer: scores are ``gamma`` minus a distance.
        batch: every answer is one positive; answers of the training split are no negatives.
        negatives: drawn for each positive.
        alpha: temperature of the weights, which get no gradient.
    """
    n, device = scorer.num_entities, batch.heads.device
    heads, relations = batch.heads[batch.owner], batch.relations[batch.owner]
    drawn = torch.randint(n, (len(heads), negatives), device=device)
    scores = scorer.score_candidates(heads, relations, torch.cat([batch.answers[:, None], drawn], 1))
    positive, negative = scores[:, 0], scores[:, 1:]
    false = _are_answers(batch, batch.owner, drawn, n)
    weight = (alpha * negative.detach()).masked_fill(false, -torch.inf).softmax(1).nan_to_num()
    # The official programs weigh a positive by how seldom its query occurs, unless told --uni_weight; here all count 1.
    weights = torch.where(batch.observed, 1.0, batch.weights)
    losses = -F.logsigmoid(positive) - (weight * F.logsigmoid(-negative)).sum(1)
    return (weights * losses).sum() / (2 * mean_over_ranks(weights.sum()))


def sampled_softmax_loss(scorer: QueryScorer, batch: QueryBatch, shared: int = 16_384) -> Tensor:
    """Softmax over each answer and one set of random entities that all queries of the batch share.

    The set is scored once per query, its sum is shared by the query's answers, and no other entity is looked at.
    Sampled scores are corrected by the logarithm of their expected number, so that the sum estimates the full one; the
    positive is not corrected. There is no label smoothing: it would spread over the sample only.

    Args:
        scorer: any encoder with query and entity vectors.
        batch: queries and answers.
        shared: size of the set.
    """
    n, device = scorer.num_entities, batch.heads.device
    drawn = torch.randint(n, (min(shared, n),), device=device)
    positive, negative = scorer.score_answers(batch.heads, batch.relations, batch.owner, batch.answers, drawn)
    negative = negative - math.log(len(drawn) / n)
    owner, place = _drawn_answers(batch, drawn)
    others = negative.index_put((owner, place), negative.new_tensor(-1e9)).logsumexp(1)
    losses = torch.logaddexp(positive, others[batch.owner]) - positive
    return (batch.weights * losses).sum() / len(batch.heads)


def _drawn_answers(batch: QueryBatch, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """``(m,)`` queries and places in ``(K,)`` drawn entities that are one of the query's answers."""
    values, order = drawn.sort()
    first, last = (torch.searchsorted(values, batch.answers, right=right) for right in (False, True))
    counts = last - first
    row = torch.repeat_interleave(torch.arange(len(counts), device=drawn.device), counts)
    ends = counts.cumsum(0)
    place = torch.arange(len(row), device=drawn.device) - (ends - counts)[row] + first[row]
    return batch.owner[row], order[place]


def in_batch_loss(
    scorer: QueryScorer,
    batch: QueryBatch,
    margin: float = 0.02,
    self_negatives: bool = True,
    previous_weight: float = 0.5,
) -> Tensor:
    """SimKGC's InfoNCE: an answer of each query against those of the others, both ways.

    Candidates come from the batch of all processes, and from previous batches where the encoder keeps them in an
    attribute ``previous``, a `PreviousVectors`.

    Args:
        scorer: with unit vectors and a scale (inverse temperature).
        batch: one answer per query is drawn; other true answers among the candidates are masked.
        margin: taken from the positive's cosine.
        self_negatives: the query's own entity is a negative.
        previous_weight: factor of the logits of previous batches.
    """
    chosen = _one_answer_each(batch)
    every = torch.arange(len(batch.heads), device=chosen.device)

    def answers_among(entities: Tensor) -> Tensor:
        return _are_answers(batch, every, entities.expand(len(every), -1), scorer.num_entities)

    queries, vectors = scorer.query_vectors(batch.heads, batch.relations), scorer.entity_vectors(chosen)
    scale = scorer.score_scale()
    own = (queries * scorer.entity_vectors(batch.heads)).sum(1, keepdim=True) * scale
    own = own.masked_fill((batch.heads == chosen)[:, None], -1e4)
    further = [own] if self_negatives else []
    previous: PreviousVectors | None = getattr(scorer, "previous", None)
    if previous is not None:
        kept = previous.entities
        useless = (kept < 0) | answers_among(kept.clamp(min=0)) | (kept[None] == chosen[:, None])
        older = queries @ previous.vectors.clone().T * scale * previous_weight  # they change before backward
        further.append(older.masked_fill(useless, -1e4))
    # Every process has the loss of the whole batch; gradients of gathered rows go back to where they came from.
    everyone, all_vectors = gather_with_gradient(queries), gather_with_gradient(vectors)
    all_chosen = gather_with_gradient(chosen)
    false = gather_with_gradient(answers_among(all_chosen).to(torch.uint8)).bool()
    eye = torch.eye(len(all_chosen), dtype=torch.bool, device=chosen.device)
    block = ((everyone @ all_vectors.T - margin * eye) * scale).masked_fill(false & ~eye, -1e4)
    rows = torch.cat([block, *(gather_with_gradient(part) for part in further)], 1)
    target = torch.arange(len(all_chosen), device=chosen.device)
    loss = F.cross_entropy(rows, target) + F.cross_entropy(block.T, target)
    if previous is not None and scorer.training and torch.is_grad_enabled():
        previous.push(all_vectors, all_chosen)
    return loss


def _one_answer_each(batch: QueryBatch) -> Tensor:
    """``(B,)`` a random answer of each query."""
    noise = torch.rand(len(batch.answers), device=batch.heads.device)
    best = torch.full((len(batch.heads),), -1.0, device=noise.device)
    best = best.scatter_reduce(0, batch.owner, noise, "amax")
    chosen = torch.empty(len(batch.heads), dtype=torch.int64, device=noise.device)
    picked = noise == best[batch.owner]
    chosen[batch.owner[picked]] = batch.answers[picked]
    return chosen


def gather_with_gradient(rows: Tensor) -> Tensor:
    """Rows of all processes, ``(W * B, ...)`` in the order of ranks; each gets the sum of the gradients of its rows."""
    if world_size() == 1:
        return rows
    if not rows.is_floating_point():
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)
    return torch.cat(list(gather_from_ranks(rows.contiguous())))


def _are_answers(batch: QueryBatch, rows: Tensor, candidates: Tensor, num_entities: int) -> Tensor:
    """``(m, K)`` whether ``(m, K)`` candidates are answers of the queries at ``(m,)`` places in the batch.

    Looked up among sorted keys: a table of queries and entities would be as large as the scores that are avoided.
    """
    keys = (batch.owner * num_entities + batch.answers).sort().values
    wanted = rows[:, None] * num_entities + candidates
    place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    return keys[place] == wanted
