"""Batches of distinct queries with all their answers, and of unobserved queries beside them; resumable."""

from collections.abc import Iterator

import torch
from torch import Tensor

from tenfold.data.batches import ResumableBatches
from tenfold.seeds import derived_seed
from tenfold.systems.graph_fusion.fusion.teachers import TeacherFile
from tenfold.systems.graph_fusion.graph.answers import AnswerIndex
from tenfold.systems.graph_fusion.graph.query_batch import QueryBatch, UnobservedBatch

_UNOBSERVED = 2  # what a derived seed is for
_BLOCK = 64
"""Batches whose answers are looked up together."""


class QueryBatches(ResumableBatches):
    """Shuffled batches of the distinct queries of the training split, both directions.

    Args:
        known: training answers.
        batch_size: queries of a step, over all processes together.
        seed: of the order.
        injected: weighted answers that densification adds, or ``None``.
        teacher: beliefs on unobserved queries, of which every step gets ``batch_size``, or ``None``. They have a
            random order of their own, so that adding them does not change the order of the observed queries.
    """

    def __init__(
        self,
        known: AnswerIndex,
        batch_size: int,
        *,
        seed: int,
        injected: AnswerIndex | None = None,
        teacher: TeacherFile | None = None,
    ) -> None:
        self.known, self.injected, self.teacher = known, injected, teacher
        self.queries = known.queries
        if injected is not None and len(injected):
            new = injected.queries[known.find(injected.queries) < 0]
            self.queries = torch.cat([self.queries, new])
        self._passes: dict[int, Tensor] = {}
        super().__init__(len(self.queries), batch_size, seed)

    def __iter__(self) -> Iterator[QueryBatch]:
        share = self._share()
        left = self._rows()
        for start in range(0, len(left), _BLOCK):
            for batch in self._observed([rows[share] for rows in left[start : start + _BLOCK]]):
                if self.teacher is not None:
                    batch.unobserved = self._unobserved(self.teacher, share)
                self._advance()
                yield batch

    def _observed(self, parts: list[Tensor]) -> Iterator[QueryBatch]:
        """Batches of rows. Answers are looked up for all of them at once: a look-up costs more than a small step."""
        rows = torch.cat(parts)
        queries = self.queries[rows]
        # The queries of the index come first, in its order: their rows need no search.
        known = _answers_of(self.known, torch.where(rows < len(self.known), rows, -1), parts)
        injected = None
        if self.injected is not None and len(self.injected):
            injected = _answers_of(self.injected, self.injected.find(queries), parts)
        first = 0
        for number, part in enumerate(parts):
            mine = queries[first : first + len(part)]
            first += len(part)
            owner, answers, _, counts = known[number]
            weights = 1.0 / counts[owner]
            observed = torch.ones(len(owner), dtype=torch.bool)
            if injected is not None:
                more_owner, more_answers, more_weights, _ = injected[number]
                owner, answers = torch.cat([owner, more_owner]), torch.cat([answers, more_answers])
                weights = torch.cat([weights, more_weights])
                observed = torch.cat([observed, torch.zeros(len(more_owner), dtype=torch.bool)])
            yield QueryBatch(mine[:, 0], mine[:, 1], owner, answers, weights, observed)

    def _unobserved(self, teacher: TeacherFile, share: slice) -> UnobservedBatch:
        size, total = min(self.batch_size, len(teacher)), len(teacher)
        step = self.epoch * len(self) + self.given
        # Passes over the unobserved queries in an order of their own; a batch may end one pass and begin the next.
        places = torch.arange(step * size, (step + 1) * size)
        rows = torch.cat(
            [self._pass(number, total)[places[places // total == number] % total] for number in _span(places // total)]
        )
        return teacher.batch(rows[share], self.known)

    def _pass(self, number: int, total: int) -> Tensor:
        """The order of a pass; the last two are kept, for drawing one takes as long as there are queries."""
        if number not in self._passes:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, _UNOBSERVED, number))
            self._passes = {n: order for n, order in self._passes.items() if n == number - 1}
            self._passes[number] = torch.randperm(total, generator=generator)
        return self._passes[number]


def _span(passes: Tensor) -> range:
    return range(int(passes[0]), int(passes[-1]) + 1)


def _answers_of(index: AnswerIndex, rows: Tensor, parts: list[Tensor]) -> list[tuple[Tensor, ...]]:
    """For each part of the rows: places within the part, answers, weights, and ``(part,)`` numbers of answers."""
    owner, answers, weights = index.of(rows)
    counts = torch.bincount(owner, minlength=len(rows))
    ends = [0, *torch.tensor([len(part) for part in parts]).cumsum(0).tolist()]
    cuts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])[ends].tolist()
    found: list[tuple[Tensor, ...]] = []
    for number in range(len(parts)):
        here, first = slice(cuts[number], cuts[number + 1]), ends[number]
        found.append((owner[here] - first, answers[here], weights[here], counts[first : ends[number + 1]]))
    return found
