"""The decoder with full skip connections: each level may see any of the encoder's levels."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from tenfold.systems.full_skip_depth.decoders.adaptive_concat import AdaptiveConcat, Fusion, Gate
from tenfold.systems.full_skip_depth.decoders.resizing import (
    RESIZES,
    Resize,
    Size,
    divides,
    enlarge,
    shrink,
    shrink_in_turn,
    size_of,
)

Connectivity = Literal["none", "same", "shallow", "full"]
CONNECTIVITIES: tuple[Connectivity, ...] = ("none", "same", "shallow", "full")


def sources_of(level: int, levels: int, connectivity: Connectivity) -> list[int]:
    """Encoder levels that a decoder level sees, ascending; level 1 is the finest.

    Args:
        level: of the decoder, 1 .. ``levels`` - 1 (0 is the optional level at the image's size, which sees none).
        levels: of the encoder.
        connectivity: ``none``; ``same``: the level itself, as in a U-Net; ``shallow``: all levels up to it, which
            brings back what was lost on the way down to it; ``full``: all levels. The words of the paper's abstract fit
            both of the last; ``shallow`` is our reading.

    Raises:
        ValueError: there is no such connectivity.
    """
    if connectivity not in CONNECTIVITIES:
        raise ValueError(f"there is no connectivity {connectivity!r}; there are: {', '.join(CONNECTIVITIES)}")
    if connectivity == "none" or level == 0:
        return []
    if connectivity == "same":
        return [level]
    return list(range(1, (level if connectivity == "shallow" else levels) + 1))


def decoder_widths(width: int, levels: int, floor: int = 16) -> list[int]:
    """Channels of the decoder's levels 1 .. ``levels``: ``width`` at the deepest, halved at every finer one.

    Args:
        width: of the deepest level.
        levels: number of levels.
        floor: fewest channels of any level.
    """
    return [max(floor, width >> (levels - level)) for level in range(1, levels + 1)]


class FullSkipDecoder(nn.Module):
    """From a pyramid of features to maps of rising resolution; a plain module for any dense task:

        D_L = conv1x1(E_L)
        D_i = block(ACM([resize(E_j) for j in S(i)], enlarge(D_{i+1})))     i = L-1 .. 1
        block = 2 x (conv3x3, batch normalization, ReLU)

    Args:
        channels: of the encoder's levels, the finest first.
        width: channels of the deepest level; see ``decoder_widths``.
        connectivity: see ``sources_of``.
        fusion: see ``AdaptiveConcat``.
        gate: see there.
        resize: how finer sources are brought to a coarser level: ``area``, ``max``, ``strided`` (a learned depthwise
            convolution that starts as the mean), ``bilinear_aa`` or ``bilinear``. Coarser ones are enlarged bilinearly.
        skip_projection: channels to which every skip is projected first (convolution, batch normalization, ReLU, at the
            coarser of the two resolutions); not at all where ``None``.
        projection_kernel: side of that convolution's kernel.
        strides: of the encoder's levels; 2, 4, 8, ... where ``None``. Only ``strided`` needs them.
        image_channels: where above 0, the image of so many channels is a source of every level, too.
        full_resolution: add a level at the image's size.

    Raises:
        ValueError: a setting is none of these, or there are fewer than two levels.

    Example:
        >>> decoder = FullSkipDecoder([24, 40, 64], width=64)
        >>> features = [torch.zeros(2, c, 32 >> i, 48 >> i) for i, c in enumerate([24, 40, 64])]
        >>> [tuple(x.shape) for x in decoder(features)]
        [(2, 16, 32, 48), (2, 32, 16, 24)]
    """

    def __init__(
        self,
        channels: Sequence[int],
        *,
        width: int = 128,
        connectivity: Connectivity = "shallow",
        fusion: Fusion = "scalar+se",
        gate: Gate = "2sigmoid",
        resize: Resize = "area",
        skip_projection: int | None = None,
        projection_kernel: int = 1,
        strides: Sequence[int] | None = None,
        image_channels: int = 0,
        full_resolution: bool = False,
    ) -> None:
        super().__init__()
        if len(channels) < 2:
            raise ValueError(f"a decoder needs an encoder of at least two levels; got channels {list(channels)}")
        if resize not in RESIZES:
            raise ValueError(f"there is no resize {resize!r}; there are: {', '.join(RESIZES)}")
        levels = len(channels)
        strides = list(strides) if strides is not None else [2**level for level in range(1, levels + 1)]
        of_level = dict(enumerate(channels, 1)) | ({0: image_channels} if image_channels else {})
        stride_of = dict(enumerate(strides, 1)) | {0: 1}
        widths = decoder_widths(width, levels)
        self.resize, self.image_channels, self.full_resolution = resize, image_channels, full_resolution
        self.widths = widths[:-1]
        first = 0 if full_resolution else 1
        self.sources: dict[int, list[int]] = {
            level: ([0] if image_channels and connectivity != "none" else []) + sources_of(level, levels, connectivity)
            for level in range(first, levels)
        }
        self.bottleneck = nn.Conv2d(channels[-1], widths[-1], 1)
        self.levels = nn.ModuleDict()
        self.projections = nn.ModuleDict()
        self.strided = nn.ModuleDict()
        for level in range(levels - 1, first - 1, -1):
            sources = self.sources[level]
            out, below = widths[max(level, 1) - 1], widths[level]
            for j in sources:
                if skip_projection is not None:
                    self.projections[f"{level}_{j}"] = _projection(of_level[j], skip_projection, projection_kernel)
                if resize == "strided" and j < level:
                    self.strided[f"{level}_{j}"] = _mean_convolution(of_level[j], stride_of[level] // stride_of[j])
            into = [of_level[j] if skip_projection is None else skip_projection for j in sources]
            acm = AdaptiveConcat(into, below, out, fusion=fusion, gate=gate)
            self.levels[str(level)] = nn.ModuleDict({"acm": acm, "block": _block(out)})

    @property
    def out_channels(self) -> int:
        """Channels of the finest map."""
        return self.widths[0]

    @property
    def map_channels(self) -> list[int]:
        """Channels of all maps, the finest first."""
        return ([self.widths[0]] if self.full_resolution else []) + self.widths

    def forward(self, features: Sequence[Tensor], image: Tensor | None = None) -> list[Tensor]:
        """Decode.

        Args:
            features: ``(batch, c_i, h_i, w_i)`` of every level, the finest first; sizes need not divide one another.
            image: ``(batch, image_channels, height, width)``; needed for a level at its size or as a source.

        Returns:
            ``(batch, d_i, h_i, w_i)`` of every level but the deepest, the finest first.
        """
        sources = dict(enumerate(features, 1))
        if self.image_channels or self.full_resolution:
            if image is None:
                raise ValueError("this decoder also needs the image")
            sources[0] = image
        resized = self._resized(sources)
        x = self.bottleneck(features[-1])
        maps: list[Tensor] = []
        for name, level in self.levels.items():
            i = int(name)
            joined = [resized[i, j] for j in self.sources[i]]
            acm: AdaptiveConcat = level["acm"]  # type: ignore[index]
            up = enlarge(x, size_of(sources[i]))
            means = self._means(i, sources, resized, x, up) if acm.needs_means else None
            if torch.compiler.is_exporting() and not self.training and joined and means is not None:
                x = acm.join_enlarging(joined, x, means)
            else:
                x = acm(joined, up, means=means)
            x = level["block"](x)  # type: ignore[index]
            maps.append(x)
        return maps[::-1]

    def _means(
        self,
        level: int,
        sources: dict[int, Tensor],
        resized: dict[tuple[int, int], Tensor],
        below: Tensor,
        up: Tensor,
    ) -> Tensor:
        """``(batch, channels)`` means over what a level joins, each from the smallest map that has the same mean."""

        def of(j: int) -> Tensor:
            same = [resized[level, j]]
            if self.resize == "area" and not self.projections:  # then a coarser map of exact blocks has the same mean
                fine = size_of(sources[j])
                whole = [i for i, source in resized if source == j and i >= j and divides(fine, size_of(sources[i]))]
                if level in whole:
                    same = [resized[i, j] for i in whole]
            return min(same, key=lambda x: x.shape[-1] if isinstance(x.shape[-1], int) else 0).mean((2, 3))

        twice = (2 * below.shape[-2], 2 * below.shape[-1])
        known = all(isinstance(side, int) for side in (*twice, *size_of(up)))
        last = below if known and twice == size_of(up) else up  # enlarged twofold, every pixel counts four times
        return torch.cat([*(of(j) for j in self.sources[level]), last.mean((2, 3))], 1)

    def source_weights(self) -> dict[int, dict[int, float]]:
        """For every decoder level the learned weight of every source; 1 where the fusion has none for all images."""
        return {
            int(name): dict(zip(self.sources[int(name)], level["acm"].source_weights().tolist(), strict=True))  # type: ignore[index]
            for name, level in self.levels.items()
        }

    @torch.no_grad()
    def contributions(self, features: Sequence[Tensor], image: Tensor | None = None) -> dict[int, dict[str, float]]:
        """What every level takes from where: shares of each source and of the map ``below``, summing to 1.

        A share is the root mean square of what a source adds to the level's joining convolution.
        """
        found: dict[int, dict[str, float]] = {}
        handles = []
        for name, level in self.levels.items():

            def look(module: nn.Module, inputs: tuple, level: int = int(name)) -> None:
                parts = module.contributions(*inputs)  # type: ignore[operator]
                names = [*map(str, self.sources[level]), "below"]
                found[level] = dict(zip(names, (parts / parts.sum()).tolist(), strict=True))

            handles.append(level["acm"].register_forward_pre_hook(look))  # type: ignore[index]
        try:
            self(features, image)
        finally:
            for handle in handles:
                handle.remove()
        return found

    def _resized(self, sources: dict[int, Tensor]) -> dict[tuple[int, int], Tensor]:
        """Every source at the size of every level that sees it, by ``(level, source)``."""
        made: dict[tuple[int, int], Tensor] = {}
        for j, source in sources.items():
            coarser = [i for i in sorted(self.sources) if j in self.sources[i] and i > j]
            if self.resize == "strided":
                shrunk = [_to_size(self.strided[f"{i}_{j}"](source), size_of(sources[i])) for i in coarser]
            else:
                shrunk = shrink_in_turn(source, [size_of(sources[i]) for i in coarser], self.resize)
            for i, value in zip(coarser, shrunk, strict=True):
                made[i, j] = self._projected(value, i, j)
            for i in [i for i in self.sources if j in self.sources[i] and i <= j]:
                value = self._projected(source, i, j)
                made[i, j] = value if i == j else enlarge(value, size_of(sources[i]))
        return made

    def _projected(self, x: Tensor, level: int, source: int) -> Tensor:
        name = f"{level}_{source}"
        return self.projections[name](x) if name in self.projections else x


def unet3plus_decoder(channels: Sequence[int], *, width: int = 128, skip: int = 64) -> FullSkipDecoder:
    """Wiring like that of UNet 3+ (Huang et al., ICASSP 2020), the nearest older relative: full, without adaptation.

    Every source is brought to the level's size by max pooling or bilinearly, projected to ``skip`` channels by a 3x3
    convolution and concatenated. Its decoder-to-decoder skips are left out.

    Args:
        channels: of the encoder's levels, the finest first.
        width: channels of the deepest level.
        skip: channels of a projected source.
    """
    return FullSkipDecoder(
        channels,
        width=width,
        connectivity="full",
        fusion="concat",
        resize="max",
        skip_projection=skip,
        projection_kernel=3,
    )


def _block(channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(2):
        layers += [nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers)


def _projection(channels: int, out: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out), nn.ReLU())


def _mean_convolution(channels: int, factor: int) -> nn.Conv2d:
    convolution = nn.Conv2d(channels, channels, factor, stride=factor, groups=channels, bias=False)
    nn.init.constant_(convolution.weight, 1 / factor**2)
    return convolution


def _to_size(x: Tensor, size: Size) -> Tensor:
    """A strided convolution drops the rest that fills no kernel, so it may be a cell short."""
    if size_of(x) == size:
        return x
    return enlarge(x, size) if x.shape[-2] < size[0] or x.shape[-1] < size[1] else shrink(x, size)
