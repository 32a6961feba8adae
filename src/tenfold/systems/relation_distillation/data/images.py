"""The images of the experiment, and the views of them that pre-training and fine-tuning see."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from tenfold.data import (
    ImageFiles,
    LabelledImages,
    Preprocessing,
    Splits,
    channel_statistics,
    find_data,
    load_image_archive,
    load_splits,
)
from tenfold.data.folder import require_readable
from tenfold.data.options import FILE_SETS
from tenfold.data.shards import ShardImages, find_shards, find_unlabelled
from tenfold.errors import UserError

Images = LabelledImages | ImageFiles | ShardImages


def load_images(
    name: str,
    *,
    root: str | None = None,
    validation: int | None = None,
    image_size: int = 224,
    workers: int = 0,
    limit: int | None = None,
    unreadable: str = "refuse",
    options: str = "--data.",
) -> Splits:
    """Read a data set and split it.

    Args:
        name: ``clothing64``, or a name of `tenfold.data.load_splits`.
        root: its folder; ``TENFOLD_DATA`` where ``None``.
        validation: images taken from the training split, a usual share where ``None``; ``clothing64`` has a validation
            split of its own.
        image_size: side of the images of ``clothing64``, ``folder`` and ``imagenet``.
        workers: processes that decode image files.
        limit: keep only the first images of the training split.
        unreadable: ``refuse`` files of ``folder`` that cannot be read, or ``leave-out``.
        options: what a user types before the names of these settings, for messages.

    Raises:
        UserError: the data are missing or damaged, or a split would be empty.
    """
    if limit is not None and limit < 1:
        raise UserError(f"data.limit must be at least 1; got {limit}")
    splits = (
        _read_clothing(root, image_size)
        if name == "clothing64"
        else load_splits(
            name,
            root=root,
            validation=validation,
            workers=workers,
            unreadable=unreadable,
            options=options,
            image_size=image_size if name in FILE_SETS else None,
        )
    )
    splits = splits.prepared(interpolation="bicubic")  # as recipes of vision transformers resize
    if limit is None or limit >= len(splits.train):
        return splits
    note = f"Of the {len(splits.train):,} training images the first {limit:,} are used."
    return replace(splits, train=splits.train.subset(range(limit)), notes=(*splits.notes, note))


def _read_clothing(root: str | None, image_size: int) -> Splits:
    archive = _find_archive(find_data(root))
    train, held, test = (load_image_archive(archive, part, size=image_size) for part in ("train", "validation", "test"))
    if not train.classes == held.classes == test.classes:
        raise UserError(f"{archive}: the classes of its splits differ")
    mean, std = channel_statistics(train)
    return Splits(
        name="clothing64",
        train=train,
        validation=held,
        test=test,
        preprocessing=Preprocessing.squeezed(train.image_shape, mean, std),
        notes=("Photographs of garments, ten unbalanced classes: accuracy is the mean over classes.",),
    )


def _find_archive(folder: Path) -> Path:
    for place in (folder, folder / "natural-images"):
        if (place / "clothing64.tar.gz").is_file():
            return place / "clothing64.tar.gz"
    raise UserError(f"neither {folder} nor its folder natural-images holds clothing64.tar.gz")


def unlabelled_images(place: str, *, leave_out: bool = False, option: str = "--unreadable") -> Images:
    """Images without labels for pre-training: a folder of image files at any depth, or tar shards.

    Args:
        place: a folder; or shards, as ``shards/train-{0000..0146}.tar`` or ``shards/*.tar``.
        leave_out: go on without files that cannot be read, and say so in the notes of the images.
        option: what a user types for that.

    Raises:
        UserError: nothing is there, a shard is damaged, or a file cannot be read.
    """
    if place.endswith(".tar"):
        return find_shards(place)
    return require_readable(find_unlabelled(place), Path(place), leave_out=leave_out, option=option)


def few_per_class(data: LabelledImages | ImageFiles, count: int, seed: int) -> Any:
    """A random subset with ``count`` images of each class, or all of a class that has fewer.

    Args:
        data: labelled images.
        count: images per class.
        seed: of the draw.
    """
    labels = data.labels if isinstance(data.labels, Tensor) else torch.tensor(data.labels)
    order = torch.randperm(len(labels), generator=Generator().manual_seed(seed))
    chosen = [order[labels[order] == label][:count] for label in range(len(data.classes))]
    return data.subset(torch.cat(chosen).sort().values.tolist())
