"""Batches of distinct queries with all their answers, and of unobserved queries beside them; resumable."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tenfold.data.batches import ResumableBatches
from tenfold.seeds import derived_seed
from tenfold.systems.graph_fusion.graph import AnswerIndex
from tenfold.systems.graph_fusion.teachers import TeacherFile

_UNOBSERVED = 2


@dataclass
class UnobservedBatch:
    """Queries with unknown answers and what the frozen teacher believes of them.

    Attributes:
        heads: ``(B,)``.
        relations: ``(B,)`` in [0, 2R).
        owner: ``(m,)`` places in the batch of the known answers, which are masked.
        answers: ``(m,)`` known answers.
        ids: ``(B, K)`` the teacher's best candidates.
        probabilities: ``(B, K)`` its probabilities of them.
        tail: ``(B,)`` its probability of all others together.
        weights: ``(B,)`` of the queries.
    """

    heads: Tensor
    relations: Tensor
    owner: Tensor
    answers: Tensor
    ids: Tensor
    probabilities: Tensor
    tail: Tensor
    weights: Tensor


@dataclass
class QueryBatch:
    """Distinct queries with their answers, flat.

    Attributes:
        heads: ``(B,)``.
        relations: ``(B,)`` in [0, 2R).
        owner: ``(n,)`` places in the batch.
        answers: ``(n,)`` entities.
        weights: ``(n,)``: 1 / |A(u)| of an observed answer, its own weight of an injected one.
        observed: ``(n,)`` whether the answer is a training fact; else it was injected.
        unobserved: further queries, or ``None``.
    """

    heads: Tensor
    relations: Tensor
    owner: Tensor
    answers: Tensor
    weights: Tensor
    observed: Tensor
    unobserved: UnobservedBatch | None = None

    def answer_mask(self, num_entities: int) -> Tensor:
        """``(B, N)`` which entities are observed answers."""
        mask = torch.zeros(len(self.heads), num_entities, dtype=torch.bool, device=self.heads.device)
        mask[self.owner[self.observed], self.answers[self.observed]] = True
        return mask


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
        super().__init__(len(self.queries), batch_size, seed)

    def __iter__(self) -> Iterator[QueryBatch]:
        share = self._share()
        for rows in self._rows():
            batch = self._observed(self.queries[rows[share]])
            if self.teacher is not None:
                batch.unobserved = self._unobserved(share)
            self._advance()
            yield batch

    def _observed(self, queries: Tensor) -> QueryBatch:
        rows = self.known.find(queries)
        owner, answers, _ = self.known.of(rows)
        counts = torch.bincount(owner, minlength=len(queries)).clamp(min=1)
        weights = 1.0 / counts[owner]
        observed = torch.ones(len(owner), dtype=torch.bool)
        if self.injected is not None and len(self.injected):
            more_owner, more_answers, more_weights = self.injected.of(self.injected.find(queries))
            owner, answers = torch.cat([owner, more_owner]), torch.cat([answers, more_answers])
            weights = torch.cat([weights, more_weights])
            observed = torch.cat([observed, torch.zeros(len(more_owner), dtype=torch.bool)])
        return QueryBatch(queries[:, 0], queries[:, 1], owner, answers, weights, observed)

    def _unobserved(self, share: slice) -> UnobservedBatch:
        teacher = self.teacher
        assert teacher is not None
        size, total = min(self.batch_size, len(teacher)), len(teacher)
        step = self.epoch * len(self) + self.given
        # Passes over the unobserved queries in an order of their own; a batch may end one pass and begin the next.
        places = torch.arange(step * size, (step + 1) * size)
        passes = (places // total).unique().tolist()
        order = torch.cat(
            [
                torch.randperm(
                    total, generator=torch.Generator().manual_seed(derived_seed(self.seed, _UNOBSERVED, number))
                )
                for number in passes
            ]
        )
        rows = order[places - passes[0] * total][share]
        return teacher.batch(rows, self.known)
