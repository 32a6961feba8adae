"""Protocols by name: which pixels count, what is cut off, and whether predictions are aligned first.

The same predictions have another «abs rel» under each; a number without its protocol says little.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tenfold.errors import UserError
from tenfold.systems.full_skip_depth.scoring.metrics import (
    Pixels,
    depth_anything_metrics,
    kitti_server_metrics,
    metrics_of_pixels,
)
from tenfold.systems.full_skip_depth.training.augmentation import KB_HEIGHT, KB_WIDTH, kb_crop, kb_paste

Crop = Literal["none", "garg", "eigen", "nyu"]
Box = tuple[int, int, int, int]

_SHARES = {
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),  # Garg et al., ECCV 2016
    "eigen": (0.3324324, 0.91351351, 0.0359477, 0.96405229),  # Eigen et al., NeurIPS 2014
}
_NYU_BOX = (45, 471, 41, 601)


@dataclass(frozen=True)
class Protocol:
    """How predictions are scored.

    Attributes:
        name: as the command line knows it.
        text: in one line, what it does, for every table.
        max_depth: truth counts below it, predictions are clipped to it; ``None``: neither.
        min_depth: truth counts above it, predictions are clipped to it.
        crop: pixels that count: ``garg``, ``eigen``, ``nyu`` or all.
        kb: cut prediction and truth to KITTI's 352 x 1216 before the crop.
        align: ``median``: each prediction is multiplied by ``median(truth) / median(prediction)`` first.
        clip: whether predictions are clipped at all.
        least_pixels: images with fewer valid pixels are left out, and counted.
        metrics: of valid pixels.
        png_scale: values per metre of its 16-bit PNG files, where the data set fixes it.
    """

    name: str
    text: str
    max_depth: float | None = 80.0
    min_depth: float = 1e-3
    crop: Crop = "none"
    kb: bool = False
    align: Literal["none", "median"] = "none"
    clip: bool = True
    least_pixels: int = 1
    metrics: Callable[[Pixels], dict[str, Tensor]] = metrics_of_pixels
    png_scale: float | None = None

    def prepare(self, prediction: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the metrics take, of one image.

        Args:
            prediction: ``(height, width)`` metres; of the truth's size, or 352 x 1216 of a larger KITTI frame.
            truth: ``(height, width)`` metres; 0, NaN and infinite where there is no value.

        Returns:
            Prediction, truth and valid pixels, ``(h, w)`` each, cut to the box of the crop.

        Raises:
            UserError: the sizes do not belong together.
        """
        prediction, truth = self._box(prediction, truth)
        valid = self._valid(truth)
        return self._usable(prediction, *self._seen(prediction, truth, valid)), truth, valid

    def pixels(self, prediction: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """As ``prepare``, but prediction and truth ``(n,)`` of the valid pixels alone: few, where depth is sparse."""
        prediction, truth = self._box(prediction, truth)
        p, d = self._seen(prediction, truth, self._valid(truth))
        return self._usable(p, p, d), d

    def _box(self, prediction: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        prediction, truth = self._of_one_size(prediction, truth)
        top, bottom, left, right = crop_box(self.crop, *truth.shape)
        return prediction[top:bottom, left:right], truth[top:bottom, left:right]

    def _valid(self, truth: Tensor) -> Tensor:
        return (truth > self.min_depth) & (truth < (torch.inf if self.max_depth is None else self.max_depth))

    @staticmethod
    def _seen(prediction: Tensor, truth: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        if prediction.device.type == "cpu":  # numpy picks pixels out in a fraction of the time
            where = valid.numpy()
            return torch.from_numpy(prediction.numpy()[where]), torch.from_numpy(truth.numpy()[where])
        return prediction.masked_select(valid), truth.masked_select(valid)

    def _usable(self, prediction: Tensor, p: Tensor, d: Tensor) -> Tensor:
        """A prediction aligned by its valid pixels and clipped."""
        if self.align == "median" and len(p):
            prediction = prediction * median_ratio(p, d)
        high = self.max_depth if self.max_depth is not None else torch.finfo(prediction.dtype).max
        low = self.min_depth if self.clip else 1e-6
        prediction = prediction.nan_to_num(nan=low, posinf=high, neginf=low).clamp(min=low)
        return prediction.clamp(max=high) if self.clip else prediction

    def _of_one_size(self, prediction: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        cropped = (KB_HEIGHT, KB_WIDTH)
        if self.kb:
            truth = truth if tuple(truth.shape) == cropped else kb_crop(truth)
            prediction = prediction if tuple(prediction.shape) == cropped else kb_crop(prediction)
        elif tuple(prediction.shape) == cropped and tuple(truth.shape) != cropped and self.crop in ("garg", "eigen"):
            prediction = kb_paste(prediction, tuple(truth.shape))  # type: ignore[arg-type]
        if prediction.shape != truth.shape:
            (h, w), (height, width) = prediction.shape, truth.shape
            raise UserError(
                f"the prediction has {h} x {w} pixels and the truth {height} x {width}: give predictions of the "
                "truth's size, or let them be resized with --resize true"
            )
        return prediction, truth


def crop_box(crop: Crop, height: int, width: int) -> Box:
    """First and past-the-last row and column of a crop.

    Raises:
        UserError: the NYU box is that of 480 x 640 pixels.
    """
    if crop == "none":
        return 0, height, 0, width
    if crop == "nyu":
        if (height, width) != (480, 640):
            raise UserError(f"the NYU crop is that of 480 x 640 pixels; these have {height} x {width}")
        return _NYU_BOX
    top, bottom, left, right = _SHARES[crop]
    return int(top * height), int(bottom * height), int(left * width), int(right * width)


def median_ratio(prediction: Tensor, truth: Tensor) -> float:
    """``median(truth) / median(prediction)`` of valid pixels ``(n,)``; of an even number the middle two's mean."""
    middle = float(np.median(prediction.double().cpu().numpy()))
    return float(np.median(truth.double().cpu().numpy())) / max(middle, 1e-12)


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("all", "every valid pixel, no crop, no alignment", None),
        Protocol(
            "kitti-garg-full",
            "KITTI Eigen split, Garg crop of the full frame, cap 80 m, 352 x 1216 pasted back (BTS, DPT)",
            crop="garg",
            png_scale=256,
        ),
        Protocol(
            "kitti-garg-cropped",
            "KITTI Eigen split, both cut to 352 x 1216 first, Garg crop of that, cap 80 m (AdaBins, the toolbox)",
            crop="garg",
            kb=True,
            png_scale=256,
        ),
        Protocol(
            "kitti-eigen-full",
            "KITTI Eigen split, Eigen crop of the full frame, cap 80 m",
            crop="eigen",
            png_scale=256,
        ),
        Protocol(
            "kitti-eigen-cropped",
            "KITTI Eigen split, both cut to 352 x 1216 first, Eigen crop of that, cap 80 m",
            crop="eigen",
            kb=True,
            png_scale=256,
        ),
        Protocol(
            "kitti-benchmark",
            "KITTI depth prediction server: every annotated pixel, no crop, no cap",
            None,
            metrics=kitti_server_metrics,
            clip=False,
            png_scale=256,
        ),
        Protocol(
            "nyu-eigen",
            "NYU Depth v2, Eigen crop (rows 45 to 470, columns 41 to 600), cap 10 m",
            10.0,
            crop="nyu",
            png_scale=1000,
        ),
        Protocol("nyu-full", "NYU Depth v2, every valid pixel, cap 10 m", 10.0, png_scale=1000),
        Protocol(
            "median",
            "every valid pixel, each prediction times median(truth) / median(prediction): hides errors of scale",
            None,
            align="median",
        ),
        Protocol(
            "kitti-garg-full-median",
            "KITTI Eigen split, Garg crop of the full frame, cap 80 m, each prediction aligned by its median "
            "(self-supervised methods)",
            crop="garg",
            align="median",
            png_scale=256,
        ),
        Protocol(
            "depth-anything-v2",
            "every valid pixel, no clipping, images with fewer than 10 left out, silog with lambda 0.5 and without 100",
            80.0,
            clip=False,
            least_pixels=10,
            metrics=depth_anything_metrics,
        ),
    )
}
"""Protocols by name."""


def find_protocol(name: str, max_depth: float | None = None) -> Protocol:
    """A protocol by name, with another cap where one is given.

    Raises:
        UserError: there is none.
    """
    if name not in PROTOCOLS:
        raise UserError(f"there is no protocol {name!r}; there are: {', '.join(PROTOCOLS)}")
    found = PROTOCOLS[name]
    if max_depth is None:
        return found
    if not max_depth > found.min_depth:
        raise UserError(f"the cap must lie above {found.min_depth} m; got {max_depth}")
    from dataclasses import replace

    return replace(found, max_depth=max_depth, text=f"{found.text}; cap set to {max_depth:g} m")
