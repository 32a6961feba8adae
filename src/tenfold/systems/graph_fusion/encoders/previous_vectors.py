"""Candidate vectors of previous batches, kept as further negatives."""

import torch
from torch import Tensor, nn


class PreviousVectors(nn.Module):
    """Candidate vectors of the last batches, which serve as further negatives (SimKGC's pre-batch negatives).

    Part of the encoder's state, so that a resumed training goes on with the same ones. Slots that were never filled are
    left out; SimKGC fills them with random vectors.

    Args:
        slots: vectors kept; a multiple of the batch size for whole batches.
        width: of a vector.
    """

    vectors: Tensor
    entities: Tensor
    place: Tensor

    def __init__(self, slots: int, width: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(slots, width))
        self.register_buffer("entities", torch.full((slots,), -1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, vectors: Tensor, entities: Tensor) -> None:
        """Put ``(B, width)`` vectors of ``(B,)`` entities in place of the oldest ones."""
        slots = len(self.entities)
        vectors, entities = vectors[-slots:], entities[-slots:]
        rows = (self.place + torch.arange(len(entities), device=entities.device)) % slots
        self.vectors[rows] = vectors.detach().to(self.vectors.dtype)
        self.entities[rows] = entities
        self.place.copy_((self.place + len(entities)) % slots)
