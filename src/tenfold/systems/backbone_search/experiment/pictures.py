"""Pictures of the page: what the delivered detector finds on test images."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from tenfold.report.pictures import picture
from tenfold.results import Picture
from tenfold.systems.backbone_search.experiment.problem import Problem
from tenfold.systems.backbone_search.serving import draw_boxes, load

_SHOWN, _SIDE = 4, 320


def pictures_of(problem: Problem, folder: Path, chosen: dict[str, Any]) -> list[Picture]:
    """The first test images, with the truth left and what was found right.

    Args:
        problem: of the run.
        folder: of the run, which holds the delivered detector.
        chosen: what promotion chose; shown under the picture.
    """
    from PIL import Image

    detector, test = load(folder), problem.splits.test
    from tenfold.systems.backbone_search.detector.postprocess import Detections

    rows = []
    for row in range(min(_SHOWN, len(test))):
        image, boxes = test.image(row), test.boxes[row]
        truth = Detections(boxes.corners, boxes.areas * 0 + 1, boxes.labels)
        pair = [draw_boxes(image, found, detector.classes) for found in (truth, detector.detect(image))]
        scale = _SIDE / max(image.shape[:2])
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        rows.append(np.concatenate([np.asarray(drawn.resize(size)) for drawn in pair], axis=1))
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 4), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    file = io.BytesIO()
    Image.fromarray(np.concatenate(padded)).save(file, "PNG", optimize=True)
    return [
        picture(
            "detections",
            "Detections on test images",
            file.getvalue(),
            alt="Test images twice: with the true boxes on the left, with what was found on the right.",
            caption=f"Truth on the left, found (score 0.3 and more) on the right. The network is candidate "
            f"{chosen['slot']} of the first search.",
        )
    ]
