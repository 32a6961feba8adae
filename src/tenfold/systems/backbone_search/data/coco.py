"""COCO's annotation files: ``instances_*.json`` with images beside them; coco-minitrain and any file of that form."""

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from tenfold.errors import UserError
from tenfold.files import read_json
from tenfold.systems.backbone_search.data.detection_set import Boxes, DetectionSet, cleaned, cleaning_notes


def read_coco(annotations: str | Path, images: str | Path | None = None) -> DetectionSet:
    """Read a COCO annotation file.

    Category ids may have gaps (COCO's own run from 1 to 90 for 80 classes): classes are numbered by ascending id, and
    results are written with the file's ids. Crowd regions are kept for the evaluation and not learnt.

    Args:
        annotations: the JSON file.
        images: folder of the images; found beside the file where ``None``.

    Raises:
        UserError: the file is no such JSON, names an unknown image or category, holds no boxes, or an image is missing.
    """
    path = Path(annotations)
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in ("images", "categories")):
        raise UserError(f"{path} is not a COCO annotation file: it needs the lists images, annotations and categories")
    records, categories = content["images"], content["categories"]
    raw: Any = content.get("annotations")
    if not isinstance(raw, list):
        raise UserError(f"{path} holds no list 'annotations': is it the file of a test split without labels?")
    try:
        named = {int(category["id"]): str(category["name"]) for category in categories}
        rows = {image["id"]: row for row, image in enumerate(records)}
        sizes = [(int(image["height"]), int(image["width"])) for image in records]
        names = [str(image["file_name"]) for image in records]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: an image or category lacks or misuses the key {error}") from error
    if not records or not named:
        raise UserError(f"{path} holds no {'images' if not records else 'categories'}")
    if len(rows) < len(records) or len(named) < len(categories):
        raise UserError(f"{path}: two images or two categories have one id")
    ids = sorted(named)
    position = {id: place for place, id in enumerate(ids)}
    corners: list[list[list[float]]] = [[] for _ in records]
    others: list[list[tuple[int, bool, float]]] = [[] for _ in records]
    for number, entry in enumerate(raw):
        try:
            image, category = entry["image_id"], int(entry["category_id"])
            x, y, w, h = (float(value) for value in entry["bbox"])
            crowd = bool(entry.get("iscrowd", 0))
            area = float(entry.get("area", w * h))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: annotation {number} lacks or misuses {error}") from error
        if image not in rows:
            raise UserError(f"{path}: annotation {number} is of the image {image!r}, which the file has not")
        if category not in position:
            raise UserError(f"{path}: annotation {number} is of the category {category}, which the file has not")
        if not all(map(isfinite, (x, y, w, h))):
            raise UserError(f"{path}: annotation {number} has the box {entry['bbox']}, which is no box")
        corners[rows[image]].append([x, y, x + w, y + h])
        others[rows[image]].append((position[category], crowd, area))
    boxes, total = [], {"cut": 0, "dropped": 0}
    for size, found, rest in zip(sizes, corners, others, strict=True):
        kept, numbers, counts = cleaned(found, size)
        total = {kind: total[kind] + counts[kind] for kind in total}
        chosen = [rest[number] for number in numbers]
        boxes.append(Boxes.of(kept, [c[0] for c in chosen], [c[1] for c in chosen], [c[2] for c in chosen]))
    folder = Path(images) if images is not None else _find_images(path, names[0])
    files = existing(folder, names, path)
    read = DetectionSet(
        path.stem, files, sizes, boxes, tuple(named[id] for id in ids), tuple(ids), [image["id"] for image in records],
        cleaning_notes(path.name, total),
    )  # fmt: skip
    if read.count == 0:
        raise UserError(f"{path} holds no box that could be learnt")
    return read


def existing(folder: Path, names: Sequence[str], source: Path) -> list[Path]:
    """Image files in a folder, all of them there and inside it.

    Raises:
        UserError: a name leads out of the folder, or files are missing; the first is named, and how many there are.
    """
    files = []
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{source} names the image {name!r}, which lies outside its folder")
        files.append(folder / name)
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(files)} images that {source.name} names are not in {folder}; the first is "
            f"{missing[0].name}"
        )
    return files


def _find_images(path: Path, first: str) -> Path:
    """Where the images of an annotation file lie in the layouts in use."""
    split = path.stem.removeprefix("instances_")
    roots = [path.parent, path.parent.parent]
    names = [split, f"images/{split}", "images", "JPEGImages", "train2017", "train2014", split + "2017", "."]
    candidates = [root / name for root in roots for name in names]
    for folder in candidates:
        if (folder / first).is_file():
            return folder
    raise UserError(
        f"cannot find the images of {path}: {first} is in none of {', '.join(str(c) for c in candidates[:4])} ...; "
        "name their folder with --data.images"
    )
