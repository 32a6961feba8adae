"""Heads: from decoder maps to a target with a range, such as metres."""

from typing import Literal

import torch
from torch import Tensor, nn

from tenfold.systems.full_skip_depth.decoders.resizing import Size, enlarge

Range = Literal["sigmoid", "exp", "softplus"]
RANGES: tuple[Range, ...] = ("sigmoid", "exp", "softplus")


class RangeHead(nn.Module):
    """One convolution and a function whose values are the target's range.

    ``sigmoid``: ``low + (high - low) sigmoid(x)``; ``exp``: ``exp(x)`` with x clamped to ``[log low, log high]``;
    ``softplus``: ``low + softplus(x)``, clamped at ``high``. The raw map is enlarged before the function is applied.

    Args:
        channels: of the decoder's map.
        low: smallest value, above 0 for ``exp``.
        high: largest value.
        kind: ``sigmoid``, ``exp`` or ``softplus``.
        out_channels: values per pixel.

    Raises:
        ValueError: there is no such range, or it is empty.
    """

    def __init__(
        self, channels: int, *, low: float, high: float, kind: Range = "sigmoid", out_channels: int = 1
    ) -> None:
        super().__init__()
        if kind not in RANGES:
            raise ValueError(f"there is no range {kind!r}; there are: {', '.join(RANGES)}")
        if not low < high or (kind == "exp" and low <= 0):
            raise ValueError(f"the range {low} .. {high} is empty, or below 0 for exp")
        self.low, self.high, self.kind = low, high, kind
        self.convolution = nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor, size: Size) -> tuple[Tensor, None]:
        """``(batch, channels, h, w)`` to ``(batch, out_channels, *size)`` within the range; there are no centres."""
        raw = enlarge(self.convolution(x), size)
        if self.kind == "sigmoid":
            return self.low + (self.high - self.low) * torch.sigmoid(raw), None
        if self.kind == "exp":
            low, high = torch.tensor([self.low, self.high], dtype=torch.float64).log().tolist()
            return raw.clamp(low, high).exp(), None
        return (self.low + nn.functional.softplus(raw)).clamp(max=self.high), None


class BinsHead(nn.Module):
    """Adaptive bins (AdaBins, CVPR 2021, section 3): the range is cut anew for every image.

    A small transformer over patches of the map gives the widths ``b = relu(x) + 0.1``, normalized to sum 1, and the
    kernels whose products with the pixels' features say which bins a pixel lies in:

        edges = low + (high - low) cumsum(b);  centres: mid-points;  depth = sum_n softmax(conv1x1(R))_n centre_n

    Reconstructed: the bin token and the kernel tokens are learnt ones beside the patches, and positions come from a
    depthwise convolution, so that images may have any size.

    Args:
        channels: of the decoder's map.
        low: smallest value.
        high: largest value.
        bins: number of bins.
        dim: of the tokens.
        kernels: number of kernel tokens.
        patch: side of a patch of the map.
        layers: of the transformer.
        heads: of its attention.
    """

    def __init__(
        self,
        channels: int,
        *,
        low: float,
        high: float,
        bins: int = 64,
        dim: int = 32,
        kernels: int = 32,
        patch: int = 8,
        layers: int = 2,
        heads: int = 4,
    ) -> None:
        super().__init__()
        self.low, self.high, self.patch = low, high, patch
        self.embed = nn.Conv2d(channels, dim, patch, stride=patch)
        self.position = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.tokens = nn.Parameter(0.02 * torch.randn(1 + kernels, dim))
        layer = nn.TransformerEncoderLayer(dim, heads, 2 * dim, dropout=0.0, batch_first=True, norm_first=True)
        self.transformer = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.widths = nn.Sequential(nn.Linear(dim, 4 * dim), nn.LeakyReLU(0.01), nn.Linear(4 * dim, bins))
        self.features = nn.Conv2d(channels, dim, 3, padding=1)
        self.logits = nn.Conv2d(kernels, bins, 1)

    def forward(self, x: Tensor, size: Size) -> tuple[Tensor, Tensor]:
        """``(batch, channels, h, w)`` to depth ``(batch, 1, *size)`` and the centres ``(batch, bins)``, ascending."""
        short = [max(0, self.patch - side) for side in x.shape[-2:]]
        patches = self.embed(nn.functional.pad(x, (0, short[1], 0, short[0]))) if any(short) else self.embed(x)
        patches = (patches + self.position(patches)).flatten(2).transpose(1, 2)
        tokens = self.transformer(torch.cat([self.tokens.expand(x.shape[0], -1, -1), patches], 1))
        kernels = tokens[:, 1 : len(self.tokens)]
        centres = self.centres(self.widths(tokens[:, 0]))
        attended = torch.einsum("bkd,bdhw->bkhw", kernels, self.features(x))
        shares = self.logits(attended).softmax(1)
        return enlarge(torch.einsum("bnhw,bn->bhw", shares, centres)[:, None], size), centres

    def centres(self, raw: Tensor) -> Tensor:
        """Centres ``(batch, bins)`` from raw widths ``(batch, bins)``."""
        widths = torch.relu(raw) + 0.1
        edges = self.low + (self.high - self.low) * (widths / widths.sum(1, keepdim=True)).cumsum(1)
        before = torch.cat([torch.full_like(edges[:, :1], self.low), edges[:, :-1]], 1)
        return (before + edges) / 2
