"""CIFAR-10 and CIFAR-100, in their python and their binary form. The pickles are read without executing anything."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tenfold.data.images import LabelledImages, find_data
from tenfold.errors import UserError

_PIXELS = 3 * 32 * 32

CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


class _ArraysOnly(pickle.Unpickler):
    """Builds numpy arrays and plain containers, and nothing else a pickle may ask for."""

    _ALLOWED = frozenset(
        {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}
        | {
            (f"numpy.{core}.{module}", name)
            for core in ("core", "_core")
            for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which no CIFAR file needs; nothing was executed"
            )
        return super().find_class(module, name)


def _read_pickle(path: Path) -> dict[str, Any]:
    try:
        content = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged pickle fails in any way there is
        raise UserError(f"{path} is not a CIFAR batch: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a CIFAR batch: it holds a {type(content).__name__}")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in content.items()}


def _batch(path: Path, label_key: str) -> tuple[np.ndarray, np.ndarray]:
    content = _read_pickle(path)
    pixels, labels = content.get("data"), content.get(label_key)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
        raise UserError(f"{path} holds no uint8 array 'data' of {_PIXELS} columns")
    try:
        numbers = np.asarray([] if labels is None else labels, dtype=np.int64)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path} holds {label_key!r} that are no numbers: {error}") from error
    if numbers.shape != (len(pixels),):
        raise UserError(
            f"{path} holds {len(pixels)} images and {numbers.size} {label_key!r}; there must be one for each"
        )
    return pixels, numbers


def _binary(path: Path, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    record = label_bytes + _PIXELS
    if content.size == 0 or content.size % record:
        raise UserError(f"{path} has {content.size} bytes, no whole number of records of {record}: it was cut short")
    rows = content.reshape(-1, record)
    return rows[:, label_bytes:], rows[:, label_bytes - 1].astype(np.int64)


def load_cifar(root: str | Path | None, split: str, *, classes: int) -> LabelledImages:
    """Read a split of CIFAR-10 or CIFAR-100.

    Args:
        root: folder with ``cifar-10-batches-py``, ``cifar-100-python``, ``cifar-10-batches-bin`` or
            ``cifar-100-binary``, or one of these itself; ``TENFOLD_DATA`` where ``None``.
        split: ``"train"`` or ``"test"``.
        classes: 10 or 100 (the fine labels).

    Raises:
        UserError: the files are missing or damaged, or hold labels without a class.
    """
    root = find_data(root)
    python, binary = (
        ("cifar-10-batches-py", "cifar-10-batches-bin") if classes == 10 else ("cifar-100-python", "cifar-100-binary")
    )
    names = ["test" if classes == 100 else "test_batch"]
    if split == "train":
        names = ["train"] if classes == 100 else [f"data_batch_{number}" for number in range(1, 6)]
    for folder in (root / python, root / binary, root):
        if (folder / names[0]).is_file():
            parts = [_batch(folder / name, "fine_labels" if classes == 100 else "labels") for name in names]
            return _assemble(parts, _class_names(folder, classes))
        if (folder / f"{names[0]}.bin").is_file():
            parts = [_binary(folder / f"{name}.bin", 2 if classes == 100 else 1) for name in names]
            return _assemble(parts, _class_names(folder, classes))
    raise UserError(
        f"{root} holds neither {python}/{names[0]} nor {binary}/{names[0]}.bin: unpack the archive that the CIFAR page "
        "of the University of Toronto publishes there"
    )


def _assemble(parts: list[tuple[np.ndarray, np.ndarray]], names: tuple[str, ...]) -> LabelledImages:
    pixels = np.concatenate([part[0] for part in parts]).reshape(-1, 3, 32, 32)  # planes R, G, B of rows
    labels = np.concatenate([part[1] for part in parts])
    return LabelledImages(torch.from_numpy(np.ascontiguousarray(pixels)), torch.from_numpy(labels), names)


def _class_names(folder: Path, classes: int) -> tuple[str, ...]:
    """Names of the classes from the files that tell them, else the known or the numbers."""
    texts = folder / ("fine_label_names.txt" if classes == 100 else "batches.meta.txt")
    pickled = folder / ("meta" if classes == 100 else "batches.meta")
    if pickled.is_file():
        names = _read_pickle(pickled).get("fine_label_names" if classes == 100 else "label_names", [])
    elif texts.is_file():
        names = texts.read_text(encoding="utf-8").split()
    else:
        names = []
    if len(names) == classes:
        return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)
    return CIFAR10_CLASSES if classes == 10 else tuple(map(str, range(classes)))
