"""A condensed set: a few synthetic images, and everything that is needed to use them rightly.

Published sets are often tensors alone, and give chance accuracy because mean, deviation or whitening are not with them.
Here a set carries its preprocessing, the recipe that trains on it, where it comes from, and whether it was poisoned.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tenfold.errors import UserError
from tenfold.models.folder import largest_number
from tenfold.systems.condensation_audit.data.preprocessing import Preprocessing

MOST_EPOCHS, LARGEST_SIZE = 100_000, 2048
"""A recipe comes with somebody's set, and those who audit it train by it: it may not ask for any time or memory."""


@dataclass(frozen=True)
class TrainingRecipe:
    """How a network is trained from scratch on a set.

    Attributes:
        network: name for `make_network`.
        arguments: its further arguments.
        epochs: passes over the set.
        learning_rate: of SGD.
        momentum: of SGD.
        weight_decay: of SGD.
        batch_size: images a step.
        decay_at: after these fractions of the epochs the learning rate is divided by ten.
        augmentation: a DSA strategy, such as ``"color_crop_cutout_flip_scale_rotate"``; none where empty.
    """

    network: str = "convnet"
    arguments: dict[str, Any] = field(default_factory=dict)
    epochs: int = 300
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 256
    decay_at: tuple[float, ...] = (0.5,)
    augmentation: str = ""

    def __post_init__(self) -> None:
        def number(value: Any, low: float, high: float = math.inf) -> bool:
            return isinstance(value, int | float) and not isinstance(value, bool) and low <= value < high

        rules = {
            "epochs": type(self.epochs) is int and 1 <= self.epochs <= MOST_EPOCHS,
            "batch_size": type(self.batch_size) is int and 1 <= self.batch_size < 2**31,
            "learning_rate": number(self.learning_rate, 0) and self.learning_rate > 0,
            "momentum": number(self.momentum, 0, 1),
            "weight_decay": number(self.weight_decay, 0),
            "decay_at": isinstance(self.decay_at, list | tuple) and all(number(x, 0, 1 + 1e-9) for x in self.decay_at),
            "augmentation": isinstance(self.augmentation, str),
            "arguments": isinstance(self.arguments, dict) and largest_number(self.arguments) <= LARGEST_SIZE,
        }
        wrong = next((name for name, fits in rules.items() if not fits), None)
        if wrong is not None:
            raise UserError(
                f"a training recipe has 1 to {MOST_EPOCHS:,} epochs, arguments of a network whose numbers are at most "
                f"{LARGEST_SIZE:,}, batch_size of at least 1, learning_rate above 0, momentum in [0, 1), "
                f"weight_decay of 0 or more, decay_at in [0, 1]; its {wrong} is {getattr(self, wrong)!r}"
            )


@dataclass(frozen=True)
class CondensedSet:
    """A few images that stand for a large data set.

    Attributes:
        images: ``(n, channels, height, width)`` float32, as networks see them (normalized, whitened).
        labels: ``(n,)`` int64 class indices, or ``(n, classes)`` float32 probabilities.
        classes: names of the classes, by index.
        preprocessing: what test images must go through.
        recipe: how a network is trained on the set.
        method: ``dc``, ``dsa``, ``dm``, ``mtt``, ``dd``, a selection such as ``herding``, or ``imported``.
        settings: hyper-parameters and seeds.
        source: the real data: ``name``, ``n``, ``class_counts``, ``files`` with their SHA-256.
        results: measured figures, such as ``accuracy``.
        learning_rates: learned rates: one per step (dataset distillation), or one (trajectory matching).
        steps: ``(n,)`` int64, the training step that an image belongs to (dataset distillation: order is part of the
            result).
        initial: weights of the initialisation that the set was made for, if it was made for one.
        poisoned: what an attack did to it, if one did; never absent from a set that an attack of this library made.

    Raises:
        UserError: shapes or types do not fit, a value is NaN or infinite, a label is no class.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    recipe: TrainingRecipe
    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    results: dict[str, float] = field(default_factory=dict)
    learning_rates: Tensor | None = None
    steps: Tensor | None = None
    initial: dict[str, Tensor] | None = None
    poisoned: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        n = len(self.images)
        if self.images.dtype != torch.float32 or tuple(self.images.shape) != (n, *self.preprocessing.image_shape):
            raise UserError(
                f"a set's images must be float32 (n, {', '.join(map(str, self.preprocessing.image_shape))}); "
                f"got {tuple(self.images.shape)} {self.images.dtype}"
            )
        if n == 0:
            raise UserError("a set without images")
        if not bool(self.images.isfinite().all()):
            raise UserError("the set's images hold NaN or infinite values")
        self._check_labels(n)
        if self.steps is not None:
            self._check_steps(n, self.steps)
        rates = self.learning_rates
        if rates is not None and not bool(rates.isfinite().all()):
            raise UserError("the set's learning rates hold NaN or infinite values")
        if rates is not None and (rates.ndim != 1 or not len(rates) or not bool((rates > 0).all())):
            raise UserError("the set's learning rates must be a row of numbers above 0")

    @staticmethod
    def _check_steps(n: int, steps: Tensor) -> None:
        if steps.dtype != torch.int64 or tuple(steps.shape) != (n,):
            raise UserError(f"steps must be {n} int64 numbers; got {tuple(steps.shape)} {steps.dtype}")
        found = steps.unique()
        if not torch.equal(found, torch.arange(len(found))):
            raise UserError(f"the steps of the images must be 0, 1, 2, ... without a gap; got {found[:5].tolist()}")

    def _check_labels(self, n: int) -> None:
        labels, classes = self.labels, len(self.classes)
        if labels.dtype == torch.int64 and tuple(labels.shape) == (n,):
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= classes:
                raise UserError(f"the set's labels must lie in 0..{classes - 1}; found {low}..{high}")
        elif labels.dtype == torch.float32 and tuple(labels.shape) == (n, classes):
            if not bool(labels.isfinite().all()):
                raise UserError("the set's labels hold NaN or infinite values")
        else:
            raise UserError(
                f"a set's labels must be int64 ({n},) or float32 ({n}, {classes}); "
                f"got {tuple(labels.shape)} {labels.dtype}"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def hard_labels(self) -> Tensor:
        """``(n,)`` int64: the classes, of soft labels the most probable."""
        return self.labels if self.labels.ndim == 1 else self.labels.argmax(1)

    @property
    def images_per_class(self) -> float:
        """Images over classes."""
        return len(self) / len(self.classes)

    @property
    def pixels(self) -> Tensor:
        """The images in pixel units, where [0, 1] is legal; not clamped."""
        return self.preprocessing.pixels(self.images)

    def subset(self, indices: Tensor) -> "CondensedSet":
        """Some of the images, everything else as it is."""
        steps = None if self.steps is None else self.steps[indices]
        return replace(self, images=self.images[indices], labels=self.labels[indices], steps=steps)
