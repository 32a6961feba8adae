"""Settings that say which images with boxes; light, for the settings of the experiment."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Interval

from tenfold.errors import UserError
from tenfold.settings import PositiveInt, PositiveShare


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
    search_share: PositiveShare = 0.2
    test_share: PositiveShare = 0.2
    height: Annotated[int, Interval(ge=32, le=4096)] = 96
    width: Annotated[int, Interval(ge=32, le=4096)] = 128
    scenes: Annotated[int, Ge(3)] = 96
    most_detections: PositiveInt = 100

    def check(self) -> None:
        """Refuse settings without meaning, or without effect on this data, before anything is read.

        Raises:
            UserError: names the first.
        """
        own = self.name in ("coco", "voc", "yolo")
        for name in ("train", "search", "test", "images", "classes"):
            if getattr(self, name) is not None and not own:
                raise UserError(f"data.{name} has no effect on {self.name!r}; it is for coco, voc and yolo")
        if self.images is not None and self.name != "coco":
            raise UserError("data.images is of coco only")
        if self.classes is not None and self.name != "voc":
            raise UserError("data.classes is of voc only; the files of coco and yolo name their classes themselves")
        if self.root is not None and self.name == "scenes":
            raise UserError(
                f"data.root {self.root} has no effect on drawn scenes: name your data, --data.name coco, voc or yolo"
            )
        if own and self.root is None:
            raise UserError(f"name the folder of the {self.name} data with --data.root")
        if self.height % 32 or self.width % 32:
            raise UserError(f"data.height and data.width must be multiples of 32; got {self.height} x {self.width}")
        if self.search_share + self.test_share >= 1:
            raise UserError("data.search_share and data.test_share leave nothing to learn from")
