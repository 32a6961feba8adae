"""Hard voxelization: points to voxels of bounded number, each the mean of at most ten points in their order."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Voxelizer(nn.Module):
    """Clouds to voxels (mmdet3d's ``Voxelization`` and ``HardSimpleVFE``).

    Voxels come in the order in which their first points do; those beyond the number allowed are left out, and so are
    points beyond the first ten of a voxel: both depend on the order of the points.

    Args:
        area: the range, metres.
        voxel: size along x, y, z, metres.
        grid: voxels along z, y, x that the sparse encoder has. Where the range holds more (the released r50
            configuration: 1080, but 1024 are written down), those beyond are left out.
        most_points: of a voxel.
        max_voxels: of a cloud, in training and in testing.
    """

    def __init__(
        self,
        area: Sequence[float],
        voxel: Sequence[float],
        grid: tuple[int, int, int],
        *,
        most_points: int = 10,
        max_voxels: tuple[int, int] = (120_000, 160_000),
    ) -> None:
        super().__init__()
        self.low, self.high, self.voxel = tuple(area[:3]), tuple(area[3:]), tuple(voxel)
        self.grid, self.most_points, self.max_voxels = tuple(grid), most_points, max_voxels

    @torch.no_grad()
    def forward(self, clouds: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Features ``(voxels, 5)`` and places ``(voxels, 4)``: sample, z, y, x."""
        features, places = [], []
        for number, cloud in enumerate(clouds):
            values, zyx = self.single(cloud)
            features.append(values)
            places.append(torch.cat((torch.full_like(zyx[:, :1], number), zyx), 1))
        return torch.cat(features), torch.cat(places)

    def single(self, cloud: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``(voxels, 5)`` and places ``(voxels, 3)``: z, y, x of one cloud ``(points, 5)``."""
        low, size = cloud.new_tensor(self.low), cloud.new_tensor(self.voxel)
        cells = [round((b - a) / s) for a, b, s in zip(self.low, self.high, self.voxel, strict=True)]
        place = ((cloud[:, :3] - low) / size).floor().long()
        inside = ((place >= 0) & (place < torch.tensor(cells, device=cloud.device))).all(1)
        cloud, place = cloud[inside], place[inside]
        key = (place[:, 2] * cells[1] + place[:, 1]) * cells[0] + place[:, 0]
        order = key.argsort(stable=True)
        kept_keys, counts = torch.unique_consecutive(key[order], return_counts=True)
        starts = counts.cumsum(0) - counts
        rank = torch.arange(len(key), device=key.device) - starts.repeat_interleave(counts)
        owner = torch.arange(len(counts), device=key.device).repeat_interleave(counts)
        by_first = order[starts].argsort()  # the stable sort puts each voxel's first point first
        most = self.max_voxels[0 if self.training else 1]
        position = torch.empty_like(by_first)
        position[by_first] = torch.arange(len(by_first), device=key.device)
        used = (rank < self.most_points) & (position[owner] < most)
        total = cloud.new_zeros(min(len(counts), most), cloud.shape[1])
        total.index_add_(0, position[owner[used]], cloud[order[used]])
        chosen = by_first[:most]
        mean = total / counts[chosen].clamp(max=self.most_points)[:, None].to(total.dtype)
        found = kept_keys[chosen]
        layer = cells[0] * cells[1]
        zyx = torch.stack((found // layer, found % layer // cells[0], found % cells[0]), 1)
        # The official grid has one more layer in z than the range, and may have fewer cells across.
        within = (zyx < torch.tensor(self.grid, device=zyx.device)).all(1)
        return mean[within], zyx[within]
