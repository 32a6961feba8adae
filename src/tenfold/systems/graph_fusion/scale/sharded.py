"""Exact softmax and best K over entities whose vectors are spread over processes.

Rank r of W holds the vectors of the entities r, r + W, r + 2W, ... Every rank scores all gathered queries against its
own rows; maxima, sums and best lists are merged, so that the numbers are those of one process. Run under torchrun.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tenfold.systems.graph_fusion.scale.memory import tile_size
from tenfold.systems.graph_fusion.scale.top_k import ordered_keys, split_keys
from tenfold.training.parallel import world_size


def shard_rows(table: Tensor, rank: int, world: int) -> Tensor:
    """The rows of ``(N, ...)`` that a rank holds."""
    return table[rank::world].contiguous()


def _gather(value: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(value) for _ in range(world_size())]
    dist.all_gather(parts, value.contiguous())
    return parts


class _ShardedCrossEntropy(torch.autograd.Function):
    """Mean over all ranks' queries of ``log sum_e exp(q . v_e) - q . v_answer``; each rank gets its own gradients."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, entities: Tensor, answers: Tensor, tile: int) -> Tensor:
        world, rank = world_size(), dist.get_rank() if world_size() > 1 else 0
        everyone = torch.cat(_gather(queries)) if world > 1 else queries
        targets = torch.cat(_gather(answers)) if world > 1 else answers
        highest = everyone.new_full((len(everyone),), -torch.inf)
        total = torch.zeros_like(highest)
        for part in entities.split(tile):
            scores = everyone @ part.T
            top = torch.maximum(highest, scores.max(1).values)
            total = total * (highest - top).exp() + (scores - top[:, None]).exp_().sum(1)
            highest = top
        overall = highest.clone()
        mine = (targets % world == rank).nonzero().flatten()
        places = targets[mine] // world
        gold = torch.zeros_like(highest)
        gold[mine] = (everyone[mine] * entities[places]).sum(1)
        if world > 1:
            dist.all_reduce(overall, op=dist.ReduceOp.MAX)
        total = total * (highest - overall).exp()
        if world > 1:
            dist.all_reduce(total)
            dist.all_reduce(gold)
        normalizer = overall + total.log()
        ctx.save_for_backward(everyone, entities, normalizer, mine, places)
        ctx.tile, ctx.rank, ctx.own = tile, rank, len(queries)
        return (normalizer - gold).mean()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        everyone, entities, normalizer, mine, places = ctx.saved_tensors
        factor = gradient / len(everyone)
        for_queries, for_entities = torch.zeros_like(everyone), torch.empty_like(entities)
        for start in range(0, len(entities), ctx.tile):
            here = slice(start, start + ctx.tile)
            shares = (everyone @ entities[here].T - normalizer[:, None]).exp_() * factor
            for_queries += shares @ entities[here]
            for_entities[here] = shares.T @ everyone
        for_queries[mine] -= factor * entities[places]
        for_entities.index_add_(0, places, -factor * everyone[mine])
        if world_size() > 1:
            dist.all_reduce(for_queries)
        return for_queries[ctx.rank * ctx.own : (ctx.rank + 1) * ctx.own], for_entities, None, None


def sharded_cross_entropy(queries: Tensor, entities: Tensor, answers: Tensor, tile: int = 0) -> Tensor:
    """Exact full-softmax loss with the entities spread over processes.

    Args:
        queries: ``(B, d)`` of this rank; every rank has as many.
        entities: ``(N / W, d)`` rows of this rank, see `shard_rows`.
        answers: ``(B,)`` global entity numbers of this rank's queries.
        tile: rows at a time; 0 chooses by memory.

    Returns:
        scalar, the mean over the queries of all ranks, the same on each; its gradients are those of one process.
    """
    return _ShardedCrossEntropy.apply(queries, entities, answers, tile or tile_size(len(queries) * world_size()))


@torch.no_grad()
def sharded_topk(queries: Tensor, entities: Tensor, k: int, tile: int = 0) -> tuple[Tensor, Tensor]:
    """The K best entities of all ranks' queries, exactly; equal scores in the order of ids.

    Args:
        queries: ``(B, d)`` of this rank; every rank has as many.
        entities: rows of this rank.
        k: how many.
        tile: rows at a time; 0 chooses by memory.

    Returns:
        ``(W * B, K)`` scores and global ids, in the order of ranks, the same on each.
    """
    world = world_size()
    rank = dist.get_rank() if world > 1 else 0
    everyone = torch.cat(_gather(queries)) if world > 1 else queries
    tile = tile or tile_size(len(everyone))
    keys: Tensor | None = None
    for start in range(0, len(entities), tile):
        scores = (everyone @ entities[start : start + tile].T).float()
        ids = (start + torch.arange(scores.shape[1], device=scores.device)) * world + rank
        found = ordered_keys(scores, ids)
        found = found if keys is None else torch.cat([keys, found], 1)
        keys = found.topk(min(k, found.shape[1]), 1).values
    assert keys is not None
    if world > 1:
        # Shards may differ by one row; shorter lists are filled with what never wins.
        missing = k - keys.shape[1]
        if missing > 0:
            keys = torch.cat([keys, keys.new_full((len(keys), missing), torch.iinfo(torch.int64).min)], 1)
        keys = torch.cat(_gather(keys), 1)
        keys = keys.topk(k, 1).values
    return split_keys(keys)
