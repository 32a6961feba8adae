"""Image files in folders: a folder per class, ImageNet's layouts; decoded when they are asked for."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal
from zipfile import BadZipFile

import numpy as np
from torch.utils.data import Dataset

from tenfold.errors import UserError

IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


@dataclass(frozen=True)
class ImageFiles(Dataset):
    """Image files with classes; item ``i`` is ``(RGB PIL image, class index)``.

    Attributes:
        paths: the files.
        labels: class index of each.
        classes: names of the classes, by index.
    """

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return read_image(self.paths[index]), self.labels[index]

    def subset(self, indices: Sequence[int]) -> "ImageFiles":
        """Some of the files, with the same classes."""
        return ImageFiles(tuple(self.paths[i] for i in indices), tuple(self.labels[i] for i in indices), self.classes)


def read_image(path: str | Path | IO[bytes], *, name: str | None = None) -> Any:
    """Decode an image file to an RGB PIL image; CMYK, palette and grey ones are converted,
    of 16 bits the upper eight are kept.

    Args:
        path: the file, or an open one.
        name: what the message calls it; its path where ``None``.

    Raises:
        UserError: the file is missing, damaged or no image.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if image.mode.startswith("I;16"):  # Pillow would clip 16-bit grey to white
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read the image {name or path}: {error}") from error


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
    for label, name in enumerate(classes):
        found = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in IMAGE_ENDINGS)
        if not found:
            raise UserError(f"the class folder {folder / name} holds no images")
        paths += found
        labels += [label] * len(found)
    return ImageFiles(tuple(paths), tuple(labels), tuple(classes))


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


def imagenet_transforms(
    size: int, *, training: bool, interpolation: Literal["bilinear", "bicubic"] = "bilinear"
) -> Any:
    """Torchvision transforms of ImageNet: random crop and flip for training; resize and centre crop otherwise.

    Args:
        size: side of the crop; images are resized to ``size * 256 / 224`` before a centre crop.
        training: which of the two.
        interpolation: of the resize; always with antialias.

    Returns:
        A transform from a PIL image to a uint8 tensor ``(3, size, size)``.
    """
    from torchvision.transforms import v2

    how: dict[str, Any] = {"interpolation": v2.InterpolationMode(interpolation), "antialias": True}
    steps = (
        [v2.RandomResizedCrop(size, **how), v2.RandomHorizontalFlip()]
        if training
        else [v2.Resize(round(size * 256 / 224), **how), v2.CenterCrop(size)]
    )
    return v2.Compose([v2.PILToTensor(), *steps])


def load_image_array(path: str | Path) -> np.ndarray:
    """A ``.npy`` file of images; never unpickled.

    Raises:
        UserError: the file is missing, damaged, or holds objects.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise UserError(f"cannot read the array {path}: {error}") from error
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path} is an archive of several arrays; save the images alone, with numpy.save")
    return array
