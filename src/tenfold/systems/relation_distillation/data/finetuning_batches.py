"""Augmented batches of labelled images."""

import random
from typing import Any

import torch
from torch import Tensor

from tenfold.data import (
    Augmentation,
    FileBatches,
    LabelledImages,
    Splits,
    TensorBatches,
    random_flip,
    random_resized_crop,
)
from tenfold.errors import UserError, require


def finetuning_batches(
    splits: Splits,
    batch_size: int,
    *,
    seed: int,
    crop_scale: tuple[float, float] = (0.08, 1.0),
    flip: bool = True,
    randaugment: str | None = None,
    images: Any = None,
) -> TensorBatches | FileBatches:
    """Shuffled, augmented training batches ``(images, labels)`` that resume.

    Args:
        splits: the data.
        batch_size: images of a step, over all processes.
        seed: of order and augmentation.
        crop_scale: range of the crop's share of the image's area.
        flip: whether half of the images are mirrored.
        randaugment: timm's RandAugment, such as ``rand-m9-mstd0.5-inc1``; for image files.
        images: others than the training images of ``splits``.
    """
    data = splits.train if images is None else images
    size = splits.image_shape[-1]
    if isinstance(data, LabelledImages):
        if randaugment is not None:
            raise UserError(f"finetune.randaugment works on image files; {splits.name} is in memory: set it to null")
        changes: list[Augmentation] = [random_resized_crop(size, scale=crop_scale)]
        changes += [random_flip] if flip else []
        return TensorBatches(data, batch_size, seed=seed, mean=splits.mean, std=splits.std, augmentations=changes)
    transform = _FileAugmentation(size, crop_scale, flip, randaugment)
    return FileBatches(
        data, batch_size, seed=seed, mean=splits.mean, std=splits.std, transform=transform, workers=splits.workers
    )


class _FileAugmentation:
    """Crop, flip and RandAugment of one image file; a class, so that worker processes can get it."""

    def __init__(self, size: int, scale: tuple[float, float], flip: bool, randaugment: str | None) -> None:
        from torchvision.transforms import InterpolationMode, v2

        crop = v2.RandomResizedCrop(size, scale=scale, interpolation=InterpolationMode.BICUBIC, antialias=True)
        self.geometry = v2.Compose([crop, *([v2.RandomHorizontalFlip()] if flip else [])])
        self.to_tensor = v2.PILToTensor()
        self.policy: Any = None
        if randaugment is not None:
            timm = require("timm.data.auto_augment", "timm")
            mean = tuple(round(255 * value) for value in (0.485, 0.456, 0.406))
            self.policy = timm.rand_augment_transform(
                randaugment, {"translate_const": int(size * 0.45), "img_mean": mean}
            )

    def __call__(self, image: Any) -> Tensor:
        image = self.geometry(image)
        return self.to_tensor(image if self.policy is None else self._augmented(image))

    def _augmented(self, image: Any) -> Any:
        """Timm draws from Python's and numpy's generators: seed them from torch's, and put them back."""
        import numpy

        seed = int(torch.randint(2**31, ()))
        before, before_numpy = random.getstate(), numpy.random.get_state()  # noqa: NPY002
        try:
            random.seed(seed)
            numpy.random.seed(seed)  # noqa: NPY002
            return self.policy(image)
        finally:
            random.setstate(before)
            numpy.random.set_state(before_numpy)  # noqa: NPY002
