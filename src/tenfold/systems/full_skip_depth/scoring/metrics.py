"""Errors of depth, per image: sums over its valid pixels, in float64, for a whole batch at once."""

import math

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
    image, p, d = _gathered(prediction, truth, valid)
    g = p.log() - d.log()
    difference = p - d
    squared = difference.square()
    ratio = torch.maximum(p / d, d / p)
    mean = _means_by_image(
        torch.stack(
            [
                difference.abs() / d,
                squared / d,
                squared,
                g.square(),
                g,
                g.abs(),
                *((ratio < 1.25**n).to(torch.float64) for n in (1, 2, 3)),
            ]
        ),
        image,
        len(prediction),
    )
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


def kitti_server_metrics(prediction: Tensor, truth: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """What KITTI's depth prediction server ranks by; arguments as ``depth_metrics``.

    Returns:
        ``silog`` (100 sqrt(mean g^2 - (mean g)^2)), ``sq_error_rel`` and ``abs_error_rel`` (per cent, of
        ``((p - d) / d)^2`` and ``|p - d| / d``), ``irmse`` (1/km), ``mae`` and ``rmse`` (metres).
    """
    image, p, d = _gathered(prediction, truth, valid)
    g = p.log() - d.log()
    relative = (p - d) / d
    inverse = 1000 / p - 1000 / d
    rows = [g, g.square(), relative.square(), relative.abs(), inverse.square(), (p - d).abs(), (p - d).square()]
    mean = _means_by_image(torch.stack(rows), image, len(prediction))
    return {
        "silog": 100 * (mean[1] - mean[0].square()).clamp(min=0).sqrt(),
        "sq_error_rel": 100 * mean[2],
        "abs_error_rel": 100 * mean[3],
        "irmse": mean[4].sqrt(),
        "mae": mean[5],
        "rmse": mean[6].sqrt(),
    }


def depth_anything_metrics(prediction: Tensor, truth: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """As ``depth_metrics``, but silog as Depth Anything V2's program prints it: sqrt(mean g^2 - (mean g)^2 / 2)."""
    found = depth_metrics(prediction, truth, valid)
    image, p, d = _gathered(prediction, truth, valid)
    mean_g = _means_by_image((p.log() - d.log())[None], image, len(prediction))[0]
    found["silog"] = (found["rmse_log"].square() - 0.5 * mean_g.square()).clamp(min=0).sqrt()
    return found


def errors_by_distance(
    prediction: Tensor, truth: Tensor, valid: Tensor, edges: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """``abs_rel`` and ``rmse`` of each image within bins of true distance.

    Args:
        prediction: see ``depth_metrics``.
        truth: see there.
        valid: see there.
        edges: ``(bins + 1,)`` ascending, in metres; a bin holds its lower edge and not its upper one.

    Returns:
        By name ``(batch, bins)`` float64, NaN where an image has no pixel in a bin; and the numbers of pixels.
    """
    image, p, d = _gathered(prediction, truth, valid)
    bins = len(edges) - 1
    place = torch.bucketize(d, edges.to(d), right=True) - 1
    inside = (place >= 0) & (place < bins)
    index = image[inside] * bins + place[inside]
    relative, squared = ((p - d).abs() / d)[inside], (p - d).square()[inside]
    mean = _means_by_image(torch.stack([relative, squared]), index, len(prediction) * bins)
    counts = torch.bincount(index, minlength=len(prediction) * bins).view(-1, bins)
    return {"abs_rel": mean[0].view(-1, bins), "rmse": mean[1].sqrt().view(-1, bins)}, counts


def _gathered(prediction: Tensor, truth: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Image number ``(n,)`` and float64 prediction and truth ``(n,)`` of the valid pixels."""
    counts = valid.flatten(1).sum(1)
    image = torch.repeat_interleave(torch.arange(len(prediction), device=valid.device), counts)
    return image, prediction[valid].to(torch.float64), truth[valid].to(torch.float64)


def _means_by_image(rows: Tensor, image: Tensor, images: int) -> Tensor:
    """``(k, n)`` numbers of pixels and their images ``(n,)`` to means ``(k, images)``; NaN without pixels."""
    if images == 1:
        return rows.mean(1, keepdim=True)
    sums = rows.new_zeros(len(rows), images).index_add_(1, image, rows)
    return sums / torch.bincount(image, minlength=images)
