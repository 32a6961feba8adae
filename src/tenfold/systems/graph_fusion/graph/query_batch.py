"""Queries of one training step with their answers, and unobserved queries beside them."""

from dataclasses import dataclass

import torch
from torch import Tensor


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
