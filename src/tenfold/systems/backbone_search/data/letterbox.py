"""The one preprocessing of the detector: BGR, 0 to 255, scaled to fit, the rest filled with grey."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tenfold.systems.backbone_search.data.detection_set import DetectionSet

GREY = 114
_BYTES_IN_MEMORY = 2 * 2**30


def letterbox(image: np.ndarray, height: int, width: int) -> tuple[Tensor, float]:
    """Scale an image into the top left corner of the network's input.

    The ratio is the smaller of the two sides', sides are rounded down, interpolation is bilinear without
    antialiasing: as the official code, whose weights expect it.

    Args:
        image: ``(h, w, 3)`` uint8 RGB.
        height: of the input.
        width: of the input.

    Returns:
        ``(3, height, width)`` uint8 BGR, and pixels of the input per pixel of the image.
    """
    ratio = min(height / image.shape[0], width / image.shape[1])
    rows, columns = max(1, int(image.shape[0] * ratio)), max(1, int(image.shape[1] * ratio))
    pixels = torch.from_numpy(np.ascontiguousarray(image[..., ::-1])).permute(2, 0, 1)
    canvas = torch.full((3, height, width), GREY, dtype=torch.uint8)
    scaled = pixels
    if (rows, columns) != tuple(image.shape[:2]):
        floating = F.interpolate(pixels[None].float(), (rows, columns), mode="bilinear")[0]
        scaled = floating.round().clamp(0, 255).to(torch.uint8)
    canvas[:, :rows, :columns] = scaled
    return canvas, ratio


class LetterboxedImages:
    """A set's images at the network's size, uint8: in memory where they fit into 2 GiB, else read when asked for.

    Args:
        data: the images.
        height: of the input.
        width: of the input.
    """

    def __init__(self, data: DetectionSet, height: int, width: int) -> None:
        self.data, self.height, self.width = data, height, width
        self.ratios = torch.tensor([min(height / h, width / w) for h, w in data.sizes])
        inner = [(int(h * r), int(w * r)) for (h, w), r in zip(data.sizes, self.ratios.tolist(), strict=True)]
        self.inner = torch.tensor(inner)
        self._pixels: Tensor | None = None
        if len(data) * 3 * height * width <= _BYTES_IN_MEMORY:
            self._pixels = self._read(range(len(data)))

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, rows: Tensor | Sequence[int]) -> Tensor:
        """``(n, 3, height, width)`` uint8 BGR."""
        rows = torch.as_tensor(rows)
        return self._read(rows.tolist()) if self._pixels is None else self._pixels[rows]

    def _read(self, rows: Sequence[int]) -> Tensor:
        with ThreadPoolExecutor(4) as pool:
            made = pool.map(lambda row: letterbox(self.data.image(row), self.height, self.width)[0], rows)
            return torch.stack(list(made))

    def boxes(self, most: int) -> tuple[Tensor, Tensor, Tensor]:
        """All boxes that are learnt, padded, in pixels of the input.

        Args:
            most: boxes of an image, at most; the first count.

        Returns:
            ``(n, m, 4)`` corners, ``(n, m)`` classes, ``(n, m)`` whether there is one.
        """
        kept = [~boxes.crowd for boxes in self.data.boxes]
        m = min(most, max((int(k.sum()) for k in kept), default=0))
        corners = torch.zeros(len(self), m, 4)
        classes = torch.zeros(len(self), m, dtype=torch.int64)
        present = torch.zeros(len(self), m, dtype=torch.bool)
        for row, (boxes, keep) in enumerate(zip(self.data.boxes, kept, strict=True)):
            own = boxes.corners[keep][:m] * self.ratios[row]
            corners[row, : len(own)] = own
            classes[row, : len(own)] = boxes.labels[keep][:m]
            present[row, : len(own)] = True
        return corners, classes, present
