"""Errors of depth, per image: sums over its valid pixels, in float64, for a whole batch at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

METRICS = ("abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog", "delta1", "delta2", "delta3")
"""Names of what ``depth_metrics`` gives, in the order of the field's tables."""

LOWER_IS_BETTER = frozenset(("abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog"))


def depth_metrics(prediction: Tensor, truth: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """The metrics of Eigen et al. (NeurIPS 2014) and KITTI's silog, of each image on its valid pixels:

        abs_rel = mean |p - d| / d        sq_rel = mean (p - d)^2 / d       rmse = sqrt(mean (p - d)^2)
        rmse_log = sqrt(mean g^2)         log10 = mean |log10 p - log10 d|  silog = 100 sqrt(mean g^2 - (mean g)^2)
        delta_n = share of max(p / d, d / p) < 1.25^n                       g = ln p - ln d

    Args:
        prediction: ``(batch, height, width)``, above 0 where valid.
        truth: ``(batch, height, width)``, above 0 where valid.
        valid: ``(batch, height, width)`` bool.

    Returns:
        By name ``(batch,)`` float64; NaN for an image without valid pixels.
    """
    counts = valid.flatten(1).sum(1)
    pixels = Pixels.of_images(prediction[valid], truth[valid], counts.tolist())
    return metrics_of_pixels(pixels)


@dataclass(frozen=True)
class Pixels:
    """Valid pixels of several images, one after the other.

    Attributes:
        p: ``(n,)`` float64 predictions, above 0.
        d: ``(n,)`` float64 truth, above 0.
        image: ``(n,)`` number of each pixel's image; ``None`` where there is but one.
        images: number of images.
    """

    p: Tensor
    d: Tensor
    image: Tensor | None
    images: int

    @classmethod
    def of_images(cls, p: Tensor, d: Tensor, counts: Sequence[int]) -> "Pixels":
        """From predictions and truth ``(n,)`` of any type and the images' numbers of pixels, which sum to n."""
        image = None
        if len(counts) != 1:
            each = torch.tensor(list(counts), device=p.device)
            image = torch.repeat_interleave(torch.arange(len(counts), device=p.device), each)
        return cls(p.to(torch.float64), d.to(torch.float64), image, len(counts))

    def means(self, rows: Sequence[Tensor]) -> Tensor:
        """Means of k times ``(n,)`` numbers of the pixels: ``(k, images)``; NaN without pixels."""
        if self.image is None:
            return torch.stack([row.mean() for row in rows])[:, None]
        return _means(torch.stack(list(rows)), self.image, self.images)


def metrics_of_pixels(pixels: Pixels) -> dict[str, Tensor]:
    """``depth_metrics`` of valid pixels; by name ``(images,)``."""
    p, d = pixels.p, pixels.d
    g = p.log() - d.log()
    difference = (p - d).abs_()
    relative = difference / d
    squared = difference.square()
    ratio = torch.maximum(p / d, d / p)
    shares = [(ratio < 1.25**n).to(torch.float64) for n in (1, 2, 3)]
    mean = pixels.means([relative, squared / d, squared, g.square(), g, g.abs(), *shares])
    return {
        "abs_rel": mean[0],
        "sq_rel": mean[1],
        "rmse": mean[2].sqrt(),
        "rmse_log": mean[3].sqrt(),
        "log10": mean[5] / math.log(10),
        "silog": 100 * (mean[3] - mean[4].square()).clamp(min=0).sqrt(),
        "delta1": mean[6],
        "delta2": mean[7],
        "delta3": mean[8],
    }


def kitti_server_metrics(pixels: Pixels) -> dict[str, Tensor]:
    """What KITTI's depth prediction server ranks by.

    Returns:
        ``silog`` (100 sqrt(mean g^2 - (mean g)^2)), ``sq_error_rel`` and ``abs_error_rel`` (per cent, of
        ``((p - d) / d)^2`` and ``|p - d| / d``), ``irmse`` (1/km), ``mae`` and ``rmse`` (metres).
    """
    p, d = pixels.p, pixels.d
    g = p.log() - d.log()
    relative = (p - d) / d
    inverse = 1000 / p - 1000 / d
    rows = [g, g.square(), relative.square(), relative.abs(), inverse.square(), (p - d).abs(), (p - d).square()]
    mean = pixels.means(rows)
    return {
        "silog": 100 * (mean[1] - mean[0].square()).clamp(min=0).sqrt(),
        "sq_error_rel": 100 * mean[2],
        "abs_error_rel": 100 * mean[3],
        "irmse": mean[4].sqrt(),
        "mae": mean[5],
        "rmse": mean[6].sqrt(),
    }


def depth_anything_metrics(pixels: Pixels) -> dict[str, Tensor]:
    """As ``depth_metrics``, but silog as Depth Anything V2's program prints it: sqrt(mean g^2 - (mean g)^2 / 2)."""
    found = metrics_of_pixels(pixels)
    mean_g = pixels.means([pixels.p.log() - pixels.d.log()])[0]
    found["silog"] = (found["rmse_log"].square() - 0.5 * mean_g.square()).clamp(min=0).sqrt()
    return found


def errors_by_distance(pixels: Pixels, edges: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """``abs_rel`` and ``rmse`` of each image within bins of true distance.

    Args:
        pixels: of the images.
        edges: ``(bins + 1,)`` ascending, in metres; a bin holds its lower edge and not its upper one.

    Returns:
        By name ``(images, bins)`` float64, NaN where an image has no pixel in a bin; and the numbers of pixels.
    """
    p, d = pixels.p, pixels.d
    bins = len(edges) - 1
    place = torch.bucketize(d, edges.to(d), right=True) - 1
    inside = (place >= 0) & (place < bins)
    first = 0 if pixels.image is None else pixels.image[inside] * bins
    index = place[inside] + first
    relative, squared = ((p - d).abs() / d)[inside], (p - d).square()[inside]
    mean = _means(torch.stack([relative, squared]), index, pixels.images * bins)
    counts = torch.bincount(index, minlength=pixels.images * bins).view(-1, bins)
    return {"abs_rel": mean[0].view(-1, bins), "rmse": mean[1].sqrt().view(-1, bins)}, counts


def _means(rows: Tensor, group: Tensor, groups: int) -> Tensor:
    """``(k, n)`` numbers and their groups ``(n,)`` to means ``(k, groups)``; NaN of an empty one."""
    sums = rows.new_zeros(len(rows), groups).index_add_(1, group, rows)
    return sums / torch.bincount(group, minlength=groups)
