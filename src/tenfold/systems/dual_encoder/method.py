"""DiDE: a dual encoder learns from a fusion encoder's predictions and from its attention between words and patches.

    A^{t2v} = softmax_{patches}( Q^t (K^v)^T / sqrt(d) )        A^{v2t} = softmax_{words}( Q^v (K^t)^T / sqrt(d) )
    L_CA = KL(A_T^{t2v} || A_S^{t2v}) + KL(A_T^{v2t} || A_S^{v2t})                (paper, section 3.2)
    L = soft * L_soft(z_S, z_T) + attention * L_CA + hard * L_hard(z_S, labels)    1 : 1 : 0 as published

Queries and keys are those of the last block, by the projections alone. The teacher's come from one sequence
``[text ; image]`` and are cut there, so that its maps are normalized anew over the other modality. The student's come
from two towers that never meet: at inference these maps are not computed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.attention.heads import relation_heads
from tenfold.errors import UserError
from tenfold.losses import cross_relation_kl, distillation_kl

AttentionMap = Literal["t2v", "v2t", "t2t", "v2v"]
"""Whose queries over whose keys: ``t`` the text's, ``v`` the image's."""
CROSS_MODAL: tuple[AttentionMap, ...] = ("t2v", "v2t")
UNI_MODAL: tuple[AttentionMap, ...] = ("t2t", "v2v")
Task = Literal["multilabel", "classes"]
"""``multilabel``: a score in [0, 1] for every answer (VQA); ``classes``: one of the answers (NLVR2, SNLI-VE)."""


@dataclass(frozen=True)
class Projections:
    """Queries and keys of one layer, by modality.

    Attributes:
        text_queries: ``(batch, heads, n, head width)``; ``None`` where the network has none, as all others.
        text_keys: ``(batch, heads, n, head width)``.
        image_queries: ``(batch, heads, N, head width)``.
        image_keys: ``(batch, heads, N, head width)``.
        prefix: leading image tokens that are no patches: a class token, registers.
    """

    text_queries: Tensor | None = None
    text_keys: Tensor | None = None
    image_queries: Tensor | None = None
    image_keys: Tensor | None = None
    prefix: int = 1

    def map(self, which: AttentionMap) -> tuple[Tensor, Tensor] | None:
        """Queries and keys of one attention map; ``None`` where the network has not both."""
        sides = {"t": (self.text_queries, self.text_keys), "v": (self.image_queries, self.image_keys)}
        queries, keys = sides[which[0]][0], sides[which[2]][1]
        return None if queries is None or keys is None else (queries, keys)

    def with_prefix(self, prefix: int) -> "Projections":
        """The same with fewer leading image tokens: those right before the patches leave."""
        if prefix == self.prefix:
            return self
        queries, keys = (
            None if side is None else torch.cat([side[:, :, :prefix], side[:, :, self.prefix :]], 2)
            for side in (self.image_queries, self.image_keys)
        )
        return replace(self, image_queries=queries, image_keys=keys, prefix=prefix)


def attention_map(
    projections: Projections, which: AttentionMap, text_mask: Tensor | None, image_mask: Tensor | None
) -> Tensor:
    """An attention map that the loss compares, ``(batch, heads, queries, keys)``; its rows sum to 1.

    Args:
        projections: see ``Projections``.
        which: see ``AttentionMap``.
        text_mask: ``(batch, n)`` booleans, true for words; all are where ``None``.
        image_mask: ``(batch, N)`` booleans, true for the class token and real patches.

    Raises:
        UserError: the network has no such map.
    """
    found = projections.map(which)
    if found is None:
        raise UserError(f"the network has no {which} attention")
    queries, keys = found
    scores = queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5
    mask = text_mask if which[2] == "t" else image_mask
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], torch.finfo(scores.dtype).min)
    return scores.softmax(-1)


class CrossModalAttentionLoss:
    """The divergence of a teacher's and a student's attention between modalities, a mean over heads and queries.

    Args:
        maps: which maps are compared and added; the cross-modal two as published.
        query_rows: ``valid``: the mean is taken over words and real patches, which does not depend on padding;
            ``all``: over padding, too, as the official program does.
        heads: relation heads into which both sides' queries and keys are split anew (MiniLMv2, section 3.2), for
            unequal numbers of heads; an extension of the paper.
        temperature: of both maps; 1 as published.

    Raises:
        UserError: a map is unknown, or there is none.

    Example:
        >>> x = Projections(*(torch.randn(2, 4, size, 8) for size in (3, 3, 5, 5)))
        >>> float(CrossModalAttentionLoss()(x, x)) < 1e-6
        True
    """

    def __init__(
        self,
        maps: Sequence[AttentionMap] = CROSS_MODAL,
        *,
        query_rows: Literal["valid", "all"] = "valid",
        heads: int | None = None,
        temperature: float = 1.0,
    ) -> None:
        unknown = [which for which in maps if which not in (*CROSS_MODAL, *UNI_MODAL)]
        if unknown or not maps:
            raise UserError(f"maps must be some of t2v, v2t, t2t, v2v; got {list(maps)!r}")
        if query_rows not in ("valid", "all"):
            raise UserError(f"query_rows must be 'valid' or 'all'; got {query_rows!r}")
        self.maps, self.query_rows, self.heads, self.temperature = tuple(maps), query_rows, heads, temperature

    def parts(
        self,
        student: Projections,
        teacher: Projections,
        text_mask: Tensor | None = None,
        image_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The divergence of each map that both networks have.

        Args:
            student: see ``Projections``.
            teacher: of the same samples and tokens; gets no gradient.
            text_mask: ``(batch, n)`` booleans, true for words.
            image_mask: ``(batch, N)`` booleans, true for real tokens. Of leading tokens that one side lacks, such as
                registers, it has none either: they leave before the softmax.

        Raises:
            UserError: heads differ, or no map is common to both: a loss of nothing would be 0 without a word.
        """
        masks = {"t": text_mask, "v": image_mask}
        prefix = min(student.prefix, teacher.prefix)
        student, teacher = student.with_prefix(prefix), teacher.with_prefix(prefix)
        found: dict[str, Tensor] = {}
        for which in self.maps:
            ours, theirs = student.map(which), teacher.map(which)
            if ours is None or theirs is None:
                continue
            sides = [*ours, *theirs]
            if self.heads is not None:
                sides = [relation_heads(side, self.heads) for side in sides]
            found[which] = cross_relation_kl(
                *sides,
                key_mask=masks[which[2]],
                query_mask=masks[which[0]] if self.query_rows == "valid" else None,
                temperature=self.temperature,
            )
        if not found:
            raise UserError(f"none of the maps {', '.join(self.maps)} is known of both teacher and student")
        return found

    def __call__(
        self,
        student: Projections,
        teacher: Projections,
        text_mask: Tensor | None = None,
        image_mask: Tensor | None = None,
    ) -> Tensor:
        """The sum of ``parts``."""
        return torch.stack(list(self.parts(student, teacher, text_mask, image_mask).values())).sum()


def soft_label_loss(student: Tensor, teacher: Tensor, task: Task, temperature: float = 1.0) -> Tensor:
    """Divergence from the teacher's predictions (paper, section 3.3).

    ``multilabel``: binary cross-entropy with the teacher's probabilities, summed over answers, mean over the batch.
    ``classes``: ``KL(softmax(teacher) || softmax(student))``, mean over the batch.

    Args:
        student: ``(batch, answers)`` raw scores.
        teacher: ``(batch, answers)`` raw scores; gets no gradient.
        task: see ``Task``.
        temperature: of both; the loss is multiplied by its square.
    """
    if task == "classes":
        return distillation_kl(student, teacher, temperature)
    targets = (teacher.detach().float() / temperature).sigmoid()
    return temperature**2 * multilabel_loss(student.float() / temperature, targets)


def multilabel_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy summed over answers, mean over the batch: ``answers`` times torch's mean."""
    return F.binary_cross_entropy_with_logits(scores.float(), targets.float(), reduction="sum") / len(scores)


def hard_label_loss(scores: Tensor, targets: Tensor, task: Task) -> Tensor:
    """What a model learns from labels alone.

    Args:
        scores: ``(batch, answers)`` raw scores.
        targets: ``(batch, answers)``: scores in [0, 1] of ``multilabel``; of ``classes``, 1 for the right one.
        task: see ``Task``.
    """
    if task == "classes":
        return F.cross_entropy(scores.float(), targets.float())
    return multilabel_loss(scores, targets)


@dataclass(frozen=True)
class LossWeights:
    """Effective weights of the parts of the objective.

    Attributes:
        soft: of the teacher's predictions.
        attention: of the attention maps.
        hard: of the labels; 0 as published, where the official program computes that loss and leaves it out.
        temperature: of the predictions.
    """

    soft: float = 1.0
    attention: float = 1.0
    hard: float = 0.0
    temperature: float = 1.0


class DistillationObjective:
    """The loss of a training step: ``objective(student, batch) -> (loss, parts)``, as ``fit`` takes it.

    The teacher runs in eval mode, without gradients, on the very tensors that the student gets.

    Args:
        student: reads ``(scores, [Projections of each pair of layers])`` from the network and a batch; see
            ``tenfold.systems.dual_encoder.attention.readers``.
        teacher: likewise, of the teacher; ``None`` where only labels are learnt from.
        task: see ``Task``.
        weights: see ``LossWeights``.
        attention: see ``CrossModalAttentionLoss``.

    Raises:
        UserError: a part needs a teacher and there is none, or all weights are 0.
    """

    def __init__(
        self,
        student: Any,
        teacher: Any | None,
        task: Task,
        weights: LossWeights | None = None,
        attention: CrossModalAttentionLoss | None = None,
    ) -> None:
        self.student, self.teacher, self.task = student, teacher, task
        self.weights = weights or LossWeights()
        self.attention = attention or CrossModalAttentionLoss()
        if teacher is None and (self.weights.soft or self.weights.attention):
            raise UserError("soft labels and attention are the teacher's: without one, set their weights to 0")
        if not (self.weights.soft or self.weights.attention or self.weights.hard):
            raise UserError("all weights are 0: there is nothing to learn")

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, see ``inputs.batches``, and its parts by name."""
        weights = self.weights
        maps = bool(weights.attention)
        scores, ours = self.student(model, batch, maps)
        parts: dict[str, Tensor] = {}
        if self.teacher is not None and (weights.soft or maps):
            with torch.no_grad():
                target, theirs = self.teacher(batch, maps)
            if weights.soft:
                parts["soft"] = soft_label_loss(scores, target, self.task, weights.temperature)
            if maps:
                # A sum over the images of a pair, a mean over pairs of layers.
                terms = [
                    self.attention(one, other, batch.get("text_mask"), image_mask_of(batch, side, one, other))
                    for layer_s, layer_t in zip(ours, theirs, strict=True)
                    for side, (one, other) in enumerate(zip(layer_s, layer_t, strict=True))
                ]
                parts["attention"] = torch.stack(terms).sum() / len(ours)
        if weights.hard:
            parts["hard"] = hard_label_loss(scores, batch["targets"], self.task)
        loss = torch.stack([getattr(weights, name) * part for name, part in parts.items()]).sum()
        return loss, {name: part.detach() for name, part in parts.items()}


def image_mask_of(batch: Mapping[str, Tensor], side: int, *networks: Projections) -> Tensor | None:
    """Which tokens of one image of each question are real: ``(batch, N)``, leading tokens first.

    Args:
        batch: its ``patch_mask`` is ``(batch, images, rows, columns)``, true for real patches.
        side: which image.
        networks: whose common leading tokens come first.
    """
    if "patch_mask" not in batch:
        return None
    prefix = min(network.prefix for network in networks)
    return F.pad(batch["patch_mask"][:, side].flatten(1), (prefix, 0), value=True)
