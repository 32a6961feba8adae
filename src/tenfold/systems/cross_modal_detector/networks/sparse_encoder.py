"""Sparse 3-D convolutions in plain torch, and the encoder made of them (mmdet3d's ``SparseEncoder``).

A convolution of active voxels only: for each offset of the kernel, the pairs of input and output voxels that it joins
are found by looking up sorted keys; their features are gathered, multiplied and added. Normalization sees active
voxels alone, which a dense normalization would not.
"""

from dataclasses import dataclass, field, replace
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Triple = tuple[int, int, int]
Pairs = list[tuple[Tensor, Tensor]]


@dataclass
class SparseTensor:
    """Active voxels.

    Attributes:
        features: ``(voxels, channels)``.
        places: ``(voxels, 4)``: sample, z, y, x; all different.
        shape: of the grid: z, y, x.
        batch: samples.
        pairs: of submanifold convolutions of this set of voxels, by kernel; shared by all of them.
    """

    features: Tensor
    places: Tensor
    shape: Triple
    batch: int
    pairs: dict[Triple, Pairs] = field(default_factory=dict)

    def dense(self) -> Tensor:
        """``(batch, channels, z, y, x)``, zero where inactive."""
        cells = self.shape[0] * self.shape[1] * self.shape[2]
        grid = self.features.new_zeros(self.batch * cells, self.features.shape[1])
        grid = grid.index_copy(0, _keys(self.places, self.shape), self.features)
        return grid.view(self.batch, *self.shape, -1).permute(0, 4, 1, 2, 3)


def _keys(places: Tensor, shape: Triple) -> Tensor:
    return ((places[:, 0] * shape[0] + places[:, 1]) * shape[1] + places[:, 2]) * shape[2] + places[:, 3]


def _offsets(kernel: Triple, device: torch.device) -> Tensor:
    return torch.tensor(list(product(*(range(size) for size in kernel))), device=device)


def submanifold_pairs(x: SparseTensor, kernel: Triple) -> Pairs:
    """For each offset of the kernel, rows of input and output voxels; outputs are the inputs themselves."""
    if kernel in x.pairs:
        return x.pairs[kernel]
    keys, order = _keys(x.places, x.shape).sort()
    limits = torch.tensor(x.shape, device=x.places.device)
    middle = torch.tensor([size // 2 for size in kernel], device=x.places.device)
    found: Pairs = []
    for offset in _offsets(kernel, x.places.device):
        neighbour = x.places[:, 1:] + offset - middle
        inside = ((neighbour >= 0) & (neighbour < limits)).all(1)
        outputs = inside.nonzero()[:, 0]
        wanted = _keys(torch.cat((x.places[outputs, :1], neighbour[outputs]), 1), x.shape)
        at = torch.searchsorted(keys, wanted).clamp(max=max(len(keys) - 1, 0))
        hit = keys[at] == wanted
        found.append((order[at[hit]], outputs[hit]))
    x.pairs[kernel] = found
    return found


def strided_pairs(x: SparseTensor, kernel: Triple, stride: Triple, padding: Triple) -> tuple[Tensor, Triple, Pairs]:
    """Places of the voxels that a strided convolution makes active, the grid's shape, and pairs as above."""
    size = [(s + 2 * p - k) // t + 1 for s, k, t, p in zip(x.shape, kernel, stride, padding, strict=True)]
    shape: Triple = (size[0], size[1], size[2])
    device = x.places.device
    steps, limits = torch.tensor(stride, device=device), torch.tensor(shape, device=device)
    rows, reached = [], []
    for offset in _offsets(kernel, device):
        target = x.places[:, 1:] + torch.tensor(padding, device=device) - offset
        at = torch.div(target, steps, rounding_mode="floor")
        fits = ((target >= 0) & (target % steps == 0) & (at < limits)).all(1)
        own = fits.nonzero()[:, 0]
        rows.append(own)
        reached.append(_keys(torch.cat((x.places[own, :1], at[own]), 1), shape))
    keys, inverse = torch.cat(reached).unique(return_inverse=True)
    outputs = inverse.split([len(part) for part in rows])
    layer = shape[1] * shape[2]
    places = torch.stack(
        (keys // (shape[0] * layer), keys // layer % shape[0], keys // shape[2] % shape[1], keys % shape[2]), 1
    )
    return places, shape, list(zip(rows, outputs, strict=True))


def convolve(features: Tensor, weight: Tensor, pairs: Pairs, outputs: int) -> Tensor:
    """``(outputs, channels out)`` of ``features`` and ``weight`` ``(out, z, y, x, in)``."""
    kernels = weight.flatten(1, 3).permute(1, 2, 0)  # (offsets, in, out)
    found = features.new_zeros(outputs, weight.shape[0])
    for kernel, (rows, to) in zip(kernels, pairs, strict=True):
        if len(rows):
            found.index_add_(0, to, features[rows] @ kernel)
    return found


class SparseConv(nn.Module):
    """A sparse convolution without bias; its weight is laid out as spconv's second version: ``(out, z, y, x, in)``.

    Args:
        width_in: channels of the input.
        width: of the output.
        kernel: along z, y, x.
        stride: along z, y, x; submanifold (outputs where inputs are) where ``None``.
        padding: along z, y, x.
    """

    def __init__(
        self, width_in: int, width: int, kernel: Triple = (3, 3, 3), stride: Triple | None = None,
        padding: Triple = (1, 1, 1),
    ) -> None:  # fmt: skip
        super().__init__()
        self.kernel, self.stride, self.padding = kernel, stride, padding
        self.weight = nn.Parameter(torch.empty(width, *kernel, width_in))
        nn.init.kaiming_uniform_(self.weight.view(width, -1), a=5**0.5)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """See the class."""
        if self.stride is None:
            pairs = submanifold_pairs(x, self.kernel)
            return replace(x, features=convolve(x.features, self.weight, pairs, len(x.features)))
        places, shape, pairs = strided_pairs(x, self.kernel, self.stride, self.padding)
        return SparseTensor(convolve(x.features, self.weight, pairs, len(places)), places, shape, x.batch)


class ActiveNorm(nn.BatchNorm1d):
    """Batch normalization of active voxels; with fewer than two of them, by the running statistics."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-3, momentum=0.01)

    def forward(self, input: Tensor) -> Tensor:
        """See the class."""
        if self.training and len(input) < 2:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0, self.eps)
        return super().forward(input)


class _Layer(nn.Module):
    """Convolution, normalization, ReLU."""

    def __init__(self, conv: SparseConv) -> None:
        super().__init__()
        self.conv, self.norm = conv, ActiveNorm(conv.weight.shape[0])

    def forward(self, x: SparseTensor) -> SparseTensor:
        x = self.conv(x)
        return replace(x, features=F.relu(self.norm(x.features)))


class _Block(nn.Module):
    """Two submanifold convolutions, the input added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = SparseConv(width, width), ActiveNorm(width)
        self.conv2, self.norm2 = SparseConv(width, width), ActiveNorm(width)

    def forward(self, x: SparseTensor) -> SparseTensor:
        inner = self.conv1(x)
        inner = self.conv2(replace(inner, features=F.relu(self.norm1(inner.features))))
        return replace(inner, features=F.relu(self.norm2(inner.features) + x.features))


class SparseEncoder(nn.Module):
    """Voxels to a map from above: 1/8 of the grid along y and x, its layers along z stacked into channels.

    Args:
        width_in: features of a voxel.
        grid: voxels along z, y, x.
        widths: channels of the four stages.
        out: channels of the last convolution.
    """

    def __init__(
        self, width_in: int, grid: Triple, *, widths: tuple[int, ...] = (16, 32, 64, 128), out: int = 128
    ) -> None:
        super().__init__()
        self.grid = grid
        self.first = _Layer(SparseConv(width_in, widths[0]))
        stages = []
        for number, width in enumerate(widths):
            parts: list[nn.Module] = [_Block(width), _Block(width)]
            if number + 1 < len(widths):
                padding = (0, 1, 1) if number + 2 == len(widths) else (1, 1, 1)
                parts.append(_Layer(SparseConv(width, widths[number + 1], (3, 3, 3), (2, 2, 2), padding)))
            stages.append(nn.ModuleList(parts))
        self.stages = nn.ModuleList(stages)
        self.last = _Layer(SparseConv(widths[-1], out, (3, 1, 1), (2, 1, 1), (0, 0, 0)))

    def forward(self, features: Tensor, places: Tensor, batch: int) -> Tensor:
        """``(batch, out z', y / 8, x / 8)`` of voxels' features ``(voxels, width_in)`` and places ``(voxels, 4)``."""
        x = self.first(SparseTensor(features, places, self.grid, batch))
        for stage in self.stages:
            for part in stage:  # type: ignore[attr-defined]
                x = part(x)
        return self.last(x).dense().flatten(1, 2)
