"""Image files in folders: a folder per class, ImageNet's layouts; decoded when they are asked for."""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from tenfold.data.reading import IMAGE_ENDINGS, find_unreadable, read_image
from tenfold.errors import UserError
from tenfold.files import files_below

_NAMED = 20  # unreadable files that a message names; the rest are counted


@dataclass(frozen=True)
class ImageFiles(Dataset):
    """Image files with classes; item ``i`` is ``(RGB PIL image, class index)``.

    Attributes:
        paths: the files.
        labels: class index of each.
        classes: names of the classes, by index.
        notes: what was left out of the folder that they come from, with numbers.
    """

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return read_image(self.paths[index]), self.labels[index]

    def subset(self, indices: Sequence[int]) -> "ImageFiles":
        """Some of the files, with the same classes."""
        paths, labels = tuple(self.paths[i] for i in indices), tuple(self.labels[i] for i in indices)
        return replace(self, paths=paths, labels=labels)


def find_image_files(folder: str | Path) -> ImageFiles:
    """All images of a tree with one folder per class; classes are numbered by their sorted names.

    Raises:
        UserError: no such folder, fewer than two classes, or a class without images.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"the image folder {folder} does not exist")
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(classes) < 2:
        raise UserError(f"{folder} holds {len(classes)} class folders; a classifier needs at least two, one per class")
    paths: list[Path] = []
    labels: list[int] = []
    others: list[Path] = []
    for label, name in enumerate(classes):
        found, beside = files_below(folder / name, is_image_name)
        if not found:
            raise UserError(f"the class folder {folder / name} holds no images")
        paths += found
        labels += [label] * len(found)
        others += beside
    return ImageFiles(tuple(paths), tuple(labels), tuple(classes), _note_of_others(folder, others))


def is_image_name(path: Path) -> bool:
    """Whether a file is taken for an image: by its ending, and not hidden (as macOS' ``._photo.jpg`` is)."""
    return path.suffix.lower() in IMAGE_ENDINGS and not path.name.startswith(".")


def _note_of_others(folder: Path, others: Sequence[Path]) -> tuple[str, ...]:
    if not others:
        return ()
    kinds = Counter("hidden" if path.name.startswith(".") else path.suffix or "no ending" for path in others)
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
    counted = f"{len(others)} files in the class folders are no images by their names and are not read"
    return (f"{folder}: {counted}: {listed}.",)


def require_readable(
    files: ImageFiles, folder: Path, *, leave_out: bool, option: str = "--data.unreadable"
) -> ImageFiles:
    """Look at all files before any work is done with them.

    Args:
        files: the files.
        folder: where they are from, for the messages.
        leave_out: go on without those that cannot be read, and say so in the notes.
        option: what a user types to leave them out.

    Raises:
        UserError: names the files that cannot be read; or a class has none that can.
    """
    bad = find_unreadable(files.paths)
    if not bad:
        return files
    names = [f"{path.relative_to(folder)} ({reason})" for path, reason in bad.items()]
    listed = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    counted = f"{len(bad)} of the {len(files)} images in {folder} cannot be read"
    if not leave_out:
        raise UserError(f"{counted}: {listed}; mend them, or go on without them: {option} leave-out")
    kept = files.subset([index for index, path in enumerate(files.paths) if path not in bad])
    for label, name in enumerate(files.classes):
        if label not in kept.labels:
            raise UserError(f"no image of the class {name} in {folder} can be read: {listed}")
    return replace(kept, notes=(*files.notes, f"{counted} and are left out: {listed}."))


def find_imagenet(root: str | Path, split: str) -> ImageFiles:
    """A split of ImageNet-1k.

    Args:
        root: folder with ``train/<wnid>/`` and ``val/<wnid>/``, or a flat ``val/ILSVRC2012_val_00000001.JPEG`` ... with
            the development kit in ``ILSVRC2012_devkit_t12`` or ``devkit``; or Kaggle's ``ILSVRC/Data/CLS-LOC/`` with
            these two folders, the flat one's labels in ``LOC_val_solution.csv``.
        split: ``"train"`` or ``"val"``.

    Raises:
        UserError: the folders are missing or incomplete.
    """
    root = Path(root)
    kaggle = root / "ILSVRC" / "Data" / "CLS-LOC"
    if kaggle.is_dir():
        return _kaggle_validation(root, kaggle / "val") if split == "val" else find_image_files(kaggle / split)
    folder = root / split
    if split == "val" and folder.is_dir() and not any(entry.is_dir() for entry in folder.iterdir()):
        return _flat_validation(root)
    if not folder.is_dir():
        raise UserError(
            f"{root} holds no folder {split!r}: ImageNet is expected as train/<wnid>/*.JPEG and val/<wnid>/*.JPEG"
        )
    return find_image_files(folder)


def _flat_validation(root: Path) -> ImageFiles:
    """The validation images as distributed: ILSVRC ids from the kit, mapped to ranks of the sorted wnids."""
    from scipy.io import loadmat

    kit = next((root / name for name in ("ILSVRC2012_devkit_t12", "devkit") if (root / name / "data").is_dir()), None)
    if kit is None:
        raise UserError(
            f"{root / 'val'} is flat; its labels need the development kit beside it, in ILSVRC2012_devkit_t12"
        )
    try:
        synsets = loadmat(kit / "data" / "meta.mat", squeeze_me=True, struct_as_record=True)["synsets"]
        truth = (kit / "data" / "ILSVRC2012_validation_ground_truth.txt").read_text(encoding="utf-8").split()
        leaves = [
            (int(identifier), str(wnid))
            for identifier, wnid, children in zip(
                synsets["ILSVRC2012_ID"], synsets["WNID"], synsets["num_children"], strict=True
            )
            if int(children) == 0
        ]
        identifiers = [int(line) for line in truth]
    except Exception as error:  # a damaged meta.mat fails in any way there is
        raise UserError(f"the development kit {kit} cannot be read: {error}") from error
    classes = tuple(sorted(wnid for _, wnid in leaves))
    rank = {wnid: index for index, wnid in enumerate(classes)}
    label_of = {identifier: rank[wnid] for identifier, wnid in leaves}
    paths = tuple(sorted((root / "val").glob("ILSVRC2012_val_*.JPEG")))
    if len(paths) != len(identifiers):
        raise UserError(f"{root / 'val'} holds {len(paths)} images, the kit labels for {len(identifiers)}")
    if unknown := set(identifiers) - set(label_of):
        raise UserError(f"the ground truth in {kit} names the class {min(unknown)}, which its meta.mat does not hold")
    return ImageFiles(paths, tuple(label_of[identifier] for identifier in identifiers), classes)


def _kaggle_validation(root: Path, folder: Path) -> ImageFiles:
    """Kaggle's flat validation images: the first word of each prediction is the wnid."""
    table = root / "LOC_val_solution.csv"
    try:
        with table.open(encoding="utf-8", newline="") as file:
            wnids = {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(file)}
    except OSError as error:
        raise UserError(
            f"cannot read {table}, which holds the labels of {folder}: {error.strerror or error}"
        ) from error
    except (KeyError, IndexError, AttributeError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table} is not Kaggle's table of ImageId and PredictionString") from error
    paths = tuple(sorted(folder.glob("*.JPEG")))
    missing = [path for path in paths if path.stem not in wnids]
    if missing or not paths:
        raise UserError(f"{missing[0] if missing else folder} has no label in {table}")
    classes = tuple(sorted(set(wnids.values())))
    rank = {wnid: index for index, wnid in enumerate(classes)}
    return ImageFiles(paths, tuple(rank[wnids[path.stem]] for path in paths), classes)
