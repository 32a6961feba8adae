"""VoVNet V-99-eSE (Lee & Park, CenterMask, CVPR 2020) as CMT uses it: squeeze and excitation in every block.

timm's ``ese_vovnet99b`` has it in each stage's last block only, and so cannot hold these weights.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEM = (64, 64, 128)
WIDTHS = (128, 160, 192, 224)
CONCAT_WIDTHS = (256, 512, 768, 1024)
BLOCKS = (1, 3, 9, 3)
CONVOLUTIONS = 5


def _conv(width_in: int, width: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width_in, width, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )


class OneShotBlock(nn.Module):
    """Convolutions one after the other, all their outputs concatenated once; then squeeze and excitation.

    Args:
        width_in: channels of the input.
        width: of each convolution.
        concat: of the output.
        identity: whether the input is added, as in every block of a stage but the first.
    """

    def __init__(self, width_in: int, width: int, concat: int, identity: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_conv(width_in if n == 0 else width, width) for n in range(CONVOLUTIONS))
        self.concat = _conv(width_in + CONVOLUTIONS * width, concat, 1)
        self.gate = nn.Conv2d(concat, concat, 1)
        self.identity = identity

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        outputs = [x]
        for layer in self.layers:
            outputs.append(layer(outputs[-1]))
        out = self.concat(torch.cat(outputs, 1))
        out = out * F.relu6(self.gate(out.mean((2, 3), keepdim=True)) + 3) / 6
        return out + x if self.identity else out


class VoVNet(nn.Module):
    """Images ``(n, 3, height, width)`` to the maps of the last two stages, at strides 16 and 32."""

    widths = CONCAT_WIDTHS[2:]

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            _conv(3, STEM[0], stride=2), _conv(STEM[0], STEM[1]), _conv(STEM[1], STEM[2], stride=2)
        )
        width_in = STEM[2]
        stages = []
        for width, concat, blocks in zip(WIDTHS, CONCAT_WIDTHS, BLOCKS, strict=True):
            stages.append(
                nn.ModuleList(
                    OneShotBlock(width_in if n == 0 else concat, width, concat, identity=n > 0) for n in range(blocks)
                )
            )
            width_in = concat
        self.stages = nn.ModuleList(stages)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps of stages 4 and 5, with 768 and 1024 channels."""
        x = self.stem(images)
        maps = []
        for number, stage in enumerate(self.stages):
            if number:
                x = F.max_pool2d(x, 3, 2, ceil_mode=True)
            for block in stage:  # type: ignore[attr-defined]
                x = block(x)
            maps.append(x)
        return maps[2:]
