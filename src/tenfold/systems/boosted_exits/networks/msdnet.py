"""MSDNet, the multi-scale dense network (Huang et al., ICLR 2018), as ``EarlyExitModel``.

Every layer keeps feature maps at several scales. Scale i of a layer's output is ``cat[x_i, down(x_{i-1}), conv(x_i)]``;
from time to time a layer drops the finest map and a transition halves the widths. Heads read the coarsest map.

Attribute names follow the official code where they make checkpoint keys, see
``official_checkpoints``.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.systems.boosted_exits.networks.early_exit_model import EarlyExitModel

StepMode = Literal["even", "lin_grow"]
StemKind = Literal["cifar", "imagenet"]

_CIFAR_HEAD_CHANNELS = 128


class ConvBlock(nn.Module):
    """Convolution without bias, batch norm, ReLU: the resolution is divided by ``stride`` and rounded up."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.net = nn.Sequential(*_conv_norm_relu(inputs, outputs, kernel, stride))

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, inputs, h, w)`` to ``(batch, outputs, ceil(h / stride), ceil(w / stride))``."""
        return self.net(x)


class Bottleneck(nn.Module):
    """1x1 convolution to ``min(inputs, factor * outputs)`` channels, then 3x3; each with batch norm and ReLU."""

    def __init__(self, inputs: int, outputs: int, factor: int, stride: int = 1) -> None:
        super().__init__()
        inner = min(inputs, factor * outputs)
        self.net = nn.Sequential(*_conv_norm_relu(inputs, inner, 1, 1), *_conv_norm_relu(inner, outputs, 3, stride))

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, inputs, h, w)`` to ``(batch, outputs, ceil(h / stride), ceil(w / stride))``."""
        return self.net(x)


def _conv_norm_relu(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


class DenseLayer(nn.Module):
    """``cat[x, conv(x)]``: adds ``growth`` channels."""

    def __init__(self, inputs: int, growth: int, factor: int) -> None:
        super().__init__()
        self.conv_normal = Bottleneck(inputs, growth, factor)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, inputs, h, w)`` to ``(batch, inputs + growth, h, w)``."""
        return torch.cat([x, self.conv_normal(x)], dim=1)


class FirstLayer(nn.Module):
    """Maps of all scales from the image, finest first.

    Args:
        kind: ``cifar`` keeps the resolution; ``imagenet`` divides it by four.
        image_channels: channels of the image.
        widths: channels per map, finest first.
        strides: stride from each map to the next, one fewer than maps.
    """

    def __init__(self, kind: StemKind, image_channels: int, widths: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        first: nn.Module
        if kind == "cifar":
            first = ConvBlock(image_channels, widths[0])
        elif kind == "imagenet":
            first = nn.Sequential(
                nn.Conv2d(image_channels, widths[0], 7, stride=2, padding=3),
                nn.BatchNorm2d(widths[0]),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(3, stride=2, padding=1),
            )
        else:
            raise ValueError(f"stem must be 'cifar' or 'imagenet'; got {kind!r}")
        pairs = zip(widths[:-1], widths[1:], strides, strict=True)
        self.layers = nn.ModuleList([first, *(ConvBlock(wide, narrow, stride=s) for wide, narrow, s in pairs)])

    def forward(self, x: Tensor) -> list[Tensor]:
        """``(batch, channels, h, w)`` to one map per scale, finest first."""
        maps = []
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        return maps


class ConvHead(nn.Module):
    """Two strided convolutions, average pooling, linear: ``(batch, inputs, h, w)`` to ``(batch, num_classes)``."""

    def __init__(self, kind: StemKind, inputs: int, num_classes: int) -> None:
        super().__init__()
        width = _CIFAR_HEAD_CHANNELS if kind == "cifar" else inputs
        # The official pooling is AvgPool2d(2): the same values and cost on the published images, whose maps are 2x2
        # here, but only there.
        pooling = nn.AdaptiveAvgPool2d(1)
        self.m = nn.Sequential(ConvBlock(inputs, width, stride=2), ConvBlock(width, width, stride=2), pooling)
        self.linear = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a feature map of any size."""
        return self.linear(self.m(x).flatten(1))


class _DenseDownLayer(nn.Module):
    """``cat[x, down(finer), conv(x)]``: each adds half of the growth."""

    def __init__(self, finer: int, inputs: int, growth: int, finer_factor: int, factor: int) -> None:
        super().__init__()
        self.conv_down = Bottleneck(finer, growth // 2, finer_factor, stride=2)
        self.conv_normal = Bottleneck(inputs, growth // 2, factor)

    def forward(self, finer: Tensor, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv_down(finer), self.conv_normal(x)], dim=1)


class _MultiScaleLayer(nn.Module):
    """One layer over the remaining scales, finest first; may drop the finest."""

    def __init__(
        self,
        width: int,
        growth_rate: int,
        growth_factors: Sequence[int],
        bottleneck_factors: Sequence[int],
        finest: int,
        drops: bool,
    ) -> None:
        super().__init__()
        self.drops = drops
        self.layers = nn.ModuleList()
        for scale in range(finest, len(growth_factors)):
            growth = growth_rate * growth_factors[scale]
            inputs = width * growth_factors[scale]
            factor = bottleneck_factors[scale]
            if scale == finest and not drops:
                self.layers.append(DenseLayer(inputs, growth, factor))
            else:
                finer = width * growth_factors[scale - 1]
                self.layers.append(_DenseDownLayer(finer, inputs, growth, bottleneck_factors[scale - 1], factor))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        layers = list(self.layers)
        outputs = [] if self.drops else [layers.pop(0)(maps[0])]
        for layer, finer, x in zip(layers, maps[:-1], maps[1:], strict=True):
            outputs.append(layer(finer, x))
        return outputs


class _Transition(nn.Module):
    """1x1 convolution of every map."""

    def __init__(self, inputs: int, outputs: int, growth_factors: Sequence[int]) -> None:
        super().__init__()
        self.m = nn.ModuleList(ConvBlock(inputs * factor, outputs * factor, kernel=1) for factor in growth_factors)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return [convolution(x) for convolution, x in zip(self.m, maps, strict=True)]


class MSDNet(EarlyExitModel):
    """Multi-scale dense network with one exit per block.

    Takes images ``(batch, image_channels, height, width)`` of any size. What one stage hands to the next is the list of
    the remaining maps, finest first; training rescales the gradient of the coarsest only. Initialised as PyTorch
    initialises, which is what the official code does in effect.

    Args:
        num_classes: number of classes.
        num_blocks: number of blocks, which is the number of exits.
        base: layers of the first block.
        step: layers of each further block i: ``step`` where ``step_mode`` is ``even``, ``step * i + 1`` where it is
            ``lin_grow``.
        step_mode: see ``step``.
        channels: width of the first maps, to be multiplied by ``growth_factors``.
        growth_rate: channels that a layer adds, to be multiplied by ``growth_factors``.
        growth_factors: one per scale, finest first; their number is the number of scales.
        bottleneck_factors: one per scale: a bottleneck is at most that many times as wide as what it gives.
        reduction: share of the width that a transition keeps, in (0, 1]; 0 is for no transitions.
        prune: when the finest map is dropped: ``max`` after each ``ceil(layers / scales)`` layers, ``min`` as late as
            possible.
        stem: ``cifar``, or ``imagenet``, which divides the resolution by four and has wider heads.
        image_channels: channels of the images.
        reweight: see ``EarlyExitModel``.
        rescale: see ``EarlyExitModel``; on is the official ``msdnet_ge``, off its ``msdnet``.

    Raises:
        ValueError: an argument out of its range, or factors that do not fit each other.
    """

    def __init__(
        self,
        num_classes: int = 100,
        *,
        num_blocks: int = 10,
        base: int = 4,
        step: int = 2,
        step_mode: StepMode = "even",
        channels: int = 16,
        growth_rate: int = 6,
        growth_factors: Sequence[int] = (1, 2, 4),
        bottleneck_factors: Sequence[int] = (1, 2, 4),
        reduction: float = 0.5,
        prune: Literal["max", "min"] = "max",
        stem: StemKind = "cifar",
        image_channels: int = 3,
        reweight: float | Sequence[float] = 0.5,
        rescale: bool = True,
    ) -> None:
        settings = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        require_positive(
            num_classes=num_classes,
            num_blocks=num_blocks,
            base=base,
            step=step,
            channels=channels,
            growth_rate=growth_rate,
            image_channels=image_channels,
        )
        require_factors(growth_factors, bottleneck_factors)
        if not 0 <= reduction <= 1:
            raise ValueError(f"reduction must lie in [0, 1]; got {reduction}")
        if any(growth_rate * factor % 2 for factor in growth_factors[1:]):
            raise ValueError(
                f"growth_rate * growth_factor must be even beyond the first scale, for half of it comes from the finer "
                f"map; got growth_rate={growth_rate}, growth_factors={tuple(growth_factors)}"
            )
        steps = layers_per_block(num_blocks, base, step, step_mode)
        finest = _finest_scales(sum(steps), len(growth_factors), prune)

        stages: list[nn.Module] = []
        heads: list[nn.Module] = []
        width = channels
        layer = 0
        for block, layers_here in enumerate(steps):
            layers: list[nn.Module] = []
            if block == 0:
                widths = [channels * factor for factor in growth_factors]
                layers.append(FirstLayer(stem, image_channels, widths, [2] * (len(widths) - 1)))
            for _ in range(layers_here):
                layer += 1
                drops = finest[layer] > finest[layer - 1]
                layers.append(
                    _MultiScaleLayer(width, growth_rate, growth_factors, bottleneck_factors, finest[layer], drops)
                )
                width += growth_rate
                if reduction > 0 and _has_transition(layer, sum(steps), drops, prune):
                    reduced = math.floor(reduction * width)
                    layers.append(_Transition(width, reduced, growth_factors[finest[layer] :]))
                    width = reduced
            stages.append(nn.Sequential(*layers))
            heads.append(ConvHead(stem, width * growth_factors[-1], num_classes))
        super().__init__(stages, heads, reweight=reweight, rescale=rescale)
        self.settings = settings
        """Keyword arguments that make this network again."""


def layers_per_block(num_blocks: int, base: int, step: int, step_mode: StepMode) -> list[int]:
    """Layers of each block of MSDNet."""
    if step_mode not in ("even", "lin_grow"):
        raise ValueError(f"step_mode must be 'even' or 'lin_grow'; got {step_mode!r}")
    return [base] + [step if step_mode == "even" else step * i + 1 for i in range(1, num_blocks)]


def _finest_scales(layers: int, scales: int, prune: str) -> list[int]:
    """Finest scale left after each layer; entry 0 is the first layer's, which has all."""
    if prune == "max":
        interval = math.ceil(layers / scales)
        return [0] + [(layer - 1) // interval for layer in range(1, layers + 1)]
    if prune == "min":
        if layers < scales:
            raise ValueError(f"prune='min' needs at least as many layers as scales; got {layers} and {scales}")
        return [0] + [max(0, scales - (layers - layer + 1)) for layer in range(1, layers + 1)]
    raise ValueError(f"prune must be 'max' or 'min'; got {prune!r}")


def _has_transition(layer: int, layers: int, drops: bool, prune: str) -> bool:
    return drops if prune == "max" else layer in (layers // 3, 2 * layers // 3)


def require_positive(**arguments: int) -> None:
    """Raise ``ValueError`` that names the first argument that is not a positive integer."""
    for name, value in arguments.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer; got {value!r}")


def require_factors(growth_factors: Sequence[int], bottleneck_factors: Sequence[int]) -> None:
    """Raise ``ValueError`` where the factors per scale are not positive, or not equally many."""
    if not growth_factors or len(growth_factors) != len(bottleneck_factors):
        raise ValueError(
            f"growth_factors and bottleneck_factors need one number per scale; got {tuple(growth_factors)} and "
            f"{tuple(bottleneck_factors)}"
        )
    if min(*growth_factors, *bottleneck_factors) < 1:
        raise ValueError(
            f"growth_factors and bottleneck_factors must be positive; got {tuple(growth_factors)} and "
            f"{tuple(bottleneck_factors)}"
        )


_IMAGENET: dict[str, Any] = {
    "num_classes": 1000,
    "num_blocks": 5,
    "channels": 32,
    "growth_rate": 16,
    "growth_factors": (1, 2, 4, 4),
    "bottleneck_factors": (1, 2, 4, 4),
    "stem": "imagenet",
}

PUBLISHED_MSDNETS: dict[str, dict[str, Any]] = {
    "msdnet-cifar100-anytime": {"num_blocks": 10},
    "msdnet-cifar100-batch": {"num_blocks": 6},
    "msdnet-imagenet-step7": _IMAGENET | {"base": 7, "step": 7},
    "msdnet-imagenet-step5": _IMAGENET | {"base": 5, "step": 5},
    "msdnet-imagenet-step4": _IMAGENET | {"base": 4, "step": 4},
}
"""Published settings by name: arguments of ``MSDNet`` that differ from its defaults."""


def published_msdnet(name: str, **changes: Any) -> MSDNet:
    """An MSDNet with published settings.

    Args:
        name: one of ``PUBLISHED_MSDNETS``.
        changes: arguments of ``MSDNet`` to set otherwise.

    Raises:
        UserError: there is no such name.
    """
    if name not in PUBLISHED_MSDNETS:
        raise UserError(f"there is no published MSDNet {name!r}; choose one of {', '.join(PUBLISHED_MSDNETS)}")
    return MSDNet(**(PUBLISHED_MSDNETS[name] | changes))
