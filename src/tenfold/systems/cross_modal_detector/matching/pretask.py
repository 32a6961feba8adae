"""A task for the branches before the detector: which object covers each token, and where it lies.

For the image network it stands in for the published start, a network trained on single images (FCOS3D, nuImages), where
none fits. For the LiDAR network it is not in the paper: set prediction alone takes far more steps to shape its tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tenfold.systems.cross_modal_detector.method import LabelledBatch, sigmoid_focal_loss
from tenfold.systems.cross_modal_detector.networks.detector import CrossModalDetector, SensorBatch


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


def cell_targets(
    boxes: Sequence[Tensor], labels: Sequence[Tensor], area: Tensor, size: tuple[int, int], none: int
) -> tuple[Tensor, Tensor]:
    """Class of the box whose footprint, widened to a cell, covers each cell's centre, and where and how it lies.

    Args:
        boxes: per sample ``(n, 9)``.
        labels: per sample ``(n,)``.
        area: ``(6,)`` the range.
        size: height and width of the map, along y and x.
        none: number that stands for no box.

    Returns:
        ``(batch, height, width)`` numbers of classes, and ``(batch, height, width, 8)``: the centre's offset in cells
        along x and y, z in metres, logarithms of the sizes, sine and cosine of yaw (0 where there is none).
    """
    height, width = size
    device = area.device
    step = torch.stack(((area[3] - area[0]) / width, (area[4] - area[1]) / height))
    x = area[0] + (torch.arange(width, device=device) + 0.5) * step[0]
    y = area[1] + (torch.arange(height, device=device) + 0.5) * step[1]
    classes = torch.full((len(boxes), height, width), none, device=device)
    where = torch.zeros(len(boxes), height, width, 8, device=device)
    for sample, (rows, own) in enumerate(zip(boxes, labels, strict=True)):
        if len(rows) == 0:
            continue
        across, down = x - rows[:, :1], y - rows[:, 1:2]
        cos, sin = rows[:, 6].cos()[:, None, None], rows[:, 6].sin()[:, None, None]
        along = across[:, None] * cos + down[:, :, None] * sin
        beside = -across[:, None] * sin + down[:, :, None] * cos
        half = rows[:, 3:5].clamp(min=float(step.max())) / 2
        covers = (along.abs() <= half[:, :1, None]) & (beside.abs() <= half[:, 1:, None])
        away = torch.where(covers, along.square() + beside.square(), torch.inf)
        nearest, box = away.min(0)
        hit = nearest.isfinite()
        classes[sample] = torch.where(hit, own[box], none)
        chosen = rows[box]
        offset = torch.stack((chosen[..., 0] - x, chosen[..., 1] - y[:, None]), -1) / step
        turn = torch.stack((chosen[..., 6].sin(), chosen[..., 6].cos()), -1)
        described = torch.cat((offset, chosen[..., 2:3], chosen[..., 3:6].log(), turn), -1)
        where[sample] = described * hit[..., None]
    return classes, where


class TokenLabeller(nn.Module):
    """A detector's branches with heads that say what a token is of; calls take the detector's batches.

    Args:
        detector: whose branches are trained.
        classes: number of classes.
    """

    def __init__(self, detector: CrossModalDetector, classes: int) -> None:
        super().__init__()
        dim = detector.encoding.dim
        self.image, self.lidar = detector.image, detector.lidar
        self.image_head = _head(dim, classes + 1) if self.image is not None else None
        self.lidar_head = _head(dim, classes + 8) if self.lidar is not None else None
        self._detector = [detector]  # in a list, so that the detector's own weights are not this module's

    def forward(self, sensors: SensorBatch) -> tuple[Tensor | None, Tensor | None]:
        """Of images ``(batch views, classes + 1, h, w)``: logits and logarithm of depth; of clouds
        ``(batch, classes + 8, y, x)``: logits and what ``cell_targets`` describes.
        """
        of_images = of_clouds = None
        if self.image is not None and self.image_head is not None and sensors.images is not None:
            of_images = self.image_head(self.image(self._detector[0].normalize(sensors.images.flatten(0, 1))))
        if self.lidar is not None and self.lidar_head is not None and sensors.points is not None:
            of_clouds = self.lidar_head(self.lidar(sensors.points))
        return of_images, of_clouds

    def branches(self) -> dict[str, Tensor]:
        """The branches' weights, under the detector's names."""
        return {name: value for name, value in self.state_dict().items() if name.startswith(("image.", "lidar."))}


def _head(dim: int, width: int) -> nn.Sequential:
    last = nn.Conv2d(dim, width, 1)
    assert last.bias is not None
    nn.init.constant_(last.bias, -2.0)
    return nn.Sequential(nn.ReLU(), last)


class TokenObjective:
    """Focal loss of the class, and L1 of the rest where a box is; an objective of ``tenfold.training.fit``.

    Args:
        classes: number of classes.
        area: the range.
        pad: of the detector.
    """

    def __init__(self, classes: int, area: Sequence[float], pad: int) -> None:
        self.classes, self.area, self.pad = classes, list(area), pad

    def __call__(self, model: nn.Module, batch: LabelledBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and its parts."""
        of_images, of_clouds = model(batch.sensors)
        parts: dict[str, Tensor] = {}
        if of_images is not None:
            sensors = batch.sensors
            assert sensors.images is not None and sensors.lidar_to_image is not None
            height, width = sensors.images.shape[-2:]
            padded = (height + -height % self.pad, width + -width % self.pad)
            size = (int(of_images.shape[2]), int(of_images.shape[3]))
            wanted, depth = token_targets(batch.boxes, batch.labels, sensors.lidar_to_image, size, padded, self.classes)
            found = _two_losses(of_images, wanted.flatten(0, 1), depth.flatten(0, 1)[..., None], self.classes)
            parts["image_class"], parts["depth"] = found
        if of_clouds is not None:
            area = torch.tensor(self.area, device=of_clouds.device)
            size = (int(of_clouds.shape[2]), int(of_clouds.shape[3]))
            wanted, where = cell_targets(batch.boxes, batch.labels, area, size, self.classes)
            parts["cell_class"], parts["cell_box"] = _two_losses(of_clouds, wanted, where, self.classes)
        return torch.stack(list(parts.values())).sum(), {name: value.detach() for name, value in parts.items()}


def _two_losses(found: Tensor, wanted: Tensor, values: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Focal loss of the classes, and L1 of the values where there is a class, both by the number of such tokens."""
    found = found.movedim(1, -1)
    hit = wanted < classes
    count = hit.sum().clamp(min=1)
    focal = sigmoid_focal_loss(found[..., :classes], wanted).sum() / count
    return focal, (found[..., classes:] - values).abs()[hit].sum() / count
