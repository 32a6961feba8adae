"""A knowledge graph with texts: triples as numbers, their inverses, known answers, and thinner versions of it.

Relation r has the inverse r + R. A query is ``(h, r)`` with r in [0, 2R); to predict the head of ``(?, r, t)`` is the
query ``(t, r + R)``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from tenfold.errors import UserError
from tenfold.files import printable
from tenfold.systems.graph_fusion.graph.answers import AnswerIndex, with_inverses

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
            triples that a fusion injects are true, and are never proposed as new.
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
            if triples.dtype != torch.int64 or triples.ndim != 2 or triples.shape[1] != 3:
                raise UserError(f"{self.name}: the triples of {split} are no whole numbers in three columns")
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
        """Number of a relation by its id, or by its text where only one has that; see `entity`."""
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
    raise UserError(f"the graph has no {what} {printable(name)!r}{hint}")
