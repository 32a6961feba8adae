"""Exact softmax and exact best K over millions of entities, a tile at a time: no ``(B, N)`` matrix is ever held.

For encoders whose scores are dot products of query and entity vectors (cosines: of unit vectors), plus a bias.
"""

from typing import Any

import torch
from torch import Tensor

from tenfold.systems.graph_fusion.scale.memory import tile_size


class Excluded:
    """Which candidates take no part: of single queries, and of all.

    Args:
        owner: ``(m,)`` queries.
        entities: ``(m,)`` the candidate that a query leaves out.
        allowed: ``(N,)`` candidates that take part for all queries; all where ``None``.
    """

    FAR = -1e9
    """Score of an excluded candidate: finite, so that a query without candidates has no NaN."""

    def __init__(self, owner: Tensor, entities: Tensor, allowed: Tensor | None = None) -> None:
        order = entities.argsort()
        self.owner, self.entities, self.allowed = owner[order], entities[order].contiguous(), allowed

    def fill(self, scores: Tensor, start: int) -> Tensor:
        """Write `FAR` into a ``(B, n)`` tile whose first candidate is ``start``."""
        ends = torch.tensor([start, start + scores.shape[1]], device=self.entities.device)
        first, last = torch.searchsorted(self.entities, ends).tolist()
        scores[self.owner[first:last], self.entities[first:last] - start] = self.FAR
        if self.allowed is not None:
            scores.masked_fill_(~self.allowed[start : start + scores.shape[1]], self.FAR)
        return scores


def at_least_single(values: Tensor) -> Tensor:
    """The values in single precision, or double where they are: sums over a softmax need it under mixed precision."""
    return values if values.dtype == torch.float64 else values.float()


def tile_scores(queries: Tensor, entities: Tensor, bias: Tensor | None, here: slice, out: Excluded | None) -> Tensor:
    """``(B, n)`` scores of one tile of candidates, without gradient."""
    part = entities[here].T
    # Backward computes a tile again, outside of any autocast: forward must find the same scores.
    with torch.autocast(queries.device.type, enabled=False):
        scores = queries @ part if bias is None else torch.addmm(bias[here], queries, part)
    return scores if out is None else out.fill(scores, here.start)


def tiles_of(entities: Tensor, tile: int) -> list[slice]:
    """Slices of so many rows each."""
    return [slice(start, start + tile) for start in range(0, len(entities), tile)]


def scan_logsumexp(queries: Tensor, entities: Tensor, bias: Tensor | None, tile: int, out: Excluded | None) -> Tensor:
    """``(B,)`` log of the sum over all tiles of exponentials of scores, without gradient."""
    highest = queries.new_full((len(queries),), -torch.inf)
    total = torch.zeros_like(highest)
    for here in tiles_of(entities, tile):
        scores = tile_scores(queries, entities, bias, here, out)
        top = torch.maximum(highest, scores.amax(1))
        total = total * (highest - top).exp() + scores.sub_(top[:, None]).exp_().sum(1)
        highest = top
    return highest + total.log()


class _LogSumExp(torch.autograd.Function):
    """``log sum_e exp(q . v_e + b_e)`` by tiles; backward computes each tile again in place of keeping it."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, entities: Tensor, bias: Tensor | None, tile: int, out: Excluded | None
    ) -> Tensor:
        result = scan_logsumexp(queries, entities, bias, tile, out)
        ctx.save_for_backward(queries, entities, result, *([] if bias is None else [bias]))
        ctx.tile, ctx.out = tile, out
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        queries, entities, result, *rest = ctx.saved_tensors
        bias = rest[0] if rest else None
        for_queries, for_entities = torch.zeros_like(queries), torch.empty_like(entities)
        for_bias = None if bias is None else torch.empty_like(bias)
        for here in tiles_of(entities, ctx.tile):
            scores = tile_scores(queries, entities, bias, here, ctx.out)
            shares = scores.sub_(result[:, None]).exp_().mul_(gradient[:, None])
            for_queries += shares @ entities[here]
            for_entities[here] = shares.T @ queries
            if for_bias is not None:
                for_bias[here] = shares.sum(0)
        return for_queries, for_entities, for_bias, None, None


def tiled_logsumexp(
    queries: Tensor, entities: Tensor, bias: Tensor | None = None, tile: int = 0, out: Excluded | None = None
) -> Tensor:
    """``(B,)`` logarithm of the softmax's denominator over all entities, with exact gradients.

    Args:
        queries: ``(B, d)``.
        entities: ``(N, d)``.
        bias: ``(N,)``.
        tile: entities at a time; 0 chooses by memory.
        out: candidates that take no part.
    """
    return _LogSumExp.apply(queries, entities, bias, tile or tile_size(len(queries)), out)


def tiled_cross_entropy(
    queries: Tensor,
    entities: Tensor,
    owner: Tensor,
    answers: Tensor,
    weights: Tensor,
    *,
    bias: Tensor | None = None,
    smoothing: float = 0.0,
    tile: int = 0,
) -> Tensor:
    """The supervised loss ``softmax`` of `full_scores_loss`, exact, without a score matrix.

    Args:
        queries: ``(B, d)``.
        entities: ``(N, d)``.
        owner: ``(n,)`` which query an answer belongs to.
        answers: ``(n,)`` entities.
        weights: ``(n,)``.
        bias: ``(N,)``.
        smoothing: share of the target spread over all entities.
        tile: see `tiled_logsumexp`.
    """
    normalizer = tiled_logsumexp(queries, entities, bias, tile)
    gold = (queries[owner] * entities[answers]).sum(1)
    mean = queries @ entities.mean(0)
    if bias is not None:
        gold, mean = gold + bias[answers], mean + bias.mean()
    mass = torch.zeros_like(normalizer).index_add(0, owner, weights)
    fitting = (weights * (normalizer[owner] - gold)).sum()
    spread = (mass * (normalizer - mean)).sum()
    return ((1 - smoothing) * fitting + smoothing * spread) / len(queries)
