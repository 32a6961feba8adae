"""Triples split into training, validation and test, and what leaks from one split into another."""

import torch
from torch import Tensor

from tenfold.errors import UserError
from tenfold.systems.graph_fusion.graph.knowledge_graph import KnowledgeGraph


def split_triples(
    triples: Tensor, num_entities: int, *, shares: tuple[float, float] = (0.1, 0.1), seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, list[str]]:
    """Split triples at random so that every entity and relation stays in the training split.

    Args:
        triples: ``(n, 3)`` distinct.
        num_entities: N.
        shares: of the validation and the test split.
        seed: of the choice.

    Returns:
        training, validation and test triples, and notes: how many went where, and what was impossible.

    Raises:
        UserError: too few triples can be spared.
    """
    order = torch.randperm(len(triples), generator=torch.Generator().manual_seed(seed))
    left = torch.bincount(triples[:, [0, 2]].flatten(), minlength=num_entities).tolist()
    facts = torch.bincount(triples[:, 1]).tolist()
    wanted = sum(max(1, round(share * len(triples))) for share in shares)
    held: list[int] = []
    for place, (h, r, t) in zip(order.tolist(), triples[order].tolist(), strict=True):
        if len(held) == wanted:
            break
        needed = 3 if h == t else 2
        if left[h] >= needed and left[t] >= needed and facts[r] >= 2:
            facts[r] -= 1
            left[h] -= 1
            left[t] -= 1
            held.append(place)
    if len(held) < 2:
        raise UserError(
            "the graph is too sparse to be split: no triple can be spared without losing an entity or a relation; give "
            "the splits as train, valid and test files"
        )
    first = max(1, round(len(held) * shares[0] / sum(shares)))
    valid, test = torch.tensor(held[:first]), torch.tensor(held[first:])
    mask = torch.ones(len(triples), dtype=torch.bool)
    mask[torch.tensor(held)] = False
    notes = [
        f"One file of {len(triples):,} triples was split at random (seed {seed}): {int(mask.sum()):,} for training, "
        f"{len(valid):,} for validation, {len(test):,} for the test."
    ]
    if len(held) < wanted:
        notes.append(
            f"Only {len(held):,} of the {wanted:,} triples wanted for validation and test could be spared without "
            "losing an entity or a relation from the training split."
        )
    return triples[mask], triples[valid], triples[test], notes


def leakage(graph: KnowledgeGraph) -> dict[str, int]:
    """What of the test split can be read off the training split.

    Args:
        graph: the graph.

    Returns:
        ``repeated``: test triples that are also training triples; ``inverted``: test triples whose ends are joined in
        training in the other direction; ``joined``: whose ends are joined in training by any edge.
    """
    n = graph.num_entities
    forward = graph.train[:, 0] * n + graph.train[:, 2]
    pairs, swapped = graph.test[:, 0] * n + graph.test[:, 2], graph.test[:, 2] * n + graph.test[:, 0]
    inverted, along = torch.isin(swapped, forward), torch.isin(pairs, forward)
    return {
        "repeated": int(graph.known("train").contains(graph.test).sum()),
        "inverted": int(inverted.sum()),
        "joined": int((inverted | along).sum()),
    }
