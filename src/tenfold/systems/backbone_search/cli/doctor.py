"""``tenfold backbone-search doctor``."""

from typing import Any, Literal

from tenfold.systems.backbone_search.data.doctor import examine
from tenfold.systems.backbone_search.data.options import DetectionOptions


def doctor(
    name: Literal["scenes", "bccd", "nuclei", "coco", "voc", "yolo"],
    *,
    root: str | None = None,
    train: str | None = None,
    search: str | None = None,
    test: str | None = None,
    images: str | None = None,
) -> dict[str, Any]:
    """Look at data before anything is trained on it: counts, and a line for everything that is wrong.

    Args:
        name: kind of data: coco, voc, yolo; or bccd, nuclei, scenes.
        root: folder of the data.
        train: training split: annotation file, list or folder, relative to root.
        search: split that candidates are scored on; cut out of train where not given.
        test: split that is read once; cut out of train where not given.
        images: folder of the images of coco, relative to root.
    """
    return examine(DetectionOptions(name=name, root=root, train=train, search=search, test=test, images=images))
