"""A knowledge graph with texts: triples as numbers, their inverses, known answers, and thinner versions of it.

Relation r has the inverse r + R. A query is ``(h, r)`` with r in [0, 2R); to predict the head of ``(?, r, t)`` is the
query ``(t, r + R)``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from tenfold.errors import UserError

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")


@dataclass(frozen=True)
class KnowledgeGraph:
    """Triples of a graph in three splits, and what its entities and relations are called.

    Attributes:
        entities: ids of the N entities of all splits; the position is the entity's number.
        relations: ids of the R relations.
        train: ``(n, 3)`` int64: head, relation, tail.
        valid: as ``train``.
        test: as ``train``.
        names: a text per entity, which may repeat.
        descriptions: a longer text per entity; empty where there is none.
        relation_texts: a text per relation.
        hidden: ``(n, 3)`` further true triples that no model sees: what thinning removed. They tell how many of the
            triples that a fusion injects are true.
        name: of the data.
        notes: what a reader of results must know about the data.
    """

    entities: tuple[str, ...]
    relations: tuple[str, ...]
    train: Tensor
    valid: Tensor
    test: Tensor
    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    relation_texts: tuple[str, ...]
    hidden: Tensor = field(default_factory=lambda: torch.empty(0, 3, dtype=torch.int64))
    name: str = "graph"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for split in SPLITS:
            triples = self.split(split)
            if len(triples) == 0:
                raise UserError(f"{self.name}: the split {split} is empty; give it triples, or let the graph be split")
            if (
                int(triples.min()) < 0
                or int(triples[:, [0, 2]].max()) >= self.num_entities
                or int(triples[:, 1].max()) >= self.num_relations
            ):
                raise UserError(f"{self.name}: a triple of {split} names an entity or relation that the graph has not")

    @property
    def num_entities(self) -> int:
        """N."""
        return len(self.entities)

    @property
    def num_relations(self) -> int:
        """R, inverses not counted."""
        return len(self.relations)

    def split(self, name: Split) -> Tensor:
        """``(n, 3)`` triples of a split."""
        return getattr(self, name)

    def degrees(self) -> Tensor:
        """``(N,)`` number of training edges at each entity."""
        ends = self.train[:, [0, 2]].flatten()
        return torch.bincount(ends, minlength=self.num_entities)

    def seen(self) -> Tensor:
        """``(N,)`` whether a training triple mentions the entity."""
        return self.degrees() > 0

    def known(self, *splits: Split) -> "AnswerIndex":
        """Answers of all queries, in both directions, that the named splits (all by default) know."""
        triples = torch.cat([self.split(split) for split in splits or SPLITS])
        return AnswerIndex(with_inverses(triples, self.num_relations), self.num_relations)

    def entity(self, name: str) -> int:
        """Number of an entity, by its id, or by its name where only one entity has that.

        Raises:
            UserError: there is none, or several have the name.
        """
        return _find(name, self.entities, self.names, "entity")

    def relation(self, name: str) -> int:
        """Number of a relation by its id, or by its text where only one has that; see :meth:`entity`."""
        return _find(name, self.relations, self.relation_texts, "relation")


def _find(name: str, ids: Sequence[str], texts: Sequence[str], what: str) -> int:
    if name in ids:
        return ids.index(name)
    same = [number for number, text in enumerate(texts) if text == name]
    if len(same) == 1:
        return same[0]
    if same:
        some = ", ".join(ids[number] for number in same[:5])
        raise UserError(f"{len(same)} {what} ids are called {name!r}: name one by its id, such as {some}")
    import difflib

    near = difflib.get_close_matches(name, ids, n=3)
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    raise UserError(f"the graph has no {what} {name!r}{hint}")


def with_inverses(triples: Tensor, num_relations: int) -> Tensor:
    """Triples in both directions: the given ones, then their inverses ``(t, r + R, h)``.

    Args:
        triples: ``(n, 3)`` plain relations.
        num_relations: R.

    Returns:
        ``(2n, 3)``.
    """
    inverse = torch.stack([triples[:, 2], triples[:, 1] + num_relations, triples[:, 0]], 1)
    return torch.cat([triples, inverse])


class AnswerIndex:
    """Distinct queries and their answers, sorted: row q has the answers ``offsets[q]`` to ``offsets[q + 1]``.

    Args:
        triples: ``(n, 3)`` directed triples, relations in [0, 2R); repeated ones count once, with the largest weight.
        num_relations: R.
        weights: ``(n,)`` of the triples; 1 by default.

    Attributes:
        queries: ``(Q, 2)`` distinct ``(h, r)``.
        offsets: ``(Q + 1,)``.
        answers: ``(A,)`` entities.
        weights: ``(A,)`` float32.
    """

    def __init__(self, triples: Tensor, num_relations: int, weights: Tensor | None = None) -> None:
        self.num_relations = num_relations
        directed = 2 * num_relations
        weights = torch.ones(len(triples)) if weights is None else weights.float()
        entities = int(triples[:, [0, 2]].max()) + 1 if len(triples) else 1
        key = (triples[:, 0] * directed + triples[:, 1]) * entities + triples[:, 2]
        unique, place = key.unique(return_inverse=True)
        self.weights = torch.zeros(len(unique)).scatter_reduce_(0, place, weights, "amax", include_self=False)
        self.answers = unique % entities
        self._keys, counts = (unique // entities).unique_consecutive(return_counts=True)
        self.offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        self.queries = torch.stack([self._keys // directed, self._keys % directed], 1)

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def counts(self) -> Tensor:
        """``(Q,)`` number of answers of each query."""
        return self.offsets.diff()

    def find(self, queries: Tensor) -> Tensor:
        """``(B,)`` rows of ``(B, 2)`` queries; -1 for queries without answers."""
        key = queries[:, 0] * (2 * self.num_relations) + queries[:, 1]
        if not len(self):
            return torch.full_like(key, -1)
        place = torch.searchsorted(self._keys, key).clamp(max=len(self) - 1)
        return torch.where(self._keys[place] == key, place, -1)

    def of(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Answers of rows, flat.

        Args:
            rows: ``(B,)`` rows of this index; -1 has no answers.

        Returns:
            ``(n,)`` places in ``rows``, ``(n,)`` entities, ``(n,)`` weights.
        """
        if not len(self):
            none = torch.empty(0, dtype=torch.int64)
            return none, none, torch.empty(0)
        there = rows >= 0
        safe = rows.clamp(min=0)
        counts = torch.where(there, self.offsets[safe + 1] - self.offsets[safe], 0)
        owner = torch.repeat_interleave(torch.arange(len(rows)), counts)
        first = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)[:-1]])
        flat = self.offsets[safe][owner] + torch.arange(len(owner)) - first[owner]
        return owner, self.answers[flat], self.weights[flat]

    def contains(self, triples: Tensor) -> Tensor:
        """``(n,)`` whether each directed triple is in the index."""
        owner, answers, _ = self.of(self.find(triples[:, :2]))
        found = torch.zeros(len(triples), dtype=torch.bool)
        found[owner[answers == triples[owner, 2]]] = True
        return found


def sparsify(graph: KnowledgeGraph, fraction: float, *, seed: int = 0, keep_unseen: bool = False) -> KnowledgeGraph:
    """A thinner graph: a random share of the training triples; the others become ``hidden``.

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
    hidden = torch.cat([graph.hidden, graph.train[order[kept:].sort().values]])
    seen = torch.zeros(graph.num_entities, dtype=torch.bool)
    seen[train[:, [0, 2]].flatten()] = True
    valid, test = graph.valid, graph.test
    if not keep_unseen:
        valid, test = (part[seen[part[:, 0]] & seen[part[:, 2]]] for part in (valid, test))
    return replace(
        graph,
        train=train,
        valid=valid,
        test=test,
        hidden=hidden,
        name=f"{graph.name}, {fraction:.0%} of training",
        notes=(*graph.notes, f"{kept:,} of {len(graph.train):,} training triples are kept (seed {seed})."),
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
    return restrict(graph, keep, note=f"The part induced by {int(keep.sum()):,} of {graph.num_entities:,} entities.")


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
        notes=(*graph.notes, note),
    )


def drop_unseen(graph: KnowledgeGraph) -> KnowledgeGraph:
    """The graph without the entities that no training triple mentions, as other libraries load it; for comparison.

    Args:
        graph: the graph, with all its entities.
    """
    seen = graph.seen()
    lost = graph.num_entities - int(seen.sum())
    return restrict(graph, seen, f"{lost:,} entities without a training triple were dropped, with their triples.")


def split_triples(
    triples: Tensor, num_entities: int, *, shares: tuple[float, float] = (0.1, 0.1), seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, list[str]]:
    """Split triples at random so that every entity stays in the training split.

    Args:
        triples: ``(n, 3)`` distinct.
        num_entities: N.
        shares: of the validation and the test split.
        seed: of the choice.

    Returns:
        training, validation and test triples, and notes on what was impossible.

    Raises:
        UserError: too few triples can be spared.
    """
    order = torch.randperm(len(triples), generator=torch.Generator().manual_seed(seed))
    left = torch.bincount(triples[:, [0, 2]].flatten(), minlength=num_entities).tolist()
    wanted = sum(max(1, round(share * len(triples))) for share in shares)
    held: list[int] = []
    for place, (h, _, t) in zip(order.tolist(), triples[order].tolist(), strict=True):
        if len(held) == wanted:
            break
        needed = 3 if h == t else 2
        if left[h] >= needed and left[t] >= needed:
            left[h] -= 1
            left[t] -= 1
            held.append(place)
    if len(held) < 2:
        raise UserError(
            "the graph is too sparse to be split: no triple can be spared without losing an entity; give the splits "
            "as train, valid and test files"
        )
    first = max(1, round(len(held) * shares[0] / sum(shares)))
    valid, test = torch.tensor(held[:first]), torch.tensor(held[first:])
    mask = torch.ones(len(triples), dtype=torch.bool)
    mask[torch.tensor(held)] = False
    notes = []
    if len(held) < wanted:
        notes.append(
            f"Only {len(held):,} of the {wanted:,} triples wanted for validation and test could be spared without "
            "losing an entity from the training split."
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
