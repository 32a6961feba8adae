"""The views of images that pre-training sees: one crop for both networks, colours of its own for the student."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from tenfold.data import (
    Augmentation,
    FileBatches,
    LabelledImages,
    Splits,
    TensorBatches,
    color_jitter,
    random_flip,
    random_resized_crop,
)
from tenfold.errors import UserError
from tenfold.systems.relation_distillation.data.fixed_views import FixedViews
from tenfold.systems.relation_distillation.data.images import Images


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
    cache_mb: int = 2048,
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
        cache_mb: largest size of ``views`` of image files in memory, in MiB.
        views: so many fixed crops of each image in memory instead of new ones, see
            `FixedViews`.
    """
    data = images if images is not None else splits.train
    size = splits.image_shape[-1]
    if isinstance(data, LabelledImages):
        changes: list[Augmentation] = [random_resized_crop(size, scale=crop_scale)]
        changes += [random_flip] if flip else []
        if views is not None:
            return FixedViews(
                data,
                batch_size,
                seed=seed,
                mean=splits.mean,
                std=splits.std,
                views=views,
                geometry=changes,
                jitter=None if jitter is None else color_jitter(jitter, jitter, jitter),
            )
        changes += [two_views(color_jitter(jitter, jitter, jitter))] if jitter is not None else []
        return TensorBatches(data, batch_size, seed=seed, mean=splits.mean, std=splits.std, augmentations=changes)
    if views is not None:
        require_memory(views, len(data), (3, size, size), cache_mb)
        return FixedViews(
            data,
            batch_size,
            seed=seed,
            mean=splits.mean,
            std=splits.std,
            views=views,
            geometry=FileViews(size, crop_scale, flip, None),
            jitter=None if jitter is None else color_jitter(jitter, jitter, jitter),
        )
    transform = FileViews(size, crop_scale, flip, jitter)
    return FileBatches(
        data, batch_size, seed=seed, mean=splits.mean, std=splits.std, transform=transform, workers=splits.workers
    )


def require_memory(views: int, images: int, shape: Sequence[int], limit_mb: int) -> None:
    """Refuse fixed views that would not fit.

    Raises:
        UserError: they are larger than ``limit_mb``.
    """
    held = views * images * math.prod(shape) / 2**20
    if held > limit_mb:
        raise UserError(
            f"{views} views of {images} images take {held:.0f} MiB, more than cache_mb = {limit_mb}: take fewer views, "
            "raise cache_mb, or leave views out for new crops in every epoch"
        )


def two_views(jitter: Augmentation) -> Augmentation:
    """A changed and a clean view of each image, stacked on a new second axis: same geometry, other colours."""

    def views(images: Tensor, generator: Generator) -> Tensor:
        return torch.stack([jitter(images, generator), images], 1)

    return views


class FileViews:
    """The views of one image file; a class, so that worker processes can get it."""

    def __init__(self, size: int, scale: tuple[float, float], flip: bool, jitter: float | None) -> None:
        from torchvision.transforms import InterpolationMode, v2

        crop = v2.RandomResizedCrop(size, scale=scale, interpolation=InterpolationMode.BICUBIC, antialias=True)
        self.geometry = v2.Compose([v2.PILToTensor(), crop, *([v2.RandomHorizontalFlip()] if flip else [])])
        self.jitter = None if jitter is None else v2.ColorJitter(jitter, jitter, jitter)

    def __call__(self, image: Any) -> Tensor:
        """A PIL image to its crop, uint8, or with a jitter to two views of it."""
        clean = self.geometry(image)
        return clean if self.jitter is None else torch.stack([self.jitter(clean), clean])


def renormalized(images: Tensor, splits: Splits, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images normalized with the data's statistics, as a network with statistics of its own wants them."""
    if (tuple(mean), tuple(std)) == (tuple(splits.mean), tuple(splits.std)):
        return images

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=images.dtype, device=images.device).view(-1, 1, 1)

    return (images * column(splits.std) + column(splits.mean) - column(mean)) / column(std)
