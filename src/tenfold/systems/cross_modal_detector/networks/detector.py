"""The detector: tokens of all sensors, one decoder, boxes."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.systems.cross_modal_detector.matching.codes import BoxCode, predicted_codes
from tenfold.systems.cross_modal_detector.matching.denoising import DenoisingQueries
from tenfold.systems.cross_modal_detector.networks.decoder import Decoder, Start
from tenfold.systems.cross_modal_detector.networks.encodings import CoordinateEncoding, Frequencies
from tenfold.systems.cross_modal_detector.networks.heads import TaskHead

BGR_MEAN, BGR_STD = (103.530, 116.280, 123.675), (57.375, 57.120, 58.395)
"""Of the official weights: blue, green, red, of pixels in [0, 255]."""


@dataclass
class SensorBatch:
    """What the sensors of a batch saw; a sensor that is not there is marked, not faked.

    Attributes:
        points: per sample ``(n, 5)``: x, y, z in metres, intensity, seconds before the key frame; ``None`` without
            LiDAR.
        lidar: bool ``(batch,)``, which samples have a cloud (it may be empty); all where ``None``.
        images: ``(batch, views, 3, height, width)`` red, green, blue in [0, 255]; ``None`` without cameras.
        cameras: bool ``(batch, views)``, which views are there; all where ``None``.
        lidar_to_image: ``(batch, views, 4, 4)`` after all augmentation.
    """

    points: list[Tensor] | None = None
    lidar: Tensor | None = None
    images: Tensor | None = None
    cameras: Tensor | None = None
    lidar_to_image: Tensor | None = None

    @property
    def size(self) -> int:
        """Samples."""
        if self.points is not None:
            return len(self.points)
        if self.images is not None:
            return len(self.images)
        raise UserError("a batch needs points or images; this one has neither")

    def to(self, device: torch.device | str) -> "SensorBatch":
        """The batch on another device."""
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                moved[field.name] = [part.to(device) for part in value]
            elif isinstance(value, Tensor):
                moved[field.name] = value.to(device)
        return replace(self, **moved)


@dataclass
class Predictions:
    """What the decoder's layers say.

    Attributes:
        logits: per task ``(layers, batch, queries, classes of the task)``.
        codes: per task ``(layers, batch, queries, 10)``, see ``tenfold.systems.cross_modal_detector.encode_boxes``.
        denoised_logits: the same of the denoising queries.
        denoised_codes: see there.
    """

    logits: list[Tensor]
    codes: list[Tensor]
    denoised_logits: list[Tensor]
    denoised_codes: list[Tensor]


class CrossModalDetector(nn.Module):
    """CMT: tokens of images and of the cloud in one memory, tied by codes of 3-D points alone (paper, section 3).

    Args:
        area: the range, ``(x_min, y_min, z_min, x_max, y_max, z_max)`` metres in the LiDAR frame.
        tasks: classes of each group; one group of all classes in the released configurations.
        image: network from normalized images ``(n, 3, height, width)`` to maps ``(n, dim, h, w)``; ``None`` without
            cameras.
        lidar: network from clouds to a map ``(batch, dim, y, x)``; ``None`` without LiDAR.
        dim: of tokens and queries.
        queries: number of queries.
        layers: of the decoder.
        heads: of the attentions.
        hidden: width of the feed-forward networks.
        depths: points along a ray.
        dropout: of the attentions.
        frequencies: see ``CoordinateEncoding``.
        normalize_codes: see ``CoordinateEncoding``.
        start: see ``Decoder``.
        box_code: see ``tenfold.systems.cross_modal_detector.predicted_codes``.
        kernel: see ``TaskHead``.
        frozen_image_norm: keep the image network's batch normalizations in eval mode (as published).
        pad: images are padded below and to the right to multiples of this, after normalization.
    """

    def __init__(
        self,
        area: Sequence[float],
        tasks: Sequence[int],
        *,
        image: nn.Module | None,
        lidar: nn.Module | None,
        dim: int = 256,
        queries: int = 900,
        layers: int = 6,
        heads: int = 8,
        hidden: int = 1024,
        depths: int = 64,
        dropout: float = 0.1,
        frequencies: Frequencies = "cmt",
        normalize_codes: bool = False,
        start: Start = "xavier",
        box_code: BoxCode = "clean",
        kernel: int = 1,
        frozen_image_norm: bool = False,
        pad: int = 32,
    ) -> None:
        super().__init__()
        if image is None and lidar is None:
            raise UserError("a detector needs an image network or a LiDAR network")
        self.image, self.lidar = image, lidar
        self.box_code, self.tasks, self.pad = box_code, list(tasks), pad
        self.frozen_image_norm = frozen_image_norm
        self.register_buffer("area", torch.tensor(list(area), dtype=torch.float32), persistent=False)
        self.register_buffer("mean", torch.tensor(BGR_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(BGR_STD).view(3, 1, 1), persistent=False)
        self.area: Tensor
        self.mean: Tensor
        self.std: Tensor
        self.encoding = CoordinateEncoding(
            dim,
            tuple(area),
            depths=depths,
            frequencies=frequencies,
            rays=image is not None,
            normalize=normalize_codes,
        )
        self.reference_points = nn.Embedding(queries, 3)
        nn.init.uniform_(self.reference_points.weight)
        self.decoder = Decoder(dim, layers, heads, hidden, dropout=dropout, start=start)
        self.heads = nn.ModuleList(
            TaskHead(dim, classes, layers, kernel=kernel, small=start == "tied") for classes in tasks
        )

    @property
    def classes(self) -> int:
        """Number of classes over all tasks."""
        return sum(self.tasks)

    def train(self, mode: bool = True) -> "CrossModalDetector":
        """Training or eval mode; the image network's batch normalizations stay in eval mode where frozen."""
        super().train(mode)
        if self.frozen_image_norm and self.image is not None:
            for module in self.image.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, batch: SensorBatch, denoising: DenoisingQueries | None = None) -> Predictions:
        """Predict.

        Args:
            batch: see ``SensorBatch``. Tokens of sensors that are not there are not in the memory.
            denoising: further queries, in training.

        Raises:
            UserError: a sample has neither a cloud nor an image that this detector can use.
        """
        memory, codes, absent, image_size = self.tokens(batch)
        reference = self.reference_points.weight.expand(batch.size, -1, -1)
        count = 0
        if denoising is not None:
            count = denoising.reference.shape[1]
            reference = torch.cat((denoising.reference, reference), 1)
        rays = batch.lidar_to_image if image_size is not None else None
        query_codes = self.encoding.queries(reference, rays, image_size)
        decoded = self.decoder(
            query_codes, memory, codes, blocked=None if denoising is None else denoising.blocked, absent=absent
        )
        found = Predictions([], [], [], [])
        for head in self.heads:
            outputs = head(torch.nan_to_num(decoded))
            boxes = predicted_codes(outputs, reference, self.area, self.box_code)
            logits = outputs["cls_logits"]
            found.logits.append(logits[:, :, count:])
            found.codes.append(boxes[:, :, count:])
            found.denoised_logits.append(logits[:, :, :count])
            found.denoised_codes.append(boxes[:, :, :count])
        return found

    def tokens(self, batch: SensorBatch) -> tuple[Tensor, Tensor, Tensor | None, tuple[int, int] | None]:
        """Tokens, their codes (``(batch, tokens, dim)`` both), those that are absent, and the padded images' size.

        BEV tokens come first, row by row, then those of the views in turn, row by row.
        """
        memory, codes, absent = [], [], []
        there = self._presence(batch)
        image_size = None
        if there[0] is not None and bool(there[0].any()):
            tokens, code = self.bev_tokens(batch, there[0])
            memory.append(tokens)
            codes.append(code.expand(len(tokens), -1, -1))
            absent.append(~there[0][:, None].expand(-1, tokens.shape[1]))
        if there[1] is not None:
            assert batch.images is not None
            image_size = self._padded(batch.images.shape[-2:])
            if bool(there[1].any()):
                tokens, code = self.image_tokens(batch, there[1], image_size)
                memory.append(tokens.flatten(1, 2))
                codes.append(code.flatten(1, 2))
                absent.append(~there[1][:, :, None].expand(-1, -1, tokens.shape[2]).flatten(1))
        hidden = torch.cat(absent, 1)
        if not bool(hidden.any()):
            return torch.cat(memory, 1), torch.cat(codes, 1), None, image_size
        everywhere = hidden.all(0)
        if bool((hidden == everywhere).all()):  # the same in all samples: leave the tokens out altogether
            return torch.cat(memory, 1)[:, ~everywhere], torch.cat(codes, 1)[:, ~everywhere], None, image_size
        return torch.cat(memory, 1), torch.cat(codes, 1), hidden, image_size

    def bev_tokens(self, batch: SensorBatch, there: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens ``(batch, cells, dim)`` of the clouds, zero where there is none, and their codes ``(cells, dim)``."""
        assert self.lidar is not None and batch.points is not None
        rows = there.nonzero()[:, 0]
        grid = self.lidar([batch.points[row] for row in rows.tolist()])
        size = (int(grid.shape[2]), int(grid.shape[3]))
        tokens = _spread(grid.flatten(2).transpose(1, 2), rows, batch.size)
        return tokens, self.encoding.bev_tokens(size)

    def image_tokens(self, batch: SensorBatch, there: Tensor, image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Tokens and codes ``(batch, views, h w, dim)`` of the images; tokens are zero where there is none."""
        assert self.image is not None and batch.images is not None and batch.lidar_to_image is not None
        count, views = there.shape
        rows = there.flatten().nonzero()[:, 0]
        images = batch.images.flatten(0, 1)
        images = images if len(rows) == len(images) else images[rows]
        maps = self.image(self.normalize(images))
        tokens = _spread(maps.flatten(2).transpose(1, 2), rows, count * views)
        size = (int(maps.shape[2]), int(maps.shape[3]))
        code = self.encoding.image_tokens(size, image_size, torch.linalg.inv(batch.lidar_to_image))
        return tokens.unflatten(0, (count, views)), code

    def normalize(self, images: Tensor) -> Tensor:
        """Images ``(n, 3, height, width)`` as the image network wants them: blue first, mean and deviation, padded.

        An image that is missing and was zeroed is minus mean over deviation here, not zero (paper, section 3.5).
        """
        normal = (images.flip(-3) - self.mean) / self.std
        height, width = images.shape[-2:]
        below, right = -height % self.pad, -width % self.pad
        return F.pad(normal, (0, right, 0, below)) if below or right else normal

    def _padded(self, size: Sequence[int]) -> tuple[int, int]:
        height, width = size
        return height + -height % self.pad, width + -width % self.pad

    def _presence(self, batch: SensorBatch) -> tuple[Tensor | None, Tensor | None]:
        """Which clouds and which images this detector can use."""
        device = self.area.device
        clouds = images = None
        if self.lidar is not None and batch.points is not None:
            clouds = torch.ones(batch.size, dtype=torch.bool, device=device) if batch.lidar is None else batch.lidar
        if self.image is not None and batch.images is not None and batch.images.shape[1]:
            shape = batch.images.shape[:2]
            images = torch.ones(shape, dtype=torch.bool, device=device) if batch.cameras is None else batch.cameras
        usable = torch.zeros(batch.size, dtype=torch.bool, device=device)
        usable = usable if clouds is None else usable | clouds
        usable = usable if images is None else usable | images.any(1)
        if not bool(usable.all()):
            raise UserError(
                f"sample {int((~usable).nonzero()[0])} of the batch has no cloud and no image that this detector can "
                "use; give it one sensor at least"
            )
        return clouds, images


def _spread(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Rows of a larger tensor of zeros."""
    if len(rows) == count:
        return values
    return values.new_zeros(count, *values.shape[1:]).index_copy(0, rows, values)
