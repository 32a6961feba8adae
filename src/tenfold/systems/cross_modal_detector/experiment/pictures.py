"""Pictures of the results page: from above and in the images, with all sensors and without some."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tenfold.report.pictures import picture
from tenfold.results import Picture
from tenfold.systems.cross_modal_detector.augmentation.masking import without
from tenfold.systems.cross_modal_detector.delivery.drawings import draw_from_above, draw_in_image, png_of, tile
from tenfold.systems.cross_modal_detector.delivery.models import ServedDetector
from tenfold.systems.cross_modal_detector.sets.frames import Sample
from tenfold.systems.cross_modal_detector.sets.load import DetectionSplits

_SHOWN = 0.2


def pictures_of(served: ServedDetector, splits: DetectionSplits, samples: Sequence[Sample]) -> list[Picture]:
    """The first test frame with most boxes from above, by sensors; its images with boxes."""
    row = int(np.argmax([len(sample.boxes) for sample in samples[: min(len(samples), 40)]]))
    sample = samples[row]
    detector = served.detector
    variants = {"all sensors": sample}
    if detector.image is not None and detector.lidar is not None:
        variants["without LiDAR"] = without(sample, lidar=True)
        variants["without cameras"] = without(sample, cameras=range(len(sample.images)))
    area = detector.area.tolist()
    sheets = []
    for title, variant in variants.items():
        found = served([variant])[0]
        boxes, scores = found.boxes.numpy(), found.scores.numpy()
        sheets.append(
            draw_from_above(
                variant.points, boxes[scores > _SHOWN], scores[scores > _SHOWN], sample.boxes, area=area, title=title
            )
        )
    pictures = [
        picture(
            "from-above",
            "A test frame from above",
            png_of(tile(sheets, len(sheets))),
            alt="Points, true boxes and found boxes seen from above, with all sensors and without some.",
            caption=f"Green: true boxes; red: boxes found with a score above {_SHOWN}, fainter where it is lower. A "
            "line points to the front.",
        )
    ]
    if detector.image is not None:
        found = served([sample])[0]
        prepared = served.pipeline.test(replace(sample))
        chosen = found.scores.numpy() > _SHOWN
        boxes, scores = found.boxes.numpy()[chosen], found.scores.numpy()[chosen]
        scale = max(1, round(320 / served.image_size[1]))
        images = [
            draw_in_image(image, matrix, boxes, scores, sample.boxes, scale=scale)
            for image, matrix in zip(prepared.images, prepared.lidar2img, strict=True)
            if image is not None
        ]
        names = ", ".join(view.name for view in splits.test[row].cameras)
        pictures.append(
            picture(
                "images",
                "The same frame in its images",
                png_of(tile(images, min(3, len(images)))),
                alt="The images of the cameras with edges of true and of found boxes.",
                caption=f"Row by row: {names}. Green: true boxes; red: found.",
            )
        )
    return pictures
