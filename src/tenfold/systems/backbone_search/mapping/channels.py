"""Which channels stay when a group shrinks, and where new ones come from when it grows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tenfold.errors import UserError
from tenfold.systems.backbone_search.detector.channels import ChannelLayout

Importance = Literal["l1", "gamma", "gamma_l1", "order", "random"]
Growth = Literal["live", "net2net", "zero"]


@dataclass(frozen=True)
class ChannelMap:
    """Where each channel of the target's group comes from.

    Attributes:
        source: ``(size,)`` int64 channel of the seed's group, -1 for a new one.
        copies: ``(size,)`` how many target channels share that source; 1 unless copied.
    """

    source: Tensor
    copies: Tensor

    @property
    def whole(self) -> bool:
        """Whether it is the identity on the seed's channels, with nothing dropped or added."""
        return bool(torch.equal(self.source, torch.arange(len(self.source))))


def channel_importance(
    layout: ChannelLayout, state: Mapping[str, Tensor], rule: Importance, generator: torch.Generator
) -> dict[str, Tensor]:
    """How much each channel of each group matters.

    ``l1``: summed magnitude of the weights that read the channel (as OFA orders the middle channels); for a residual
    stream also the scales of the normalizations that write it, so that all blocks of a stage vote together.
    ``gamma``: the scales alone (of the last normalization that the channel passes). ``gamma_l1``: their product.
    ``order``: earlier channels first. ``random``: drawn.

    Args:
        layout: of the network.
        state: its state dict.
        rule: see above.
        generator: for ``random``.

    Returns:
        For each group ``(size,)``, larger matters more.
    """
    readers: dict[str, Tensor] = {}
    gates: dict[str, Tensor] = {}
    scales: dict[str, list[Tensor]] = {}
    streams: set[str] = set()
    sizes: dict[str, int] = {}
    for record in layout.records:
        place = 0
        for segment in record.outgoing:
            sizes[segment.group] = segment.size
            if record.norm:
                part = state[f"{record.norm}.weight"][place : place + segment.size].detach().abs()
                scales.setdefault(segment.group, []).append(part)
            if record.norm and record.incoming is not None and len(scales[segment.group]) > 1:
                streams.add(segment.group)  # several convolutions write it: a residual stream
            place += segment.size
        if record.incoming is None:
            continue
        place, weight = 0, state[f"{record.name}.weight"].detach().abs()
        for segment in record.incoming:
            sizes[segment.group] = segment.size
            reading = weight[:, place : place + segment.size].sum((0, 2, 3))
            into = gates if record.gate else readers
            into[segment.group] = into.get(segment.group, torch.zeros(segment.size)) + reading
            place += segment.size
    importance = {}
    for group, size in sizes.items():
        l1 = readers.get(group, gates.get(group, torch.zeros(size)))
        written = scales.get(group, [torch.ones(size)])
        gamma = torch.stack(written).sum(0) if group in streams else written[-1]
        if rule == "l1":
            importance[group] = l1 + gamma if group in streams else l1
        elif rule == "gamma":
            importance[group] = gamma
        elif rule == "gamma_l1":
            importance[group] = gamma * l1
        elif rule == "order":
            importance[group] = -torch.arange(size, dtype=torch.float32)
        elif rule == "random":
            importance[group] = torch.rand(size, generator=generator)
        else:
            raise UserError(f"importance is l1, gamma, gamma_l1, order or random; got {rule!r}")
    return importance


def channel_map(importance: Tensor, size: int, growth: Growth, generator: torch.Generator) -> ChannelMap:
    """The map of one group from its size to another.

    Shrinking keeps the most important channels in their order, ties in favour of the earlier, so that narrower maps
    nest in wider ones. Growing keeps all and adds new ones (``live``, ``zero``) or copies of drawn ones (``net2net``).

    Args:
        importance: ``(old size,)``.
        size: new size.
        growth: see above.
        generator: draws what ``net2net`` copies.
    """
    have = len(importance)
    if size <= have:
        kept = importance.argsort(dim=0, descending=True, stable=True)[:size].sort().values
        return ChannelMap(kept, torch.ones(size, dtype=torch.int64))
    if growth == "net2net":
        copied = torch.randint(have, (size - have,), generator=generator)
        source = torch.cat([torch.arange(have), copied])
    else:
        source = torch.cat([torch.arange(have), torch.full((size - have,), -1)])
    return ChannelMap(source, _copies(source))


def _copies(source: Tensor) -> Tensor:
    counts = torch.bincount(source.clamp(min=0), weights=(source >= 0).double()).long()
    return torch.where(source >= 0, counts[source.clamp(min=0)], 1)
