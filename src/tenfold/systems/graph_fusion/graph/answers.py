"""Known answers of queries, in both directions, found fast."""

import torch
from torch import Tensor


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
