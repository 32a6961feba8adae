"""Local planar guidance, the decoder of BTS (arXiv 1907.10326), written from the paper's formulas."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.systems.full_skip_depth.decoders.resizing import size_of

_DILATIONS = (3, 6, 12, 18, 24)


def planar_depth(plane: Tensor, stride: int, *, high: float, floor: float | None = 1e-2) -> Tensor:
    """Depth of local planes on the pixels of their cells (BTS, equations 1 to 3):

        theta = sigmoid(p_1) pi / 3,  phi = sigmoid(p_2) 2 pi,  dist = sigmoid(p_3) high
        n = (sin theta cos phi, sin theta sin phi, cos theta)
        depth(u, v) = dist / (n_1 u + n_2 v + n_3),     u, v = (0 .. k-1 - (k-1)/2) / k

    Args:
        plane: ``(batch, 3, h, w)`` raw parameters.
        stride: k, pixels of a cell's side.
        high: largest distance.
        floor: smallest denominator. At k = 8 it reaches -0.036 (theta 60 degrees, a corner on the diagonal), where
            depth would blow up or turn negative; ``None`` leaves it so, as published.

    Returns:
        ``(batch, 1, stride * h, stride * w)``.
    """
    theta, phi, distance = torch.sigmoid(plane).unbind(1)
    theta, phi, distance = theta * (math.pi / 3), phi * (2 * math.pi), distance * high
    normal = torch.stack([theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos()], 1)
    n1, n2, n3 = normal.repeat_interleave(stride, -2).repeat_interleave(stride, -1).unbind(1)
    distance = distance.repeat_interleave(stride, -2).repeat_interleave(stride, -1)
    offsets = (torch.arange(stride, device=plane.device, dtype=plane.dtype) - (stride - 1) / 2) / stride
    u = offsets.repeat(plane.shape[-1])
    v = offsets.repeat(plane.shape[-2])[:, None]
    denominator = n1 * u + n2 * v + n3
    if floor is not None:
        denominator = denominator.clamp(min=floor)
    return (distance / denominator)[:, None]


class LocalPlanarDecoder(nn.Module):
    """BTS' decoder: planes at strides 8, 4 and 2 guide the finest map, at the image's full size.

    Upconvolution: nearest, conv3x3, ELU; a dense ASPP (dilations 3, 6, 12, 18, 24) at stride 8; batch normalization
    with eps 1.1e-5 and momentum 0.01. For encoders with levels at strides (2,) 4, 8, 16, 32; without the
    first no skip joins at stride 2.

    Args:
        channels: of the encoder's levels, the finest first; 4 or 5 of them.
        width: channels of the first upconvolution (512 there).
        high: largest depth.
        floor: see ``planar_depth``.

    Raises:
        ValueError: the encoder has not 4 or 5 levels.
    """

    def __init__(
        self, channels: Sequence[int], *, width: int = 128, high: float = 10.0, floor: float | None = 1e-2
    ) -> None:
        super().__init__()
        if len(channels) not in (4, 5):
            raise ValueError(f"local planar guidance needs levels at strides (2,) 4, 8, 16 and 32; got {len(channels)}")
        skips = [0] * (5 - len(channels)) + list(channels)
        w = [max(16, width >> step) for step in range(5)]  # widths at strides 16, 8, 4, 2, 1
        self.high, self.floor = high, floor
        self.bottleneck_norm = _norm(skips[4])
        self.up16, self.join16 = _Up(skips[4], w[0]), _convolution(w[0] + skips[3], w[0])
        self.up8, self.join8 = _Up(w[0], w[1]), _convolution(w[1] + skips[2], w[1])
        self.aspp = _DenseASPP(w[1], max(8, w[1] // 2))
        self.up4, self.join4 = _Up(w[1], w[2]), _convolution(w[2] + skips[1] + 1, w[2])
        self.up2, self.join2 = _Up(w[2], w[3]), _convolution(w[3] + skips[0] + 1, w[3])
        self.up1 = _Up(w[3], w[4])
        self.planes = nn.ModuleDict({"8": _halving(w[1], 3), "4": _halving(w[2], 3), "2": _halving(w[3], 3)})
        self.reduce1 = _halving(w[4], 1)
        self.last = _convolution(w[4] + 4, w[4])
        self.out_channels = w[4]
        self.map_channels = [w[4]]

    def forward(self, features: Sequence[Tensor], image: Tensor) -> list[Tensor]:
        """Features, the finest first, and the image, whose size counts, to one map ``(batch, out, height, width)``."""
        finest, (e4, e8, e16, e32) = features[:-4], features[-4:]
        full = size_of(image)
        half = size_of(finest[0]) if finest else (-(-full[0] // 2), -(-full[1] // 2))
        x = F.relu(self.bottleneck_norm(e32))
        x = self.join16(torch.cat([self.up16(x, size_of(e16)), e16], 1))
        x = self.join8(torch.cat([self.up8(x, size_of(e8)), e8], 1))
        x = self.aspp(x)
        depth8, near8 = self._plane(x, 8, full, size_of(e4))
        x = self.join4(torch.cat([self.up4(x, size_of(e4)), e4, near8], 1))
        depth4, near4 = self._plane(x, 4, full, half)
        x = self.join2(torch.cat([self.up2(x, half), *finest, near4], 1))
        depth2, _ = self._plane(x, 2, full, full)
        x = self.up1(x, full)
        return [self.last(torch.cat([x, torch.sigmoid(self.reduce1(x)), depth2, depth4, depth8], 1))]

    def _plane(self, x: Tensor, stride: int, full: tuple[int, int], near: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Planar depth over ``high``: at the image's size, and at the next level's by the nearest pixel."""
        depth = planar_depth(self.planes[str(stride)](x), stride, high=self.high, floor=self.floor) / self.high
        depth = depth[..., : full[0], : full[1]]
        if size_of(depth) != full:  # an encoder that rounds sizes down leaves a margin
            depth = F.interpolate(depth, size=full, mode="nearest")
        return depth, F.interpolate(depth, size=near, mode="nearest")


class _Up(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, out, 3, padding=1, bias=False)
        self.norm = _norm(out)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return self.norm(F.elu(self.convolution(F.interpolate(x, size=size, mode="nearest"))))


class _DenseASPP(nn.Module):
    """Atrous convolutions, each of which also sees what those of smaller dilation gave."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                _norm(channels + n * growth), nn.ReLU(),
                nn.Conv2d(channels + n * growth, 2 * growth, 1, bias=False), _norm(2 * growth), nn.ReLU(),
                nn.Conv2d(2 * growth, growth, 3, padding=dilation, dilation=dilation, bias=False),
            )
            for n, dilation in enumerate(_DILATIONS)
        )  # fmt: skip
        self.join = _convolution(channels + len(_DILATIONS) * growth, channels)

    def forward(self, x: Tensor) -> Tensor:
        for branch in self.branches:
            x = torch.cat([x, branch(x)], 1)
        return self.join(x)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1.1e-5, momentum=0.01)


def _convolution(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.ELU())


def _halving(channels: int, out: int) -> nn.Sequential:
    """1x1 convolutions with ELU whose widths halve down to ``out``."""
    layers: list[nn.Module] = []
    while channels // 2 >= max(4, out):
        layers += [nn.Conv2d(channels, channels // 2, 1), nn.ELU()]
        channels //= 2
    return nn.Sequential(*layers, nn.Conv2d(channels, out, 1))
