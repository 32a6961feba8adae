"""Pictures of the page: what the delivered detector finds on test images."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tenfold.report.pictures import picture
from tenfold.results import Picture
from tenfold.systems.backbone_search.detector.mobile import MobilePlan
from tenfold.systems.backbone_search.detector.yolox_lite import DetectorPlan
from tenfold.systems.backbone_search.experiment.problem import Problem
from tenfold.systems.backbone_search.serving import draw_boxes, load

_SHOWN, _SIDE = 4, 320
_COLUMN, _ROW = 340, 22
_STAGES = ("#4363d8", "#3cb44b", "#f58231", "#911eb4")


def networks_of(outcomes: Mapping[str, Any]) -> list[Picture]:
    """The first found network drawn block by block beside the seed's; nothing for backbones without stages."""
    from PIL import Image, ImageDraw, ImageFont

    first = (outcomes["finals"]["found"][0], next(iter(outcomes["seeds"].values())))
    plans = [DetectorPlan.from_dict(own["plan"]).backbone for own in first]
    if not all(isinstance(plan, MobilePlan) for plan in plans):
        return []
    found, seed = (plan for plan in plans if isinstance(plan, MobilePlan))
    widest = max(block.width for plan in (found, seed) for stage in plan.stages for block in stage)
    rows = [max(len(a), len(b)) for a, b in zip(found.stages, seed.stages, strict=True)]
    canvas = Image.new("RGB", (2 * _COLUMN, (sum(rows) + len(rows) + 1) * _ROW), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for column, (name, plan) in enumerate((("found", found), ("seed", seed))):
        left, row = column * _COLUMN + 8, 0
        pen.text((left, 4), name, fill="#1c2226", font=font)
        for number, stage in enumerate(plan.stages):
            row += 1
            for place, block in enumerate(stage):
                y = (row + place) * _ROW
                length = round((_COLUMN - 190) * block.width / widest)
                pen.rectangle((left, y + 3, left + max(length, 4), y + _ROW - 4), fill=_STAGES[number % len(_STAGES)])
                text = f"{block.width}: {block.operator} k{block.kernel} e{block.expansion:.3g}"
                pen.text((left + length + 6, y + 4), f"{text}{' /2' if block.stride == 2 else ''}", "#1c2226", font)
            row += rows[number]
    file = io.BytesIO()
    canvas.save(file, "PNG", optimize=True)
    return [
        picture(
            "networks",
            "The found network beside the seed's",
            file.getvalue(),
            alt="Bars for the blocks of both backbones, as long as they have output channels, stage by stage.",
            caption="A bar per block, as long as it has output channels; k is the kernel, e the expansion, /2 halves "
            "the map. First search.",
        )
    ]


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
