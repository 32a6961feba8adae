"""ONNX of the dense parts: everything but pillars or the sparse encoder, whose shapes depend on the cloud."""

from pathlib import Path

import torch
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.models.onnx import OnnxExport, describe_onnx, export_onnx
from tenfold.systems.cross_modal_detector.matching.codes import decode_boxes, predicted_codes
from tenfold.systems.cross_modal_detector.networks.branches import Pillars
from tenfold.systems.cross_modal_detector.networks.detector import CrossModalDetector
from tenfold.systems.cross_modal_detector.networks.published_branches import PublishedLidarNetwork


class DenseDetector(nn.Module):
    """A detector from images and the grid of its cloud to boxes; inverses of matrices come from outside.

    Args:
        detector: in eval mode.
    """

    def __init__(self, detector: CrossModalDetector) -> None:
        super().__init__()
        self.detector = detector

    def grid_part(self, grid: Tensor) -> Tensor:
        """Tokens' map of a grid, see ``grid_of``."""
        lidar = self.detector.lidar
        if isinstance(lidar, Pillars):
            return lidar.out(lidar.blocks(lidar.stem(grid)))
        assert isinstance(lidar, PublishedLidarNetwork)
        return lidar.dense(grid)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Scores ``(batch, queries, classes)`` in [0, 1] and boxes ``(batch, queries, 9)``, of the last layer.

        Args:
            inputs: with cameras ``images`` ``(batch, views, 3, height, width)`` in [0, 255], ``lidar_to_image`` and its
                inverse ``image_to_lidar`` ``(batch, views, 4, 4)``; with LiDAR ``grid`` at the end.
        """
        detector = self.detector
        memory, codes = [], []
        matrices: Tensor | None = None
        inverses: Tensor | None = None
        image_size = None
        batch = inputs[0].shape[0]
        if detector.lidar is not None:
            tokens = self.grid_part(inputs[-1])
            code = detector.encoding.bev_tokens((tokens.shape[2], tokens.shape[3]))
            memory.append(tokens.flatten(2).transpose(1, 2))
            codes.append(code.expand(batch, -1, -1))
        if detector.image is not None:
            images, matrices, inverses = inputs[:3]
            height, width = images.shape[-2:]
            image_size = (height + -height % detector.pad, width + -width % detector.pad)
            maps = detector.image(detector.normalize(images.flatten(0, 1)))
            size = (maps.shape[2], maps.shape[3])
            memory.append(maps.flatten(2).transpose(1, 2).reshape(batch, -1, maps.shape[1]))
            codes.append(detector.encoding.image_tokens(size, image_size, inverses).flatten(1, 2))
        reference = detector.reference_points.weight.expand(batch, -1, -1)
        query_code = detector.encoding.queries(reference, matrices, image_size, inverses)
        decoded = detector.decoder(query_code, torch.cat(memory, 1), torch.cat(codes, 1))
        scores, boxes = [], []
        for head in detector.heads:
            outputs = {name: value[-1] for name, value in head(decoded).items()}
            scores.append(outputs["cls_logits"].sigmoid())
            boxes.append(decode_boxes(predicted_codes(outputs, reference, detector.area, detector.box_code)))
        if len(boxes) > 1:
            raise UserError("ONNX of several tasks is not offered: their boxes differ by task")
        return scores[0], boxes[0]


def grid_of(detector: CrossModalDetector, clouds: list[Tensor]) -> Tensor:
    """What ONNX takes in place of clouds: pillars scattered to the grid, or the sparse encoder's map from above.

    Args:
        detector: whose cloud branch makes the grid.
        clouds: ``(points, 5)`` each.
    """
    lidar = detector.lidar
    if isinstance(lidar, Pillars):
        return lidar.scatter(clouds)
    assert isinstance(lidar, PublishedLidarNetwork)
    features, places = lidar.voxelizer(clouds)
    return lidar.encoder(features, places, len(clouds))


def example_inputs(
    detector: CrossModalDetector, views: int, image_size: tuple[int, int]
) -> tuple[list[Tensor], list[str]]:
    """Inputs of the right shapes, and their names."""
    inputs, names = [], []
    if detector.image is not None:
        matrix = torch.eye(4).repeat(1, views, 1, 1)
        focal = image_size[1] / 2
        matrix[..., :3, :3] = torch.tensor([[focal, 0, focal], [0, focal, image_size[0] / 2], [0, 0, 1.0]])
        turn = torch.tensor([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
        matrix = matrix @ turn
        noise = torch.rand(1, views, 3, *image_size, generator=torch.Generator().manual_seed(0)) * 255
        inputs += [noise, matrix, torch.linalg.inv(matrix)]
        names += ["images", "lidar_to_image", "image_to_lidar"]
    if detector.lidar is not None:
        low, high = detector.area[:3], detector.area[3:]
        points = torch.rand(500, 3, generator=torch.Generator().manual_seed(1)) * (high - low) + low
        cloud = torch.cat((points, torch.zeros(500, 2)), 1)
        with torch.no_grad():
            inputs.append(grid_of(detector, [cloud]))
        names.append("grid")
    return inputs, names


def export_detector(
    detector: CrossModalDetector, path: str | Path, *, views: int, image_size: tuple[int, int], metadata: dict[str, str]
) -> OnnxExport:
    """Write the dense parts of a detector as ONNX, compared with PyTorch before the file is kept.

    Args:
        detector: in eval mode.
        path: the file.
        views: cameras.
        image_size: height and width of the images.
        metadata: texts that the file carries.

    Raises:
        UserError: a package is missing, or the answers differ.
    """
    inputs, names = example_inputs(detector, views, image_size)
    done = export_onnx(
        DenseDetector(detector).eval(),
        inputs,
        path,
        input_names=names,
        output_names=["scores", "boxes"],
        tolerance=1e-3,
    )
    describe_onnx(path, metadata)
    return done
