"""Range guard: what no camera and no 8-bit file can hold does not reach the network.

The published trigger works by pixels far outside the range. Clamping inputs before the normalization costs nothing, and
ends that attack (its success with valid pixels is that of a clean network).
"""

import time
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.systems.condensation_audit.data.preprocessing import Preprocessing


@dataclass(frozen=True)
class RangeCheck:
    """Which inputs leave the pixel range.

    Attributes:
        score: largest distance outside [0, 1] over all inputs, in pixel units.
        threshold: distance that is still put down to rounding.
        flagged: ``(n,)`` bool.
        share: of all pixels that are outside.
        seconds: wall-clock time.
    """

    score: float
    threshold: float
    flagged: Tensor
    share: float
    seconds: float


def check_range(pixels: Tensor, threshold: float = 1 / 510) -> RangeCheck:
    """Find inputs with pixels outside the range.

    Args:
        pixels: ``(n, channels, height, width)`` uint8, or floating point in pixel units.
        threshold: distance that is put down to rounding.
    """
    started = time.perf_counter()
    x = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
    distance = torch.maximum(-x, x - 1).clamp(min=0).nan_to_num(nan=torch.inf)
    return RangeCheck(
        score=float(distance.max()),
        threshold=threshold,
        flagged=distance.flatten(1).amax(1) > threshold,
        share=float((distance > threshold).double().mean()),
        seconds=time.perf_counter() - started,
    )


class RangeGuard(nn.Module):
    """A network behind the guard: takes pixels, clamps or refuses, normalizes, classifies.

    Args:
        network: classifier of normalized images.
        preprocessing: what it expects.
        action: ``clamp`` or ``refuse``.
    """

    def __init__(
        self, network: nn.Module, preprocessing: Preprocessing, action: Literal["clamp", "refuse"] = "clamp"
    ) -> None:
        super().__init__()
        if action not in ("clamp", "refuse"):
            raise UserError(f"there is no action {action!r} of the range guard; there are: clamp, refuse")
        self.network, self.preprocessing, self.action = network, preprocessing, action

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits of uint8 images or pixel units ``(n, channels, height, width)``.

        Raises:
            UserError: an input is outside the range, and the action is ``refuse``.
        """
        if pixels.dtype != torch.uint8:
            if self.action == "refuse":
                outside = int(check_range(pixels).flagged.sum())
                if outside:
                    raise UserError(f"{outside} of {len(pixels)} inputs have pixels outside the range [0, 1]")
            pixels = pixels.nan_to_num().clamp(0, 1)
        return self.network(self.preprocessing.normalize(pixels))
