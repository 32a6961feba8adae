"""A task for the image network before the detector: what covers each token, and how far it is.

It stands in for the published start, a network trained on single images (FCOS3D, nuImages), where none fits.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.systems.cross_modal_detector.method import LabelledBatch, sigmoid_focal_loss


def token_targets(
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    lidar_to_image: Tensor,
    size: tuple[int, int],
    image_size: tuple[int, int],
    none: int,
) -> tuple[Tensor, Tensor]:
    """Class and logarithm of the depth of the nearest box whose outline in the image covers each token's centre.

    Args:
        boxes: per sample ``(n, 9)``.
        labels: per sample ``(n,)``.
        lidar_to_image: ``(batch, views, 4, 4)``.
        size: height and width of the feature maps.
        image_size: of the padded images.
        none: number that stands for no box.

    Returns:
        ``(batch, views, height, width)`` numbers of classes, and logarithms of metres (0 where there is none).
    """
    batch, views = lidar_to_image.shape[:2]
    height, width = size
    device = lidar_to_image.device
    y = (torch.arange(height, device=device) + 0.5) * image_size[0] / height
    x = (torch.arange(width, device=device) + 0.5) * image_size[1] / width
    classes = torch.full((batch, views, height, width), none, device=device)
    depths = torch.zeros(batch, views, height, width, device=device)
    signs = torch.tensor([[a, b, c] for a in (-0.5, 0.5) for b in (-0.5, 0.5) for c in (-0.5, 0.5)], device=device)
    for sample, (rows, own) in enumerate(zip(boxes, labels, strict=True)):
        if len(rows) == 0:
            continue
        local = signs * rows[:, None, 3:6]
        cos, sin = rows[:, 6].cos()[:, None], rows[:, 6].sin()[:, None]
        corners = torch.stack(
            (local[..., 0] * cos - local[..., 1] * sin, local[..., 0] * sin + local[..., 1] * cos, local[..., 2]), -1
        )
        points = torch.cat((corners + rows[:, None, :3], rows[:, None, :3]), 1)
        matrix = lidar_to_image[sample]
        seen = torch.einsum("vij,nkj->vnki", matrix[:, :3, :3], points) + matrix[:, None, None, :3, 3]
        depth = seen[:, :, -1, 2]
        front = (seen[:, :, :-1, 2] > 0.1).all(-1)
        pixels = seen[:, :, :-1, :2] / seen[:, :, :-1, 2:].clamp(min=0.1)
        low, high = pixels.amin(2), pixels.amax(2)
        across = (x >= low[..., :1]) & (x <= high[..., :1])
        down = (y >= low[..., 1:]) & (y <= high[..., 1:])
        covers = front[..., None, None] & down[..., :, None] & across[..., None, :]
        far = torch.where(covers, depth[..., None, None], torch.inf)
        nearest, box = far.min(1)
        hit = nearest.isfinite()
        classes[sample] = torch.where(hit, own[box], none)
        depths[sample] = torch.where(hit, nearest, 1.0).log()
    return classes, depths


class TokenLabeller(nn.Module):
    """The image network with a head that says a token's class and depth; calls take the detector's batches.

    Args:
        detector: whose image network is trained.
        dim: of its tokens.
        classes: number of classes.
    """

    def __init__(self, detector: nn.Module, dim: int, classes: int) -> None:
        super().__init__()
        self.image: Any = detector.image
        self.head = nn.Sequential(nn.ReLU(), nn.Conv2d(dim, classes + 1, 1))
        last = self.head[-1]
        assert isinstance(last, nn.Conv2d) and last.bias is not None
        nn.init.constant_(last.bias, -2.0)
        self._normalize: list[Any] = [
            detector.normalize
        ]  # in a list, so that the detector's own weights are not this module's

    def forward(self, images: Tensor) -> Tensor:
        """``(n, classes + 1, h, w)``: logits, and the logarithm of the depth, of images ``(n, 3, height, width)``."""
        return self.head(self.image(self._normalize[0](images)))


class TokenObjective:
    """Focal loss of the class and L1 of the depth where a box is; an objective of ``tenfold.training.fit``.

    Args:
        classes: number of classes.
        pad: of the detector.
    """

    def __init__(self, classes: int, pad: int) -> None:
        self.classes, self.pad = classes, pad

    def __call__(self, model: nn.Module, batch: LabelledBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and its parts."""
        sensors = batch.sensors
        assert sensors.images is not None and sensors.lidar_to_image is not None
        found = model(sensors.images.flatten(0, 1))
        size = (int(found.shape[2]), int(found.shape[3]))
        height, width = sensors.images.shape[-2:]
        image_size = (height + -height % self.pad, width + -width % self.pad)
        wanted, depth = token_targets(batch.boxes, batch.labels, sensors.lidar_to_image, size, image_size, self.classes)
        wanted, depth = wanted.flatten(0, 1), depth.flatten(0, 1)
        hit = wanted < self.classes
        count = hit.sum().clamp(min=1)
        focal = sigmoid_focal_loss(found[:, :-1].movedim(1, -1), wanted).sum() / count
        away = F.l1_loss(found[:, -1], depth, reduction="none")[hit].sum() / count
        return focal + away, {"class": focal.detach(), "depth": away.detach()}
