"""ImageNet's harder test sets: A and R (200 classes of the 1,000), C (15 corruptions in 5 severities)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from tenfold.data import Preprocessing, evaluation_batches, find_image_files
from tenfold.errors import UserError
from tenfold.systems.relation_distillation.evaluation.accuracy import accuracies, collect


def _logits(
    model: Any, folder: Path, preprocessing: Preprocessing, batch_size: int
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    files = find_image_files(folder)
    batches = evaluation_batches(
        files, batch_size, mean=preprocessing.mean, std=preprocessing.std, transform=preprocessing.prepare
    )
    return *collect(model, model, batches, next(model.parameters()).device), files.classes


def evaluate_restricted(
    model: Any, root: str | Path, classes: Sequence[str], preprocessing: Preprocessing, batch_size: int = 256
) -> dict[str, Any]:
    """Accuracy on ImageNet-A or -R: the best of the columns of the classes that the set has.

    Args:
        model: classifier of ImageNet.
        root: folder with ``<wnid>/*.jpg``.
        classes: the model's classes, wnids by column.
        preprocessing: what the model's images go through.
        batch_size: images at a time.

    Raises:
        UserError: a class of the set is none of the model's.
    """
    logits, labels, found = _logits(model, Path(root), preprocessing, batch_size)
    columns = {name: column for column, name in enumerate(classes)}
    unknown = [name for name in found if name not in columns]
    if unknown:
        raise UserError(f"{root} holds the class {unknown[0]!r}, which the network does not know by that name")
    kept = restricted_logits(logits, [columns[name] for name in found])
    return {"images": len(labels), "classes": len(found), "top1": accuracies(kept, labels)["top1"]}


def evaluate_corruptions(
    model: Any, root: str | Path, classes: Sequence[str], preprocessing: Preprocessing, batch_size: int = 256
) -> dict[str, Any]:
    """MCE on ImageNet-C.

    Args:
        model: classifier of ImageNet.
        root: folder with ``<corruption>/<severity>/<wnid>/*.JPEG``.
        classes: the model's classes, wnids by column.
        preprocessing: what the model's images go through.
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
            logits, labels, found = _logits(model, folder, preprocessing, batch_size)
            if tuple(found) != tuple(classes):
                raise UserError(f"the classes of {folder} are not those of the network")
            wrong = (logits.argmax(-1) != labels).double().mean()
            errors.setdefault(name, []).append(float(wrong))
    return {"mce": mean_corruption_error(errors), "errors": errors}


ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""Mean error rates of AlexNet on ImageNet-C, by which its authors normalize."""


def restricted_logits(logits: Tensor, columns: Sequence[int]) -> Tensor:
    """The columns of the classes that a test set has (ImageNet-A and -R have 200 of the 1,000)."""
    return logits[:, list(columns)]


def mean_corruption_error(errors: Mapping[str, Sequence[float]]) -> float:
    """MCE in percent: for each corruption the errors of its severities over AlexNet's, averaged over corruptions.

    Args:
        errors: error rate in [0, 1] of each severity, by corruption as in `ALEXNET_ERRORS`.

    Raises:
        UserError: a corruption is unknown or missing.
    """
    if set(errors) != set(ALEXNET_ERRORS):
        wrong = sorted(set(errors) ^ set(ALEXNET_ERRORS))[0]
        raise UserError(f"mCE is over the 15 corruptions of ImageNet-C; {wrong!r} is missing or not one of them")
    ratios = [sum(rates) / len(rates) / ALEXNET_ERRORS[name] for name, rates in errors.items()]
    return 100 * sum(ratios) / len(ratios)
