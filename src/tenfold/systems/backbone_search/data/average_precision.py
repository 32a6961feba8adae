"""Average precision as COCO defines it, by hotcoco; detections of a whole set; official result files."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from tenfold.errors import UserError, require
from tenfold.systems.backbone_search.data.detection_set import DetectionSet
from tenfold.systems.backbone_search.data.letterbox import LetterboxedImages
from tenfold.systems.backbone_search.detector.postprocess import Detections, postprocess, to_photo

MOST_DETECTIONS = 100
"""Of an image, as COCO counts; sets with more boxes an image need more, and then the number is said."""


@torch.no_grad()
def detect_all(
    model: nn.Module,
    images: LetterboxedImages,
    *,
    device: torch.device | str = "cpu",
    confidence: float = 0.01,
    overlap: float = 0.65,
    most: int = MOST_DETECTIONS,
    batch_size: int = 32,
    size: tuple[int, int] | None = None,
) -> list[Detections]:
    """What a detector finds in every image, in the images' own pixels.

    Args:
        model: a ``YOLOXLite``; evaluated in eval mode and left in the mode it came in.
        images: letterboxed.
        device: where it computes.
        confidence: least score that is kept.
        overlap: of the suppression.
        most: detections of an image at most.
        batch_size: images at a time.
        size: height and width of the input where not those of the images.
    """
    training = model.training
    model.eval()
    found: list[Detections] = []
    for start in range(0, len(images), batch_size):
        rows = list(range(start, min(start + batch_size, len(images))))
        pixels = images[rows].float().to(device)
        scale = torch.ones(4)
        if size is not None and size != (images.height, images.width):
            pixels = nn.functional.interpolate(pixels, size, mode="bilinear")
            scale = torch.tensor([images.width / size[1], images.height / size[0]] * 2)
        output = model.detect(pixels).cpu()  # type: ignore[operator]
        output = torch.cat([output[..., :4] * scale, output[..., 4:]], -1)
        for row, detections in zip(
            rows, postprocess(output, confidence=confidence, overlap=overlap, most=most), strict=True
        ):
            found.append(to_photo(detections, float(images.ratios[row]), images.data.sizes[row]))
    model.train(training)
    return found


def coco_results(found: Sequence[Detections], data: DetectionSet, ids: Sequence[int | str]) -> list[dict[str, Any]]:
    """Detections as COCO's result list, with the source's category ids.

    Args:
        found: one entry per image.
        data: the set.
        ids: id of every image.
    """
    lines: list[dict[str, Any]] = []
    for id, detections in zip(ids, found, strict=True):
        low, sides = detections.boxes[:, :2], detections.boxes[:, 2:] - detections.boxes[:, :2]
        for box, score, label in zip(
            torch.cat([low, sides], 1).tolist(), detections.scores.tolist(), detections.classes.tolist(), strict=True
        ):
            lines.append({"image_id": id, "category_id": data.category_ids[label], "bbox": box, "score": score})
    return lines


def voc_results(found: Sequence[Detections], data: DetectionSet) -> dict[str, str]:
    """Detections as VOC's ``comp4_det_test_CLASS.txt``: ``stem score x1 y1 x2 y2``, 1-based.

    Args:
        found: one entry per image.
        data: the set.

    Returns:
        The text of each file by its name.
    """
    texts: dict[str, list[str]] = {name: [] for name in data.classes}
    for id, detections in zip(data.image_ids, found, strict=True):
        for box, score, label in zip(
            (detections.boxes + torch.tensor([1.0, 1, 0, 0])).tolist(), detections.scores.tolist(),
            detections.classes.tolist(), strict=True,
        ):  # fmt: skip
            numbers = " ".join(f"{value:.1f}" for value in box)
            texts[data.classes[label]].append(f"{id} {score:.6f} {numbers}")
    return {f"comp4_det_test_{name}.txt": "\n".join(lines) + "\n" for name, lines in texts.items()}


def average_precision(
    found: Sequence[Detections], data: DetectionSet, most: int = MOST_DETECTIONS
) -> dict[str, float | dict[str, float]]:
    """COCO's average precision.

    Classes without a box in the set do not count; without detections it is 0. With more than 100 detections an image
    the number is not COCO's own, and the caller says so.

    Args:
        found: one entry per image, in its own pixels.
        data: the truth.
        most: detections of an image that count.

    Returns:
        ``map`` (mean over overlaps .5 to .95), ``map50``, ``map75``, and ``classes``: the mean of each class that
        occurs.

    Raises:
        UserError: the set holds no box to be found.
    """
    if data.count == 0:
        raise UserError(f"{data.name} holds no box, so nothing can be measured on it: are its labels there?")
    precision = coco_precision(found, data, most)
    valid = precision > -1
    counted = np.asarray(valid.any((0, 1)))  # (classes,)

    def mean(values: np.ndarray) -> float:
        chosen = values[:, :, counted]
        return float(chosen[chosen > -1].mean())

    return {
        "map": mean(precision),
        "map50": mean(precision[:1]),
        "map75": mean(precision[5:6]),
        "classes": {name: float(precision[:, :, row].mean()) for row, name in enumerate(data.classes) if counted[row]},
    }


def coco_precision(found: Sequence[Detections], data: DetectionSet, most: int = MOST_DETECTIONS) -> np.ndarray:
    """Interpolated precision ``(overlaps, recalls, classes)`` at all sizes; -1 where a class does not occur."""
    coco = require("hotcoco", "search")
    truth = coco.COCO(data.to_coco())
    lines = coco_results(found, data, range(1, len(data) + 1))
    if not lines:
        empty = np.full((10, 101, len(data.classes)), -1.0)
        there = torch.cat([boxes.labels[~boxes.crowd] for boxes in data.boxes]).unique()
        empty[:, :, there.numpy()] = 0.0
        return empty
    evaluation = coco.COCOeval(truth, truth.load_res(lines), "bbox")
    evaluation.params.max_dets = [1, 10, most]
    evaluation.evaluate()
    evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
