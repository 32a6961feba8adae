"""Fine-tuning of a classifier by the published recipe, switchable part by part."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
from tenfold.systems.relation_distillation.epoch_log import EpochLog
from tenfold.systems.relation_distillation.model import set_drop_path
from tenfold.systems.relation_distillation.optimizers import adamw, cosine_schedule, parameter_groups
from tenfold.training import FitResult, TrainerOptions, fit


def finetune(
    model: Any,
    batches: TensorBatches | FileBatches,
    *,
    epochs: int,
    learning_rate: float,
    folder: str | Path,
    weight_decay: float = 0.05,
    layer_decay: float = 0.65,
    warmup_epochs: float = 5.0,
    lowest: float = 1e-6,
    drop_path: float = 0.0,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    smoothing: float = 0.0,
    erase: float = 0.0,
    trainer: TrainerOptions | None = None,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
) -> FitResult:
    """Train a classifier in place: AdamW (0.9, 0.999), layer-wise decay, cosine, no clipping.

    Args:
        model: classifier of :func:`~tenfold.systems.relation_distillation.model.vision_transformer`.
        batches: ``(images, labels)``.
        epochs: passes over them.
        learning_rate: of the head.
        folder: where checkpoints go; a training resumes from there.
        weight_decay: of matrices.
        layer_decay: factor of the learning rate from one layer to the one below.
        warmup_epochs: epochs of linear warm-up.
        lowest: learning rate at the end.
        drop_path: of the last block, rising linearly from 0.
        mixup: alpha of mixup; 0 for none.
        cutmix: alpha of CutMix; 0 for none. With both, a batch gets one or the other.
        smoothing: of the labels.
        erase: probability that a random rectangle of an image is replaced by noise.
        trainer: where it runs.
        on_epoch: called after every epoch.
    """
    set_drop_path(model, drop_path, "linear")
    model.train()
    model.pos_embed.requires_grad_(True)
    groups = parameter_groups(
        model.named_parameters(), learning_rate=learning_rate, weight_decay=weight_decay, layer_decay=layer_decay,
        depth=len(model.blocks),
    )  # fmt: skip
    mix = _mixing(mixup, cutmix, model.num_classes)

    def objective(model: nn.Module, batch: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        images, labels = batch
        if erase:
            images = random_erase(images, erase)
        if mix is not None:
            images, labels = mix(images, labels)
        return F.cross_entropy(model(images), labels, label_smoothing=smoothing), {}

    optimizer = adamw(groups, (0.9, 0.999), trainer)
    log = EpochLog(folder, optimizer, len(batches) * batches.batch_size)

    def logged(epoch: int, row: dict[str, float]) -> None:
        log(epoch, row)
        if on_epoch is not None:
            on_epoch(epoch, row)

    return fit(
        model,
        objective,
        batches,
        epochs=epochs,
        optimizer=optimizer,
        schedule=cosine_schedule(
            epochs=epochs, steps=len(batches), warmup=min(warmup_epochs, epochs / 2), lowest=lowest / learning_rate
        ),
        folder=folder,
        options=trainer,
        on_epoch=logged,
    )


def _mixing(mixup: float, cutmix: float, classes: int) -> Callable[..., Any] | None:
    """torchvision's, which draws from torch's generator, whose state a checkpoint keeps."""
    from torchvision.transforms import v2

    mixes: list[nn.Module] = []
    if mixup:
        mixes.append(v2.MixUp(alpha=mixup, num_classes=classes))
    if cutmix:
        mixes.append(v2.CutMix(alpha=cutmix, num_classes=classes))
    return None if not mixes else mixes[0] if len(mixes) == 1 else v2.RandomChoice(mixes)


def random_erase(
    images: Tensor, probability: float, *, area: tuple[float, float] = (0.02, 1 / 3), ratio: float = 0.3
) -> Tensor:
    """Replace a random rectangle of some images by normal noise.

    Args:
        images: ``(batch, channels, height, width)``, normalized.
        probability: that an image gets a rectangle.
        area: range of its share of the image.
        ratio: smallest ratio of its sides; the largest is the inverse.
    """
    batch, _, height, width = images.shape
    chosen, share, shape, top, left = torch.rand(5, batch, 1, 1, 1, device=images.device)
    share = area[0] + (area[1] - area[0]) * share
    aspect = ratio ** (1 - 2 * shape)
    tall, wide = (share / aspect).sqrt().clamp(max=1), (share * aspect).sqrt().clamp(max=1)
    rows = (torch.arange(height, device=images.device) + 0.5).view(-1, 1) / height
    columns = (torch.arange(width, device=images.device) + 0.5) / width
    inside = (rows >= top * (1 - tall)) & (rows < top * (1 - tall) + tall)
    inside = inside & (columns >= left * (1 - wide)) & (columns < left * (1 - wide) + wide)
    return torch.where(inside & (chosen < probability), torch.randn_like(images), images)


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
