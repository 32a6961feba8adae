"""A whole depth network: encoder, decoder, head, and the names under which they are built."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.systems.full_skip_depth.decoders.adaptive_concat import FUSIONS, Fusion, Gate
from tenfold.systems.full_skip_depth.decoders.full_skip import (
    CONNECTIVITIES,
    Connectivity,
    FullSkipDecoder,
    unet3plus_decoder,
)
from tenfold.systems.full_skip_depth.decoders.heads import RANGES, BinsHead, RangeHead
from tenfold.systems.full_skip_depth.decoders.local_planar import LocalPlanarDecoder
from tenfold.systems.full_skip_depth.decoders.resizing import RESIZES, Resize, size_of
from tenfold.systems.full_skip_depth.decoders.unet import DPTDecoder, UNetDecoder
from tenfold.systems.full_skip_depth.networks.encoders import freeze_batch_norm, make_encoder, normalization

DecoderName = Literal["full-skip", "unet", "bts", "unet3plus", "dpt"]
DECODERS: tuple[DecoderName, ...] = ("full-skip", "unet", "bts", "unet3plus", "dpt")
HeadName = Literal["sigmoid", "exp", "softplus", "bins"]
HEADS: tuple[HeadName, ...] = (*RANGES, "bins")

BTS_FOCAL = 715.0873
"""Focal length in pixels to which BTS' depths on KITTI refer."""


@dataclass(frozen=True)
class DepthPrediction:
    """What a network says about images.

    Attributes:
        depth: ``(batch, 1, height, width)``.
        auxiliary: the same from coarser levels, for deep supervision.
        centres: ``(batch, bins)`` of adaptive bins, or ``None``.
    """

    depth: Tensor
    auxiliary: tuple[Tensor, ...] = ()
    centres: Tensor | None = None


class FullSkipDepth(nn.Module):
    """One colour image in, one value within a range per pixel out.

    Args:
        encoder: module with ``channels``, ``mean`` and ``std`` that gives a pyramid, the finest level first.
        decoder: module that maps the pyramid and the image to maps, the finest first.
        head: maps the finest map and the image's size to ``(depth, centres or None)``.
        auxiliary_heads: the same for the next coarser maps; used while training only.
        focal_reference: where given, depth is multiplied by ``focal / focal_reference`` (BTS: 715.0873).
        frozen_batch_norm: keep the statistics of the encoder's batch normalizations while training, too.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        head: nn.Module,
        *,
        auxiliary_heads: Sequence[nn.Module] = (),
        focal_reference: float | None = None,
        frozen_batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.head = encoder, decoder, head
        self.auxiliary_heads = nn.ModuleList(auxiliary_heads)
        self.focal_reference, self.frozen_batch_norm = focal_reference, frozen_batch_norm
        mean, std = normalization(encoder.mean, encoder.std)  # type: ignore[arg-type]
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, images: Tensor, focal: Tensor | None = None) -> Tensor:
        """Depth of images.

        Args:
            images: ``(batch, 3, height, width)`` RGB in [0, 1]; the network normalizes them itself.
            focal: ``(batch,)`` focal lengths in pixels; needed where depth is rescaled by them.

        Returns:
            ``(batch, 1, height, width)``, within the head's range (before the focal length).
        """
        return self.predict(images, focal).depth

    def predict(self, images: Tensor, focal: Tensor | None = None) -> DepthPrediction:
        """Depth with what training needs beside it; arguments as ``forward``."""
        normalized = (images - self.mean) / self.std
        maps = self.decoder(self.encoder(normalized), normalized)
        size = size_of(images)
        depth, centres = self.head(maps[0], size)
        auxiliary: list[Tensor] = []
        if self.training:
            auxiliary = [head(x, size)[0] for head, x in zip(self.auxiliary_heads, maps[1:], strict=False)]
        if self.focal_reference is not None:
            if focal is None:
                raise UserError("this network rescales depth by the focal length: give it in pixels")
            factor = (focal / self.focal_reference).view(-1, 1, 1, 1).to(depth)
            depth, auxiliary = depth * factor, [x * factor for x in auxiliary]
        return DepthPrediction(depth, tuple(auxiliary), centres)

    def train(self, mode: bool = True) -> "FullSkipDepth":
        """As any module; frozen batch normalizations are put back into eval mode every time."""
        super().train(mode)
        if mode and self.frozen_batch_norm:
            freeze_batch_norm(self.encoder)
        return self


def build_network(
    encoder: str = "tiny",
    *,
    decoder: DecoderName = "full-skip",
    connectivity: Connectivity = "shallow",
    fusion: Fusion = "scalar+se",
    gate: Gate = "2sigmoid",
    resize: Resize = "area",
    skip_projection: int | None = None,
    width: int = 64,
    head: HeadName = "sigmoid",
    bins: int = 64,
    min_depth: float = 1e-3,
    max_depth: float = 10.0,
    focal_reference: float | None = None,
    auxiliary: int = 0,
    image_source: bool = False,
    frozen_batch_norm: bool = False,
    pretrained: bool = False,
) -> FullSkipDepth:
    """Build a depth network from plain values, as a model's manifest holds them.

    Args:
        encoder: ``tiny`` or ``timm/NAME``.
        decoder: ``full-skip``, ``unet`` (as AdaBins), ``bts`` (local planar guidance), ``unet3plus`` or ``dpt``.
        connectivity: of ``full-skip``: ``none``, ``same``, ``shallow`` or ``full``.
        fusion: of ``full-skip``: ``concat``, ``scalar``, ``se``, ``scalar+se``, ``pixel`` or ``cbam``.
        gate: of the fusion: ``2sigmoid`` or ``sigmoid``.
        resize: of ``full-skip``: ``area``, ``max``, ``strided``, ``bilinear_aa`` or ``bilinear``.
        skip_projection: of ``full-skip``: channels of a projected skip; none are projected where null.
        width: channels of the decoder's deepest level.
        head: ``sigmoid``, ``exp``, ``softplus`` or ``bins``.
        bins: number of bins.
        min_depth: smallest value, in metres (or the target's unit).
        max_depth: largest value.
        focal_reference: see ``FullSkipDepth``.
        auxiliary: number of coarser levels of ``full-skip`` that are supervised, too.
        image_source: whether the image itself is a source of every level of ``full-skip``.
        frozen_batch_norm: see ``FullSkipDepth``.
        pretrained: whether timm fetches weights for the encoder.

    Raises:
        UserError: a name or a number is none of these.
    """
    _check(decoder=decoder, connectivity=connectivity, fusion=fusion, resize=resize, head=head)
    if not 0 <= min_depth < max_depth or width < 1 or bins < 2 or auxiliary < 0:
        raise UserError("a network needs 0 <= min_depth < max_depth, a width above 0, and at least 2 bins")
    body = make_encoder(encoder, pretrained=pretrained)
    channels: list[int] = body.channels  # type: ignore[assignment]
    try:
        made: Any
        if decoder == "full-skip":
            made = FullSkipDecoder(
                channels,
                width=width,
                connectivity=connectivity,
                fusion=fusion,
                gate=gate,
                resize=resize,
                skip_projection=skip_projection,
                strides=body.strides,  # type: ignore[arg-type]
                image_channels=3 if image_source else 0,
            )
        elif decoder == "unet3plus":
            made = unet3plus_decoder(channels, width=width, skip=skip_projection or 64)
        elif decoder == "unet":
            made = UNetDecoder(channels, width=width)
        elif decoder == "bts":
            made = LocalPlanarDecoder(channels, width=width, high=max_depth)
        else:
            made = DPTDecoder(channels, width=width)
        heads = [
            BinsHead(c, low=min_depth, high=max_depth, bins=bins)
            if head == "bins"
            else RangeHead(c, low=min_depth, high=max_depth, kind=head)
            for c in made.map_channels[: 1 + auxiliary]
        ]
    except ValueError as error:
        raise UserError(f"{decoder} on {encoder}: {error}") from error
    return FullSkipDepth(
        body,
        made,
        heads[0],
        auxiliary_heads=heads[1:],
        focal_reference=focal_reference,
        frozen_batch_norm=frozen_batch_norm,
    )


def _check(**given: str) -> None:
    known = {
        "decoder": DECODERS,
        "connectivity": CONNECTIVITIES,
        "fusion": FUSIONS,
        "resize": RESIZES,
        "head": HEADS,
    }
    for name, value in given.items():
        if value not in known[name]:
            raise UserError(f"there is no {name} {value!r}; there are: {', '.join(known[name])}")


@torch.no_grad()
def predict_depth(
    network: nn.Module,
    images: Tensor,
    focal: Tensor | None = None,
    *,
    flip: bool = False,
    limits: tuple[float, float] | None = None,
) -> Tensor:
    """Depth of images by a network in eval mode, with a flip test where wanted.

    Args:
        network: maps images ``(batch, 3, height, width)`` in [0, 1], and focal lengths where given, to depth.
        images: see there.
        focal: ``(batch,)`` in pixels.
        flip: average with the mirrored prediction of the mirrored images, on depth, each clipped first, as AdaBins.
        limits: smallest and largest depth; what is not finite becomes the largest (inf) or smallest (NaN).

    Returns:
        ``(batch, height, width)``.
    """

    def once(x: Tensor) -> Tensor:
        depth = network(x) if focal is None else network(x, focal)
        depth = depth[:, 0] if depth.ndim == 4 else depth
        return depth if limits is None else clip_depth(depth, *limits)

    depth = once(images)
    return 0.5 * (depth + once(images.flip(-1)).flip(-1)) if flip else depth


def clip_depth(depth: Tensor, low: float, high: float) -> Tensor:
    """Depth within limits: infinite values become ``high``, NaN ``low``."""
    return depth.nan_to_num(nan=low, posinf=high, neginf=low).clamp(low, high)
