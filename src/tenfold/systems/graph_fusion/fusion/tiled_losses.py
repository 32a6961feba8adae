"""Fusion's KL terms over millions of entities, a tile at a time: exact, and no ``(B, N)`` matrix is ever held.

For encoders whose scores are products of vectors. The numbers and gradients are those of `method`.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tenfold.errors import UserError
from tenfold.systems.graph_fusion.encoders.query_scorer import QueryScorer
from tenfold.systems.graph_fusion.graph.query_batch import QueryBatch, UnobservedBatch
from tenfold.systems.graph_fusion.method import bucket_rows, weighted_mean
from tenfold.systems.graph_fusion.scale.memory import tile_size, too_large
from tenfold.systems.graph_fusion.scale.tiles import (
    Excluded,
    at_least_single,
    scan_logsumexp,
    tile_scores,
    tiled_cross_entropy,
    tiled_logsumexp,
    tiles_of,
)


@dataclass(frozen=True)
class Vectors:
    """Scores of a batch that are not computed yet: ``queries @ entities.T + bias``.

    Attributes:
        queries: ``(B, d)``.
        entities: ``(N, d)``.
        bias: ``(N,)`` or ``None``.
    """

    queries: Tensor
    entities: Tensor
    bias: Tensor | None

    def __getitem__(self, rows: slice) -> "Vectors":
        return Vectors(self.queries[rows], self.entities, self.bias)

    def over(self, temperature: float) -> "Vectors":
        """The scores over a temperature."""
        bias = None if self.bias is None else self.bias / temperature
        return Vectors(self.queries / temperature, self.entities, bias)

    def of(self, candidates: Tensor) -> Tensor:
        """``(B, K)`` scores of ``(B, K)`` candidates."""
        scores = torch.einsum("bd,bkd->bk", self.queries, self.entities[candidates])
        return scores if self.bias is None else scores + self.bias[candidates]


def takes_tiles(encoder: QueryScorer) -> bool:
    """Whether the encoder's scores are products of vectors; distances and networks over pairs have no tiles."""
    return encoder.has_vectors and encoder.similarity in ("dot", "cos")


def score_or_vectors(encoder: QueryScorer, heads: Tensor, relations: Tensor, tiled: bool) -> Tensor | Vectors:
    """Scores ``(B, N)`` of a batch, or the vectors that they would be made from."""
    if not tiled:
        return encoder.score_all(heads, relations)
    queries, entities = encoder.query_vectors(heads, relations), encoder.candidate_vectors()
    if encoder.similarity == "cos":
        queries, entities = F.normalize(queries, dim=-1), F.normalize(entities, dim=-1)
    return Vectors(at_least_single(queries * encoder.score_scale()), at_least_single(entities), encoder.entity_bias())


def needs_tiles(queries: int, *encoders: QueryScorer) -> bool:
    """Whether the scores of so many queries exceed the memory budget, so that tiles are taken.

    Raises:
        UserError: they do, and an encoder has no tiles.
    """
    entities = encoders[0].num_entities
    if not too_large(queries, entities):
        return False
    if not all(takes_tiles(encoder) for encoder in encoders):
        raise UserError(
            f"the scores of {queries} queries and {entities:,} entities exceed the memory budget, and distances cannot "
            "be taken in tiles: lower fusion.batch_size, or use the loss 'sampled' without fusion"
        )
    return True


def tiled_softmax(scores: Vectors, batch: QueryBatch, smoothing: float, tile: int = 0) -> Tensor:
    """The supervised loss ``softmax`` of `full_scores_loss`."""
    return tiled_cross_entropy(
        scores.queries,
        scores.entities,
        batch.owner,
        batch.answers,
        batch.weights,
        bias=scores.bias,
        smoothing=smoothing,
        tile=tile,
    )


class _TiledKL(torch.autograd.Function):
    """``KL(teacher || student)`` per query; the student's gradient is softmax minus softmax, tile by tile."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        entities: Tensor,
        bias: Tensor | None,
        teacher: Vectors,
        out: Excluded | None,
        tile: int,
    ) -> Tensor:
        own = scan_logsumexp(queries, entities, bias, tile, out)
        theirs = scan_logsumexp(teacher.queries, teacher.entities, teacher.bias, tile, out)
        rows = torch.zeros_like(own)
        for here in tiles_of(entities, tile):
            student = tile_scores(queries, entities, bias, here, out).sub_(own[:, None])
            guide = tile_scores(teacher.queries, teacher.entities, teacher.bias, here, out).sub_(theirs[:, None])
            belief = guide.exp()
            rows += belief.mul_(guide.sub_(student)).sum(1)
        ctx.save_for_backward(queries, entities, own, theirs, *([] if bias is None else [bias]))
        ctx.teacher, ctx.out, ctx.tile = teacher, out, tile
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        queries, entities, own, theirs, *rest = ctx.saved_tensors
        bias, teacher = (rest[0] if rest else None), ctx.teacher
        for_queries, for_entities = torch.zeros_like(queries), torch.empty_like(entities)
        for_bias = None if bias is None else torch.empty_like(bias)
        for here in tiles_of(entities, ctx.tile):
            shares = tile_scores(queries, entities, bias, here, ctx.out).sub_(own[:, None]).exp_()
            guide = tile_scores(teacher.queries, teacher.entities, teacher.bias, here, ctx.out)
            shares = shares.sub_(guide.sub_(theirs[:, None]).exp_()).mul_(gradient[:, None])
            for_queries += shares @ entities[here]
            for_entities[here] = shares.T @ queries
            if for_bias is not None:
                for_bias[here] = shares.sum(0)
        return for_queries, for_entities, for_bias, None, None, None


def tiled_mutual_loss(
    student: Vectors, teacher: Vectors, *, temperature: float = 1.0, allowed: Tensor | None = None, tile: int = 0
) -> Tensor:
    """M2L's loss of `mutual_loss`, split ``full``.

    Args:
        student: scores over the calibration temperature.
        teacher: as the student; no gradient reaches it.
        temperature: tau of the distillation.
        allowed: ``(N,)`` entities that the teacher may judge.
        tile: see `tiled_logsumexp`.
    """
    student, teacher = student.over(temperature), teacher.over(temperature)
    bias = None if teacher.bias is None else teacher.bias.detach()
    frozen = Vectors(teacher.queries.detach(), teacher.entities.detach(), bias)
    none = torch.empty(0, dtype=torch.int64, device=student.queries.device)
    out = None if allowed is None else Excluded(none, none, allowed)
    tile = tile or tile_size(2 * len(student.queries))
    rows = _TiledKL.apply(student.queries, student.entities, student.bias, frozen, out, tile)
    return temperature**2 * rows.mean()


def tiled_bucket_kl(
    student: Vectors,
    batch: UnobservedBatch,
    *,
    temperature: float = 1.0,
    reverse: bool = False,
    allowed: Tensor | None = None,
    tile: int = 0,
) -> Tensor:
    """The KL on unobserved queries of `bucket_kl`.

    Args:
        student: scores over the calibration temperature.
        batch: queries and the teacher's beliefs.
        temperature: tau of the distillation, also of the teacher's file.
        reverse: ``KL(student || teacher)``.
        allowed: ``(N,)`` entities that the teacher may judge.
        tile: see `tiled_logsumexp`.
    """
    student = student.over(temperature)
    queries, entities, bias = student.queries, student.entities, student.bias
    kept = torch.arange(len(batch.ids), device=batch.ids.device)[:, None].expand_as(batch.ids)
    known = Excluded(batch.owner, batch.answers, allowed)
    rest = Excluded(torch.cat([batch.owner, kept.flatten()]), torch.cat([batch.answers, batch.ids.flatten()]), allowed)
    everything = tiled_logsumexp(queries, entities, bias, tile, known)
    outside = tiled_logsumexp(queries, entities, bias, tile, rest) - everything
    pairs = kept * len(entities) + batch.ids
    masked = torch.isin(pairs, batch.owner * len(entities) + batch.answers)
    if allowed is not None:
        masked |= ~allowed[batch.ids]
    inside = student.of(batch.ids).masked_fill(masked, Excluded.FAR) - everything[:, None]
    rows = bucket_rows(inside, outside, batch, reverse)
    return temperature**2 * weighted_mean(rows, batch.weights)
