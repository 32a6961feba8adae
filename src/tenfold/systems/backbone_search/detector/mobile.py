"""Mobile backbones: a stem and stages of inverted, fused and Tucker bottlenecks; the three MobileDets exactly."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor, nn

from tenfold.errors import UserError
from tenfold.systems.backbone_search.detector.blocks import (
    Activation,
    ConvBNAct,
    FusedBottleneck,
    InvertedBottleneck,
    TuckerBottleneck,
    round8,
)
from tenfold.systems.backbone_search.detector.channels import ChannelLayout, Flow, Segment

Operator = Literal["ibn", "fused", "tucker"]


@dataclass(frozen=True)
class BlockPlan:
    """One block.

    Attributes:
        operator: ``ibn``, ``fused`` or ``tucker``.
        width: output channels.
        stride: 1 or 2.
        kernel: side of the kernel: 3, 5 or 7.
        expansion: hidden width over input width, of ``ibn`` and ``fused``.
        ranks: of ``tucker``: inner widths over input and output width.
        residual: whether input and output are added where their shapes allow it.
    """

    operator: Operator
    width: int
    stride: int = 1
    kernel: int = 3
    expansion: float = 4
    ranks: tuple[float, float] = (0.25, 0.75)
    residual: bool = True


@dataclass(frozen=True)
class MobilePlan:
    """A whole mobile backbone.

    Attributes:
        stem: channels of the 3 x 3 stride-2 stem.
        stages: blocks of each stage.
        taps: numbers of the three stages whose outputs at strides 8, 16 and 32 the neck reads.
        act: activation.
        se: squeeze-and-excitation in every ``ibn`` and ``fused`` block.
    """

    stem: int
    stages: tuple[tuple[BlockPlan, ...], ...]
    taps: tuple[int, int, int]
    act: Activation = "silu"
    se: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``from_dict`` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "MobilePlan":
        """A plan from what ``to_dict`` gave.

        Raises:
            UserError: a value is missing, unknown or out of range.
        """
        try:
            stages = tuple(
                tuple(BlockPlan(**{**block, "ranks": tuple(block["ranks"])}) for block in stage)
                for stage in values["stages"]
            )
            plan = cls(values["stem"], stages, tuple(values["taps"]), values["act"], values["se"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"this is not the plan of a mobile backbone: {error}") from error
        plan.check()
        return plan

    def check(self) -> None:
        """Refuse what cannot be built.

        Raises:
            UserError: names the first value that is out of range.
        """
        blocks = [block for stage in self.stages for block in stage]
        sizes = [self.stem, *(block.width for block in blocks)]
        if any(not isinstance(size, int) or not 1 <= size <= 8192 for size in sizes) or len(blocks) > 512:
            raise UserError("a mobile backbone has 1 to 8192 channels a layer and at most 512 blocks")
        for block in blocks:
            if block.operator not in ("ibn", "fused", "tucker") or block.kernel not in (1, 3, 5, 7):
                raise UserError(f"a block has operator ibn, fused or tucker and kernel 3, 5 or 7; got {block}")
            if block.stride not in (1, 2) or not 0 < block.expansion <= 64 or not all(0 < r <= 4 for r in block.ranks):
                raise UserError(f"a block has stride 1 or 2, expansion up to 64 and ranks up to 4; got {block}")
        if self.act not in ("silu", "relu", "relu6", "hswish", "lrelu"):
            raise UserError(f"there is no activation {self.act!r}")
        if sorted(set(self.taps)) != list(self.taps) or self.tap_strides() != (8, 16, 32):
            raise UserError(f"taps must be three stages at strides 8, 16 and 32; got stages {self.taps}")

    def tap_strides(self) -> tuple[int, ...]:
        """Stride of the map at each tap; empty where a tap is no stage."""
        strides, now = [], 2
        for stage in self.stages:
            for block in stage:
                now *= block.stride
            strides.append(now)
        return tuple(strides[tap] for tap in self.taps if 0 <= tap < len(strides))


def make_block(plan: BlockPlan, incoming: int, act: Activation, se: bool) -> nn.Module:
    """The module of a block plan, for this many input channels."""
    common = (incoming, plan.width, plan.kernel, plan.stride)
    if plan.operator == "tucker":
        return TuckerBottleneck(*common, plan.ranks, act, residual=plan.residual)
    kind = InvertedBottleneck if plan.operator == "ibn" else FusedBottleneck
    return kind(*common, plan.expansion, act, se=se, residual=plan.residual)


class MobileBackbone(nn.Module):
    """Stem and stages of a ``MobilePlan``.

    Weights are drawn as He et al. (fan-out), which the MobileDets' code does, too.
    """

    def __init__(self, plan: MobilePlan) -> None:
        super().__init__()
        self.plan = plan
        self.stem = ConvBNAct(3, plan.stem, 3, 2, act=plan.act)
        stages, incoming = [], plan.stem
        for blocks in plan.stages:
            made = []
            for block in blocks:
                made.append(make_block(block, incoming, plan.act, plan.se))
                incoming = block.width
            stages.append(nn.Sequential(*made))
        self.stages = nn.Sequential(*stages)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels at the three taps."""
        return tuple(self.plan.stages[tap][-1].width for tap in self.plan.taps)

    def forward(self, images: Tensor) -> list[Tensor]:
        """``(batch, 3, height, width)`` to the maps at strides 8, 16 and 32."""
        x, maps = self.stem(images), []
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number in self.plan.taps:
                maps.append(x)
        return maps

    def record(self, layout: ChannelLayout, name: str, flow: Flow) -> list[Flow]:
        """See ``ChannelLayout``."""
        flow, taps = self.stem.record(layout, f"{name}.stem", flow), []
        for number, stage in enumerate(self.stages):
            blocks: Any = stage
            for index, block in enumerate(blocks):
                flow = block.record(layout, f"{name}.stages.{number}.{index}", flow)
            if number in self.plan.taps:
                taps.append(flow)
        return taps


def image_flow(height: int, width: int) -> Flow:
    """The input of a network: three colour channels."""
    return Flow((Segment("image", 3),), height, width)


def _i(expansion: float, width: int, kernel: int = 3, stride: int = 1, residual: bool = True) -> BlockPlan:
    return BlockPlan("ibn", width, stride, kernel, expansion, residual=residual)


def _f(expansion: float, width: int, kernel: int = 3, stride: int = 1) -> BlockPlan:
    return BlockPlan("fused", width, stride, kernel, expansion)


def _t(rank_in: float, rank_out: float, width: int, residual: bool = True) -> BlockPlan:
    return BlockPlan("tucker", width, ranks=(rank_in, rank_out), residual=residual)


MobileDet = Literal["cpu", "dsp", "edgetpu"]


def mobiledet(name: MobileDet, multiplier: float = 1.0, act: Activation | None = None) -> MobilePlan:
    """A published MobileDet backbone (CVPR 2021, figure 6, and the public TensorFlow code).

    Args:
        name: ``cpu`` (gates everywhere, h-swish), ``dsp`` or ``edgetpu`` (ReLU6).
        multiplier: of every width, each rounded by ``round8``.
        act: another activation than the published one.

    Example:
        >>> mobiledet("cpu").taps
        (2, 4, 6)
    """
    stem: int
    stages: tuple[tuple[BlockPlan, ...], ...]
    if name == "cpu":
        stem, stages = 16, (
            (_i(1, 8),),
            (_i(4, 16, stride=2),),
            (_i(8, 32, stride=2), *[_i(4, 32)] * 3),
            (_i(8, 72, 5, 2), _i(8, 72), _i(4, 72, 5), _i(4, 72)),
            (_i(8, 72, residual=False), *[_i(8, 72)] * 3),
            (_i(8, 104, 5, 2), *[_i(4, 104, 5)] * 2, _i(4, 104)),
            (_i(8, 144),),
        )  # fmt: skip
    elif name == "dsp":
        stem, stages = 32, (
            (_i(1, 24),),
            (_f(4, 32, stride=2), _f(4, 32), _i(4, 32), _t(0.25, 0.75, 32)),
            (_f(8, 64, stride=2), _i(4, 64), *[_f(4, 64)] * 2),
            (_f(8, 120, stride=2), _i(4, 120), *[_i(8, 120)] * 2),
            (_f(8, 144), *[_i(8, 144)] * 3),
            (_i(4, 160, stride=2), _i(4, 160), _f(4, 160), _t(0.75, 0.75, 160)),
            (_i(8, 240),),
        )  # fmt: skip
    elif name == "edgetpu":
        stem, stages = 32, (
            (_t(0.25, 0.75, 16, residual=False),),
            (_f(8, 16, stride=2), _f(4, 16), _f(8, 16), _f(4, 16)),
            (_f(8, 40, 5, 2), *[_f(4, 40)] * 3),
            (_i(8, 72, stride=2), _i(8, 72), *[_f(4, 72)] * 2),
            (_i(8, 96, 5), _i(8, 96, 5), *[_i(8, 96)] * 2),
            (_i(8, 120, 5, 2), _i(8, 120), _i(4, 120, 5), _i(8, 120)),
            (_i(8, 384, 5),),
        )  # fmt: skip
    else:
        raise UserError(f"there is no MobileDet {name!r}; there are cpu, dsp and edgetpu")
    published: Activation = "hswish" if name == "cpu" else "relu6"
    plan = MobilePlan(stem, stages, (2, 4, 6), act or published, se=name == "cpu")
    return plan if multiplier == 1 else scale_widths(plan, multiplier)


def scale_widths(plan: MobilePlan, multiplier: float) -> MobilePlan:
    """The same backbone with every width times ``multiplier``, rounded by ``round8``.

    Args:
        plan: the backbone.
        multiplier: above 0.
    """
    scaled: Sequence[Sequence[BlockPlan]] = [
        [BlockPlan(**{**asdict(block), "width": round8(block.width * multiplier)}) for block in stage]
        for stage in plan.stages
    ]
    return MobilePlan(
        round8(plan.stem * multiplier), tuple(tuple(stage) for stage in scaled), plan.taps, plan.act, plan.se
    )
