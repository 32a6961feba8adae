"""Supervised losses that score some candidates and not all: for encoders trained so, and for graphs too large."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tenfold.systems.graph_fusion.batches import QueryBatch
from tenfold.systems.graph_fusion.scorers import QueryScorer


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
    return (weights * losses).sum() / (2 * weights.sum())


def sampled_softmax_loss(scorer: QueryScorer, batch: QueryBatch, shared: int = 16_384) -> Tensor:
    """Softmax over each answer and one set of random entities that all queries of the batch share (spec 2.11).

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


def in_batch_loss(scorer: QueryScorer, batch: QueryBatch, margin: float = 0.02, self_negatives: bool = True) -> Tensor:
    """SimKGC's InfoNCE: an answer of each query against those of the others, both ways (spec 2.4).

    Args:
        scorer: with unit vectors and a scale (inverse temperature).
        batch: one answer per query is drawn; other true answers in the batch are masked.
        margin: taken from the positive's cosine.
        self_negatives: the query's own entity is a negative.
    """
    device, size = batch.heads.device, len(batch.heads)
    noise = torch.rand(len(batch.answers), device=device)
    best = torch.full((size,), -1.0, device=device).scatter_reduce(0, batch.owner, noise, "amax")
    chosen = torch.empty(size, dtype=torch.int64, device=device)
    picked = noise == best[batch.owner]
    chosen[batch.owner[picked]] = batch.answers[picked]
    vectors = scorer.entity_vectors(chosen)
    queries = scorer.query_vectors(batch.heads, batch.relations)
    cosines = queries @ vectors.T - margin * torch.eye(size, device=device)
    false = _is_answer(batch, scorer.num_entities)[:, chosen] & ~torch.eye(size, dtype=torch.bool, device=device)
    scale = scorer.score_scale()
    block = (cosines * scale).masked_fill(false, -1e4)
    rows = block
    if self_negatives:
        own = (queries * scorer.entity_vectors(batch.heads)).sum(1, keepdim=True) * scale
        own = own.masked_fill((batch.heads == chosen)[:, None], -1e4)
        rows = torch.cat([block, own], 1)
    target = torch.arange(size, device=device)
    return F.cross_entropy(rows, target) + F.cross_entropy(block.T, target)


def _is_answer(batch: QueryBatch, num_entities: int) -> Tensor:
    mask = torch.zeros(len(batch.heads), num_entities, dtype=torch.bool, device=batch.heads.device)
    mask[batch.owner, batch.answers] = True
    return mask
