"""Three splits: learnt, scored by the search, read once at the end; no image in two of them."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tenfold.data.reading import find_unreadable
from tenfold.errors import UserError
from tenfold.files import printable
from tenfold.settings import check_settings
from tenfold.systems.backbone_search.data.coco import read_coco
from tenfold.systems.backbone_search.data.detection_set import DetectionSet
from tenfold.systems.backbone_search.data.options import DetectionOptions
from tenfold.systems.backbone_search.data.scenes import make_scenes
from tenfold.systems.backbone_search.data.voc import read_voc
from tenfold.systems.backbone_search.data.yolo import read_yolo


@dataclass
class DetectionSplits:
    """What a search works with.

    Attributes:
        fit: weights are learnt on it.
        search: candidates are scored on it, choices made on it.
        test: read once, at the end.
        notes: what was cut, cleaned or left out, with numbers.
    """

    fit: DetectionSet
    search: DetectionSet
    test: DetectionSet
    notes: list[str] = field(default_factory=list)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.fit.classes


def load_detection(options: DetectionOptions, seed: int = 0) -> DetectionSplits:
    """Read the three splits of the options.

    Args:
        options: see ``DetectionOptions``.
        seed: of scenes and of what is cut out of the training split.

    Raises:
        UserError: data is missing or damaged, an option has no effect or no meaning here, splits have other classes, or
            an image is in two splits.
    """
    check_settings(options)
    if options.name == "scenes":
        counts = (options.scenes, max(options.scenes // 3, 1), max(options.scenes // 3, 1))
        fit, search, test = (
            make_scenes(count, 1000 * seed + number, options.height, options.width)
            for number, count in enumerate(counts)
        )
        return DetectionSplits(fit, search, test)
    if options.name in ("bccd", "nuclei"):
        fit, search, test = _public(options)
        parts = [fit, search, test]
        notes = [note for part in parts for note in part.notes]
    else:
        fit, search, test, notes = _own(options, seed)
    splits = DetectionSplits(fit, search, test, notes)
    _check_classes(splits)
    check_leakage({"train": fit, "search": search, "test": test})
    _require_readable(fit, search, test)
    return splits


def _require_readable(*parts: DetectionSet) -> None:
    """Look at all image files before anything is trained."""
    files = list(dict.fromkeys(file for part in parts for file in part.files if isinstance(file, Path)))
    if bad := find_unreadable(files):
        first, reason = next(iter(bad.items()))
        raise UserError(
            f"{len(bad)} of {len(files)} images cannot be read, {printable(first)} first ({reason}): mend them or take "
            "them out of the annotations; tenfold backbone-search doctor lists them all"
        )


def _public(options: DetectionOptions) -> tuple[DetectionSet, DetectionSet, DetectionSet]:
    folder = {"bccd": "BCCD", "nuclei": "nuclei"}[options.name]
    if options.root is not None:
        root = Path(options.root)
    elif os.environ.get("TENFOLD_DATA"):
        root = Path(os.environ["TENFOLD_DATA"]) / "detection" / folder
    else:
        raise UserError(_where(options.name) + "; set TENFOLD_DATA or --data.root")
    annotations = root / "annotations" if options.name == "bccd" else root
    if not (annotations / "instances_train.json").is_file():
        raise UserError(f"{_where(options.name)}; {annotations} holds no instances_train.json")
    parts = [read_coco(annotations / f"instances_{split}.json") for split in ("train", "val", "test")]
    return parts[0], parts[1], parts[2]


def _where(name: str) -> str:
    if name == "bccd":
        return (
            "the BCCD data (github.com/Shenggan/BCCD_Dataset, MIT) is expected as TENFOLD_DATA/detection/BCCD with "
            "JPEGImages and annotations/instances_{train,val,test}.json"
        )
    return (
        "the nuclei data (Data Science Bowl 2018, BBBC038, CC0) is expected as TENFOLD_DATA/detection/nuclei with "
        "images and instances_{train,val,test}.json"
    )


def _own(options: DetectionOptions, seed: int) -> tuple[DetectionSet, DetectionSet, DetectionSet, list[str]]:
    root = Path(str(options.root))
    if not root.is_dir():
        raise UserError(f"data.root {root} is no folder")

    def read(split: str) -> DetectionSet:
        if options.name == "coco":
            return read_coco(root / split, None if options.images is None else root / options.images)
        return read_voc(root, split, options.classes or ()) if options.name == "voc" else read_yolo(root, split)

    train_name = options.train or _guess(options.name, root)
    train = read(train_name)
    notes, rows = list(train.notes), list(range(len(train)))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed)).tolist()
    parts: dict[str, DetectionSet] = {}
    for name, share in (("test", options.test_share), ("search", options.search_share)):
        split = getattr(options, name)
        if split is not None:
            parts[name] = read(split)
            notes += parts[name].notes
            continue
        count = round(share * len(train))
        if count < 1 or count >= len(rows):
            raise UserError(
                f"{train.name} has {len(train)} images: too few to cut {share:.0%} for data.{name}; "
                "name a split of its own"
            )
        taken = set(order[:count])
        order = order[count:]
        parts[name] = train.subset(sorted(taken), f"{train.name} ({name})")
        rows = [row for row in rows if row not in taken]
        notes.append(f"{count} of the {len(train)} images of {train.name} are kept for data.{name} (seed {seed}).")
    for name, part in parts.items():
        if part.count == 0:
            raise UserError(f"no image of the {name} split holds a box; choose other splits or larger shares")
    fit = train.subset(rows, train.name) if len(rows) < len(train) else train
    return fit, parts["search"], parts["test"], notes


def _guess(name: str, root: Path) -> str:
    if name == "voc":
        return "trainval" if (root / "ImageSets/Main/trainval.txt").exists() else "train"
    if name == "yolo":
        return "train"
    found = [
        path
        for pattern in ("annotations/instances_train*.json", "instances_train*.json", "*.json")
        for path in sorted(root.glob(pattern))
    ]
    if not found:
        raise UserError(f"{root} holds no COCO annotation file; name it with --data.train")
    return str(found[0].relative_to(root))


def _check_classes(splits: DetectionSplits) -> None:
    for name in ("search", "test"):
        part: DetectionSet = getattr(splits, name)
        if part.classes != splits.fit.classes or part.category_ids != splits.fit.category_ids:
            raise UserError(
                f"the {name} split has the classes {', '.join(part.classes[:8])}, the training split "
                f"{', '.join(splits.fit.classes[:8])}: they must be the same, with the same ids"
            )
    counts = torch.zeros(len(splits.classes), dtype=torch.int64)
    for boxes in splits.fit.boxes:
        counts += torch.bincount(boxes.labels[~boxes.crowd], minlength=len(counts))
    empty = [name for name, count in zip(splits.classes, counts.tolist(), strict=True) if count == 0]
    if empty:
        splits.notes.append(f"no training box is of the classes: {', '.join(empty)}.")


def check_leakage(parts: dict[str, DetectionSet]) -> None:
    """Refuse an image that is in two splits, by the hash of its file.

    Raises:
        UserError: names the first such image and how many there are.
    """
    seen: dict[str, tuple[str, str]] = {}
    shared: list[tuple[str, str, str, str]] = []
    for name, part in parts.items():
        for row, digest in enumerate(part.digests()):
            if digest in seen and seen[digest][0] != name:
                shared.append((*seen[digest], name, part.place(row)))
            seen.setdefault(digest, (name, part.place(row)))
    if shared:
        first, place, second, again = shared[0]
        raise UserError(
            f"{len(shared)} images are in two splits; the first is {place} ({first}) = {again} ({second}): what is "
            "measured there would have been learnt. Take them out of one of the two"
        )
