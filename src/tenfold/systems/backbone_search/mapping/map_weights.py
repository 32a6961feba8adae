"""``map_weights``: a seed's weights for another network of its space, in place of a training from scratch.

Rule ``fna`` (Fang et al., *Fast Neural Network Adaptation*, ICLR 2020, public ``param_remap.py``; that the paper uses
it is a reconstruction: its abstract repeats FNA's words): first channels, centred kernels, last block repeated, the
rest 0.

Rule ``tenfold`` (ours):

    depth    added residual blocks are the identity; the least scaled ones go
    width    the channels that matter stay, one choice for a whole residual stream
    growth   producers of new channels are fresh, consumers start at 0: the function stays, the gradient lives
    kernel   centred: a ring of zeros, or the centre
    operator what the block computes, merged or split by singular values
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tenfold.errors import UserError
from tenfold.systems.backbone_search.detector.channels import Axis, ConvolutionRecord
from tenfold.systems.backbone_search.detector.yolox_lite import YOLOXLite
from tenfold.systems.backbone_search.mapping.channels import (
    ChannelMap,
    Growth,
    Importance,
    channel_importance,
    channel_map,
)
from tenfold.systems.backbone_search.mapping.depth import Deepen, at_target_depth

Rule = Literal["tenfold", "fna"]
_NORM_PARTS = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class MappingReport:
    """What a mapping did.

    Attributes:
        inherited: share of the target's weights that come from the seed.
        preserves_function: nothing was dropped or approximated, so that in eval mode the target computes what the seed
            does (to rounding): its batch statistics are right as they are.
    """

    inherited: float
    preserves_function: bool


@torch.no_grad()
def map_weights(
    source: YOLOXLite,
    target: YOLOXLite,
    rule: Rule = "tenfold",
    *,
    importance: Importance = "l1",
    growth: Growth = "live",
    deepen: Deepen = "identity",
    parts: Literal["detector", "backbone"] = "detector",
    seed: int = 0,
) -> MappingReport:
    """Give ``target`` the weights of ``source``, changed in place; what has no counterpart keeps its values.

    Args:
        source: the trained seed.
        target: freshly made; of the same family.
        rule: ``fna`` or ``tenfold``; the further arguments are of ``tenfold`` only.
        importance: which channels stay, see ``channel_importance``.
        growth: ``live``, ``net2net``, or ``zero`` (new channels dead, as in FNA).
        deepen: added residual blocks begin as the ``identity`` or as a ``copy`` of the last.
        parts: ``detector`` maps neck and head, too; ``backbone`` leaves them fresh, as where a seed was trained on
            classification (FNA).
        seed: of the draws of ``net2net`` and ``random``.

    Raises:
        UserError: the networks are of different families, or an argument is unknown.

    Example:
        >>> from tenfold.systems.backbone_search import MobileSpace, YOLOXLite, DetectorPlan, map_weights
        >>> space = MobileSpace(per_stage=True)
        >>> big = YOLOXLite(DetectorPlan(space.plan(space.seed), 3))
        >>> small = YOLOXLite(DetectorPlan(space.plan(space.scaled(width=0.5)), 3))
        >>> map_weights(big, small).preserves_function
        False
    """
    if rule not in ("tenfold", "fna"):
        raise UserError(f"the mapping is tenfold or fna; got {rule!r}")
    if growth not in ("live", "net2net", "zero") or deepen not in ("identity", "copy"):
        raise UserError(f"growth is live, net2net or zero and deepen identity or copy; got {growth!r}, {deepen!r}")
    fna = rule == "fna"
    middle, changed = at_target_depth(source, target, in_order=fna, deepen=deepen)
    mapper = _Mapper(middle, target, "order" if fna else importance, "zero" if fna else growth, seed)
    for before, now in zip(middle.layout().records, target.layout().records, strict=True):
        if parts == "detector" or now.name.startswith("backbone."):
            mapper.convolution(before, now)
    target.load_state_dict(mapper.state)
    weights = sum(value.numel() for value in target.parameters())
    kept = parts == "detector" and rule == "tenfold" and growth != "zero" and not mapper.lossy and not changed
    return MappingReport(mapper.inherited / weights, kept or _equal(source, target))


def _equal(source: YOLOXLite, target: YOLOXLite) -> bool:
    ours, theirs = source.state_dict(), target.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


class _Mapper:
    """Sizes: from the source at the target's depth to the target, convolution by convolution."""

    def __init__(self, middle: YOLOXLite, target: YOLOXLite, importance: Importance, growth: Growth, seed: int) -> None:
        self.source = middle.state_dict()
        self.state = {name: value.clone() for name, value in target.state_dict().items()}
        self.growth = growth
        self.generator = torch.Generator().manual_seed(seed)
        self.importance = channel_importance(middle.layout(), self.source, importance, self.generator)
        self.maps: dict[str, ChannelMap] = {}
        self.inherited = 0
        self.lossy = False

    def _axis(self, before: Axis, now: Axis) -> tuple[Tensor, Tensor]:
        """Source positions ``(channels,)`` (-1: new) and their numbers of copies, along a whole axis."""
        sources, copies, offset = [], [], 0
        for old, new in zip(before, now, strict=True):
            found = self.maps.get(new.group)
            if found is None:
                if new.group.startswith("head.cls_preds") and old.size != new.size:
                    source = torch.full((new.size,), -1)  # other classes: nothing to inherit
                    found = ChannelMap(source, torch.ones_like(source))
                else:
                    found = channel_map(self.importance[old.group], new.size, self.growth, self.generator)
                self.maps[new.group] = found
                self.lossy |= new.size < old.size
            sources.append(torch.where(found.source >= 0, found.source + offset, -1))
            copies.append(found.copies)
            offset += old.size
        return torch.cat(sources), torch.cat(copies)

    def convolution(self, before: ConvolutionRecord, now: ConvolutionRecord) -> None:
        name = now.name
        old, fresh = self.source[f"{name}.weight"], self.state[f"{name}.weight"]
        self.lossy |= now.kernel < before.kernel
        old = _recentre(old, fresh.shape[-1])
        rows, _ = self._axis(before.outgoing, now.outgoing)
        kept_rows = rows >= 0
        if now.incoming is None or before.incoming is None:
            if self.growth == "zero":
                fresh = torch.zeros_like(fresh)
            fresh[kept_rows] = old[rows[kept_rows]]
            self.inherited += int(kept_rows.sum()) * fresh[0].numel()
        else:
            columns, copies = self._axis(before.incoming, now.incoming)
            kept = columns >= 0
            if self.growth == "zero":
                fresh = torch.zeros_like(fresh)
            else:
                fresh[kept_rows.nonzero(), (~kept).nonzero()[:, 0]] = 0  # consumers of new channels
            block = old[rows[kept_rows]][:, columns[kept]]
            if bool((copies > 1).any()):
                block = block / copies[kept][:, None, None] + _balanced_noise(
                    block, columns[kept], copies[kept], self.generator
                )
            fresh[kept_rows.nonzero(), kept.nonzero()[:, 0]] = block
            self.inherited += block.numel()
        self.state[f"{name}.weight"] = fresh
        if f"{name}.bias" in self.state:
            self._vector(f"{name}.bias", rows)
        if now.norm:
            for part in _NORM_PARTS:
                self._vector(f"{now.norm}.{part}", rows)
            counter = f"{now.norm}.num_batches_tracked"
            self.state[counter] = self.source[counter].clone()

    def _vector(self, name: str, rows: Tensor) -> None:
        kept = rows >= 0
        self.state[name][kept] = self.source[name][rows[kept]]
        if name.endswith((".weight", ".bias")):
            self.inherited += int(kept.sum())


def _recentre(weight: Tensor, side: int) -> Tensor:
    """A kernel of another side: its centre, or itself in a ring of zeros."""
    have = weight.shape[-1]
    if have == side:
        return weight.clone()
    if have > side:
        cut = (have - side) // 2
        return weight[..., cut : cut + side, cut : cut + side].clone()
    ring = (side - have) // 2
    return torch.nn.functional.pad(weight, [ring] * 4)


def _balanced_noise(block: Tensor, columns: Tensor, copies: Tensor, generator: torch.Generator) -> Tensor:
    """Small noise that tells copied channels apart and sums to nothing over the copies of each."""
    noise = torch.randn(block.shape, generator=generator) * (1e-3 * float(block.std()))
    sums = torch.zeros((len(block), int(columns.max()) + 1, *block.shape[2:]))
    sums.index_add_(1, columns, noise)
    noise = noise - sums[:, columns] / copies[:, None, None]
    return noise * (copies > 1)[:, None, None]


def nearest_parent(genome: Mapping[str, object], parents: Mapping[str, Mapping[str, object]]) -> str | None:
    """The evaluated genome with the fewest different genes; ties to the first by name, ``None`` where there is none."""

    def distance(other: Mapping[str, object]) -> int:
        return sum(genome.get(name) != other.get(name) for name in {*genome, *other})

    return min(sorted(parents), key=lambda name: distance(parents[name]), default=None)
