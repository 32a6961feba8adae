"""Encoders: pyramids of features from an image, the finest level first."""

import inspect
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.errors import UserError, require

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class TinyEncoder(nn.Module):
    """Five levels at strides 2 to 32 that a CPU trains in seconds.

    A level: conv3x3 of stride 2, batch normalization, ReLU, conv3x3, batch normalization, ReLU.

    Args:
        channels: of the levels.
    """

    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

    def __init__(self, channels: Sequence[int] = (16, 24, 32, 48, 64)) -> None:
        super().__init__()
        self.channels = list(channels)
        self.strides = [2**level for level in range(1, len(self.channels) + 1)]
        self.levels = nn.ModuleList()
        before = 3
        for width in self.channels:
            self.levels.append(
                nn.Sequential(
                    nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
                    nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
                )
            )  # fmt: skip
            before = width

    def forward(self, images: Tensor) -> list[Tensor]:
        """``(batch, 3, height, width)``, normalized, to one map per level."""
        features = []
        for level in self.levels:
            images = level(images)
            features.append(images)
        return features


class TimmEncoder(nn.Module):
    """Any backbone of timm that gives a pyramid of feature maps (``features_only``).

    Args:
        name: timm's name, such as ``resnet50`` or ``tf_efficientnet_b5.ap_in1k``.
        pretrained: whether timm fetches weights.
        arguments: further arguments of ``timm.create_model``, from the caller's own program, never from a file.

    Raises:
        UserError: timm is missing, knows no such backbone, or it gives no pyramid.
    """

    def __init__(self, name: str, *, pretrained: bool = False, arguments: dict[str, Any] | None = None) -> None:
        super().__init__()
        timm = require("timm", "depth")
        if not re.fullmatch(
            r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?", name
        ):  # timm would take others for places to fetch from
            raise UserError(f"{name!r} is no name of timm's, such as resnet50 or tf_efficientnet_b5.ap_in1k")
        try:
            self.body = timm.create_model(name, features_only=True, pretrained=pretrained, **(arguments or {}))
        except Exception as error:  # timm raises errors of many kinds for names, weights and networks alike
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise UserError(f"timm gives no feature maps of {name!r}: {reason}") from error
        self.channels = list(self.body.feature_info.channels())
        self.strides = list(self.body.feature_info.reduction())
        if len(self.strides) < 2 or any(a >= b for a, b in zip(self.strides, self.strides[1:], strict=False)):
            raise UserError(
                f"{name!r} gives no pyramid: its feature maps have strides {self.strides}; name a convolutional or "
                "hierarchical backbone such as resnet18 or swin_tiny_patch4_window7_224"
            )
        config = getattr(self.body, "pretrained_cfg", None) or getattr(self.body, "default_cfg", None) or {}
        self.mean = tuple(config.get("mean", IMAGENET_MEAN))
        self.std = tuple(config.get("std", IMAGENET_STD))

    def forward(self, images: Tensor) -> list[Tensor]:
        """``(batch, 3, height, width)``, normalized, to one map ``(batch, c_i, h_i, w_i)`` per level."""
        features = self.body(images)
        # Some transformers keep channels last.
        return [
            x if x.shape[1] == c else x.permute(0, 3, 1, 2).contiguous()
            for x, c in zip(features, self.channels, strict=True)
        ]


def make_encoder(name: str, *, pretrained: bool = False) -> nn.Module:
    """The encoder of a name: ``tiny`` (needs nothing), or ``timm/NAME``.

    Args:
        name: with ``tiny``, widths may follow, such as ``tiny-8-12-16-24-32``.
        pretrained: see ``TimmEncoder``.

    Raises:
        UserError: there is none of this name.
    """
    if name == "tiny" or name.startswith("tiny-"):
        widths = name.split("-")[1:]
        if not all(width.isdigit() and 0 < int(width) <= 4096 for width in widths) or len(widths) == 1:
            raise UserError(f"encoder {name!r}: widths are whole numbers above 0, two or more: tiny-16-24-32-48-64")
        return TinyEncoder([int(width) for width in widths]) if widths else TinyEncoder()
    if name.startswith("timm/"):
        return TimmEncoder(name.removeprefix("timm/"), pretrained=pretrained)
    raise UserError(f"there is no encoder {name!r}; there are: tiny, timm/NAME")


def freeze_batch_norm(module: nn.Module) -> None:
    """Put every batch normalization in eval mode: its statistics stay, as small batches need it."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eval()


def takes_image(decoder: nn.Module) -> bool:
    """Whether a decoder's forward has a second argument, the image."""
    return len(inspect.signature(decoder.forward).parameters) > 1


def normalization(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation as ``(1, 3, 1, 1)``."""
    return torch.tensor(mean).view(1, -1, 1, 1), torch.tensor(std).view(1, -1, 1, 1)
