"""The adaptive concatenation module (ACM): skips weighted by source, channel, or pixel before they are joined.

The paper names its aim, to fuse features within skip connections more closely; its inside is reconstructed from a
public re-implementation (github.com/TheHummel/cil-monocular-depth). The factor n of the weights, the gate that starts
at one and the batch normalization are ours: with them the module is exactly a plain concatenation before training.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from tenfold.systems.full_skip_depth.decoders.resizing import enlarge, size_of

Fusion = Literal["concat", "scalar", "se", "scalar+se", "pixel", "cbam"]
FUSIONS: tuple[Fusion, ...] = ("concat", "scalar", "se", "scalar+se", "pixel", "cbam")
Gate = Literal["2sigmoid", "sigmoid"]

_SOBEL_X = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))


class AdaptiveConcat(nn.Module):
    """Joins skip connections and the map from below into one map:

        w = n softmax(a)                                            one weight a source
        z = [w_1 r_1, ..., w_n r_n, u]
        g = gate(W2 relu(W1 mean(z) + b1) + b2)                     one gate a channel and image
        y = relu(batch_norm(conv1x1(g z)))

    Args:
        source_channels: channels of the n sources ``r_1 .. r_n``; may be empty.
        up_channels: channels of ``u``, the map from the level below.
        out_channels: channels of the answer.
        fusion: ``scalar+se`` as above; ``concat`` has neither w nor g, ``scalar`` only w, ``se`` only g; ``pixel``: w
            is a map, ``n softmax_j(sigmoid(conv1x1([r, u])))``, then as ``scalar+se``; ``cbam``: ``pixel`` with spatial
            and channel attention, a dilated convolution and an edge branch.
        gate: ``2sigmoid`` is one before training, ``sigmoid`` is that of squeeze-and-excitation networks.
        reduction: of the gate's middle width, which is at least 8.

    Raises:
        ValueError: there is no such fusion or gate.
    """

    def __init__(
        self,
        source_channels: Sequence[int],
        up_channels: int,
        out_channels: int,
        *,
        fusion: Fusion = "scalar+se",
        gate: Gate = "2sigmoid",
        reduction: int = 16,
    ) -> None:
        super().__init__()
        if fusion not in FUSIONS or gate not in ("2sigmoid", "sigmoid"):
            raise ValueError(f"there is no fusion {fusion!r} with gate {gate!r}; fusions: {', '.join(FUSIONS)}")
        self.source_channels, self.fusion, self.gate = tuple(source_channels), fusion, gate
        n, channels = len(self.source_channels), sum(source_channels) + up_channels
        self.channels = channels
        middle = max(8, channels // reduction)
        if fusion in ("scalar", "scalar+se") and n:
            self.a = nn.Parameter(torch.zeros(n))
        if fusion in ("pixel", "cbam") and n:
            self.pixel = nn.Conv2d(channels, n, 1)
            nn.init.zeros_(self.pixel.weight)
            nn.init.zeros_(self.pixel.bias)  # type: ignore[arg-type]
        if fusion in ("se", "scalar+se", "pixel"):
            self.se = nn.Sequential(nn.Linear(channels, middle), nn.ReLU(), nn.Linear(middle, channels))
            if gate == "2sigmoid":
                nn.init.zeros_(self.se[2].weight)  # type: ignore[arg-type]
                nn.init.zeros_(self.se[2].bias)  # type: ignore[arg-type]
        if fusion == "cbam":
            self.spatial = nn.ModuleList(nn.Conv2d(2, 1, 7, padding=3, bias=False) for _ in range(n))
            self.attention = nn.Sequential(nn.Linear(channels, middle), nn.ReLU(), nn.Linear(middle, channels))
            self.dilated = nn.Conv2d(channels, out_channels, 3, padding=2, dilation=2)
            self.edge = _sobel_convolution(out_channels)
        into = out_channels if fusion == "cbam" else channels
        self.out = nn.Sequential(nn.Conv2d(into, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU())

    @property
    def needs_means(self) -> bool:
        """Whether the gates look at means over the maps as they come."""
        return self.fusion in ("se", "scalar+se")

    def forward(self, sources: Sequence[Tensor], up: Tensor, *, means: Tensor | None = None) -> Tensor:
        """Join the maps.

        Args:
            sources: ``n`` maps ``(batch, c_j, height, width)``.
            up: ``u``, of the same size.
            means: ``(batch, channels)`` of the sources and ``u`` over the pixels, where they are known already.

        Returns:
            ``(batch, out_channels, height, width)``.
        """
        z = self._joined(sources, up)
        if self.fusion == "cbam":
            z = self._with_channel_attention(z)
            z = torch.relu(self.dilated(z))
            return self.out(z + self.edge(z))
        factor = self._factor(z, means)
        if factor is None:
            return self.out(z)
        if not self.training and isinstance(z.shape[0], int) and z.shape[0] == 1:
            # For one image the factors go into the 1x1 kernel: a pass over all channels and pixels less.
            convolution, norm, relu = self.out
            weight = convolution.weight * factor.view(1, -1, 1, 1)  # type: ignore[operator]
            return relu(norm(nn.functional.conv2d(z, weight)))
        return self.out(z * factor[:, :, None, None])

    def join_enlarging(self, sources: Sequence[Tensor], below: Tensor, means: Tensor) -> Tensor:
        """In eval mode, what ``forward`` gives for ``u``, the enlarged map ``below``, in fewer passes over large maps.

        The 1x1 kernel, with factors and norm in it, goes over ``below`` before that is enlarged: both are linear, and
        the weights of an enlarged pixel sum to one. Equal to ``forward`` but for rounding.

        Args:
            sources: see ``forward``; at least one.
            below: ``(batch, up_channels, h, w)``.
            means: see ``forward``.
        """
        convolution, norm, relu = self.out
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)  # type: ignore[operator]
        factor = self._factor(below, means)
        kernel = convolution.weight[:, :, 0, 0] * scale[:, None]  # type: ignore[index]
        kernels = (kernel[None] if factor is None else factor[:, None] * kernel).split(
            [*self.source_channels, below.shape[1]], 2
        )
        size = size_of(sources[0])
        small = kernels[-1] @ below.flatten(2) + (norm.bias - norm.running_mean * scale)[:, None]  # type: ignore[operator]
        y = enlarge(small.unflatten(2, size_of(below)), size)
        for source, part in zip(sources, kernels[:-1], strict=True):
            y = y + (part @ source.flatten(2)).unflatten(2, size)
        return relu(y)

    def source_weights(self) -> Tensor:
        """``(n,)`` the weight of each source, 1 where the fusion has no weight that is the same for all images."""
        if hasattr(self, "a"):
            return len(self.a) * self.a.detach().softmax(0)
        return torch.ones(len(self.source_channels))

    @torch.no_grad()
    def contributions(self, sources: Sequence[Tensor], up: Tensor) -> Tensor:
        """``(n + 1,)``: root mean square of what each source, and last ``u``, adds to the joining convolution."""
        z = self._joined(sources, up)
        if self.fusion == "cbam":
            z, kernel, padding, dilation = self._with_channel_attention(z), self.dilated.weight, 2, 2
        else:
            factor = self._factor(z)
            z = z if factor is None else z * factor[:, :, None, None]
            kernel, padding, dilation = self.out[0].weight, 0, 1  # type: ignore[assignment]
        parts = [*self.source_channels, self.channels - sum(self.source_channels)]
        pairs = zip(z.split(parts, 1), kernel.split(parts, 1), strict=True)
        return torch.stack(
            [nn.functional.conv2d(x, k, padding=padding, dilation=dilation).square().mean().sqrt() for x, k in pairs]
        )

    def _joined(self, sources: Sequence[Tensor], up: Tensor) -> Tensor:
        """``z``, weighted by pixel where the fusion does so; scalar weights are left to ``_factor``."""
        if self.fusion not in ("pixel", "cbam") or not self.source_channels:
            return torch.cat([*sources, up], 1)
        maps = len(self.source_channels) * torch.sigmoid(self.pixel(torch.cat([*sources, up], 1))).softmax(1)
        weighted = [source * maps[:, j : j + 1] for j, source in enumerate(sources)]
        if self.fusion == "cbam":
            weighted = [
                r * torch.sigmoid(attend(torch.cat([r.mean(1, keepdim=True), r.amax(1, keepdim=True)], 1)))
                for r, attend in zip(weighted, self.spatial, strict=True)
            ]
        return torch.cat([*weighted, up], 1)

    def _factor(self, z: Tensor, means: Tensor | None = None) -> Tensor | None:
        """``(batch or 1, channels)`` the product of source weights and channel gates; ``None`` where both are one."""
        weights = None
        if hasattr(self, "a"):
            scale = len(self.a) * self.a.softmax(0)
            ones = z.new_ones(self.channels - sum(self.source_channels))
            parts = [scale[j].expand(c) for j, c in enumerate(self.source_channels)]
            weights = torch.cat([*parts, ones])[None]
        if not hasattr(self, "se"):
            return weights
        means = z.mean((2, 3)) if means is None else means
        pooled = means if weights is None else means * weights
        gates = torch.sigmoid(self.se(pooled))
        gates = 2 * gates if self.gate == "2sigmoid" else gates
        return gates if weights is None else gates * weights

    def _with_channel_attention(self, z: Tensor) -> Tensor:
        attention = torch.sigmoid(self.attention(z.mean((2, 3))) + self.attention(z.amax((2, 3))))
        return z + z * attention[:, :, None, None]


def _sobel_convolution(channels: int) -> nn.Conv2d:
    """3x3 convolution whose kernels from a channel to itself start as Sobel filters, along x and y in turn."""
    convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    sobel = torch.tensor(_SOBEL_X)
    with torch.no_grad():
        convolution.weight.zero_()
        for k in range(channels):
            convolution.weight[k, k] = sobel if k % 2 == 0 else sobel.T
    return convolution
