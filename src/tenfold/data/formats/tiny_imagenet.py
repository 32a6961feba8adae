"""Tiny ImageNet as one file of tensors, as the condensation projects share it."""

from pathlib import Path

import torch
from torch import Tensor

from tenfold.data.images import LabelledImages, find_data
from tenfold.errors import UserError
from tenfold.models.checkpoints import read_torch_file


def load_tiny_imagenet(root: str | Path | None, split: str) -> LabelledImages:
    """Read a split of ``tinyimagenet.pt``: 200 classes, ``(n, 3, 64, 64)``.

    Args:
        root: folder that holds the file; ``TENFOLD_DATA`` where ``None``. The usual folder tree of Tiny ImageNet is
            read as ``folder``.
        split: ``"train"`` or ``"test"``, which is the published validation split.

    Raises:
        UserError: the file is missing or damaged, or lacks what it should hold.
    """
    folder = find_data(root)
    path = folder / "tinyimagenet.pt"
    if not path.is_file():
        raise UserError(
            f"{folder} holds no tinyimagenet.pt; Tiny ImageNet's folders of image files are read with data.name folder"
        )
    content = read_torch_file(path)
    part = {"train": "train", "test": "val"}[split]
    names = ("classes", f"images_{part}", f"labels_{part}")
    if not isinstance(content, dict) or any(name not in content for name in names):
        raise UserError(f"{path} does not hold {', '.join(names)}")
    classes, images, labels = (content[name] for name in names)
    if not isinstance(images, Tensor) or not isinstance(labels, Tensor) or not isinstance(classes, list | tuple):
        raise UserError(f"{path} holds other things than tensors of images and of labels and a list of classes")
    try:
        return LabelledImages(images, labels.to(torch.int64), tuple(map(str, classes)))
    except UserError as error:
        raise UserError(f"{path}, {part}: {error}") from error
