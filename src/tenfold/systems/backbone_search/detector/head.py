"""The decoupled head of YOLOX, its grid and its decoding."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.systems.backbone_search.detector.blocks import Activation, ConvBNAct, convolution
from tenfold.systems.backbone_search.detector.channels import ChannelLayout, Flow

STRIDES = (8, 16, 32)
PRIOR = 0.01
"""Probability that an untrained head gives each class and each cell."""

_LARGEST_LOG_SIDE = 8.0


class DecoupledHead(nn.Module):
    """For each level a stem and two branches: classes; box and objectness.

    Args:
        incoming: channels of the neck's three maps.
        width: channels of the head.
        num_classes: number of classes.
        depthwise: light convolutions.
        act: activation.
    """

    def __init__(
        self, incoming: Sequence[int], width: int, num_classes: int, depthwise: bool = True, act: Activation = "silu"
    ) -> None:
        super().__init__()
        self.num_classes = num_classes

        def branch() -> nn.Sequential:
            return nn.Sequential(*(convolution(width, width, 3, 1, act, depthwise) for _ in range(2)))

        levels = range(len(incoming))
        self.cls_convs = nn.ModuleList(branch() for _ in levels)
        self.reg_convs = nn.ModuleList(branch() for _ in levels)
        self.cls_preds = nn.ModuleList(nn.Conv2d(width, num_classes, 1) for _ in levels)
        self.reg_preds = nn.ModuleList(nn.Conv2d(width, 4, 1) for _ in levels)
        self.obj_preds = nn.ModuleList(nn.Conv2d(width, 1, 1) for _ in levels)
        self.stems = nn.ModuleList(ConvBNAct(channels, width, act=act) for channels in incoming)
        for prediction in [*self.cls_preds, *self.obj_preds]:
            if not prediction.bias.is_meta:
                nn.init.constant_(prediction.bias, -math.log((1 - PRIOR) / PRIOR))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Raw outputs of all cells.

        Args:
            maps: ``(batch, channels, height / t, width / t)`` for the strides t = 8, 16, 32.

        Returns:
            ``(batch, cells, 5 + classes)``: box (offset x, y, log width, log height, in strides), logit of
            objectness, logits of classes; cells of the levels one after the other, each row by row.
        """
        outputs = []
        for level, x in enumerate(maps):
            stem = self.stems[level](x)
            classes = self.cls_preds[level](self.cls_convs[level](stem))
            features = self.reg_convs[level](stem)
            boxes, objectness = self.reg_preds[level](features), self.obj_preds[level](features)
            outputs.append(torch.cat([boxes, objectness, classes], 1).flatten(2))
        return torch.cat(outputs, 2).transpose(1, 2)

    def record(self, layout: ChannelLayout, name: str, maps: Sequence[Flow]) -> None:
        """See ``ChannelLayout``."""
        for level, flow in enumerate(maps):
            stem = self.stems[level].record(layout, f"{name}.stems.{level}", flow)  # type: ignore[operator]
            ends = {}
            for kind, convs in (("cls", self.cls_convs), ("reg", self.reg_convs)):
                inner = stem
                branch: Any = convs[level]
                for index, part in enumerate(branch):
                    inner = part.record(layout, f"{name}.{kind}_convs.{level}.{index}", inner)
                ends[kind] = inner
            for kind, source, out in (("cls", "cls", self.num_classes), ("reg", "reg", 4), ("obj", "reg", 1)):
                where = f"{name}.{kind}_preds.{level}"
                layout.convolution(where, ends[source], where, out=out, kernel=1)


def make_grid(height: int, width: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Cells of an image of this size.

    Args:
        height: multiple of 32.
        width: multiple of 32.
        device: where the tensors live.

    Returns:
        ``(cells, 2)`` column and row of each cell, and ``(cells,)`` its stride in pixels, float32.
    """
    places, strides = [], []
    for stride in STRIDES:
        rows, columns = height // stride, width // stride
        y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
        places.append(torch.stack([x, y], -1).reshape(-1, 2))
        strides.append(torch.full((rows * columns,), float(stride), device=device))
    return torch.cat(places).float(), torch.cat(strides)


def decode(raw: Tensor, places: Tensor, strides: Tensor, clamp: bool = False) -> Tensor:
    """Boxes in pixels: ``((x, y) + cell) * stride`` and ``exp(w, h) * stride``, in float32.

    Args:
        raw: ``(batch, cells, 4+)`` outputs of the head, of which the first four are used.
        places: ``(cells, 2)`` of ``make_grid``.
        strides: ``(cells,)`` of ``make_grid``.
        clamp: hold log sides at 8 or less, so that no exponential overflows in training.

    Returns:
        ``(batch, cells, 4)`` centre x, centre y, width, height.
    """
    raw = raw.float()
    sides = raw[..., 2:4].clamp(max=_LARGEST_LOG_SIDE) if clamp else raw[..., 2:4]
    t = strides[:, None]
    return torch.cat([(raw[..., :2] + places) * t, sides.exp() * t], -1)
