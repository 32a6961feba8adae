"""Small branches for small worlds: a convolutional image network, and pillars for the cloud."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POINT_FEATURES = 5
"""x, y, z in metres, intensity in [0, 1] (nuScenes: 0 to 255), seconds before the key frame."""


def _conv(width_in: int, width: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width_in, width, 3, stride, 1, bias=False), nn.GroupNorm(width // 8, width), nn.ReLU()
    )


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _conv(width, width)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.GroupNorm(width // 8, width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


class SmallImageNetwork(nn.Module):
    """Images to tokens at stride 8, groups instead of batches being normalized: a batch may hold missing images.

    Args:
        dim: of the tokens.
        width: channels after the first convolution, a multiple of 8.
        blocks: residual blocks at stride 8.
    """

    def __init__(self, dim: int, width: int = 16, blocks: int = 2) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            _conv(3, width, 2), _conv(width, 2 * width, 2), _conv(2 * width, 2 * width), _conv(2 * width, 4 * width, 2)
        )
        self.blocks = nn.Sequential(*(_Residual(4 * width) for _ in range(blocks)))
        self.out = nn.Sequential(nn.Conv2d(4 * width, dim, 1), nn.GroupNorm(1, dim))

    def forward(self, images: Tensor) -> Tensor:
        """Feature maps ``(n, dim, height / 8, width / 8)`` of normalized images ``(n, 3, height, width)``."""
        return self.out(self.blocks(self.stem(images)))


class Pillars(nn.Module):
    """Points to columns on a grid from above (PointPillars' encoder), then a small convolutional network.

    Args:
        dim: of the tokens.
        area: the range, ``(x_min, y_min, z_min, x_max, y_max, z_max)`` metres.
        grid: cells along y and along x, multiples of ``stride``.
        width: channels of a pillar, a multiple of 8.
        stride: cells per token, 1 or 2.
        blocks: residual blocks.
    """

    def __init__(
        self,
        dim: int,
        area: Sequence[float],
        grid: tuple[int, int],
        *,
        width: int = 32,
        stride: int = 2,
        blocks: int = 2,
    ) -> None:
        super().__init__()
        self.grid = (grid[0], grid[1])
        self.register_buffer("low", torch.tensor(list(area[:3]), dtype=torch.float32), persistent=False)
        self.register_buffer("high", torch.tensor(list(area[3:]), dtype=torch.float32), persistent=False)
        self.low: Tensor
        self.high: Tensor
        self.points = nn.Sequential(
            nn.Linear(POINT_FEATURES + 5, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width)
        )
        self.stem = nn.Sequential(_conv(width, 2 * width, stride), _conv(2 * width, 2 * width))
        self.blocks = nn.Sequential(*(_Residual(2 * width) for _ in range(blocks)))
        self.out = nn.Sequential(nn.Conv2d(2 * width, dim, 1), nn.GroupNorm(1, dim))
        self.size = (grid[0] // stride, grid[1] // stride)

    def forward(self, clouds: Sequence[Tensor]) -> Tensor:
        """Map ``(batch, dim, y, x)`` of clouds ``(points, 5)``, which may be empty, within the range."""
        return self.out(self.blocks(self.stem(self.scatter(clouds))))

    def scatter(self, clouds: Sequence[Tensor]) -> Tensor:
        """The grid of pillars, ``(batch, width, y, x)``; empty cells are zero."""
        points = torch.cat([cloud[:, :POINT_FEATURES] for cloud in clouds])
        sample = torch.repeat_interleave(
            torch.arange(len(clouds), device=points.device),
            torch.tensor([len(cloud) for cloud in clouds], device=points.device),
        )
        rows, columns = self.grid
        extent = self.high - self.low
        share = (points[:, :3] - self.low) / extent
        inside = ((share >= 0) & (share < 1)).all(1)
        points, sample, share = points[inside], sample[inside], share[inside]
        column, row = share[:, 0] * columns, share[:, 1] * rows
        cell_x, cell_y = column.long().clamp(max=columns - 1), row.long().clamp(max=rows - 1)
        place = (sample * rows + cell_y) * columns + cell_x
        cells = len(clouds) * rows * columns
        count = points.new_zeros(cells).index_add(0, place, points.new_ones(len(points)))
        height = points.new_zeros(cells).index_add(0, place, share[:, 2]) / count.clamp(min=1)
        features = torch.cat(
            (
                share * 2 - 1,
                points[:, 3:4] / 128 - 1,
                points[:, 4:],
                (column - cell_x - 0.5)[:, None],
                (row - cell_y - 0.5)[:, None],
                (share[:, 2] - height[place])[:, None] * 4,
                share[:, 2:] * 4 - 2,
                torch.ones_like(share[:, :1]),
            ),
            1,
        )
        coded = self.points(features)
        grid = coded.new_zeros(cells, coded.shape[1]).scatter_reduce(
            0, place[:, None].expand_as(coded), coded, "amax", include_self=False
        )
        return grid.view(len(clouds), rows, columns, -1).permute(0, 3, 1, 2)
