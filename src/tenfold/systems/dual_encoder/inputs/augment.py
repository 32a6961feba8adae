"""ViLT's RandAugment: two operations per image, drawn with replacement, at fixed strength; no inversion, no cutout.

The published strength 9 of 30, after ``0.3 * (max - min) + min``: among them a posterisation to one bit, as the
official program has it. Colour operations stay, although questions ask for colours.
"""

from collections.abc import Callable
from typing import Any

import torch


def _draw(generator: torch.Generator, below: int) -> int:
    return int(torch.randint(below, (1,), generator=generator))


def _solarize_add(image: Any, sign: int) -> Any:
    """Levels below 128 get 33 more."""
    table = [min(255, level + 33) if level < 128 else level for level in range(256)] * 3
    return image.point(table)


def _affine(matrix: Callable[[int], tuple[float, ...]]) -> Callable[[Any, int], Any]:
    def change(image: Any, sign: int) -> Any:
        from PIL import Image

        return image.transform(image.size, Image.Transform.AFFINE, matrix(sign))

    return change


def _enhance(name: str, factor: float = 0.64) -> Callable[[Any, int], Any]:
    def change(image: Any, sign: int) -> Any:
        from PIL import ImageEnhance

        return getattr(ImageEnhance, name)(image).enhance(factor)

    return change


def _operation(name: str, *arguments: Any) -> Callable[[Any, int], Any]:
    def change(image: Any, sign: int) -> Any:
        from PIL import ImageOps

        return getattr(ImageOps, name)(image, *arguments)

    return change


OPERATIONS: dict[str, Callable[[Any, int], Any]] = {
    "auto contrast": _operation("autocontrast"),
    "equalize": _operation("equalize"),
    "rotate": lambda image, sign: image.rotate(9 * sign),
    "posterize": _operation("posterize", 1),
    "solarize": _operation("solarize", 76.8),
    "solarize add": _solarize_add,
    "color": _enhance("Color"),
    "contrast": _enhance("Contrast"),
    "brightness": _enhance("Brightness"),
    "sharpness": _enhance("Sharpness"),
    "shear x": _affine(lambda sign: (1, 0.09 * sign, 0, 0, 1, 0)),
    "shear y": _affine(lambda sign: (1, 0, 0, 0.09 * sign, 1, 0)),
    "translate x": _affine(lambda sign: (1, 0, 30 * sign, 0, 1, 0)),
    "translate y": _affine(lambda sign: (1, 0, 0, 0, 1, 30 * sign)),
}
"""By name; each takes a PIL image and a sign, +1 or -1, and gives an image of the same size."""


def rand_augment(image: Any, generator: torch.Generator, operations: int = 2) -> Any:
    """Change an image by some operations.

    Args:
        image: RGB PIL image.
        generator: of the choice and of the signs.
        operations: how many, drawn with replacement.
    """
    names = list(OPERATIONS)
    for _ in range(operations):
        name, sign = names[_draw(generator, len(names))], 1 - 2 * _draw(generator, 2)
        image = OPERATIONS[name](image, sign)
    return image
