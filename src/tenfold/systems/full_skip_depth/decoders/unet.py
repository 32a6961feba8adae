"""The decoder of AdaBins, a U-Net with wide levels; and a DPT-style decoder of residual fusion blocks."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.systems.full_skip_depth.decoders.resizing import enlarge, size_of


class UNetDecoder(nn.Module):
    """The encoder-decoder of AdaBins (CVPR 2021, section 3.2).

    ``up_i``: bilinear (``align_corners=True``) to the skip's size, concatenation, twice conv3x3, batch normalization,
    LeakyReLU(0.01); widths ``width / 2, / 4, ...``; a last conv3x3.

    Args:
        channels: of the encoder's levels, the finest first.
        width: channels of the bottleneck (2048 there).
        out_channels: of the map; ``width >> (levels - 1)``, at least 16, where ``None``.
    """

    def __init__(self, channels: Sequence[int], *, width: int = 128, out_channels: int | None = None) -> None:
        super().__init__()
        levels = len(channels)
        self.bottleneck = nn.Conv2d(channels[-1], width, 1)
        self.ups = nn.ModuleList()
        below = width
        for step, skip in enumerate(reversed(channels[:-1]), 1):
            out = max(16, width >> step)
            self.ups.append(_up_block(below + skip, out))
            below = out
        self.out_channels = max(16, width >> (levels - 1)) if out_channels is None else out_channels
        self.map_channels = [self.out_channels]
        self.last = nn.Conv2d(below, self.out_channels, 3, padding=1)

    def forward(self, features: Sequence[Tensor], image: Tensor | None = None) -> list[Tensor]:
        """Features, the finest first, to one map ``(batch, out_channels, h_1, w_1)``."""
        x = self.bottleneck(features[-1])
        for up, skip in zip(self.ups, reversed(features[:-1]), strict=True):
            x = F.interpolate(x, size=size_of(skip), mode="bilinear", align_corners=True)
            x = up(torch.cat([x, skip], 1))
        return [self.last(x)]


class DPTDecoder(nn.Module):
    """A decoder in the style of DPT (ICCV 2021, section 3): equal widths, residual units, fusion from deep to fine.

    Args:
        channels: of the encoder's levels, the finest first.
        width: channels of every fusion block.
    """

    def __init__(self, channels: Sequence[int], *, width: int = 64) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Conv2d(c, width, 3, padding=1, bias=False) for c in channels)
        self.skip_units = nn.ModuleList(_ResidualUnit(width) for _ in channels[:-1])
        self.units = nn.ModuleList(_ResidualUnit(width) for _ in channels)
        self.outs = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in channels)
        self.out_channels = max(16, width // 2)
        self.map_channels = [self.out_channels]
        self.last = nn.Sequential(nn.Conv2d(width, self.out_channels, 3, padding=1), nn.ReLU())

    def forward(self, features: Sequence[Tensor], image: Tensor | None = None) -> list[Tensor]:
        """Features, the finest first, to one map ``(batch, out_channels, h_1, w_1)``."""
        projected = [project(x) for project, x in zip(self.project, features, strict=True)]
        x = projected[-1]
        for level in range(len(projected) - 1, -1, -1):
            if level < len(projected) - 1:
                x = x + self.skip_units[level](projected[level])
            x = self.outs[level](self.units[level](x))
            if level:
                x = enlarge(x, size_of(projected[level - 1]))
        return [self.last(x)]


class _ResidualUnit(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first_norm(self.first(torch.relu(x)))
        return x + self.second_norm(self.second(torch.relu(y)))


def _up_block(channels: int, out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for into in (channels, out):
        layers += [nn.Conv2d(into, out, 3, padding=1), nn.BatchNorm2d(out), nn.LeakyReLU(0.01)]
    return nn.Sequential(*layers)
