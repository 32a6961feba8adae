"""What the files of the published programs hold: read, checked, and nothing executed."""

import math
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tenfold.errors import UserError
from tenfold.files import first_line
from tenfold.models.checkpoints import read_torch_file

LARGEST_ARRAYS = 2**29
_SCALAR = np._core.multiarray.scalar  # type: ignore[attr-defined]
# Accuracies are saved as numpy numbers, under the module's name before and since numpy 2.
NUMPY_NUMBERS = [
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Float32DType,
]


def experiment_of(
    path: Path, content: dict[str, Any], number: int | None, model: str | None
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Images, labels and accuracies of one experiment of ``res_*.pt``."""
    experiments = content["data"]
    if not isinstance(experiments, list) or not experiments:
        raise UserError(f"{path} holds no experiment")
    number = len(experiments) - 1 if number is None else number
    if not -len(experiments) <= number < len(experiments):
        raise UserError(f"{path} holds the experiments 0..{len(experiments) - 1}; there is no {number}")
    number %= len(experiments)
    chosen = experiments[number]
    if not isinstance(chosen, list | tuple) or len(chosen) < 2 or not all(isinstance(x, Tensor) for x in chosen[:2]):
        raise UserError(f"{path}: experiment {number} is not images and labels")
    results: dict[str, float] = {}
    accuracies = content.get("accs_all_exps")
    for name, values in accuracies.items() if isinstance(accuracies, dict) else ():
        numbers = [float(value) for value in values if isinstance(value, float | int | np.floating)]
        share = len(numbers) // len(experiments)
        own = numbers[number * share : (number + 1) * share]
        if own and np.isfinite(own).all():
            key = "accuracy" if name == model else f"accuracy_{name}"
            results[key] = float(np.mean(own))
    return chosen[0], chosen[1], results


def distilled_steps(path: Path, content: list[Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """DD's steps in their order: every batch once, its step for each image, and the rates of all inner steps."""
    if not isinstance(content, list) or not content:
        raise UserError(f"{path} holds no steps")
    batches: list[tuple[Tensor, Tensor]] = []
    rates: list[float] = []
    for number, entry in enumerate(content):
        if not isinstance(entry, tuple | list) or len(entry) != 3 or not all(isinstance(x, Tensor) for x in entry):
            raise UserError(f"{path}: step {number} is not images, labels and a rate")
        images, labels, rate = (part.detach() for part in entry)
        if images.ndim != 4 or labels.shape[:1] != images.shape[:1] or rate.numel() != 1:
            raise UserError(
                f"{path}: step {number} holds images {tuple(images.shape)}, labels {tuple(labels.shape)} and "
                f"{rate.numel()} rates"
            )
        batches.append((images, labels))
        rates.append(float(rate))
    period = next(
        length
        for length in range(1, len(batches) + 1)
        if len(batches) % length == 0
        and all(_same_batch(batches[place], batches[place % length]) for place in range(length, len(batches)))
    )
    kept = batches[:period]
    steps = torch.cat([torch.full((len(images),), number) for number, (images, _) in enumerate(kept)])
    try:
        images, labels = torch.cat([images for images, _ in kept]), torch.cat([labels for _, labels in kept])
    except RuntimeError as error:
        raise UserError(f"{path}: the steps hold images of several sizes") from error
    return images, labels, torch.tensor(rates), steps


def _same_batch(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(one, other, strict=True))


def labels_beside(path: Path) -> tuple[Any, Tensor | None]:
    """The labels and the learned rate that MTT and DD-Ranking keep beside the images, where they are there."""
    stem = path.name.replace("images_zca", "labels").replace("images", "labels", 1)
    labels, rate = None, None
    if (path.parent / stem).is_file() and stem != path.name:
        labels = read_torch_file(path.parent / stem)
    if (path.parent / "lr.pt").is_file():
        value = read_torch_file(path.parent / "lr.pt", allow=NUMPY_NUMBERS)
        try:
            rate = torch.as_tensor(float(value), dtype=torch.float32).reshape(1)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{path.parent / 'lr.pt'} does not hold one learning rate") from error
    return labels, rate


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """KIP's arrays ``images`` and ``labels`` of a ``.npz`` file, never unpickled.

    Shapes and types are looked at before anything is unpacked: a small file can hold a huge array.

    Raises:
        UserError: it is no such file, is damaged, or its arrays are not those of KIP or too large.
    """
    try:
        with zipfile.ZipFile(path) as parts:
            (images, of_images), (labels, of_labels) = (_head(parts, f"{name}.npy") for name in ("images", "labels"))
        _check_heads(path, images, labels, of_images, of_labels)
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in ("images", "labels")}
    except (
        OSError,
        ValueError,
        EOFError,
        zipfile.BadZipFile,
        KeyError,
        AttributeError,
        TypeError,
        zlib.error,
        NotImplementedError,
        RuntimeError,
        MemoryError,
        OverflowError,
        struct.error,
        tokenize.TokenError,
        SyntaxError,
    ) as error:
        if isinstance(error, KeyError):
            raise UserError(f"{path} does not hold the arrays images and labels") from error
        raise UserError(f"cannot read the arrays of {path}: {first_line(error)}; nothing was executed") from error


def _head(parts: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array in an archive, by its header alone."""
    with parts.open(name) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if math.prod(shape) * dtype.itemsize > parts.getinfo(name).file_size:
            raise ValueError(f"{name} is cut short")
        return shape, dtype


def _check_heads(
    path: Path, images: tuple[int, ...], labels: tuple[int, ...], of_images: np.dtype, of_labels: np.dtype
) -> None:
    if of_images.kind != "f" or of_labels.kind not in "fiu":
        raise UserError(
            f"{path} holds images of {of_images} and labels of {of_labels}, which are no numbers; nothing was executed"
        )
    if len(images) != 4 or images[3] not in (1, 3) or len(labels) != 2 or labels[0] != images[0]:
        raise UserError(
            f"{path} holds images {images} and labels {labels}; they should be (n, height, width, channels) and "
            "(n, classes)"
        )
    size = math.prod(images) * of_images.itemsize + math.prod(labels) * of_labels.itemsize
    if size > LARGEST_ARRAYS:
        raise UserError(f"the arrays of {path} would take {size:,} bytes; at most {LARGEST_ARRAYS:,} are read")


def kip_arrays(path: Path, arrays: dict[str, np.ndarray], soft: bool) -> tuple[Tensor, Tensor]:
    """KIP's images, which are stored with the channels last, and its labels, which are numbers for each class."""
    images, labels = arrays["images"], arrays["labels"]
    if not np.isfinite(images).all() or not np.isfinite(labels).all():
        raise UserError(f"{path} holds NaN or infinite values")
    tensor = torch.from_numpy(np.ascontiguousarray(images.astype(np.float32).transpose(0, 3, 1, 2)))
    values = torch.from_numpy(labels.astype(np.float32))
    return tensor, values if soft else values.argmax(1)
