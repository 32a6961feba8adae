"""The four released configurations by their file names (official code: ``projects/configs``), and their weights."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from tenfold.errors import UserError
from tenfold.models.checkpoints import load_strictly, read_checkpoint, unwrap_state
from tenfold.systems.cross_modal_detector.matching.codes import BoxCode
from tenfold.systems.cross_modal_detector.networks.decoder import Start
from tenfold.systems.cross_modal_detector.networks.detector import CrossModalDetector
from tenfold.systems.cross_modal_detector.networks.encodings import Frequencies
from tenfold.systems.cross_modal_detector.networks.published_branches import (
    ImageBackbone,
    PublishedImageNetwork,
    PublishedLidarNetwork,
)

AREA = (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0)


@dataclass(frozen=True)
class Configuration:
    """A released configuration.

    Attributes:
        image: image backbone; ``None`` without cameras.
        voxel: size of a voxel along x, y, z, metres; ``None`` without LiDAR.
        grid: voxels along z, y, x.
        image_size: height and width.
        kernel: of the heads over the axis of the queries.
    """

    image: ImageBackbone | None
    voxel: tuple[float, float, float] | None
    grid: tuple[int, int, int] = (41, 1440, 1440)
    image_size: tuple[int, int] = (640, 1600)
    kernel: int = 1


CONFIGURATIONS: dict[str, Configuration] = {
    "cmt_voxel0075_vov_1600x640_cbgs": Configuration("vov", (0.075, 0.075, 0.2)),
    # The range holds 1080 voxels of 0.1 m; the released configuration writes 1024, and its weights were so trained.
    "cmt_voxel0100_r50_800x320_cbgs": Configuration("r50", (0.1, 0.1, 0.2), (41, 1024, 1024), (320, 800)),
    "cmt_camera_vov_1600x640_cbgs": Configuration("vov", None),
    "cmt_lidar_voxel0075_cbgs": Configuration(None, (0.075, 0.075, 0.2), kernel=3),
}


def find_configuration(name: str) -> Configuration:
    """The configuration of this name; ``.py`` may stand at its end.

    Raises:
        UserError: there is none.
    """
    found = CONFIGURATIONS.get(name.removesuffix(".py"))
    if found is None:
        raise UserError(f"there is no configuration {name!r}; there are: {', '.join(CONFIGURATIONS)}")
    return found


def build_published(
    *,
    configuration: str,
    classes: int = 10,
    queries: int = 900,
    layers: int = 6,
    grid: Literal["released", "whole"] = "released",
    frequencies: Frequencies = "cmt",
    normalize_codes: bool = False,
    start: Start = "xavier",
    box_code: BoxCode = "cmt",
) -> CrossModalDetector:
    """A detector as published.

    Args:
        configuration: one of ``CONFIGURATIONS``.
        classes: number of classes, one task.
        queries: number of queries.
        layers: of the decoder.
        grid: ``released``: the grid of the weights; ``whole``: one that holds the range (1088 voxels for r50), for
            training anew.
        frequencies: see ``CoordinateEncoding``.
        normalize_codes: see there.
        start: see ``Decoder``.
        box_code: ``cmt`` for the released weights.
    """
    found = find_configuration(configuration)
    cells = found.grid
    if grid == "whole" and found.voxel is not None:
        # At an eighth of it, SECOND halves once more.
        across = -(-round((AREA[3] - AREA[0]) / found.voxel[0]) // 16) * 16
        cells = (found.grid[0], across, across)
    return CrossModalDetector(
        AREA,
        [classes],
        image=None if found.image is None else PublishedImageNetwork(found.image),
        lidar=None if found.voxel is None else PublishedLidarNetwork(AREA, found.voxel, cells),
        queries=queries,
        layers=layers,
        kernel=found.kernel,
        frequencies=frequencies,
        normalize_codes=normalize_codes,
        start=start,
        box_code=box_code,
        frozen_image_norm=True,
    )


_RENAMED = (
    (r"^img_backbone\.stem\.stem_(\d)/conv\.", lambda m: f"image.backbone.stem.{int(m[1]) - 1}.0."),
    (r"^img_backbone\.stem\.stem_(\d)/norm\.", lambda m: f"image.backbone.stem.{int(m[1]) - 1}.1."),
    (
        r"^img_backbone\.stage(\d)\.OSA\d_(\d+)\.layers\.(\d)\.OSA\d_\d+_\d/(conv|norm)\.",
        lambda m: f"image.backbone.stages.{int(m[1]) - 2}.{int(m[2]) - 1}.layers.{m[3]}.{int(m[4] == 'norm')}.",
    ),
    (
        r"^img_backbone\.stage(\d)\.OSA\d_(\d+)\.concat\.OSA\d_\d+_concat/(conv|norm)\.",
        lambda m: f"image.backbone.stages.{int(m[1]) - 2}.{int(m[2]) - 1}.concat.{int(m[3] == 'norm')}.",
    ),
    (
        r"^img_backbone\.stage(\d)\.OSA\d_(\d+)\.ese\.fc\.",
        lambda m: f"image.backbone.stages.{int(m[1]) - 2}.{int(m[2]) - 1}.gate.",
    ),
    (r"^img_backbone\.", lambda m: "image.backbone."),
    (r"^img_neck\.lateral_convs\.(\d)\.conv\.", lambda m: f"image.neck.lateral.{m[1]}."),
    (r"^img_neck\.fpn_convs\.0\.conv\.", lambda m: "image.neck.out."),
    (r"^pts_middle_encoder\.conv_input\.0\.", lambda m: "lidar.encoder.first.conv."),
    (r"^pts_middle_encoder\.conv_input\.1\.", lambda m: "lidar.encoder.first.norm."),
    (r"^pts_middle_encoder\.conv_out\.0\.", lambda m: "lidar.encoder.last.conv."),
    (r"^pts_middle_encoder\.conv_out\.1\.", lambda m: "lidar.encoder.last.norm."),
    (
        r"^pts_middle_encoder\.encoder_layers\.encoder_layer(\d)\.(\d)\.(conv|bn)([12])\.",
        lambda m: f"lidar.encoder.stages.{int(m[1]) - 1}.{m[2]}.{'conv' if m[3] == 'conv' else 'norm'}{m[4]}.",
    ),
    (
        r"^pts_middle_encoder\.encoder_layers\.encoder_layer(\d)\.2\.([01])\.",
        lambda m: f"lidar.encoder.stages.{int(m[1]) - 1}.2.{'conv' if m[2] == '0' else 'norm'}.",
    ),
    (r"^pts_backbone\.blocks\.", lambda m: "lidar.backbone.blocks."),
    (r"^pts_neck\.deblocks\.", lambda m: "lidar.backbone.up."),
    (r"^pts_bbox_head\.shared_conv\.conv\.", lambda m: "lidar.shared.0."),
    (r"^pts_bbox_head\.shared_conv\.bn\.", lambda m: "lidar.shared.1."),
    (r"^pts_bbox_head\.reference_points\.", lambda m: "reference_points."),
    (r"^pts_bbox_head\.bev_embedding\.", lambda m: "encoding.bev."),
    (r"^pts_bbox_head\.rv_embedding\.", lambda m: "encoding.ray."),
    (
        r"^pts_bbox_head\.transformer\.decoder\.layers\.(\d)\.attentions\.([01])\.attn\.",
        lambda m: f"decoder.layers.{m[1]}.{('self', 'cross')[int(m[2])]}_attention.",
    ),
    (
        r"^pts_bbox_head\.transformer\.decoder\.layers\.(\d)\.ffns\.0\.layers\.0\.0\.",
        lambda m: f"decoder.layers.{m[1]}.linear1.",
    ),
    (
        r"^pts_bbox_head\.transformer\.decoder\.layers\.(\d)\.ffns\.0\.layers\.1\.",
        lambda m: f"decoder.layers.{m[1]}.linear2.",
    ),
    (
        r"^pts_bbox_head\.transformer\.decoder\.layers\.(\d)\.norms\.([012])\.",
        lambda m: f"decoder.layers.{m[1]}.norm{int(m[2]) + 1}.",
    ),
    (r"^pts_bbox_head\.transformer\.decoder\.post_norm\.", lambda m: "decoder.norm."),
    (r"^pts_bbox_head\.task_heads\.", lambda m: "heads."),
)


def renamed(name: str) -> str:
    """The name here of a tensor of an official checkpoint; unchanged where it is none."""
    for pattern, new in _RENAMED:
        found = re.match(pattern, name)
        if found:
            return new(found) + name[found.end() :]
    return name


def official_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An official state dict under the names here; sparse kernels of older spconv, ``(z, y, x, in, out)``, are turned.

    Which layout a kernel has is told by its shape: the first axis of the newer one is the number of channels out,
    which the normalization that follows it has too.
    """
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        new = renamed(name)
        if value.ndim == 5 and new.startswith("lidar.encoder."):
            norm = new.replace(".conv1.", ".norm1.").replace(".conv2.", ".norm2.").replace(".conv.", ".norm.")
            channels = next(len(v) for k, v in state.items() if renamed(k) == norm)
            value = value if value.shape[0] == channels else value.permute(4, 0, 1, 2, 3).contiguous()
        found[new] = value
    return found


def load_official(detector: CrossModalDetector, path: str | Path) -> None:
    """Load an official checkpoint into a detector of its configuration, strictly.

    Args:
        detector: made by ``build_published``; changed in place.
        path: of the checkpoint.

    Raises:
        UserError: the file is missing or damaged, would execute something, or does not fit.
    """
    load_strictly(detector, read_official(path), path)


def read_official(path: str | Path) -> dict[str, Tensor]:
    """The tensors of an official checkpoint under the names here.

    Raises:
        UserError: the file is missing or damaged, or would execute something.
    """
    return official_state(unwrap_state(read_checkpoint(path), path))
