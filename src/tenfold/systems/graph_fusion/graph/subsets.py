"""Thinner and smaller versions of a graph, which say what they left out."""

from dataclasses import replace

import torch
from torch import Tensor

from tenfold.errors import UserError
from tenfold.systems.graph_fusion.graph.knowledge_graph import KnowledgeGraph


def sparsify(graph: KnowledgeGraph, fraction: float, *, seed: int = 0, keep_unseen: bool = False) -> KnowledgeGraph:
    """A thinner graph: a random share of the training triples; the others become ``hidden``.

    So do held-out triples that had to go.

    Args:
        graph: the full graph.
        fraction: share of the training triples to keep, in (0, 1].
        seed: of the choice.
        keep_unseen: keep validation and test triples whose entities are no longer in the training split; DacKGR's
            sparse sets leave them out.

    Raises:
        UserError: the share is out of range, or leaves a split empty.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"fraction is a share of the training triples, in (0, 1]; got {fraction}")
    order = torch.randperm(len(graph.train), generator=torch.Generator().manual_seed(seed))
    kept = max(1, round(fraction * len(graph.train)))
    train = graph.train[order[:kept].sort().values]
    removed = [graph.train[order[kept:].sort().values]]
    seen = torch.zeros(graph.num_entities, dtype=torch.bool)
    seen[train[:, [0, 2]].flatten()] = True
    valid, test = graph.valid, graph.test
    note = f"{kept:,} of {len(graph.train):,} training triples are kept (seed {seed})"
    if not keep_unseen:
        inside = [seen[part[:, 0]] & seen[part[:, 2]] for part in (valid, test)]
        removed += [valid[~inside[0]], test[~inside[1]]]
        valid, test = valid[inside[0]], test[inside[1]]
        note += (
            f"; {len(removed[1]):,} validation and {len(removed[2]):,} test triples were left out, whose entities no "
            "longer occur in training"
        )
    return replace(
        graph,
        train=train,
        valid=valid,
        test=test,
        hidden=torch.cat([graph.hidden, *removed]),
        name=f"{graph.name}, {fraction:.0%} of training",
        notes=(*graph.notes, f"{note}."),
    )


def induced_subset(graph: KnowledgeGraph, entities: int, *, seed: int = 0) -> KnowledgeGraph:
    """The part of a graph around a random connected set of entities: all triples among them.

    The set grows breadth first from a random entity of the training graph, each entity by at most ten random
    neighbours so that hubs do not swallow it.

    Args:
        graph: the full graph.
        entities: how many entities to reach for; those without a training triple among the chosen are dropped again.
        seed: of the choice.

    Raises:
        UserError: a split would be empty.
    """
    if entities >= graph.num_entities:
        return graph
    generator = torch.Generator().manual_seed(seed)
    both = torch.cat([graph.train[:, [0, 2]], graph.train[:, [2, 0]]])
    both = both[both[:, 0].argsort(stable=True)]
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), graph.degrees().cumsum(0)])
    chosen = torch.zeros(graph.num_entities, dtype=torch.bool)
    queue: list[int] = []
    for start in torch.randperm(graph.num_entities, generator=generator).tolist():
        if int(chosen.sum()) >= entities:
            break
        if not chosen[start] and offsets[start + 1] > offsets[start]:
            chosen[start] = True
            queue = [start]
        while queue and int(chosen.sum()) < entities:
            here = queue.pop(0)
            near = both[offsets[here] : offsets[here + 1], 1].unique()
            near = near[torch.randperm(len(near), generator=generator)[:10]]
            new = near[~chosen[near]][: entities - int(chosen.sum())]
            chosen[new] = True
            queue += new.tolist()
    inside = graph.train[chosen[graph.train[:, 0]] & chosen[graph.train[:, 2]]]
    keep = torch.zeros(graph.num_entities, dtype=torch.bool)
    keep[inside[:, [0, 2]].flatten()] = True
    return restrict(graph, keep, note=f"The part induced by {int(keep.sum()):,} of {graph.num_entities:,} entities")


def restrict(graph: KnowledgeGraph, keep: Tensor, note: str) -> KnowledgeGraph:
    """The graph on ``(N,)`` chosen entities, renumbered; relations stay."""
    number = torch.cumsum(keep, 0) - 1

    def among(triples: Tensor) -> Tensor:
        inside = triples[keep[triples[:, 0]] & keep[triples[:, 2]]]
        return torch.stack([number[inside[:, 0]], inside[:, 1], number[inside[:, 2]]], 1)

    chosen = keep.nonzero().flatten().tolist()
    return replace(
        graph,
        entities=tuple(graph.entities[n] for n in chosen),
        names=tuple(graph.names[n] for n in chosen),
        descriptions=tuple(graph.descriptions[n] for n in chosen),
        train=among(graph.train),
        valid=among(graph.valid),
        test=among(graph.test),
        hidden=among(graph.hidden),
        notes=(*graph.notes, f"{note}: {_numbers(graph, keep)}."),
    )


def _numbers(graph: KnowledgeGraph, keep: Tensor) -> str:
    """How many triples of each split lie among the chosen entities."""
    parts = {"training": graph.train, "validation": graph.valid, "test": graph.test}
    kept = {name: int((keep[part[:, 0]] & keep[part[:, 2]]).sum()) for name, part in parts.items()}
    return ", ".join(f"{kept[name]:,} of {len(part):,} {name} triples" for name, part in parts.items())


def drop_unseen(graph: KnowledgeGraph) -> KnowledgeGraph:
    """The graph without the entities that no training triple mentions, as other libraries load it; for comparison.

    Args:
        graph: the graph, with all its entities.
    """
    seen = graph.seen()
    lost = graph.num_entities - int(seen.sum())
    return restrict(graph, seen, f"{lost:,} entities without a training triple were dropped, with their triples")
