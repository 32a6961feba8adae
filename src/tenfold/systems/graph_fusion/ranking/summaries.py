"""Numbers of ranks: MRR and Hits of all queries and of groups, and paired intervals."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from tenfold.arms import PairedDifference
from tenfold.systems.graph_fusion.graph.knowledge_graph import KnowledgeGraph
from tenfold.systems.graph_fusion.ranking.ranks import Ranks

BUCKETS = {"0": (0, 0), "1": (1, 1), "2-3": (2, 3), "4-10": (4, 10), "over 10": (11, 10**9)}
"""Groups of queries by the number of training edges of the given entity."""


def summarise_ranks(ranks: Ranks, mask: Tensor | None = None) -> dict[str, float]:
    """MRR, Hits@1, 3, 10 and mean rank, realistic; MRR also optimistic and pessimistic.

    Args:
        ranks: of a split.
        mask: ``(n,)`` which queries count; all where ``None``.
    """
    chosen = torch.ones(len(ranks.triples), dtype=torch.bool) if mask is None else mask
    if not bool(chosen.any()):
        return {"queries": 0.0}
    realistic = ranks.realistic()[chosen]
    hits = {f"hits@{k}": float((realistic <= k).double().mean()) for k in (1, 3, 10)}
    return {
        "queries": float(chosen.sum()),
        "mrr": float((1 / realistic).mean()),
        **hits,
        "mean_rank": float(realistic.mean()),
        "mrr_optimistic": float((1 / ranks.optimistic()[chosen]).mean()),
        "mrr_pessimistic": float((1 / ranks.pessimistic()[chosen]).mean()),
    }


def summarise_groups(ranks: Ranks, graph: KnowledgeGraph) -> dict[str, dict[str, float]]:
    """Numbers of all queries, of each direction, of seen and unseen entities, and by edges of the given entity.

    Args:
        ranks: of a split of the graph.
        graph: its training split tells degrees.
    """
    degrees, heads = graph.degrees(), ranks.predicts_head
    given, answer = degrees[ranks.triples[:, 0]], degrees[ranks.triples[:, 2]]
    seen = (given > 0) & (answer > 0)
    groups = {"both": None, "tail": ~heads, "head": heads, "seen": seen, "unseen": ~seen}
    summary = {name: summarise_ranks(ranks, mask) for name, mask in groups.items()}
    for name, (low, high) in BUCKETS.items():
        summary[f"degree {name}"] = summarise_ranks(ranks, (given >= low) & (given <= high))
    return summary


def paired_bootstrap(
    ours: Mapping[int, Tensor], baseline: Mapping[int, Tensor], draws: int = 2000, seed: int = 0
) -> PairedDifference:
    """Difference of two arms over the same test triples and seeds, with a 95 % interval: both are resampled.

    Args:
        ours: for each seed, ``(triples,)`` a number per test triple, such as its reciprocal rank.
        baseline: the same seeds and triples.
        draws: number of resamplings.
        seed: of the resampling.

    Raises:
        ValueError: the seeds or triples differ.
    """
    if ours.keys() != baseline.keys() or not ours:
        raise ValueError("paired arms need the same, at least one, seeds")
    differences = np.stack([(ours[s] - baseline[s]).double().numpy() for s in ours])
    seeds, triples = differences.shape
    random = np.random.default_rng(seed)
    means = np.empty(draws)
    for draw in range(draws):
        chosen = random.integers(seeds, size=seeds)
        counts = np.bincount(random.integers(triples, size=triples), minlength=triples)
        means[draw] = differences[chosen].mean(0) @ counts / triples
    low, high = np.quantile(means, [0.025, 0.975])
    by_seed = tuple(differences.mean(1).tolist())
    return PairedDifference(float(differences.mean()), float(low), float(high), seeds, by_seed)
