"""The images of the experiment, and the views of them that pre-training and fine-tuning see."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from tenfold.data import (
    Augmentation,
    FileBatches,
    ImageFiles,
    LabelledImages,
    Preprocessing,
    Splits,
    TensorBatches,
    channel_statistics,
    color_jitter,
    find_data,
    load_image_archive,
    load_splits,
    random_flip,
    random_resized_crop,
)
from tenfold.data.shards import ShardImages, find_shards, find_unlabelled
from tenfold.errors import UserError
from tenfold.systems.relation_distillation.views import FixedViews

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
        name: ``clothing64``, or a name of :func:`tenfold.data.load_splits`.
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


def pretraining_batches(
    splits: Splits,
    batch_size: int,
    *,
    seed: int,
    crop_scale: tuple[float, float] = (0.2, 1.0),
    flip: bool = True,
    jitter: float | None = None,
    images: Images | None = None,
    views: int | None = None,
) -> TensorBatches | FileBatches:
    """Shuffled batches of random crops that resume; labels come along and are not used.

    Args:
        splits: the data; its training images are taken.
        batch_size: images of a step, over all processes.
        seed: of order and crops.
        crop_scale: range of the crop's share of the image's area.
        flip: whether half of the images are mirrored.
        jitter: strength of a colour jitter; with it a batch holds two views of one crop,
            ``(batch, 2, channels, height, width)``: jittered for the student, clean for the teacher.
        images: others than the training images of ``splits``.
        views: so many fixed crops of each image in memory instead of new ones, see
            :class:`~tenfold.systems.relation_distillation.views.FixedViews`.
    """
    data = images if images is not None else splits.train
    size = splits.image_shape[-1]
    if views is not None and not isinstance(data, LabelledImages):
        raise UserError("distil.views needs images in memory; set it to null for image files")
    if isinstance(data, LabelledImages):
        changes: list[Augmentation] = [random_resized_crop(size, scale=crop_scale)]
        changes += [random_flip] if flip else []
        if views is not None:
            return FixedViews(
                data, batch_size, seed=seed, mean=splits.mean, std=splits.std, views=views, geometry=changes,
                jitter=None if jitter is None else color_jitter(jitter, jitter, jitter),
            )  # fmt: skip
        changes += [two_views(color_jitter(jitter, jitter, jitter))] if jitter is not None else []
        return TensorBatches(data, batch_size, seed=seed, mean=splits.mean, std=splits.std, augmentations=changes)
    transform = _FileViews(size, crop_scale, flip, jitter)
    return FileBatches(
        data, batch_size, seed=seed, mean=splits.mean, std=splits.std, transform=transform, workers=splits.workers
    )


def two_views(jitter: Augmentation) -> Augmentation:
    """A changed and a clean view of each image, stacked on a new second axis: same geometry, other colours."""

    def views(images: Tensor, generator: Generator) -> Tensor:
        return torch.stack([jitter(images, generator), images], 1)

    return views


class _FileViews:
    """The views of one image file; a class, so that worker processes can get it."""

    def __init__(self, size: int, scale: tuple[float, float], flip: bool, jitter: float | None) -> None:
        from torchvision.transforms import InterpolationMode, v2

        crop = v2.RandomResizedCrop(size, scale=scale, interpolation=InterpolationMode.BICUBIC, antialias=True)
        self.geometry = v2.Compose([v2.PILToTensor(), crop, *([v2.RandomHorizontalFlip()] if flip else [])])
        self.jitter = None if jitter is None else v2.ColorJitter(jitter, jitter, jitter)

    def __call__(self, image: Any) -> Tensor:
        clean = self.geometry(image)
        return clean if self.jitter is None else torch.stack([self.jitter(clean), clean])


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


def renormalized(images: Tensor, splits: Splits, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images normalized with the data's statistics, as a network with statistics of its own wants them."""
    if (tuple(mean), tuple(std)) == (tuple(splits.mean), tuple(splits.std)):
        return images

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=images.dtype, device=images.device).view(-1, 1, 1)

    return (images * column(splits.std) + column(splits.mean) - column(mean)) / column(std)
