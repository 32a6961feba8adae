"""Exact softmax and exact best K over millions of entities, a tile at a time: no ``(B, N)`` matrix is ever held.

For encoders whose scores are dot products of query and entity vectors (cosines: of unit vectors), plus a bias.
"""

import logging
from typing import Any

import torch
from torch import Tensor

from tenfold.errors import UserError, require

log = logging.getLogger("tenfold")

BUDGET_BYTES = 2**31
"""Largest score matrix that is held at once, about; beyond it, batches and tiles become smaller."""

_LOW = (1 << 32) - 1


def rows_within(entities: int, rows: int, budget: int = BUDGET_BYTES, copies: int = 4) -> int:
    """How many queries may be scored at once against all entities; at least 1.

    Args:
        entities: N.
        rows: how many are wanted; fewer are given, with a note in the log, where their scores exceed the budget.
        budget: bytes.
        copies: matrices of that size that are alive together.
    """
    fitting = max(1, budget // (4 * entities * copies))
    if fitting < rows:
        log.info(
            "scores of %d queries x %d entities exceed %d MiB: %d at a time", rows, entities, budget >> 20, fitting
        )
    return min(rows, fitting)


def too_large(rows: int, entities: int, budget: int = BUDGET_BYTES, copies: int = 4) -> bool:
    """Whether the scores of so many queries against all entities exceed the budget."""
    return 4 * rows * entities * copies > budget


def tile_size(rows: int, budget: int = BUDGET_BYTES, copies: int = 4) -> int:
    """Entities per tile so that a tile of scores stays within the budget, and within a cache-friendly 16,384."""
    return max(1, min(16_384, budget // (4 * max(rows, 1) * copies)))


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
        """Write :attr:`FAR` into a ``(B, n)`` tile whose first candidate is ``start``."""
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
    """The supervised loss ``softmax`` of :func:`~.method.full_scores_loss`, exact, without a score matrix.

    Args:
        queries: ``(B, d)``.
        entities: ``(N, d)``.
        owner: ``(n,)`` which query an answer belongs to.
        answers: ``(n,)`` entities.
        weights: ``(n,)``.
        bias: ``(N,)``.
        smoothing: share of the target spread over all entities.
        tile: see :func:`tiled_logsumexp`.
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


def ordered_keys(scores: Tensor, ids: Tensor) -> Tensor:
    """int64 keys that sort by score, equal scores by smaller id first: for exact merging of best lists.

    Args:
        scores: ``(B, n)`` float32.
        ids: ``(n,)`` or ``(B, n)`` below 2^32.
    """
    bits = (scores + 0.0).contiguous().view(torch.int32)  # + 0: minus zero equals zero
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    return (ordered << 32) | (_LOW - ids)


def split_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and ids of :func:`ordered_keys`."""
    ids = _LOW - (keys & _LOW)
    ordered = (keys >> 32).to(torch.int32)
    bits = torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
    return bits.view(torch.float32), ids


@torch.no_grad()
def tiled_topk(
    queries: Tensor, entities: Tensor, k: int, *, bias: Tensor | None = None, tile: int = 0
) -> tuple[Tensor, Tensor]:
    """The K best entities of each query, exactly; equal scores in the order of ids.

    Args:
        queries: ``(B, d)``.
        entities: ``(N, d)``.
        k: how many, at most N.
        bias: ``(N,)``.
        tile: see :func:`tiled_logsumexp`.

    Returns:
        ``(B, K)`` scores and ``(B, K)`` ids, best first.
    """
    tile = max(tile or tile_size(len(queries)), 1)
    best: Tensor | None = None
    for start in range(0, len(entities), tile):
        scores = (queries @ entities[start : start + tile].T).float()
        if bias is not None:
            scores = scores + bias[start : start + tile]
        keys = ordered_keys(scores, torch.arange(start, start + scores.shape[1], device=scores.device))
        keys = keys.topk(min(k, keys.shape[1]), 1).values
        best = (
            keys if best is None else torch.cat([best, keys], 1).topk(min(k, best.shape[1] + keys.shape[1]), 1).values
        )
    assert best is not None
    return split_keys(best)


def approximate_topk(
    queries: Tensor, entities: Tensor, k: int, *, kind: str = "hnsw", check: int = 1000
) -> tuple[Tensor, Tensor, float]:
    """The K best entities by a FAISS index, and the share of the exact best K that it finds.

    Args:
        queries: ``(B, d)``; scores are dot products.
        entities: ``(N, d)``.
        k: how many.
        kind: ``hnsw``, ``ivf`` (inverted lists), or ``ivf-pq`` (compressed: for little memory).
        check: queries on which recall is measured.

    Returns:
        scores, ids, recall@K.

    Raises:
        UserError: FAISS is not installed, or an unknown kind.
    """
    faiss = require("faiss", "graphs")
    lists = max(1, int(4 * len(entities) ** 0.5))
    factories = {"hnsw": "HNSW32", "ivf": f"IVF{lists},Flat", "ivf-pq": f"IVF{lists},PQ{max(1, queries.shape[1] // 4)}"}
    if kind not in factories:
        raise UserError(f"there is no index {kind!r}; there are: {', '.join(factories)}")
    index = faiss.index_factory(entities.shape[1], factories[kind], faiss.METRIC_INNER_PRODUCT)
    table = entities.detach().float().cpu().numpy()
    index.train(table)
    index.add(table)
    if kind == "hnsw":
        faiss.ParameterSpace().set_index_parameter(index, "efSearch", max(64, 2 * k))
    else:
        faiss.ParameterSpace().set_index_parameter(index, "nprobe", max(8, lists // 16))
    scores, ids = index.search(queries.detach().float().cpu().numpy(), k)
    found = torch.from_numpy(ids)
    _, exact = tiled_topk(queries[:check].cpu().float(), entities.cpu().float(), k)
    hits = (found[:check, :, None] == exact[:, None, :]).any(1)
    return torch.from_numpy(scores), found, float(hits.double().mean())
