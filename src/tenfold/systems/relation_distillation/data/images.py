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
from tenfold.data.shards import ShardImages, find_shards, find_unlabelled
from tenfold.errors import UserError

Images = LabelledImages | ImageFiles | ShardImages
IMAGENET_STATISTICS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load_images(
    name: str,
    *,
    root: str | None = None,
    validation: int = 300,
    image_size: int = 224,
    workers: int = 0,
    limit: int | None = None,
) -> Splits:
    """Read a data set and split it.

    Args:
        name: ``clothing64``, or a name of `tenfold.data.load_splits`.
        root: its folder; ``TENFOLD_DATA`` where ``None``.
        validation: images taken from the training split; ``clothing64`` has a validation split of its own.
        image_size: side of the images of ``clothing64``, ``folder`` and ``imagenet``.
        workers: processes that decode image files.
        limit: keep only the first images of the training split.

    Raises:
        UserError: the data are missing or damaged, or a split would be empty.
    """
    if limit is not None and limit < 1:
        raise UserError(f"data.limit must be at least 1; got {limit}")
    splits = (
        _read_clothing(root, image_size)
        if name == "clothing64"
        else load_splits(name, root=root, validation=validation, image_size=image_size, workers=workers)
    )
    splits = splits.prepared(interpolation="bicubic")  # as recipes of vision transformers resize
    return splits if limit is None else replace(splits, train=splits.train.subset(range(min(limit, len(splits.train)))))


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


def unlabelled_images(place: str) -> Images:
    """Images without labels for pre-training: a folder of image files at any depth, or tar shards.

    Args:
        place: a folder; or shards, as ``shards/train-{0000..0146}.tar`` or ``shards/*.tar``.

    Raises:
        UserError: nothing is there, or a shard is damaged.
    """
    if place.endswith(".tar"):
        return find_shards(place)
    return find_unlabelled(place)


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
