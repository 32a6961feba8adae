"""PASCAL VOC folders, of the challenge or one's own: XML per image, lists of stems per split."""

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from xml.etree import ElementTree

from tenfold.errors import UserError
from tenfold.files import regular
from tenfold.systems.backbone_search.data.coco import existing
from tenfold.systems.backbone_search.data.detection_set import Boxes, DetectionSet, cleaned, cleaning_notes

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def read_voc(root: str | Path, split: str, classes: Sequence[str] = ()) -> DetectionSet:
    """Read a split of a VOC folder (``Annotations``, ``JPEGImages``, ``ImageSets/Main``).

    Coordinates are 1-based and inclusive: a box becomes ``[xmin - 1, ymin - 1, xmax, ymax]`` (YOLOX's reader takes 1
    off all four). Parts of persons are left alone; difficult objects are neither learnt nor counted.

    Args:
        root: the folder; of the challenge, ``VOCdevkit/VOC2007``.
        split: name of a list in ``ImageSets/Main``, such as ``trainval``; lines are a stem, or a stem and a mark.
        classes: names in order; those of all annotations of the folder, sorted, where empty.

    Raises:
        UserError: a file is missing, no XML, lacks a part, or holds no boxes; the class of a box is not in ``classes``.
    """
    root = Path(root)
    listed = root / "ImageSets" / "Main" / f"{split}.txt"
    try:
        stems = [line.split()[0] for line in regular(listed).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the split {listed}: {error}") from error
    if not stems:
        raise UserError(f"{listed} names no image")
    names = tuple(classes) or _all_classes(root)
    files, sizes, boxes, total = [], [], [], {"cut": 0, "dropped": 0}
    for stem in stems:
        tree = _parse(root / "Annotations" / f"{stem}.xml")
        size = (int(_number(tree, "size/height", stem)), int(_number(tree, "size/width", stem)))
        corners, labels, difficult = [], [], []
        for entry in tree.findall("object"):
            name = (entry.findtext("name") or "").strip()
            if name not in names:
                raise UserError(f"{stem}.xml holds the class {name!r}, which is none of {', '.join(names)}")
            low = [_number(entry, f"bndbox/{key}", stem) - 1 for key in ("xmin", "ymin")]
            corners.append([*low, *(_number(entry, f"bndbox/{key}", stem) for key in ("xmax", "ymax"))])
            labels.append(names.index(name))
            difficult.append((entry.findtext("difficult") or "0").strip() == "1")
        kept, numbers, counts = cleaned(corners, size)
        total = {kind: total[kind] + counts[kind] for kind in total}
        areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in kept]
        boxes.append(Boxes.of(kept, [labels[n] for n in numbers], [difficult[n] for n in numbers], areas))
        sizes.append(size)
        suffixes = [s for s in (".jpg", ".jpeg", ".png", ".JPG") if (root / "JPEGImages" / (stem + s)).is_file()]
        files.append(stem + (suffixes[0] if suffixes else ".jpg"))
    read = DetectionSet(
        f"{root.name}/{split}", existing(root / "JPEGImages", files, listed), sizes, boxes, names,
        tuple(range(1, len(names) + 1)), list(stems), cleaning_notes(f"{root.name} {split}", total),
    )  # fmt: skip
    if read.count == 0:
        raise UserError(f"the split {listed} holds no box that could be learnt")
    return read


def _parse(path: Path) -> ElementTree.Element:
    try:
        content = regular(path).read_bytes()
        if b"<!ENTITY" in content:  # entities can name other files, or grow without bound
            raise UserError(f"{path} declares XML entities, which are not read")
        return ElementTree.fromstring(content)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ElementTree.ParseError as error:
        raise UserError(f"{path} is not XML: {error}") from error


def _number(element: ElementTree.Element, key: str, stem: str) -> float:
    text = element.findtext(key)
    try:
        value = float(text or "")
    except ValueError:
        value = float("nan")
    if not isfinite(value):
        raise UserError(f"{stem}.xml: {key} is {text!r}, not a number")
    return value


def _all_classes(root: Path) -> tuple[str, ...]:
    """Classes of all annotations of a folder, so that every split numbers them alike."""
    found = set()
    for path in sorted((root / "Annotations").glob("*.xml")):
        found |= {(entry.findtext("name") or "").strip() for entry in _parse(path).findall("object")}
    if not found:
        raise UserError(f"{root / 'Annotations'} holds no XML file with an object")
    return VOC_CLASSES if found == set(VOC_CLASSES) else tuple(sorted(found))
