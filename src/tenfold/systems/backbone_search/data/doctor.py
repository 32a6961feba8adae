"""A look at data before anything is trained on it: everything that is wrong, not only the first."""

from collections import Counter
from pathlib import Path
from typing import Any

from tenfold.errors import UserError
from tenfold.settings import check_settings
from tenfold.systems.backbone_search.data.detection_set import DetectionSet, image_size
from tenfold.systems.backbone_search.data.options import DetectionOptions
from tenfold.systems.backbone_search.data.splits import _own, _public, make_scenes


def examine(options: DetectionOptions) -> dict[str, Any]:
    """Read all splits and report on them.

    Args:
        options: which data.

    Returns:
        For each split the numbers of images and boxes, boxes of each class, and under ``problems`` one line for every
        kind of trouble: classes without boxes, images without boxes, damaged files, sizes that differ from their
        records, gaps in the ids, duplicates within a split, images in two splits, boxes that were cut or dropped.
    """
    check_settings(options)
    if options.name == "scenes":
        parts = {"train": make_scenes(options.scenes, 0, options.height, options.width)}
        notes: list[str] = []
    elif options.name in ("bccd", "nuclei"):
        fit, search, test = _public(options)
        parts, notes = {"train": fit, "search": search, "test": test}, [*fit.notes, *search.notes, *test.notes]
    else:
        fit, search, test, notes = _own(options, 0)
        parts = {"train": fit, "search": search, "test": test}
    problems = list(notes)
    report: dict[str, Any] = {}
    owners: dict[str, str] = {}
    for name, part in parts.items():
        bad = _bad_images(part)
        problems += [f"{name}: {line}" for line in bad]
        report[name] = _counts(part)
        empty = [kind for kind, count in report[name]["boxes_of"].items() if count == 0]
        if empty:
            problems.append(f"{name}: no box of the classes {', '.join(empty)}")
        if report[name]["images_without_boxes"]:
            problems.append(f"{name}: {report[name]['images_without_boxes']} images hold no box")
        if bad:
            continue
        digests = part.digests()
        twice = [digest for digest, count in Counter(digests).items() if count > 1]
        if twice:
            places = [part.place(row) for row, digest in enumerate(digests) if digest == twice[0]]
            problems.append(f"{name}: {len(twice)} images are there more than once; the first: {', '.join(places[:3])}")
        leaked = [digest for digest in set(digests) if owners.get(digest, name) != name]
        if leaked:
            problems.append(f"{name}: {len(leaked)} images are in {owners[leaked[0]]}, too")
        owners |= {digest: name for digest in digests if digest not in owners}
    first = next(iter(parts.values()))
    ids = first.category_ids
    if ids != tuple(range(ids[0], ids[0] + len(ids))):
        problems.append(f"category ids run from {ids[0]} to {ids[-1]} for {len(ids)} classes: results keep these ids")
    return {**report, "classes": list(first.classes), "problems": problems}


def _counts(part: DetectionSet) -> dict[str, Any]:
    kinds = Counter(label for boxes in part.boxes for label in boxes.labels[~boxes.crowd].tolist())
    numbers = [int((~boxes.crowd).sum()) for boxes in part.boxes]
    return {
        "images": len(part),
        "boxes": part.count,
        "images_without_boxes": sum(number == 0 for number in numbers),
        "most_boxes_in_an_image": max(numbers, default=0),
        "boxes_of": {name: kinds.get(row, 0) for row, name in enumerate(part.classes)},
    }


def _bad_images(part: DetectionSet) -> list[str]:
    damaged, other = [], []
    for row, found in enumerate(part.files):
        if not isinstance(found, Path):
            continue
        try:
            if image_size(found) != part.sizes[row]:
                other.append(f"{found.name} ({part.sizes[row][1]} x {part.sizes[row][0]} in its record)")
            else:
                part.image(row)
        except UserError:
            damaged.append(found.name)
    lines = []
    if damaged:
        lines.append(f"{len(damaged)} images are damaged: {', '.join(damaged[:5])}")
    if other:
        lines.append(f"{len(other)} images have another size than their record says: {', '.join(other[:5])}")
    return lines
