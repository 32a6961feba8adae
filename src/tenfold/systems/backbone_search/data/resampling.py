"""Average precision under resampling of the images: how far a difference on one test set can be chance.

Which detection hits which box does not depend on other images, so that it is settled once; an image that is drawn
twice counts twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tenfold.arms import PairedDifference
from tenfold.errors import require
from tenfold.systems.backbone_search.data.average_precision import MOST_DETECTIONS, coco_results
from tenfold.systems.backbone_search.data.detection_set import DetectionSet
from tenfold.systems.backbone_search.detector.postprocess import Detections

_RECALLS = torch.linspace(0, 1, 101, dtype=torch.float64)


@dataclass(frozen=True)
class Matches:
    """What a detector's detections hit, image by image.

    Attributes:
        image: ``(detections,)`` number of the image.
        label: ``(detections,)`` class.
        score: ``(detections,)``.
        hit: ``(10, detections)`` whether it is matched to a box at the overlaps .5, .55, ..., .95.
        ignored: ``(10, detections)`` whether it does not count (matched to a crowd).
        boxes: ``(images, classes)`` boxes to be found.
    """

    image: Tensor
    label: Tensor
    score: Tensor
    hit: Tensor
    ignored: Tensor
    boxes: Tensor


def match(found: Sequence[Detections], data: DetectionSet, most: int = MOST_DETECTIONS) -> Matches:
    """Match detections to boxes as COCO does.

    Args:
        found: one entry per image, in its own pixels.
        data: the truth.
        most: detections of an image that count.
    """
    coco = require("hotcoco", "search")
    boxes = torch.zeros((len(data), len(data.classes)), dtype=torch.float64)
    for row, own in enumerate(data.boxes):
        boxes[row] = torch.bincount(own.labels[~own.crowd], minlength=len(data.classes))
    lines = coco_results(found, data, range(1, len(data) + 1))
    parts: list[tuple[Tensor, ...]] = []
    if lines:
        truth = coco.COCO(data.to_coco())
        evaluation = coco.COCOeval(truth, truth.load_res(lines), "bbox")
        evaluation.params.max_dets = [most]
        evaluation.params.area_rng = evaluation.params.area_rng[:1]
        evaluation.params.area_rng_lbl = evaluation.params.area_rng_lbl[:1]
        evaluation.evaluate()
        classes = {id: row for row, id in enumerate(data.category_ids)}
        for entry in evaluation.eval_imgs:
            if entry is None or len(entry["dtScores"]) == 0:
                continue
            scores = torch.tensor(entry["dtScores"], dtype=torch.float64)
            hit = torch.tensor(np.asarray(entry["dtMatches"])) > 0
            place = torch.full((len(scores),), entry["image_id"] - 1)
            label = torch.full((len(scores),), classes[entry["category_id"]])
            parts.append((place, label, scores, hit, torch.tensor(np.asarray(entry["dtIgnore"])) > 0))
    if not parts:
        nothing = torch.zeros(0, dtype=torch.int64)
        return Matches(nothing, nothing, nothing.double(), *(torch.zeros(10, 0, dtype=torch.bool),) * 2, boxes)
    image, label, scores = (torch.cat([part[k] for part in parts]) for k in range(3))
    hit, ignored = (torch.cat([part[k] for part in parts], 1) for k in (3, 4))
    return Matches(image, label, scores, hit, ignored, boxes)


def weighted_average_precision(matches: Matches, weights: Tensor) -> Tensor:
    """``(draws,)`` COCO's average precision with every image counted so often.

    Args:
        matches: see ``match``.
        weights: ``(draws, images)`` how often each image counts; classes without a box among those that count are
            left out.
    """
    weights = weights.double()
    total, classes = torch.zeros(len(weights), dtype=torch.float64), torch.zeros(len(weights), dtype=torch.float64)
    for label in range(matches.boxes.shape[1]):
        wanted = weights @ matches.boxes[:, label]
        own = (matches.label == label).nonzero()[:, 0]
        own = own[matches.score[own].argsort(descending=True, stable=True)]
        weight = weights[:, matches.image[own]]
        precision = torch.zeros(len(weights), dtype=torch.float64)
        for hit, ignored in zip(matches.hit[:, own], matches.ignored[:, own], strict=True):
            precision += _at_one_overlap(weight, hit & ~ignored, ~hit & ~ignored, wanted) / len(matches.hit)
        counts = wanted > 0
        total += torch.where(counts, precision, 0.0)
        classes += counts
    return total / classes.clamp(min=1)


def _at_one_overlap(weight: Tensor, right: Tensor, wrong: Tensor, wanted: Tensor) -> Tensor:
    """Mean interpolated precision at 101 recalls ``(draws,)``; detections stand from the surest on."""
    if weight.shape[1] == 0:
        return torch.zeros_like(wanted)
    hits, misses = (weight * right).cumsum(1), (weight * wrong).cumsum(1)
    recall = hits / wanted.clamp(min=1e-12)[:, None]
    best = (hits / (hits + misses).clamp(min=1e-12)).flip(1).cummax(1).values.flip(1)
    place = torch.searchsorted(recall, _RECALLS.expand(len(weight), -1).contiguous())
    reached = place < weight.shape[1]
    return torch.where(reached, best.gather(1, place.clamp(max=weight.shape[1] - 1)), 0.0).mean(1)


def resampled_difference(
    ours: Matches, baseline: Matches, confidence: float = 0.95, *, resamples: int = 500, seed: int = 0
) -> PairedDifference:
    """Paired percentile bootstrap over the images of one test set, for runs with one seed.

    Args:
        ours: of one detector.
        baseline: of another on the same images.
        confidence: coverage of the interval, in (0, 1).
        resamples: number of bootstrap samples.
        seed: of the resampling.
    """
    images = len(ours.boxes)
    drawn = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), resamples)
    weights = torch.cat([torch.ones(1, images), torch.from_numpy(drawn).float()])
    difference = (weighted_average_precision(ours, weights) - weighted_average_precision(baseline, weights)).numpy()
    low, high = np.quantile(difference[1:], [0.5 - confidence / 2, 0.5 + confidence / 2])
    return PairedDifference(float(difference[0]), float(low), float(high), images)
