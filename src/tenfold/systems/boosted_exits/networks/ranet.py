"""RANet, the resolution-adaptive network (Yang et al., CVPR 2020), as ``EarlyExitModel``.

Sub-networks run one after the other, the one of the lowest resolution first. Each begins with fusion blocks, which also
read what the sub-network before computed in the same place, and ends with plain blocks, each of which has a head:

    sub-network 0   plain  plain                                exits 1, 2
    sub-network 1   fusion fusion plain  plain                  exits 3, 4
    sub-network 2   fusion fusion fusion fusion plain  plain    exits 5, 6

Stage n runs what exit n needs beyond exit n-1: the first exit of a sub-network brings its fusion blocks along.
Attribute names follow the official code where they make checkpoint keys, see
``official_checkpoints``.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.systems.boosted_exits.networks.early_exit_model import EarlyExitModel
from tenfold.systems.boosted_exits.networks.msdnet import (
    Bottleneck,
    ConvBlock,
    ConvHead,
    DenseLayer,
    FirstLayer,
    StemKind,
    StepMode,
    require_factors,
    require_positive,
)

Maps = tuple[Tensor, ...]

RANetState = tuple[Maps, tuple[Maps, ...], Tensor]
"""What one stage hands to the next: the first layer's maps of the sub-networks to come; for each block of this
sub-network so far its input and its layers' outputs, which the next sub-network fuses (none in the last); and the
features that the head reads."""


class _PlainBlock(nn.Module):
    def __init__(self, inputs: int, growth: int, layers: int, factor: int, reduction: float | None) -> None:
        super().__init__()
        self.widths = tuple(inputs + k * growth for k in range(layers + 1))
        self.layers = nn.ModuleList(DenseLayer(width, growth, factor) for width in self.widths[:-1])
        self.trans, self.outputs = _transition(self.widths[-1], reduction)

    def forward(self, x: Tensor) -> tuple[Tensor, Maps]:
        intermediates = [x]
        for layer in self.layers:
            intermediates.append(layer(intermediates[-1]))
        return self.trans(intermediates[-1]), tuple(intermediates)


class _FusionLayer(nn.Module):
    """``cat[up(x), up(conv(low)), conv(x)]``, all at the size of the third, which may be half of that of ``x``."""

    def __init__(
        self, inputs: int, low: int, growth: int, compression: float, factor: int, low_factor: int, stride: int
    ) -> None:
        super().__init__()
        from_low = math.floor(compression * growth)
        self.conv_up = Bottleneck(low, from_low, low_factor)
        self.conv_normal = Bottleneck(inputs, growth - from_low, factor, stride)

    def forward(self, x: Tensor, low: Tensor) -> Tensor:
        new = self.conv_normal(x)
        return torch.cat([_resize(x, new), _resize(self.conv_up(low), new), new], dim=1)


class _FusionBlock(nn.Module):
    def __init__(
        self,
        inputs: int,
        growth: int,
        low_widths: Sequence[int],
        compression: float,
        factor: int,
        low_factor: int,
        reduction: float | None,
        halves: bool,
    ) -> None:
        super().__init__()
        layers = len(low_widths) - 1
        self.widths = tuple(inputs + k * growth for k in range(layers + 1))
        self.layers = nn.ModuleList(
            _FusionLayer(
                self.widths[k],
                low_widths[k],
                growth,
                compression,
                factor,
                low_factor,
                stride=2 if halves and k == layers - 1 else 1,
            )
            for k in range(layers)
        )
        from_low = math.floor(compression * self.widths[-1])
        self.conv_last = ConvBlock(low_widths[-1], from_low, kernel=1)
        self.trans, self.outputs = _transition(self.widths[-1] + from_low, reduction)

    def forward(self, x: Tensor, low: Maps) -> tuple[Tensor, Maps]:
        intermediates = [x]
        for layer, low_map in zip(self.layers, low[:-1], strict=True):
            intermediates.append(layer(intermediates[-1], low_map))
        x = intermediates[-1]
        return self.trans(torch.cat([x, _resize(self.conv_last(low[-1]), x)], dim=1)), tuple(intermediates)


def _transition(width: int, reduction: float | None) -> tuple[nn.Module, int]:
    if reduction is None:
        return nn.Identity(), width
    reduced = math.floor(reduction * width)
    return ConvBlock(width, reduced, kernel=1), reduced


def _resize(x: Tensor, like: Tensor) -> Tensor:
    size = like.shape[-2:]
    return x if x.shape[-2:] == size else F.interpolate(x, size, mode="bilinear", align_corners=True)


class _Stage(nn.Module):
    """The blocks between two exits; ``stem`` in the first stage only, ``opens`` where a new sub-network begins."""

    def __init__(self, blocks: Sequence[nn.Module], stem: FirstLayer | None, opens: bool) -> None:
        super().__init__()
        if stem is not None:
            self.stem = stem
        self.opens = opens
        self.blocks = nn.ModuleList(blocks)

    def forward(self, state: RANetState | Tensor) -> RANetState:
        low: tuple[Maps, ...] = ()
        handed_on: tuple[Maps, ...] = ()
        if isinstance(state, Tensor):
            x, *later = reversed(self.stem(state))
        elif self.opens:
            (x, *later), low, _ = state
        else:
            later, handed_on, x = list(state[0]), state[1], state[2]
        for position, block in enumerate(self.blocks):
            x, intermediates = block(x, low[position]) if position < len(low) else block(x)
            handed_on = (*handed_on, intermediates) if later else ()
        return tuple(later), handed_on, x


class RANet(EarlyExitModel):
    """Resolution-adaptive network; the exits run over the sub-networks, and in each over its plain blocks.

    Takes images ``(batch, image_channels, height, width)`` of any size. What one stage hands to the next is
    ``RANetState``. Initialised He-normal (fan out), except for the first layer, which is as PyTorch initialises.

    Args:
        num_classes: number of classes.
        num_blocks: blocks of the first sub-network, which is its number of exits.
        block_step: further blocks of each further sub-network, which is its number of exits.
        step: layers of the first block of a sub-network, and of each further one where ``step_mode`` is ``even``;
            where it is ``lin_grow``, each has ``step`` layers more than the one before.
        step_mode: see ``step``.
        channels: width of the first maps, to be multiplied by ``growth_factors``.
        growth_rate: channels that a layer adds, to be multiplied by ``growth_factors``.
        growth_factors: one per sub-network.
        bottleneck_factors: one per sub-network: a bottleneck is at most that many times as wide as what it gives.
        scales: resolution of each sub-network: 1 is the lowest, each number more doubles it; from 1 up, in steps of 0
            or 1.
        compression: share of a fusion layer's new channels that comes from the sub-network before, in (0, 1).
        reduction: share of the width that a transition keeps, in (0, 1].
        stem: ``cifar``, or ``imagenet``, which divides the resolution by four and has wider heads.
        image_channels: channels of the images.
        reweight: see ``EarlyExitModel``.
        rescale: see ``EarlyExitModel``; off in the official training.

    Raises:
        ValueError: an argument out of its range, or factors that do not fit each other.
    """

    def __init__(
        self,
        num_classes: int = 100,
        *,
        num_blocks: int = 2,
        block_step: int = 2,
        step: int = 4,
        step_mode: StepMode = "even",
        channels: int = 16,
        growth_rate: int = 6,
        growth_factors: Sequence[int] = (4, 2, 1, 1),
        bottleneck_factors: Sequence[int] = (4, 2, 1, 1),
        scales: Sequence[int] = (1, 2, 3, 3),
        compression: float = 0.25,
        reduction: float = 0.5,
        stem: StemKind = "cifar",
        image_channels: int = 3,
        reweight: float | Sequence[float] = 0.5,
        rescale: bool = False,
    ) -> None:
        settings = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        require_positive(
            num_classes=num_classes,
            num_blocks=num_blocks,
            block_step=block_step,
            step=step,
            channels=channels,
            growth_rate=growth_rate,
            image_channels=image_channels,
        )
        require_factors(growth_factors, bottleneck_factors)
        _require_scales(scales, len(growth_factors))
        if step_mode not in ("even", "lin_grow"):
            raise ValueError(f"step_mode must be 'even' or 'lin_grow'; got {step_mode!r}")
        if not 0 < reduction <= 1:
            raise ValueError(f"reduction must lie in (0, 1]; got {reduction}")
        if not 0 < compression < 1 or compression * growth_rate * min(growth_factors) < 1:
            raise ValueError(
                f"compression must lie in (0, 1) and leave at least one channel of the growth; got {compression} with "
                f"growth_rate={growth_rate}, growth_factors={tuple(growth_factors)}"
            )
        blocks_until = [0] + [num_blocks + block_step * i for i in range(len(scales))]

        strides = [1 if high == low else 2 for high, low in pairwise(reversed(scales))]
        widths = [channels * factor for factor in growth_factors]
        first = FirstLayer(stem, image_channels, widths[::-1], strides)
        stages: list[_Stage] = []
        heads: list[nn.Module] = []
        below: list[_PlainBlock | _FusionBlock] = []
        for i, scale in enumerate(scales):
            transitions = {(k + 1) * blocks_until[i + 1] // scale for k in range(scale - 1)}
            halving = set(blocks_until[: i + 1][i + 2 - scale :])  # the last scale - 1
            growth = growth_rate * growth_factors[i]
            width = widths[i]
            blocks: list[_PlainBlock | _FusionBlock] = []
            for number in range(1, blocks_until[i + 1] + 1):
                keep = reduction if number in transitions else None
                if number <= blocks_until[i]:
                    low_widths = below[number - 1].widths
                    block: _PlainBlock | _FusionBlock = _FusionBlock(
                        width,
                        growth,
                        low_widths,
                        compression,
                        bottleneck_factors[i],
                        bottleneck_factors[i - 1],
                        keep,
                        halves=number in halving,
                    )
                else:
                    layers = step if step_mode == "even" else step * number
                    block = _PlainBlock(width, growth, layers, bottleneck_factors[i], keep)
                    heads.append(ConvHead(stem, block.outputs, num_classes))
                blocks.append(block)
                width = block.outputs
            opening = blocks_until[i] + 1
            stages.append(_Stage(blocks[:opening], first if i == 0 else None, opens=True))
            stages.extend(_Stage([block], None, opens=False) for block in blocks[opening:])
            below = blocks
        super().__init__(stages, heads, reweight=reweight, rescale=rescale)
        self.settings = settings
        """Keyword arguments that make this network again."""
        self.blocks_until = tuple(blocks_until)
        """Blocks B_0 = 0, B_1 .. B_S of the sub-networks; sub-network i has exits ``B_i .. B_{i+1} - 1``."""
        for part in (*(stage.blocks for stage in stages), *heads):
            part.apply(_initialise)


def _require_scales(scales: Sequence[int], sub_networks: int) -> None:
    steps_up = [high - low for low, high in pairwise(scales)]
    if len(scales) != sub_networks or scales[0] != 1 or not set(steps_up) <= {0, 1}:
        raise ValueError(
            f"scales must go up from 1 in steps of 0 or 1, one per growth factor; got {tuple(scales)} for "
            f"{sub_networks} growth factors"
        )


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


_IMAGENET: dict[str, Any] = {
    "num_classes": 1000,
    "step": 8,
    "channels": 64,
    "growth_rate": 16,
    "growth_factors": (4, 2, 2, 1),
    "bottleneck_factors": (4, 2, 2, 1),
    "scales": (1, 2, 3, 4),
    "stem": "imagenet",
}


def _batch(factors: tuple[int, ...], scales: tuple[int, ...]) -> dict[str, Any]:
    """Budgeted batch classification on CIFAR: blocks grow linearly."""
    return {
        "step": 2,
        "step_mode": "lin_grow",
        "growth_factors": factors,
        "bottleneck_factors": factors,
        "scales": scales,
    }


PUBLISHED_RANETS: dict[str, dict[str, Any]] = {
    "ranet-cifar100-anytime": {},
    "ranet-cifar100-batch1": _batch((4, 2, 1), scales=(1, 2, 3)),
    "ranet-cifar100-batch2": _batch((4, 2, 2, 1), scales=(1, 2, 2, 3)),
    "ranet-cifar100-batch3": _batch((4, 2, 1, 1), scales=(1, 2, 3, 3)),
    "ranet-imagenet-anytime": _IMAGENET,
    "ranet-imagenet-batch1": _IMAGENET | {"channels": 32},
}
"""Published settings by name: arguments of ``RANet`` that differ from its defaults."""


def published_ranet(name: str, **changes: Any) -> RANet:
    """A RANet with published settings.

    Args:
        name: one of ``PUBLISHED_RANETS``.
        changes: arguments of ``RANet`` to set otherwise.

    Raises:
        UserError: there is no such name.
    """
    if name not in PUBLISHED_RANETS:
        raise UserError(f"there is no published RANet {name!r}; choose one of {', '.join(PUBLISHED_RANETS)}")
    return RANet(**(PUBLISHED_RANETS[name] | changes))
