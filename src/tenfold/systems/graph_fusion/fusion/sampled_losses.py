"""Supervised losses that score some candidates and not all: for encoders trained so, and for graphs too large."""

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.nn.functional import all_gather as gather_from_ranks

from tenfold.parallel import mean_over_ranks, world_size
from tenfold.systems.graph_fusion.encoders.previous_vectors import PreviousVectors
from tenfold.systems.graph_fusion.encoders.query_scorer import QueryScorer
from tenfold.systems.graph_fusion.graph.query_batch import QueryBatch


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
    false = _is_answer(batch, n)[batch.owner].gather(1, drawn)
    weight = (alpha * negative.detach()).masked_fill(false, -torch.inf).softmax(1).nan_to_num()
    weights = torch.where(batch.observed, 1.0, batch.weights)
    losses = -F.logsigmoid(positive) - (weight * F.logsigmoid(-negative)).sum(1)
    return (weights * losses).sum() / (2 * mean_over_ranks(weights.sum()))


def sampled_softmax_loss(scorer: QueryScorer, batch: QueryBatch, shared: int = 16_384) -> Tensor:
    """Softmax over each answer and one set of random entities that all queries of the batch share.

    Sampled scores are corrected by the logarithm of their expected number, so that the sum estimates the full one; the
    positive is not corrected. There is no label smoothing: it would spread over the sample only.

    Args:
        scorer: any encoder with query and entity vectors.
        batch: queries and answers.
        shared: size of the set.
    """
    n, device = scorer.num_entities, batch.heads.device
    drawn = torch.randint(n, (min(shared, n),), device=device)
    heads, relations = batch.heads[batch.owner], batch.relations[batch.owner]
    positive = scorer.score_candidates(heads, relations, batch.answers[:, None])
    negative = scorer.score_candidates(heads, relations, drawn.expand(len(heads), -1))
    negative = negative - math.log(len(drawn) / n)
    known = torch.zeros(len(heads), len(drawn), dtype=torch.bool, device=device)
    for_row = batch.owner[:, None] == batch.owner[None]  # answers of the same query
    pairs = batch.answers[:, None] == drawn[None]
    known = (for_row.float() @ pairs.float()) > 0
    scores = torch.cat([positive, negative.masked_fill(known, -1e9)], 1)
    weights = batch.weights
    return -(weights * scores.log_softmax(1)[:, 0]).sum() / len(batch.heads)


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
    answers = _is_answer(batch, scorer.num_entities)
    queries, vectors = scorer.query_vectors(batch.heads, batch.relations), scorer.entity_vectors(chosen)
    scale = scorer.score_scale()
    own = (queries * scorer.entity_vectors(batch.heads)).sum(1, keepdim=True) * scale
    own = own.masked_fill((batch.heads == chosen)[:, None], -1e4)
    further = [own] if self_negatives else []
    previous: PreviousVectors | None = getattr(scorer, "previous", None)
    if previous is not None:
        kept = previous.entities
        useless = (kept < 0) | answers[:, kept.clamp(min=0)] | (kept[None] == chosen[:, None])
        older = queries @ previous.vectors.clone().T * scale * previous_weight  # they change before backward
        further.append(older.masked_fill(useless, -1e4))
    # Every process has the loss of the whole batch; gradients of gathered rows go back to where they came from.
    everyone, all_vectors = gather_with_gradient(queries), gather_with_gradient(vectors)
    all_chosen = gather_with_gradient(chosen)
    false = gather_with_gradient(answers[:, all_chosen].to(torch.uint8)).bool()
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


def _is_answer(batch: QueryBatch, num_entities: int) -> Tensor:
    mask = torch.zeros(len(batch.heads), num_entities, dtype=torch.bool, device=batch.heads.device)
    mask[batch.owner, batch.answers] = True
    return mask
