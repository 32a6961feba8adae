"""Settings that say which images with boxes; light, for the settings of the experiment."""

from dataclasses import dataclass
from typing import Literal


@dataclass
class DetectionOptions:
    """Which images with boxes, and how they are split.

    Attributes:
        name: ``scenes`` (drawn, embedded), ``bccd`` or ``nuclei`` (folders of these under ``root``), ``coco``,
            ``voc`` or ``yolo`` (your own).
        root: folder of the data; for ``bccd`` and ``nuclei`` TENFOLD_DATA/detection where null.
        train: split that is learnt and searched on: an annotation file relative to ``root`` (coco), the name of a list
            (voc) or of a folder (yolo).
        search: split that candidates are scored on; cut out of ``train`` where null.
        test: split that is read once, at the end; cut out of ``train`` where null.
        images: folder of the images of ``coco``, relative to ``root``; found by itself where null.
        classes: names of the classes in order, of ``voc``; those that occur, sorted, where empty.
        search_share: share of ``train`` that is cut out where ``search`` is null.
        test_share: share of ``train`` that is cut out where ``test`` is null.
        height: of the network's input, a multiple of 32.
        width: of the network's input, a multiple of 32.
        scenes: how many to draw for training; a third as many for search and for test. Only of ``scenes``.
        most_detections: of an image, that count; COCO's 100, more where images hold more boxes.
    """

    name: Literal["scenes", "bccd", "nuclei", "coco", "voc", "yolo"] = "scenes"
    root: str | None = None
    train: str | None = None
    search: str | None = None
    test: str | None = None
    images: str | None = None
    classes: list[str] | None = None
    search_share: float = 0.2
    test_share: float = 0.2
    height: int = 96
    width: int = 128
    scenes: int = 96
    most_detections: int = 100
