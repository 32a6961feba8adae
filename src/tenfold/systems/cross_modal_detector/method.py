"""CMT's algorithm: losses of matched and denoised queries, masked-modal training, and what is read off at the end.

every step:
of each sample, hide all images (1/4), all points (1/4), or nothing (1/2)        (section 3.5)
tokens <- image network(images), LiDAR network(points); each with the code of its place in 3-D
queries <- learnt reference points, and true boxes moved by noise, in groups
every decoder layer's boxes are matched with the true ones; focal loss and L1
serving: the 300 best pairs of query and class; no suppression, no threshold
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.systems.cross_modal_detector.matching.assignment import CODE_WEIGHTS, assign
from tenfold.systems.cross_modal_detector.matching.codes import decode_boxes, encode_boxes
from tenfold.systems.cross_modal_detector.matching.denoising import (
    DenoisingQueries,
    denoising_queries,
    positive_share,
)
from tenfold.systems.cross_modal_detector.networks.detector import CrossModalDetector, Predictions, SensorBatch


@dataclass
class LabelledBatch:
    """A training batch.

    Attributes:
        sensors: see ``SensorBatch``.
        boxes: per sample ``(boxes, 9)`` in the LiDAR frame, after all augmentation; velocities are finite.
        labels: per sample ``(boxes,)`` numbers of classes over all tasks.
    """

    sensors: SensorBatch
    boxes: list[Tensor]
    labels: list[Tensor]


def sigmoid_focal_loss(logits: Tensor, labels: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss of every logit ``(..., classes)``; a label of ``classes`` is none of them."""
    target = F.one_hot(labels, logits.shape[-1] + 1)[..., :-1].to(logits.dtype)
    p = logits.sigmoid()
    missed = (1 - p) * target + p * (1 - target)
    weight = (alpha * target + (1 - alpha) * (1 - target)) * missed.pow(gamma)
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none") * weight


class DetectionLoss:
    """Losses of a batch's predictions, over all decoder layers and tasks (official code: ``CmtHead.loss``).

    Args:
        tasks: classes of each task.
        split: see ``denoising_queries``.
        denoising: weight of the denoising losses.
        class_weight: of the focal losses.
        box_weight: of the L1 losses.
    """

    def __init__(
        self,
        tasks: Sequence[int],
        *,
        split: float = 0.75,
        denoising: float = 1.0,
        class_weight: float = 2.0,
        box_weight: float = 0.25,
    ) -> None:
        self.tasks, self.split, self.denoising = list(tasks), split, denoising
        self.class_weight, self.box_weight = class_weight, box_weight

    def __call__(
        self,
        predictions: Predictions,
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
        queries: DenoisingQueries | None = None,
    ) -> dict[str, Tensor]:
        """The losses by name, each a scalar: ``class``, ``box``, ``denoised_class``, ``denoised_box``."""
        losses: dict[str, Tensor] = {}
        first = 0
        for task, classes in enumerate(self.tasks):
            own = [(part >= first) & (part < first + classes) for part in labels]
            task_boxes = [part[chosen] for part, chosen in zip(boxes, own, strict=True)]
            task_labels = [part[chosen] - first for part, chosen in zip(labels, own, strict=True)]
            found = self.matched(predictions.logits[task], predictions.codes[task], task_boxes, task_labels)
            if queries is not None:
                found |= self.denoised(
                    predictions.denoised_logits[task], predictions.denoised_codes[task], queries, first
                )
            for name, value in found.items():
                losses[name] = losses[name] + value if name in losses else value
            first += classes
        return losses

    def matched(
        self, logits: Tensor, codes: Tensor, boxes: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Losses of the queries proper of one task.

        Args:
            logits: ``(layers, batch, queries, classes)``.
            codes: ``(layers, batch, queries, 10)``.
            boxes: per sample ``(boxes, 9)``.
            labels: per sample ``(boxes,)`` numbers within the task.
        """
        targets = [encode_boxes(part) for part in boxes]
        chosen = assign(logits, codes, labels, targets)
        positive = chosen >= 0
        counts = [len(part) for part in labels]
        starts = torch.tensor([0, *counts[:-1]], device=codes.device).cumsum(0)
        flat = (chosen + starts[:, None]).clamp(min=0)
        all_labels = torch.cat(list(labels))
        said = torch.full_like(chosen, logits.shape[-1])
        if len(all_labels):
            said = torch.where(positive, all_labels[flat.clamp(max=len(all_labels) - 1)], said)
        matched = positive[0].sum()
        # Not the matched alone: a tenth of the others counts, too (mmdet's background weight).
        divisor = (matched + 0.1 * (positive[0].numel() - matched)).clamp(min=1)
        focal = sigmoid_focal_loss(logits, said).sum((1, 2, 3)) / divisor
        away = codes.sum((1, 2, 3)) * 0
        if len(all_labels):
            target = torch.cat(targets)[flat.clamp(max=len(all_labels) - 1)]
            away = _l1(codes, target, positive) / matched.clamp(min=1)
        return {"class": self.class_weight * _finite(focal).sum(), "box": self.box_weight * _finite(away).sum()}

    def denoised(self, logits: Tensor, codes: Tensor, queries: DenoisingQueries, first: int) -> dict[str, Tensor]:
        """Losses of the denoising queries of the task whose classes start at ``first``; see ``matched``."""
        classes = logits.shape[-1]
        count = queries.valid.sum()
        inside = (queries.labels >= first) & (queries.labels < first + classes)
        said = torch.where(inside, queries.labels - first, classes).expand(len(logits), -1, -1)
        focal = (sigmoid_focal_loss(logits, said) * queries.valid[..., None]).sum((1, 2, 3))
        focal = focal / (count * positive_share(self.split)).clamp(min=1)
        own = (queries.classes >= first) & (queries.classes < first + classes) & queries.valid
        away = _l1(codes, encode_boxes(queries.boxes).expand_as(codes), own.expand(len(codes), -1, -1))
        away = away / _mean_over_ranks(count.to(codes.dtype)).clamp(min=1)
        return {
            "denoised_class": self.denoising * self.class_weight * _finite(focal).sum(),
            "denoised_box": self.denoising * self.box_weight * _finite(away).sum(),
        }


def _l1(codes: Tensor, targets: Tensor, chosen: Tensor) -> Tensor:
    """Weighted L1 distance of the chosen ``(layers, batch, n)``, summed by layer, where the targets are finite."""
    chosen = chosen & targets.isfinite().all(-1)
    distance = (codes - targets.masked_fill(~chosen[..., None], 0)).abs() * codes.new_tensor(CODE_WEIGHTS)
    return distance.masked_fill(~chosen[..., None], 0).sum((1, 2, 3))


def _finite(value: Tensor) -> Tensor:
    return torch.nan_to_num(value)


def _mean_over_ranks(count: Tensor) -> Tensor:
    """The official code averages the boxes' divisor of denoising over ranks, that of matching not."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return count
    total = count.clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()


class DetectionObjective:
    """What training minimises: an objective of ``tenfold.training.fit``.

    Args:
        loss: see ``DetectionLoss``.
        groups: of denoising queries; 0 for none.
        noise: scale of the denoising queries' noise.
    """

    def __init__(self, loss: DetectionLoss, *, groups: int = 10, noise: float = 1.0) -> None:
        self.loss, self.groups, self.noise = loss, groups, noise

    def __call__(self, model: nn.Module, batch: LabelledBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and its parts."""
        detector: Any = getattr(model, "module", model)
        queries = None
        if self.groups:
            queries = denoising_queries(
                batch.boxes,
                batch.labels,
                detector.area,
                queries=detector.reference_points.num_embeddings,
                none=sum(self.loss.tasks),
                groups=self.groups,
                split=self.loss.split,
                scale=self.noise,
            )
        parts = self.loss(model(batch.sensors, queries), batch.boxes, batch.labels, queries)
        total = torch.stack(list(parts.values())).sum()
        return total, {name: value.detach() for name, value in parts.items()}


@dataclass
class Detections:
    """Boxes of one sample, best first.

    Attributes:
        boxes: ``(n, 9)`` in the LiDAR frame, z at the centre of gravity.
        scores: ``(n,)`` in [0, 1].
        labels: ``(n,)`` numbers of classes.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def read_off(
    predictions: Predictions,
    *,
    most: int = 300,
    limits: Sequence[float] = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0),
) -> list[Detections]:
    """Detections of every sample from the last layer: the best pairs of query and class, without suppression.

    Args:
        predictions: of the detector.
        most: pairs to take.
        limits: lower, then upper bounds of the centre, metres; boxes beyond are left out.
    """
    scores = torch.cat([part[-1] for part in predictions.logits], -1).sigmoid()
    codes = torch.stack([part[-1] for part in predictions.codes], 1)
    tasks = torch.repeat_interleave(
        torch.arange(len(predictions.logits), device=scores.device),
        torch.tensor([part.shape[-1] for part in predictions.logits], device=scores.device),
    )
    batch, queries, classes = scores.shape
    best, place = scores.flatten(1).topk(min(most, queries * classes))
    labels, query = place % classes, place // classes
    row = torch.arange(batch, device=scores.device)[:, None]
    boxes = decode_boxes(codes[row, tasks[labels], query].float())
    low, high = boxes.new_tensor(limits[:3]), boxes.new_tensor(limits[3:])
    kept = ((boxes[..., :3] >= low) & (boxes[..., :3] <= high)).all(-1) & boxes.isfinite().all(-1)
    return [Detections(boxes[n, kept[n]], best[n, kept[n]], labels[n, kept[n]]) for n in range(batch)]


@torch.no_grad()
def detect(detector: CrossModalDetector, batch: SensorBatch, *, most: int = 300) -> list[Detections]:
    """Detections of a batch, in eval mode; the range is widened as the official code does (by 7.2 m to every side).

    Args:
        detector: see ``CrossModalDetector``.
        batch: see ``SensorBatch``.
        most: see ``read_off``.
    """
    low, high = detector.area[:3].tolist(), detector.area[3:].tolist()
    limits = (low[0] - 7.2, low[1] - 7.2, low[2] - 5, high[0] + 7.2, high[1] + 7.2, high[2] + 7)
    return read_off(detector(batch), most=most, limits=limits)
