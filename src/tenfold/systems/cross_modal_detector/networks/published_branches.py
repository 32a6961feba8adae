"""The published branches: image backbone with CPFPN; voxels, sparse encoder, SECOND and its pyramid."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.systems.cross_modal_detector.networks.sparse_encoder import SparseEncoder
from tenfold.systems.cross_modal_detector.networks.vovnet import VoVNet
from tenfold.systems.cross_modal_detector.networks.voxels import Voxelizer

ImageBackbone = Literal["vov", "r50"]


class ResNet50(nn.Module):
    """torchvision's ResNet-50 (stride in the 3x3 convolution) to the maps of its last two stages."""

    widths = (1024, 2048)

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import resnet50

        whole = resnet50(weights=None)
        self.conv1, self.bn1 = whole.conv1, whole.bn1
        self.layer1, self.layer2, self.layer3, self.layer4 = whole.layer1, whole.layer2, whole.layer3, whole.layer4

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps of stages 3 and 4, with 1024 and 2048 channels, at strides 16 and 32."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 3, 2, 1)
        third = self.layer3(self.layer2(self.layer1(x)))
        return [third, self.layer4(third)]


class PyramidNeck(nn.Module):
    """CPFPN: 1x1 laterals, the coarser upsampled and added, a 3x3 convolution on the finest level alone.

    Only that level is used by the head, so only it is computed.

    Args:
        widths: channels of the two maps, the finer first.
        dim: channels of the result.
    """

    def __init__(self, widths: Sequence[int], dim: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, dim, 1) for width in widths)
        self.out = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The finest level, ``(n, dim, h, w)``."""
        fine, coarse = self.lateral[0](maps[0]), self.lateral[1](maps[1])
        return self.out(fine + F.interpolate(coarse, size=fine.shape[2:], mode="nearest"))


class PublishedImageNetwork(nn.Module):
    """Backbone and neck: normalized images ``(n, 3, height, width)`` to tokens at stride 16.

    Args:
        backbone: ``vov`` (V-99-eSE) or ``r50``.
        dim: of the tokens.
    """

    def __init__(self, backbone: ImageBackbone, dim: int = 256) -> None:
        super().__init__()
        self.backbone: VoVNet | ResNet50 = VoVNet() if backbone == "vov" else ResNet50()
        self.neck = PyramidNeck(self.backbone.widths, dim)

    def forward(self, images: Tensor) -> Tensor:
        """``(n, dim, height / 16, width / 16)``."""
        return self.neck(self.backbone(images))


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3, momentum=0.01)


class Second(nn.Module):
    """SECOND (Yan et al., 2018) from above: two blocks of six 3x3 convolutions, and both brought to one resolution.

    Args:
        width_in: channels of the map.
        widths: of the two blocks.
        out: of each block's share of the result.
        layers: convolutions of a block after its first.
    """

    def __init__(
        self, width_in: int = 256, widths: tuple[int, int] = (128, 256), out: int = 256, layers: int = 5
    ) -> None:
        super().__init__()
        blocks = []
        for number, width in enumerate(widths):
            parts: list[nn.Module] = []
            for layer in range(layers + 1):
                source = width if layer else (widths[number - 1] if number else width_in)
                stride = 2 if number and not layer else 1
                parts += [nn.Conv2d(source, width, 3, stride, 1, bias=False), _norm(width), nn.ReLU(inplace=True)]
            blocks.append(nn.Sequential(*parts))
        self.blocks = nn.ModuleList(blocks)
        self.up = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(widths[0], out, 1, bias=False), _norm(out), nn.ReLU(inplace=True)),
                nn.Sequential(nn.ConvTranspose2d(widths[1], out, 2, 2, bias=False), _norm(out), nn.ReLU(inplace=True)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, 2 out, y, x)`` of a map ``(batch, width_in, y, x)``."""
        first = self.blocks[0](x)
        return torch.cat((self.up[0](first), self.up[1](self.blocks[1](first))), 1)


class PublishedLidarNetwork(nn.Module):
    """Clouds to a map of tokens from above, at stride 8 of the voxels.

    Args:
        area: the range.
        voxel: size of a voxel along x, y, z, metres.
        grid: voxels along z, y, x of the sparse encoder; voxels beyond are left out (see ``Voxelizer``).
        dim: of the tokens.
        max_voxels: in training and in testing.
    """

    def __init__(
        self,
        area: Sequence[float],
        voxel: Sequence[float],
        grid: tuple[int, int, int],
        *,
        dim: int = 256,
        max_voxels: tuple[int, int] = (120_000, 160_000),
    ) -> None:
        super().__init__()
        self.voxelizer = Voxelizer(area, voxel, grid, max_voxels=max_voxels)
        self.encoder = SparseEncoder(5, grid)
        self.backbone = Second()
        self.shared = nn.Sequential(
            nn.Conv2d(512, dim, 3, padding=1, bias=False), nn.BatchNorm2d(dim), nn.ReLU(inplace=True)
        )

    def forward(self, clouds: Sequence[Tensor]) -> Tensor:
        """Map ``(batch, dim, y, x)`` of clouds ``(points, 5)``, which may be empty."""
        features, places = self.voxelizer(clouds)
        return self.dense(self.encoder(features, places, len(clouds)))

    def dense(self, grid: Tensor) -> Tensor:
        """The dense part, from the sparse encoder's ``(batch, 256, y, x)``."""
        return self.shared(self.backbone(grid))
