"""Coordinate encodings of CMT (section 3.1, 3.2): tokens and queries get a code of 3-D points in the LiDAR frame.

An image token is coded by the points along its ray, a BEV token by its cell's centre, a query by both: the ray through
its reference point in every view that sees it, and its place from above. The same two networks code tokens and
queries, so a query and a token on one ray have one code.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

Frequencies = Literal["cmt", "dab", "octaves"]


def sine_encoding(points: Tensor, dim: int, frequencies: Frequencies = "cmt") -> Tensor:
    """Sines and cosines of a place from above, y first.

    Args:
        points: ``(..., 2)`` x and y, each in [0, 1].
        dim: numbers per coordinate, even.
        frequencies: ``cmt``: as the official code computes them, divisors that run from 1 to nearly 2
            (its temperature is defined and not used), which its checkpoints need; ``dab``: the usual geometric ones
            down to 1/10000; ``octaves``: 1 to 32 periods over the range.

    Returns:
        ``(..., 2 dim)``: for y, then for x, ``sin`` and ``cos`` interleaved.
    """
    m = torch.arange(dim, dtype=torch.float32, device=points.device)
    pair = 2 * torch.div(m, 2, rounding_mode="floor") / dim
    if frequencies == "cmt":
        divisor = pair + 1
    elif frequencies == "dab":
        divisor = 10000**pair
    else:
        divisor = 2 ** (-5 * pair)
    angle = points[..., None] * (2 * math.pi) / divisor
    coded = torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), -1).flatten(-2)
    return torch.cat((coded[..., 1, :], coded[..., 0, :]), -1)


def depth_bins(count: int, farthest: float, device: torch.device | None = None) -> Tensor:
    """``(count,)`` depths along a ray: ``1 + k (farthest - 1) / count`` metres."""
    return 1 + torch.arange(count, dtype=torch.float32, device=device) * (farthest - 1) / count


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of ``x``, clamped to [0, 1] first; both arguments of the quotient are at least ``eps``."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


class CoordinateEncoding(nn.Module):
    """The networks that code coordinates, and what they are applied to.

    Args:
        dim: of tokens and queries.
        area: ``(x_min, y_min, z_min, x_max, y_max, z_max)`` metres, the range of the detector.
        depths: points along a ray.
        frequencies: see ``sine_encoding``.
        rays: whether there are cameras.
        normalize: bring every code to unit variance, with one learnt gain (from 2.5). Not in the paper: it makes
            training from scratch fast, and is off for official weights.
    """

    def __init__(
        self,
        dim: int,
        area: tuple[float, ...],
        *,
        depths: int = 64,
        frequencies: Frequencies = "cmt",
        rays: bool = True,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.depths, self.frequencies = dim, depths, frequencies
        self.register_buffer("low", torch.tensor(area[:3], dtype=torch.float32), persistent=False)
        self.register_buffer("high", torch.tensor(area[3:], dtype=torch.float32), persistent=False)
        self.low: Tensor
        self.high: Tensor
        self.farthest = float(area[3])
        self.bev = nn.Sequential(nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.ray = nn.Sequential(nn.Linear(3 * depths, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim)) if rays else None
        self.gain = nn.Parameter(torch.tensor(2.5)) if normalize else None

    def rays_of(self, pixels: Tensor, image_to_lidar: Tensor) -> Tensor:
        """Points along the rays of pixels, normalized to the detector's range and flattened, depth by depth.

        Args:
            pixels: ``(..., n, 2)`` or ``(..., n, 3)`` columns and rows (and homogeneous coordinate, 1 if not given).
            image_to_lidar: ``(..., 4, 4)``.

        Returns:
            ``(..., n, 3 depths)``; beyond [0, 1] where a point lies beyond the range.
        """
        if pixels.shape[-1] == 2:
            pixels = torch.cat((pixels, torch.ones_like(pixels[..., :1])), -1)
        bins = depth_bins(self.depths, self.farthest, pixels.device)
        # T (u d, v d, d, 1) = d T[:, :3] (u, v, 1) + T[:, 3]
        turned = torch.einsum("...ij,...nj->...ni", image_to_lidar[..., :3, :3], pixels)
        points = bins[:, None] * turned[..., None, :] + image_to_lidar[..., None, None, :3, 3]
        return ((points - self.low) / (self.high - self.low)).flatten(-2)

    def image_tokens(self, size: tuple[int, int], image_size: tuple[int, int], image_to_lidar: Tensor) -> Tensor:
        """Codes ``(batch, views, height width, dim)`` of the tokens of feature maps.

        Args:
            size: height and width of the maps.
            image_size: height and width of the padded images.
            image_to_lidar: ``(batch, views, 4, 4)`` after all augmentation.
        """
        assert self.ray is not None
        height, width = size
        device = image_to_lidar.device
        # A token stands for its upper left corner, not its centre: so in the official code.
        rows = torch.arange(height, device=device, dtype=torch.float32) * image_size[0] / height
        columns = torch.arange(width, device=device, dtype=torch.float32) * image_size[1] / width
        v, u = torch.meshgrid(rows, columns, indexing="ij")
        pixels = torch.stack((u, v), -1).flatten(0, 1).expand(*image_to_lidar.shape[:2], -1, -1)
        return self._scaled(self.ray(self.rays_of(pixels, image_to_lidar)))

    def bev_tokens(self, size: tuple[int, int]) -> Tensor:
        """Codes ``(height width, dim)`` of the cells of a map from above, row by row; rows run along y."""
        height, width = size
        device = self.low.device
        y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
        x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
        yy, xx = torch.meshgrid(y, x, indexing="ij")
        return self._scaled(self._from_above(torch.stack((xx, yy), -1).flatten(0, 1)))

    def queries(
        self,
        reference: Tensor,
        lidar_to_image: Tensor | None,
        image_size: tuple[int, int] | None,
        image_to_lidar: Tensor | None = None,
    ) -> Tensor:
        """Codes ``(batch, queries, dim)`` of reference points: from above, and of the ray in every view that sees them.

        Args:
            reference: ``(batch, queries, 3)`` in [0, 1] of the range; clamped to it.
            lidar_to_image: ``(batch, views, 4, 4)``; no rays where ``None``.
            image_size: height and width of the padded images.
            image_to_lidar: the inverses, where they are there already.
        """
        points = inverse_sigmoid(reference).sigmoid()
        code = self._scaled(self._from_above(points[..., :2]))
        if self.ray is not None and lidar_to_image is not None and lidar_to_image.shape[1]:
            assert image_size is not None
            pixels, seen = self.pixels_of(points, lidar_to_image, image_size)
            if image_to_lidar is None:
                image_to_lidar = torch.linalg.inv(lidar_to_image)
            rays = self.rays_of(pixels, image_to_lidar)
            if torch.compiler.is_exporting():  # fixed shapes
                code = code + (self._scaled(self.ray(rays)) * seen[..., None]).sum(1)
            else:  # a point is seen by one view or two: code only those rays
                sample, _, query = seen.nonzero(as_tuple=True)
                code = code.index_put((sample, query), self._scaled(self.ray(rays[seen])), accumulate=True)
        return code

    def pixels_of(self, points: Tensor, lidar_to_image: Tensor, image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Where points in [0, 1] of the range are seen: pixels ``(batch, views, n, 3)``, and whether.

        The third coordinate is 1 in value; it carries the depth's gradient, which the quotient leaves out.
        """
        metric = points * (self.high - self.low) + self.low
        ahead = torch.einsum("bvij,bnj->bvni", lidar_to_image[..., :3, :3], metric) + lidar_to_image[..., None, :3, 3]
        depth = ahead[..., 2:].detach()
        front = depth > 0
        pixels = ahead / (depth + torch.where(front, 1e-6, -1e-6))
        u, v = pixels[..., 0], pixels[..., 1]
        seen = (u >= 0) & (u < image_size[1]) & (v >= 0) & (v < image_size[0]) & front[..., 0]
        return pixels, seen

    def _from_above(self, points: Tensor) -> Tensor:
        return self.bev(sine_encoding(points, self.dim, self.frequencies))

    def _scaled(self, code: Tensor) -> Tensor:
        return code if self.gain is None else self.gain * nn.functional.layer_norm(code, (self.dim,))
