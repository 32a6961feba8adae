"""ImageNet's harder test sets: A and R (200 classes of the 1,000), C (15 corruptions in 5 severities)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from tenfold.data import evaluation_batches, find_image_files, imagenet_transforms
from tenfold.errors import UserError
from tenfold.systems.relation_distillation.metrics import (
    ALEXNET_ERRORS,
    accuracies,
    collect,
    mean_corruption_error,
    restricted_logits,
)


def _logits(
    model: Any, folder: Path, size: int, mean: Sequence[float], std: Sequence[float], batch_size: int
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    files = find_image_files(folder)
    transform = imagenet_transforms(size, training=False, interpolation="bicubic")
    batches = evaluation_batches(files, batch_size, mean=mean, std=std, transform=transform)
    device = next(model.parameters()).device
    return *collect(model, model, batches, device), files.classes


def evaluate_restricted(
    model: Any, root: str | Path, classes: Sequence[str], *, size: int, mean: Sequence[float], std: Sequence[float],
    batch_size: int = 256,
) -> dict[str, Any]:  # fmt: skip
    """Accuracy on ImageNet-A or -R: the best of the columns of the classes that the set has.

    Args:
        model: classifier of ImageNet.
        root: folder with ``<wnid>/*.jpg``.
        classes: the model's classes, wnids by column.
        size: side of the images.
        mean: per channel.
        std: per channel.
        batch_size: images at a time.

    Raises:
        UserError: a class of the set is none of the model's.
    """
    logits, labels, found = _logits(model, Path(root), size, mean, std, batch_size)
    columns = {name: column for column, name in enumerate(classes)}
    unknown = [name for name in found if name not in columns]
    if unknown:
        raise UserError(f"{root} holds the class {unknown[0]!r}, which the network does not know by that name")
    kept = restricted_logits(logits, [columns[name] for name in found])
    return {"images": len(labels), "classes": len(found), "top1": accuracies(kept, labels)["top1"]}


def evaluate_corruptions(
    model: Any, root: str | Path, classes: Sequence[str], *, size: int, mean: Sequence[float], std: Sequence[float],
    batch_size: int = 256,
) -> dict[str, Any]:  # fmt: skip
    """MCE on ImageNet-C.

    Args:
        model: classifier of ImageNet.
        root: folder with ``<corruption>/<severity>/<wnid>/*.JPEG``.
        classes: the model's classes, wnids by column.
        size: side of the images.
        mean: per channel.
        std: per channel.
        batch_size: images at a time.

    Raises:
        UserError: a corruption or severity is missing, or its classes are not the model's.
    """
    errors: dict[str, list[float]] = {}
    for name in ALEXNET_ERRORS:
        for severity in range(1, 6):
            folder = Path(root) / name / str(severity)
            if not folder.is_dir():
                raise UserError(f"{root} lacks {name}/{severity}: ImageNet-C is <corruption>/<severity 1..5>/<wnid>/")
            logits, labels, found = _logits(model, folder, size, mean, std, batch_size)
            if tuple(found) != tuple(classes):
                raise UserError(f"the classes of {folder} are not those of the network")
            wrong = (logits.argmax(-1) != labels).double().mean()
            errors.setdefault(name, []).append(float(wrong))
    return {"mce": mean_corruption_error(errors), "errors": errors}
