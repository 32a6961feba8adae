"""The K best of millions of entities: exactly, a tile at a time, or by a FAISS index."""

import torch
from torch import Tensor

from tenfold.errors import UserError, require
from tenfold.systems.graph_fusion.scale.memory import tile_size

_LOW = (1 << 32) - 1


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
    """Scores and ids of `ordered_keys`."""
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
        tile: see `tiled_logsumexp`.

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
